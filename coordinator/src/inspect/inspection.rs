//! What is found at an address: how it is read, what is odd about it, why it is refused.

use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::manifest::Classes;
use serde::Serialize;

use crate::failure::Failure;

/// What an inspection may use besides the inspected file.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The model with which towers of targets are compared.
    pub base: Option<&'a Address>,
    /// The class list that captions and concepts are checked against.
    pub classes: Option<&'a Classes>,
    /// Folder for files downloaded from remote addresses.
    pub cache: &'a Path,
}

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The address.
    pub address: String,
    /// What it is, with its article.
    pub is: String,
    /// How it is read: names and values, in the order in which they are shown.
    pub read: Vec<(&'static str, String)>,
    /// What is odd about it and does not stop a run.
    pub odd: Vec<String>,
    /// Why Lethe refuses it; empty when it does not.
    pub problems: Vec<String>,
    /// What to look at next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Inspection {
    pub(super) fn of(address: &Address, is: impl Into<String>) -> Self {
        let (read, odd, problems) = (Vec::new(), Vec::new(), Vec::new());
        Self { address: address.to_string(), is: is.into(), read, odd, problems, next: None }
    }

    pub(super) fn row(&mut self, name: &'static str, value: impl Into<String>) {
        self.read.push((name, value.into()));
    }

    /// Formats it with one line per value, oddity and problem.
    pub fn lines(&self) -> String {
        let head = format!("{}: {}", self.address, self.is);
        let read = self.read.iter().map(|(name, value)| format!("  {name:<16}{value}"));
        let odd = self.odd.iter().map(|odd| format!("  {:<16}{odd}", "odd"));
        let problems = self.problems.iter().map(|problem| format!("  {:<16}{problem}", "refused"));
        let next = self.next.iter().map(|next| format!("  {:<16}{next}", "next"));
        let lines = std::iter::once(head).chain(read).chain(odd).chain(problems).chain(next);
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Runs a reader that blocks on a thread where it may.
pub(super) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))
}

/// Returns the value, or the problems of the input.
///
/// # Errors
/// Every other failure.
pub(super) fn accepted<T>(result: Result<T, Failure>) -> Result<Result<T, Vec<String>>, Failure> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Failure::BadInput(problems)) => Ok(Err(problems)),
        Err(other) => Err(other),
    }
}

/// Formats a number with commas.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inspection_is_one_line_a_value() {
        let address = Address::parse("/data/x.tar").unwrap();
        let mut inspection = Inspection::of(&address, "a shard");
        inspection.row("pairs", number(1_234_567));
        inspection.odd.push("it is".to_owned());
        inspection.problems.push("it is cut off".to_owned());
        assert_eq!(
            inspection.lines(),
            "/data/x.tar: a shard\n  pairs           1,234,567\n  odd             it is\n  refused         it is cut off"
        );
        assert_eq!([0, 12, 123, 1234].map(number), ["0", "12", "123", "1,234"]);
    }
}

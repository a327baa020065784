//! What a harness is, and what all of them check.

use lethe_shared::printable::is_hidden;

use crate::draw::Draw;

/// Most bytes of an error's message.
pub(crate) const MOST_OF_A_MESSAGE: usize = 8 << 10;

/// What a reader made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was read, and meant one thing.
    Accepted,
    /// It was refused, with an error that can be shown.
    Refused,
}

/// The check of one format.
#[derive(Debug)]
pub struct Harness {
    /// Its name, on the command line and in the corpus.
    pub name: &'static str,
    /// The most bytes of live memory that an input may cost, the harness's own included.
    pub memory: fn(&[u8]) -> usize,
    /// Valid inputs and others from which the committed corpus is made.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Generates an almost valid input.
    pub generate: fn(&mut Draw<'_>) -> Vec<u8>,
    /// Reads an input as the product does, and checks what comes of it.
    ///
    /// # Errors
    /// The property that does not hold.
    pub check: fn(&[u8]) -> Result<Outcome, String>,
}

/// The bound of memory for readers that hold an input a few times: 4 MiB, and 64 bytes per byte.
pub(crate) fn usual_memory(input: &[u8]) -> usize {
    (4 << 20) + 64 * input.len()
}

/// Checks that an error can be shown on one screen: no control or invisible character other than
/// line breaks and tabs, and at most 8 KiB.
///
/// # Errors
/// The property that does not hold.
pub(crate) fn refused(error: impl std::fmt::Display) -> Result<Outcome, String> {
    let message = error.to_string();
    if let Some(letter) =
        message.chars().find(|&letter| !matches!(letter, '\n' | '\t') && is_hidden(letter))
    {
        return Err(format!("the error contains {letter:?}: {message:?}"));
    }
    if message.len() > MOST_OF_A_MESSAGE {
        return Err(format!("the error has {} bytes", message.len()));
    }
    if message.is_empty() { Err("the error is empty".to_owned()) } else { Ok(Outcome::Refused) }
}

/// Returns an error that a caller puts into another one, as programs show it: they escape whole
/// messages, and cut them.
pub(crate) fn as_shown(error: impl std::fmt::Display) -> String {
    lethe_shared::fault::Fault::input(error.to_string()).message
}

/// Returns an error when a property does not hold.
pub(crate) fn hold(holds: bool, property: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(property()) }
}

/// Returns an error when two values differ.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    one: &T,
    other: &T,
) -> Result<(), String> {
    hold(one == other, || format!("{what} differ:\n{one:?}\n{other:?}"))
}

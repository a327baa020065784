//! Whether a machine and what it is to reach are fit for Lethe: each thing a finding, with what to do when it is not.
//!
//! | file | what |
//! |---|---|
//! | `machine.rs` | disk, memory, secrets' files |
//! | `store.rs` | the object store, and its clock |
//! | `queue/nats/examine.rs` | server, JetStream and permissions |
//!
//! libtorch and the device are the worker's to look at. Whatever is written for a test is taken away again.

mod machine;
mod store;

use std::fmt::Write;
use std::time::Duration;

pub use machine::{cache, files, memory};
use serde::Serialize;
pub use store::examine as store;

use crate::exit;

/// Longest wait for one answer: a person is waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and someone should know.
    Warning,
    /// It does not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, found: found.into(), fix: None }
    }

    /// It works, but.
    pub fn warning(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    /// It does not work.
    pub fn failed(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Failed, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of it.
    pub state: State,
    /// One by one.
    pub findings: Vec<Finding>,
}

impl Report {
    /// A report of these.
    pub fn of(findings: Vec<Finding>) -> Self {
        Self { state: findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok), findings }
    }

    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        if self.state == State::Failed { exit::INFRASTRUCTURE } else { exit::DONE }
    }

    /// One line a finding.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for Finding { name, state, found, fix } in &self.findings {
            let state = match state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Failed => "failed",
            };
            let fix = fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
            // Servers' words may hold anything, and a finding is one line.
            let said: String = format!("{found}{fix}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let _ = writeln!(text, "  {state:<9}{name:<14}{said}");
        }
        text.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_and_each_is_one_line() {
        let report = Report::of(vec![Finding::ok("a", "fine"), Finding::warning("b", "slow\nreally", "buy another")]);
        assert_eq!((report.state, report.exit_code()), (State::Warning, exit::DONE));
        assert_eq!(report.lines(), "  ok       a             fine\n  warning  b             slow really; buy another");
        let report = Report::of([report.findings, vec![Finding::failed("c", "gone", "look for it")]].concat());
        assert_eq!((report.state, report.exit_code()), (State::Failed, exit::INFRASTRUCTURE));
        assert_eq!(Report::of(Vec::new()).exit_code(), exit::DONE);
    }
}

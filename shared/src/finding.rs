//! Findings of `lethe doctor` and `lethe-worker check`: what was checked, how it is, and what to do
//! about it.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::exit;
use crate::printable::printable_message;

/// Longest wait for one answer of a checked service: a person is waiting.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In order.
    Ok,
    /// It works, with a limitation.
    Warning,
    /// It does not work.
    Failed,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub name: String,
    /// The result.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// Creates a finding that is in order.
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, found: found.into(), fix: None }
    }

    /// Creates a finding that works with a limitation.
    pub fn warning(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Warning,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }

    /// Creates a finding that does not work.
    pub fn failed(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            state: State::Failed,
            found: found.into(),
            fix: Some(fix.into()),
        }
    }
}

/// The results of all checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst state.
    pub state: State,
    /// All findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Creates a report of these findings.
    pub fn of(findings: Vec<Finding>) -> Self {
        Self {
            state: findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok),
            findings,
        }
    }

    /// Returns the documented exit code.
    pub fn exit_code(&self) -> u8 {
        if self.state == State::Failed { exit::INFRASTRUCTURE } else { exit::DONE }
    }

    /// Formats the report with one line per finding.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for Finding { name, state, found, fix } in &self.findings {
            let state = match state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Failed => "failed",
            };
            let fix = fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
            // Messages of servers may contain line breaks, and a finding is one line.
            let said = printable_message(&format!("{found}{fix}").replace(['\n', '\r', '\t'], " "));
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
        let report = Report::of(vec![
            Finding::ok("a", "fine"),
            Finding::warning("b", "slow\nreally", "buy another"),
        ]);
        assert_eq!((report.state, report.exit_code()), (State::Warning, exit::DONE));
        assert_eq!(
            report.lines(),
            "  ok       a             fine\n  warning  b             slow really; buy another"
        );
        let report = Report::of(
            [report.findings, vec![Finding::failed("c", "gone", "look for it")]].concat(),
        );
        assert_eq!((report.state, report.exit_code()), (State::Failed, exit::INFRASTRUCTURE));
        assert_eq!(Report::of(Vec::new()).exit_code(), exit::DONE);
    }
}

//! Names of streams and subjects. Only this module contains them.
//!
//! | subject | stream | what |
//! |---|---|---|
//! | `lethe.jobs.<run>.<kind>.<job>` | `LETHE_JOBS`, work queue | jobs that wait or are delivered |
//! | `lethe.dead.<run>.<job>` | `LETHE_DEAD` | the last dead letter of each job |
//! | `lethe.ledger.<run>.<job>` | `LETHE_LEDGER` | how the deliveries of a job ended, written after one that did not succeed |
//! | `lethe.lease.<run>` | `LETHE_LEASES` | who coordinates a run |
//! | `lethe.notices.<run>` | none | notices for subscribers |
//! | `lethe.control` | none | requests to a long-lived coordinator |

use lethe_shared::job::Job;
use lethe_shared::reference::JobId;

pub(super) const JOBS: &str = "LETHE_JOBS";
pub(super) const DEAD: &str = "LETHE_DEAD";
pub(super) const LEDGER: &str = "LETHE_LEDGER";
pub(super) const LEASES: &str = "LETHE_LEASES";
/// The one consumer of jobs; all workers pull from it.
pub(super) const CONSUMER: &str = "workers";
/// The header that carries a trace context.
pub(super) const TRACEPARENT: &str = "traceparent";
/// Subject of requests to coordinators.
pub(super) const CONTROL: &str = "lethe.control";
/// Queue group of coordinators: one of them replies.
pub(super) const CONTROL_GROUP: &str = "coordinators";
/// Stands for the run of a dead letter whose subject names none.
pub(super) const NOBODY: &str = "~";

/// Encodes a text as one token of a subject: a character with a meaning in subjects becomes `~` and
/// two hex digits.
pub(super) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("~{byte:02x}"));
        }
    }
    token
}

pub(super) fn job(job: &Job) -> String {
    format!("lethe.jobs.{}.{}.{}", token(&job.run), job.kind(), job.id())
}

pub(super) fn jobs(run: &str) -> String {
    format!("lethe.jobs.{}.>", token(run))
}

pub(super) fn dead(run: &str, job: JobId) -> String {
    format!("lethe.dead.{}.{job}", token(run))
}

pub(super) fn dead_of(run: &str) -> String {
    format!("lethe.dead.{}.>", token(run))
}

/// Decodes a token.
fn untoken(token: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(token.len()), token);
    while let Some(first) = rest.bytes().next() {
        let (byte, taken) = match first {
            b'~' => (u8::from_str_radix(rest.get(1..3)?, 16).ok()?, 3),
            plain => (plain, 1),
        };
        bytes.push(byte);
        rest = rest.get(taken..)?;
    }
    String::from_utf8(bytes).ok()
}

/// Returns run and job of a job's subject.
pub(super) fn run_and_job(subject: &str) -> Option<(String, JobId)> {
    match subject.split('.').collect::<Vec<_>>()[..] {
        ["lethe", "jobs", run, _, job] => Some((untoken(run)?, job.parse().ok()?)),
        _ => None,
    }
}

/// Returns the subject of the delivery history for a job's subject.
pub(super) fn ledger_of(subject: &str) -> Option<String> {
    match subject.split('.').collect::<Vec<_>>()[..] {
        ["lethe", "jobs", run, _, job] => Some(format!("lethe.ledger.{run}.{job}")),
        _ => None,
    }
}

pub(super) fn lease(run: &str) -> String {
    format!("lethe.lease.{}", token(run))
}

pub(super) fn notices(run: &str) -> String {
    format!("lethe.notices.{}", token(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_one_token_and_stay_apart() {
        assert_eq!(token("emoji-100-53354f5ee8ee"), "emoji-100-53354f5ee8ee");
        assert_eq!(token("a.b"), "a~2eb");
        assert_eq!(token("* >\n"), "~2a~20~3e~0a");
        assert_ne!(token("a~2eb"), token("a.b"));
    }

    #[test]
    fn a_message_leads_to_its_ledger() {
        let job = crate::conformance::job("a.b", 1);
        assert_eq!(ledger_of(&super::job(&job)), Some(format!("lethe.ledger.a~2eb.{}", job.id())));
        assert_eq!(run_and_job(&super::job(&job)), Some(("a.b".to_owned(), job.id())));
        assert_eq!(["lethe.jobs.r.k.x", "lethe.jobs.~z.k"].map(run_and_job), [None, None]);
        assert_eq!(["lethe.jobs.r", "lethe.jobs.a.b.c.d"].map(ledger_of), [None, None]);
    }
}

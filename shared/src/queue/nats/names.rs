//! Names of streams and subjects; nothing outside the NATS queue names one.
//!
//! | subject | stream | what |
//! |---|---|---|
//! | `lethe.jobs.<run>.<kind>.<job>` | `LETHE_JOBS`, work queue | jobs that wait or are in hand |
//! | `lethe.dead.<run>.<job>` | `LETHE_DEAD` | dead letters, the last of each job |
//! | `lethe.ledger.<run>.<job>` | `LETHE_LEDGER` | how the deliveries of a job ended, written when one did not succeed |
//! | `lethe.lease.<run>` | `LETHE_LEASES` | who coordinates a run |
//! | `lethe.notices.<run>` | none | what happens, for those who listen |
//! | `lethe.control` | none | questions to a long-lived coordinator |

use crate::job::{Job, JobId};

pub(super) const JOBS: &str = "LETHE_JOBS";
pub(super) const DEAD: &str = "LETHE_DEAD";
pub(super) const LEDGER: &str = "LETHE_LEDGER";
pub(super) const LEASES: &str = "LETHE_LEASES";
/// The one consumer of jobs; all workers pull from it.
pub(super) const CONSUMER: &str = "workers";
/// Questions to coordinators.
pub(super) const CONTROL: &str = "lethe.control";
/// Those of whom one answers.
pub(super) const CONTROL_GROUP: &str = "coordinators";
/// Subjects of dead letters that say of no run whose they are.
pub(super) const NOBODY: &str = "~";

/// A text as one token of a subject: what subjects give a meaning to is written as `~` and two hex digits.
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

pub(super) fn ledger(run: &str, job: JobId) -> String {
    format!("lethe.ledger.{}.{job}", token(run))
}

/// The ledger of the message under a job's subject.
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
        let job = crate::queue::conformance::job("a.b", 1);
        assert_eq!(ledger_of(&super::job(&job)), Some(ledger("a.b", job.id())));
        assert_eq!(["lethe.jobs.r", "lethe.jobs.a.b.c.d"].map(ledger_of), [None, None]);
    }
}

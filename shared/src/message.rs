//! What processes tell each other: notices about jobs, and requests to a long-lived coordinator
//! with their replies.
//!
//! [`codec`](crate::codec) turns them into bytes. A message is never the truth: lasting data is in
//! the object store.

use crate::fault::Fault;
use crate::job::Job;
use crate::reference::JobId;

/// An event of a job, for progress displays.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The run.
    pub run: String,
    /// The job.
    pub job: JobId,
    /// Number of the delivery, from 1.
    pub attempt: u32,
    /// The worker that sent it.
    pub worker: String,
    /// What happened.
    pub event: Event,
}

/// An event of a job, or of the worker that had it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker is executing the job; repeated with every heartbeat.
    Started,
    /// The job has finished: its outcome is in the store.
    Finished {
        /// Wall-clock duration in seconds.
        seconds: f64,
    },
    /// An attempt failed.
    Failed {
        /// Why.
        fault: Fault,
        /// Whether it will be delivered again.
        will_retry: bool,
    },
    /// The job is a dead letter: it will not be delivered again.
    DeadLettered {
        /// Why.
        fault: Fault,
    },
    /// The worker has paused until its self-check passes.
    Paused {
        /// Why the self-check fails.
        reason: String,
    },
    /// The self-check of the worker has passed: it takes jobs again.
    Resumed,
}

/// A job that will not be delivered again, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The job.
    pub job: Job,
    /// How often it was delivered.
    pub attempts: u32,
    /// The last fault.
    pub fault: Fault,
}

/// Jobs and workers on a queue, of all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs that wait for delivery.
    pub waiting: usize,
    /// Jobs that are delivered and not yet answered.
    pub in_hand: usize,
    /// Workers that wait for a job.
    pub asking: usize,
}

/// A request to a long-lived coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Accept a run.
    Submit {
        /// The submission, as JSON.
        submission: String,
    },
    /// Report the status of runs.
    Status {
        /// One run, or all that the coordinator knows.
        run: Option<String>,
    },
    /// Cancel a run; its finished jobs keep their outcomes.
    Cancel {
        /// The run.
        run: String,
    },
    /// Continue a run that ended incomplete.
    Resume {
        /// The run.
        run: String,
    },
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The request succeeded.
    Done {
        /// A JSON document.
        json: String,
    },
    /// The request failed.
    Refused {
        /// The exit code for the command.
        exit_code: u8,
        /// What is wrong, and what to do.
        problem: String,
    },
}

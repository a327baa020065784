//! The queue between coordinator and workers.
//!
//! A queue carries jobs and notices; it holds no truth. A job that is delivered and neither answered nor kept alive is
//! delivered again, so that the same job may be done twice: outcomes are written once under the job's id, and the second
//! is the same as the first.
//!
//! [`MemoryQueue`] serves one process, [`nats`] many; what a queue must do is the same everywhere (`conformance` holds it
//! against both).

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod memory;
pub mod nats;
mod trace;

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
pub use memory::MemoryQueue;
pub use trace::traceparent;

use crate::job::{Job, JobId};

/// What can go wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue cannot be reached, or gave up.
    #[error("queue: {0}")]
    Unavailable(String),
    /// The queue does not let us do what we must: bad credentials, a stream of ours that someone has made otherwise.
    #[error("queue: {0}")]
    Refused(String),
    /// A message cannot be written or read.
    #[error(transparent)]
    Codec(#[from] crate::codec::Error),
}

impl Error {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// What is wrong, where it is said already that it is about the queue.
    pub fn problem(&self) -> String {
        match self {
            Self::Unavailable(problem) | Self::Refused(problem) => problem.clone(),
            Self::Codec(error) => error.to_string(),
        }
    }
}

/// When a job is given up. A job that is handed back, by a worker that must stop, counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A delivery without a sign of life for this long is delivered again.
    pub patience: Duration,
    /// Attempts that may fail.
    pub failures: u32,
    /// Deliveries that may end in silence: the worker died, or its machine did.
    pub silences: u32,
    /// Deliveries at most, however they end.
    pub deliveries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { patience: Duration::from_secs(60), failures: 5, silences: 10, deliveries: 1000 }
    }
}

/// Something that happened to a job; for people and progress bars, never the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The run.
    pub run: String,
    /// The job.
    pub job: JobId,
    /// Which delivery, from 1.
    pub attempt: u32,
    /// Who says so.
    pub worker: String,
    /// What happened.
    pub event: Event,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker has begun.
    Started,
    /// The outcome is in the store.
    Finished {
        /// Wall-clock seconds it took.
        seconds: f64,
    },
    /// An attempt failed.
    Failed {
        /// Why.
        error: String,
        /// Whether it will be delivered again.
        will_retry: bool,
    },
    /// The job is a dead letter: it will not be delivered again.
    Buried {
        /// Why.
        error: String,
        /// Whose fault it is.
        cause: Cause,
    },
}

/// Whose fault a dead letter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The job's input: doing it again gives the same.
    Input,
    /// What is around it: disk, network, a worker that died. It may do better another time.
    Circumstances,
}

/// A job that will not be delivered again, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The job.
    pub job: Job,
    /// How often it was delivered.
    pub attempts: u32,
    /// The last error.
    pub error: String,
    /// Whose fault it is.
    pub cause: Cause,
}

/// What lies on a queue and who is there, of all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs in workers' hands.
    pub in_hand: usize,
    /// Workers that ask for a job.
    pub asking: usize,
}

/// Notices of one run, from when they were asked for.
pub type Notices = Pin<Box<dyn Stream<Item = Notice> + Send>>;

/// A queue of jobs.
#[async_trait]
pub trait Queue: Debug + Send + Sync {
    /// Adds a job. A job of this run that is waiting or delivered is not added again.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn publish(&self, job: &Job) -> Result<(), Error>;

    /// Takes the next job, waiting at most this long.
    ///
    /// # Cancel safety
    /// A cancelled call has taken no job.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn pull(&self, wait: Duration) -> Result<Option<Delivery>, Error>;

    /// Tells those who listen to the job's run.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn announce(&self, notice: &Notice) -> Result<(), Error>;

    /// Listens to a run.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn notices(&self, run: &str) -> Result<Notices, Error>;

    /// Takes back the jobs of a run that nobody has begun.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn purge(&self, run: &str) -> Result<(), Error>;

    /// The dead letters of a run.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn dead_letters(&self, run: &str) -> Result<Vec<DeadLetter>, Error>;

    /// Forgets a job's dead letter, before the job is published anew.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn drop_dead_letter(&self, run: &str, job: JobId) -> Result<(), Error>;

    /// What lies on the queue and who is there, of all runs.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn backlog(&self) -> Result<Backlog, Error>;
}

/// A job in a worker's hands.
#[derive(Debug)]
pub struct Delivery {
    /// The job.
    pub job: Job,
    /// Which delivery of it this is, from 1.
    pub attempt: u32,
    /// Whether a failure of this attempt is the last.
    pub is_last: bool,
    /// How long the queue waits for a sign of life.
    pub patience: Duration,
    /// W3C trace context of this job in its run: [`traceparent`].
    pub traceparent: String,
    /// Answers the queue.
    pub receipt: Box<dyn Receipt>,
}

/// A worker's answer to a delivery. Dropped without an answer, the job is delivered again when patience ends.
#[async_trait]
pub trait Receipt: Debug + Send + Sync {
    /// Asks for more time.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn heartbeat(&self) -> Result<(), Error>;

    /// The outcome is in the store.
    ///
    /// # Errors
    /// When the queue cannot be reached; the job may then be delivered again, and is found done.
    async fn done(self: Box<Self>) -> Result<(), Error>;

    /// The attempt failed: asks for another delivery after some time; the last attempt's job becomes a dead letter.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn retry(self: Box<Self>, after: Duration, error: &str) -> Result<(), Error>;

    /// Makes the job a dead letter: its input is at fault.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn bury(self: Box<Self>, error: &str) -> Result<(), Error>;

    /// Gives the job to another worker after some time; this is no failure.
    ///
    /// # Errors
    /// When the queue cannot be reached; the job is then delivered again when patience ends.
    async fn hand_back(self: Box<Self>, after: Duration) -> Result<(), Error>;
}

//! The queue between coordinator and workers.
//!
//! A queue carries jobs and notices; it holds no truth. A job that is delivered and neither answered nor kept alive is
//! delivered again, so that the same job may be done twice: outcomes are written once under the job's id, and the second
//! is the same as the first.
//!
//! [`MemoryQueue`] serves one process; what a queue must do is the same everywhere.

mod memory;

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
pub use memory::{MemoryQueue, Options};

use crate::job::{Job, JobId};

/// What can go wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue cannot be reached, or gave up.
    #[error("queue: {0}")]
    Unavailable(String),
    /// A message cannot be written or read.
    #[error(transparent)]
    Codec(#[from] crate::codec::Error),
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

/// Notices of one run, from when they were asked for.
pub type Notices = Pin<Box<dyn Stream<Item = Notice> + Send>>;

/// A queue of jobs.
#[async_trait]
pub trait Queue: Debug + Send + Sync {
    /// Adds a job. A job of this run that is waiting, delivered or done already is not added again.
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

    /// Asks for another delivery after some time; the last attempt's job becomes a dead letter.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn retry(self: Box<Self>, after: Duration, error: &str) -> Result<(), Error>;

    /// Makes the job a dead letter: its input is at fault.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn bury(self: Box<Self>, error: &str) -> Result<(), Error>;
}

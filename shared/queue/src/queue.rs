//! The trait that every queue implements, and a delivery of one job.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use futures::Stream;
use lethe_shared::fault::{Decision, Fault, History, Limits, decide};
use lethe_shared::job::Job;
use lethe_shared::message::{Backlog, DeadLetter, Notice};
use lethe_shared::reference::JobId;

use crate::error::Error;

/// Notices of one run, starting when they are subscribed to.
pub type Notices = Pin<Box<dyn Stream<Item = Notice> + Send>>;

/// A queue of jobs.
#[async_trait]
pub trait Queue: Debug + Send + Sync {
    /// Adds a job, unless the same job of the same run is waiting or delivered already.
    ///
    /// # Cancel safety
    /// A cancelled call may have added the job. Calling it again does not add the job a second
    /// time.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn publish(&self, job: &Job) -> Result<(), Error>;

    /// Takes the next job, waiting for one for at most `wait`. Returns `None` when none came.
    ///
    /// # Cancel safety
    /// A cancelled call has taken no job.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn pull(&self, wait: Duration) -> Result<Option<Delivery>, Error>;

    /// Sends a notice to everyone who is subscribed to its run.
    ///
    /// # Cancel safety
    /// A cancelled call may have sent the notice.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn announce(&self, notice: &Notice) -> Result<(), Error>;

    /// Subscribes to the notices of a run.
    ///
    /// # Cancel safety
    /// A cancelled call leaves no subscription behind.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn notices(&self, run: &str) -> Result<Notices, Error>;

    /// Removes the waiting jobs of a run. Delivered jobs are not affected.
    ///
    /// # Cancel safety
    /// A cancelled call may have removed some of the jobs. Calling it again removes the others.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn purge(&self, run: &str) -> Result<(), Error>;

    /// Returns the dead letters of a run.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn dead_letters(&self, run: &str) -> Result<Vec<DeadLetter>, Error>;

    /// Removes a job's dead letter, so that the job can be published again.
    ///
    /// # Cancel safety
    /// A cancelled call may have removed the dead letter.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn drop_dead_letter(&self, run: &str, job: JobId) -> Result<(), Error>;

    /// Counts the jobs of all runs and the workers that wait for one.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn backlog(&self) -> Result<Backlog, Error>;
}

/// A job that was delivered to a worker. A delivery that is dropped without an answer is repeated
/// after [`Limits::ack_wait`].
#[derive(Debug)]
pub struct Delivery {
    /// The job.
    pub job: Job,
    /// Number of this delivery, from 1.
    pub attempt: u32,
    /// How earlier deliveries of the job ended.
    pub history: History,
    /// Limits after which the job becomes a dead letter.
    pub limits: Limits,
    /// W3C trace context of the job: [`traceparent`](crate::traceparent).
    pub traceparent: String,
    /// Sends the answer to the queue.
    pub receipt: Box<dyn Receipt>,
}

impl Delivery {
    /// Extends the time that the worker has for the job by [`Limits::ack_wait`].
    ///
    /// # Cancel safety
    /// A cancelled call may have extended the time.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn heartbeat(&self) -> Result<(), Error> {
        self.receipt.heartbeat().await
    }

    /// Acknowledges the job: its outcome is in the store.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the job unacknowledged. It is then delivered again after
    /// [`Limits::ack_wait`], and its outcome is found in the store.
    ///
    /// # Errors
    /// When the queue cannot be reached; the job may then be delivered again, and its outcome is
    /// found.
    pub async fn done(self) -> Result<(), Error> {
        self.receipt.ack().await
    }

    /// Answers for an attempt that failed on `machine` as [`decide`] decides, and returns the
    /// decision.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the delivery unanswered. The job is then delivered again after
    /// [`Limits::ack_wait`], and the attempt counts as a missed heartbeat.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn failed(mut self, fault: &Fault, machine: &str) -> Result<Decision, Error> {
        let decision = decide(fault, &mut self.history, &self.limits, machine);
        match &decision {
            Decision::Redeliver(after) => self.receipt.redeliver(*after, &self.history).await?,
            Decision::DeadLetter(fault) => self.receipt.dead_letter(fault).await?,
        }
        Ok(decision)
    }

    /// Releases the job for immediate redelivery. It does not count as a failure: a worker that
    /// shuts down uses it.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the delivery unanswered. The job is then delivered again after
    /// [`Limits::ack_wait`].
    ///
    /// # Errors
    /// When the queue cannot be reached; the job is then delivered again after
    /// [`Limits::ack_wait`].
    pub async fn release(mut self) -> Result<(), Error> {
        self.history.released += 1;
        self.receipt.redeliver(Duration::ZERO, &self.history).await
    }
}

/// The queue's side of a delivery; [`Delivery`] uses it.
#[async_trait]
pub trait Receipt: Debug + Send + Sync {
    /// Extends the time that the worker has for the job by [`Limits::ack_wait`].
    ///
    /// # Cancel safety
    /// A cancelled call may have extended the time.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn heartbeat(&self) -> Result<(), Error>;

    /// Removes the job.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the job unacknowledged.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn ack(self: Box<Self>) -> Result<(), Error>;

    /// Schedules the job for redelivery after some time, with this history.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the delivery unanswered. The job is then delivered again after
    /// [`Limits::ack_wait`].
    ///
    /// # Errors
    /// When the queue cannot be reached; the job is then delivered again after
    /// [`Limits::ack_wait`].
    async fn redeliver(self: Box<Self>, after: Duration, history: &History) -> Result<(), Error>;

    /// Makes the job a dead letter.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the dead letter. Another delivery of the job replaces it.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    async fn dead_letter(self: Box<Self>, fault: &Fault) -> Result<(), Error>;
}

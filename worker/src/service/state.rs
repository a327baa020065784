//! What the slots of a worker and its self-checks share: the queue, the store, and whether the
//! worker is paused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lethe_operations::Health;
use lethe_operations::metrics::metrics;
use lethe_queue::{Event, Notice, Queue};
use lethe_shared::fault::Fault;
use lethe_shared::job::Job;
use lethe_store::Store;
use tokio::sync::watch;
use tracing::debug;

use super::engine_thread::Execute;

/// Name of the condition in [`Health`] that is unmet while a worker is paused.
pub const SELF_CHECK: &str = "self-check";

/// The parts of a worker that its tasks share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Store,
    pub(super) engine: Arc<dyn Execute>,
    pub(super) name: String,
    /// When a job fails in computation on two different machines, its input is at fault.
    pub(super) machine: String,
    pub(super) health: Health,
    /// The reason why the worker is paused; `None` while it takes jobs.
    pub(super) pause_reason: watch::Sender<Option<String>>,
    pub(super) pauses: Mutex<Pauses>,
}

/// The pauses of a worker and their reasons.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Pauses and failed self-checks since the last job that succeeded.
    pub(super) failures: u32,
    /// The job whose fault caused the pause, for self-checks.
    pub(super) job: Option<Job>,
    /// The problem because of which the process has to end.
    pub(super) fatal: Option<String>,
}

impl State {
    pub(super) fn pauses(&self) -> MutexGuard<'_, Pauses> {
        // A poisoned lock is harmless: each field is set as a whole and is valid on its own.
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses all slots after a job failed with an environment fault.
    pub(super) fn pause(&self, job: &Job, fault: &Fault) {
        let mut pauses = self.pauses();
        if pauses.job.is_none() {
            pauses.failures += 1;
            pauses.job = Some(job.clone());
        }
        drop(pauses);
        self.health.unmet(SELF_CHECK, fault);
        metrics().worker_paused(true);
        self.pause_reason.send_replace(Some(fault.message.clone()));
    }

    /// Resets the delays between self-checks after a job has succeeded.
    pub(super) fn succeeded(&self) {
        self.pauses().failures = 0;
    }

    /// Announces an event to the coordinator. Notices only save time; the store is authoritative.
    pub(super) async fn announce(&self, worker: &str, job: &Job, attempt: u32, event: Event) {
        let (run, job, worker) = (job.run.clone(), job.id(), worker.to_owned());
        if let Err(error) = self.queue.announce(&Notice { run, job, attempt, worker, event }).await
        {
            debug!(%error, "cannot send a notice");
        }
    }
}

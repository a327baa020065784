//! The loop of a worker: pull a job, execute it while extending its ack wait, write its outcome,
//! acknowledge it.
//!
//! The worker writes the outcome to the store before it acknowledges the job, so no finished work
//! is lost. A job whose outcome is already in the store is acknowledged without being executed
//! again.
//!
//! A fault of the environment, a computation or the device means that this worker may be broken. The worker releases the job, pauses,
//! and checks itself at growing intervals ([`Execute::check`]). It takes jobs again when the check
//! passes. A broken worker thus costs its run time, but never a concept.
//!
//! | file | content |
//! |---|---|
//! | `mod.rs` | the worker: its slots, its pauses, its self-checks |
//! | `slot.rs` | the loop of one slot: one job at a time |
//! | `engine_thread.rs` | the thread on which a slot's jobs are computed |

mod engine_thread;
mod slot;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lethe_operations::Health;
use lethe_operations::metrics::metrics;
use lethe_queue::{Event, Notice, Queue};
use lethe_shared::fault::{Class, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::retry::{GiveUp, RetryPolicy};
use lethe_store::Store;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::engine_thread::{EngineThread, panicked};
use self::slot::Slot;
use crate::engine::{Engine, Options, Stopped};

/// Delays between self-checks of a paused worker.
const SELF_CHECK_RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(1),
    most: Duration::from_secs(300),
    give_up: GiveUp::Never,
};
/// Name of the condition in [`Health`] that is unmet while a worker is paused.
pub const SELF_CHECK: &str = "self-check";

/// Executes jobs.
pub trait Execute: Debug + Send + Sync {
    /// Executes a job on the calling thread, which does not belong to the runtime. Does not store
    /// the outcome.
    ///
    /// # Errors
    /// The reason why there is no outcome.
    fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Stopped>;

    /// Checks whether this worker could execute a job that has failed here: device, store, disk,
    /// and the job's own inputs. Called on a thread that does not belong to the runtime.
    ///
    /// # Errors
    /// The first problem found. Its origin is [`Origin::Device`] when only a new process can help.
    fn check(&self, job: &Job) -> Result<(), Fault>;
}

impl Execute for Engine {
    fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Stopped> {
        Self::execute(self, job, cancel)
    }

    fn check(&self, job: &Job) -> Result<(), Fault> {
        Self::check(self, job)
    }
}

/// A worker: takes jobs from a queue and executes them until it is told to stop.
///
/// # Example
/// ```no_run,standalone_crate
/// use std::sync::Arc;
///
/// use lethe_queue::{Limits, MemoryQueue};
/// use lethe_store::Store;
/// use lethe_worker::engine::Options;
/// use lethe_worker::service::Service;
/// use tokio_util::sync::CancellationToken;
///
/// # async fn example() -> std::io::Result<()> {
/// let queue = Arc::new(MemoryQueue::new(Limits::default()));
/// let options = Options::new("worker-1".to_owned(), tch::Device::Cpu, std::env::temp_dir());
/// let service = Service::new(options, 2, queue, Store::in_memory());
/// let (drain, cancel) = (CancellationToken::new(), CancellationToken::new());
/// // Cancelling `drain` ends the worker after its current jobs, cancelling `cancel` releases them.
/// service.run(drain, cancel).await
/// # }
/// ```
#[derive(Debug)]
pub struct Service {
    queue: Arc<dyn Queue>,
    store: Store,
    engine: Arc<dyn Execute>,
    name: String,
    machine: String,
    threads: usize,
    health: Health,
    /// The reason why the worker is paused; `None` while it takes jobs.
    pause_reason: watch::Sender<Option<String>>,
    pause_state: Mutex<PauseState>,
}

/// The state of pauses and self-checks.
#[derive(Debug, Default)]
struct PauseState {
    /// Pauses and failed self-checks since the last job that succeeded.
    failures: u32,
    /// The job whose fault caused the pause, for self-checks.
    job: Option<Job>,
    /// The problem because of which the process has to end.
    fatal: Option<String>,
}

impl Service {
    /// Creates a worker with this many engine threads, each of which executes one job at a time.
    /// Must be called on a runtime.
    pub fn new(options: Options, threads: usize, queue: Arc<dyn Queue>, store: Store) -> Self {
        let (name, machine) = (options.worker.clone(), options.machine.clone());
        let engine = Arc::new(Engine::new(options, store.clone(), Handle::current()));
        Self { machine, ..Self::with_engine(engine, &name, threads, queue, store) }
    }

    /// Creates a worker with any engine.
    pub fn with_engine(
        engine: Arc<dyn Execute>,
        name: &str,
        threads: usize,
        queue: Arc<dyn Queue>,
        store: Store,
    ) -> Self {
        let (name, machine) = (name.to_owned(), name.to_owned());
        let pause_reason = watch::Sender::new(None);
        Self {
            queue,
            store,
            engine,
            name,
            machine,
            threads,
            health: Health::default(),
            pause_reason,
            pause_state: Mutex::default(),
        }
    }

    /// Sets the name of the machine. When a job fails in computation on two different machines, its
    /// input is at fault.
    #[must_use]
    pub fn on_machine(self, machine: &str) -> Self {
        Self { machine: machine.to_owned(), ..self }
    }

    /// Reports pauses in the health of a process, as condition [`SELF_CHECK`].
    #[must_use]
    pub fn reporting_to(self, health: Health) -> Self {
        Self { health, ..self }
    }

    /// Executes jobs until `drain` is cancelled, and then finishes its current jobs. When `cancel`
    /// is cancelled, it releases them instead.
    ///
    /// # Errors
    /// When a thread cannot be started, or the device no longer responds, so that only a new
    /// process can help.
    ///
    /// # Cancel safety
    /// Not cancel safe: when this future is dropped, spawned tasks continue and jobs are neither
    /// finished nor released. Cancel `drain` or `cancel` instead, and await the result.
    pub async fn run(
        self,
        drain: CancellationToken,
        cancel: CancellationToken,
    ) -> std::io::Result<()> {
        let service = Arc::new(self);
        let (drain, cancel) = (drain.child_token(), cancel.child_token());
        service.health.met(SELF_CHECK);
        metrics().worker_paused(false);
        let mut tasks = JoinSet::new();
        for number in 0..service.threads {
            let engine = EngineThread::start(number, Arc::clone(&service.engine), cancel.clone())?;
            let name = format!("{}/{number}", service.name);
            let slot = Slot { service: Arc::clone(&service), engine, name, cancel: cancel.clone() };
            tasks.spawn(slot.run(drain.clone()));
        }
        let recovery = tokio::spawn(Arc::clone(&service).recover(drain.clone(), cancel.clone()));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a worker slot panicked");
            }
        }
        recovery.abort();
        match service.pause_state().fatal.take() {
            None => Ok(()),
            Some(problem) => Err(std::io::Error::other(problem)),
        }
    }

    fn pause_state(&self) -> std::sync::MutexGuard<'_, PauseState> {
        // A poisoned lock is harmless: each field is set as a whole and is valid on its own.
        self.pause_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses all slots after a job failed with an environment fault.
    fn pause(&self, job: &Job, fault: &Fault) {
        let mut state = self.pause_state();
        if state.job.is_none() {
            state.failures += 1;
            state.job = Some(job.clone());
        }
        drop(state);
        self.health.unmet(SELF_CHECK, fault);
        metrics().worker_paused(true);
        self.pause_reason.send_replace(Some(fault.message.clone()));
    }

    /// Resets the delays between self-checks after a job has succeeded.
    fn succeeded(&self) {
        self.pause_state().failures = 0;
    }

    /// Runs self-checks while the worker is paused, and resumes it when one passes.
    async fn recover(self: Arc<Self>, drain: CancellationToken, cancel: CancellationToken) {
        let mut pause_reason = self.pause_reason.subscribe();
        loop {
            if pause_reason.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let reason = self.pause_reason.borrow().clone().unwrap_or_default();
            let (job, mut failures) = {
                let state = self.pause_state();
                (state.job.clone(), state.failures)
            };
            let Some(job) = job else { continue };
            warn!(worker = %self.name, %reason, "paused: taking no jobs until the self-check passes");
            self.announce(&job, Event::Paused { reason: reason.clone() }).await;
            let mut reported = reason;
            loop {
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = tokio::time::sleep(SELF_CHECK_RETRY.pause(failures)) => {}
                }
                failures = failures.saturating_add(1);
                let fault = match self.self_check(&job).await {
                    Ok(()) => break,
                    Err(fault) => fault,
                };
                if fault.class == Class::Environment(Origin::Device) {
                    warn!(worker = %self.name, error = %fault, "the device no longer responds: ending this process");
                    self.announce(&job, Event::Paused { reason: fault.message.clone() }).await;
                    self.pause_state().fatal = Some(fault.message);
                    cancel.cancel();
                    drain.cancel();
                    return;
                }
                if fault.message != reported {
                    warn!(worker = %self.name, error = %fault, "the self-check failed");
                    reported.clone_from(&fault.message);
                }
                self.health.unmet(SELF_CHECK, &fault);
                // Announced every time, because a coordinator may have started in the meantime.
                self.announce(&job, Event::Paused { reason: fault.message }).await;
            }
            {
                let mut state = self.pause_state();
                state.job = None;
                state.failures = state.failures.max(failures);
            }
            info!(worker = %self.name, "the self-check passed: taking jobs again");
            self.health.met(SELF_CHECK);
            metrics().worker_paused(false);
            self.announce(&job, Event::Resumed).await;
            self.pause_reason.send_replace(None);
        }
    }

    /// Runs the engine's self-check on a separate thread.
    async fn self_check(&self, job: &Job) -> Result<(), Fault> {
        let (engine, job) = (Arc::clone(&self.engine), job.clone());
        let (reply, result) = oneshot::channel();
        let check = move || {
            tch::set_num_threads(1);
            let checked = catch_unwind(AssertUnwindSafe(|| engine.check(&job)));
            let _ = reply.send(checked.unwrap_or_else(|panic| Err(panicked(&*panic))));
        };
        let gone = |problem: &dyn std::fmt::Display| {
            Fault::environment(format!("cannot run the self-check: {problem}"))
        };
        std::thread::Builder::new()
            .name("self-check".to_owned())
            .spawn(check)
            .map_err(|error| gone(&error))?;
        result.await.map_err(|error| gone(&error))?
    }

    /// Announces an event of a paused worker.
    async fn announce(&self, job: &Job, event: Event) {
        announce(self.queue.as_ref(), &self.name, job, 1, event).await;
    }
}

/// Announces an event to the coordinator. Notices only save time; the store is authoritative.
async fn announce(queue: &dyn Queue, worker: &str, job: &Job, attempt: u32, event: Event) {
    let notice =
        Notice { run: job.run.clone(), job: job.id(), attempt, worker: worker.to_owned(), event };
    if let Err(error) = queue.announce(&notice).await {
        debug!(%error, "cannot send a notice");
    }
}

#[cfg(test)]
mod tests;

//! The loop of a worker: pull a job, execute it while extending its ack wait, write its outcome,
//! acknowledge it.
//!
//! The worker writes the outcome to the store before it acknowledges the job, so no finished work
//! is lost. A job whose outcome is already in the store is acknowledged without being executed
//! again.
//!
//! A fault of the environment, a computation or the device means that this worker may be broken.
//! The worker releases the job, pauses, and checks itself at growing intervals
//! ([`Execute::check`]). It takes jobs again when the check passes. A broken worker thus costs its
//! run time, but never a concept.
//!
//! | file | content |
//! |---|---|
//! | `mod.rs` | the worker: starts its tasks and ends them |
//! | `slot.rs` | the loop of one slot: one job at a time |
//! | `recovery.rs` | the self-checks of a paused worker |
//! | `state.rs` | what slots and self-checks share: queue, store, pauses |
//! | `engine_thread.rs` | the thread on which a slot's jobs are computed |

mod engine_thread;
mod recovery;
mod slot;
mod state;

use std::sync::{Arc, Mutex};

use lethe_operations::Health;
use lethe_operations::metrics::metrics;
use lethe_queue::Queue;
use lethe_store::Store;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::engine_thread::EngineThread;
pub use self::engine_thread::Execute;
use self::recovery::recover;
use self::slot::Slot;
pub use self::state::SELF_CHECK;
use self::state::State;
use crate::engine::{Engine, Options};

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
    state: State,
    threads: usize,
}

impl Service {
    /// Creates a worker with this many engine threads, each of which executes one job at a time.
    /// Must be called on a runtime.
    pub fn new(options: Options, threads: usize, queue: Arc<dyn Queue>, store: Store) -> Self {
        let (name, machine) = (options.worker.clone(), options.machine.clone());
        let engine = Arc::new(Engine::new(options, store.clone(), Handle::current()));
        Self::with_engine(engine, &name, threads, queue, store).on_machine(&machine)
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
        let state = State {
            queue,
            store,
            engine,
            name,
            machine,
            health: Health::default(),
            pause_reason: watch::Sender::new(None),
            pauses: Mutex::default(),
        };
        Self { state, threads }
    }

    /// Sets the name of the machine. When a job fails in computation on two different machines, its
    /// input is at fault.
    #[must_use]
    pub fn on_machine(mut self, machine: &str) -> Self {
        machine.clone_into(&mut self.state.machine);
        self
    }

    /// Reports pauses in the health of a process, as condition [`SELF_CHECK`].
    #[must_use]
    pub fn reporting_to(mut self, health: Health) -> Self {
        self.state.health = health;
        self
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
        let state = Arc::new(self.state);
        let (drain, cancel) = (drain.child_token(), cancel.child_token());
        state.health.met(SELF_CHECK);
        metrics().worker_paused(false);
        let mut tasks = JoinSet::new();
        for number in 0..self.threads {
            let engine = EngineThread::start(number, Arc::clone(&state.engine), cancel.clone())?;
            let name = format!("{}/{number}", state.name);
            let slot = Slot { state: Arc::clone(&state), engine, name, cancel: cancel.clone() };
            tasks.spawn(slot.run(drain.clone()));
        }
        let recovery = tokio::spawn(recover(Arc::clone(&state), drain.clone(), cancel.clone()));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a worker slot panicked");
            }
        }
        recovery.abort();
        match state.pauses().fatal.take() {
            None => Ok(()),
            Some(problem) => Err(std::io::Error::other(problem)),
        }
    }
}

#[cfg(test)]
mod tests;

//! What executes jobs, and the thread on which it does.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use lethe_shared::fault::Fault;
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Stopped};

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
    /// The first problem found. Its origin is [`Origin::Device`](lethe_shared::fault::Origin::Device) when only a new process can help.
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

/// Converts a panic to a fault.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Fault {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    Fault::computation(format!("lethe-worker panicked: {}", text.unwrap_or("unknown reason")))
}

type Work = (Job, oneshot::Sender<Result<Outcome, Stopped>>);

/// An OS thread that executes jobs. libtorch never runs on the runtime's threads.
pub(super) struct EngineThread {
    work: mpsc::Sender<Work>,
}

impl EngineThread {
    /// Starts a thread, which ends when this value is dropped.
    pub(super) fn start(
        number: usize,
        engine: Arc<dyn Execute>,
        cancel: CancellationToken,
    ) -> std::io::Result<Self> {
        let (work, jobs) = mpsc::channel::<Work>();
        std::thread::Builder::new().name(format!("engine-{number}")).spawn(move || {
            // One thread per operation, because the order of sums and thus rounding must not depend
            // on the number of cores.
            tch::set_num_threads(1);
            for (job, reply) in jobs {
                let executed = catch_unwind(AssertUnwindSafe(|| engine.execute(&job, &cancel)));
                let result =
                    executed.unwrap_or_else(|panic| Err(Stopped::Fault(panicked(&*panic))));
                // The slot may be gone when the process is stopping.
                let _ = reply.send(result);
            }
        })?;
        Ok(Self { work })
    }

    /// Executes a job on the thread.
    pub(super) async fn execute(&self, job: Job) -> Result<Outcome, Stopped> {
        let (reply, result) = oneshot::channel();
        let gone =
            || Stopped::Fault(Fault::computation("the engine thread has ended unexpectedly"));
        self.work.send((job, reply)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

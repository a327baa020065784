//! The loop of a worker: take a job, keep it alive, write its outcome, answer.
//!
//! The outcome is written to the store before the queue is answered, so that a job is lost only when it was not done. A
//! job whose outcome is in the store already is answered without being done again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::queue::{self, Delivery, Event, Notice, Queue};
use lethe_shared::store::{self, Store};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::engine::{Engine, Error, Options};

/// How long one pull waits; a new one follows at once.
const PULL: Duration = Duration::from_secs(20);
/// Attempts to write a finished outcome before the job is given back.
const WRITES: u32 = 5;

/// Takes jobs from a queue until it is told to stop.
#[derive(Debug)]
pub struct Service {
    queue: Arc<dyn Queue>,
    store: Store,
    engine: Arc<Engine>,
    name: String,
    threads: usize,
}

impl Service {
    /// A worker with this many engine threads, each of which does one job at a time. Must be called on a runtime.
    pub fn new(options: Options, threads: usize, queue: Arc<dyn Queue>, store: Store) -> Self {
        let name = options.worker.clone();
        let engine = Arc::new(Engine::new(options, store.clone(), Handle::current()));
        Self { queue, store, engine, name, threads }
    }

    /// Works until `cancel`; a job in hand is dropped at its next safe point and will be delivered again.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub async fn run(self, cancel: CancellationToken) -> std::io::Result<()> {
        let service = Arc::new(self);
        let mut slots = JoinSet::new();
        for number in 0..service.threads {
            let engine = EngineThread::start(number, Arc::clone(&service.engine), cancel.clone())?;
            let slot = Slot { service: Arc::clone(&service), engine, name: format!("{}/{number}", service.name) };
            slots.spawn(slot.run(cancel.clone()));
        }
        while let Some(ended) = slots.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "a worker slot ended badly");
            }
        }
        Ok(())
    }
}

struct Slot {
    service: Arc<Service>,
    engine: EngineThread,
    name: String,
}

impl Slot {
    async fn run(self, cancel: CancellationToken) {
        let mut failures = 0u32;
        loop {
            let pulled = tokio::select! {
                () = cancel.cancelled() => return,
                pulled = self.service.queue.pull(PULL) => pulled,
            };
            match pulled {
                Ok(None) => failures = 0,
                Ok(Some(delivery)) => {
                    failures = 0;
                    if let Err(error) = self.handle(delivery).await {
                        warn!(worker = %self.name, %error, "the queue did not take an answer; the job will come again");
                    }
                }
                Err(error) => {
                    failures += 1;
                    warn!(worker = %self.name, %error, failures, "no job could be taken");
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(backoff(failures)) => {}
                    }
                }
            }
        }
    }

    async fn handle(&self, delivery: Delivery) -> Result<(), queue::Error> {
        let Delivery { job, attempt, is_last, patience, receipt } = delivery;
        let announce = |event| {
            let notice = Notice { run: job.run.clone(), job: job.id(), attempt, worker: self.name.clone(), event };
            async move { self.service.queue.announce(&notice).await }
        };
        let work = async {
            if let Some(done) = self.service.store.get_outcome(job.id()).await? {
                debug!(job = %job.label(), "was done before");
                return Ok(done);
            }
            announce(Event::Started).await.map_err(|error| Error::Transient(error.to_string()))?;
            let outcome = self.engine.execute(job.clone()).await?;
            self.write(&outcome).await
        };
        tokio::pin!(work);
        let mut heartbeat = tokio::time::interval(patience / 3);
        heartbeat.tick().await;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = heartbeat.tick() => {
                    if let Err(error) = receipt.heartbeat().await {
                        // Whoever does the job too finds our outcome, or we find theirs.
                        warn!(job = %job.label(), %error, "heartbeat failed");
                    }
                }
            }
        };
        match result {
            Ok(outcome) => {
                info!(job = %job.label(), seconds = outcome.execution.seconds, "done");
                announce(Event::Finished { seconds: outcome.execution.seconds }).await?;
                receipt.done().await
            }
            Err(Error::Cancelled) => Ok(()),
            Err(Error::Input(error)) => {
                warn!(job = %job.label(), %error, "cannot be done");
                receipt.bury(&error).await
            }
            Err(Error::Transient(error)) => {
                warn!(job = %job.label(), %error, attempt, "failed");
                announce(Event::Failed { error: error.clone(), will_retry: !is_last }).await?;
                receipt.retry(backoff(attempt), &error).await
            }
        }
    }

    /// Writes an outcome; work that is done is worth some patience.
    async fn write(&self, outcome: &Outcome) -> Result<Outcome, Error> {
        let mut attempt = 1;
        loop {
            match self.service.store.put_outcome(outcome).await {
                Ok(stored) => return Ok(stored),
                Err(error) if error.is_transient() && attempt < WRITES => {
                    warn!(%error, attempt, "an outcome could not be written");
                    tokio::time::sleep(backoff(attempt)).await;
                    attempt += 1;
                }
                Err(error) => return Err(store_error(error)),
            }
        }
    }
}

fn store_error(error: store::Error) -> Error {
    Error::from(error)
}

/// 0.2 s, doubling, at most 30 s.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(200 << attempt.saturating_sub(1).min(8)).min(Duration::from_secs(30))
}

type Work = (Job, oneshot::Sender<Result<Outcome, Error>>);

/// An OS thread on which tensors are computed: libtorch work never runs on the runtime's threads.
struct EngineThread {
    work: mpsc::Sender<Work>,
}

impl EngineThread {
    fn start(number: usize, engine: Arc<Engine>, cancel: CancellationToken) -> std::io::Result<Self> {
        let (work, jobs) = mpsc::channel::<Work>();
        std::thread::Builder::new().name(format!("engine-{number}")).spawn(move || {
            // One thread an operation: a sum's order, and so its last bits, must not depend on the machine.
            tch::set_num_threads(1);
            for (job, reply) in jobs {
                let executed = catch_unwind(AssertUnwindSafe(|| engine.execute(&job, &cancel)));
                let result = executed.unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                    Err(Error::Input(format!("a fault in lethe-worker: {}", text.unwrap_or("unknown"))))
                });
                // The slot that asked may be gone when the process stops.
                let _ = reply.send(result);
            }
        })?;
        Ok(Self { work })
    }

    async fn execute(&self, job: Job) -> Result<Outcome, Error> {
        let (reply, result) = oneshot::channel();
        let gone = || Error::Transient("the engine thread has ended".to_owned());
        self.work.send((job, reply)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_grows_and_stays_bounded() {
        assert_eq!(backoff(1), Duration::from_millis(200));
        assert_eq!(backoff(3), Duration::from_millis(800));
        assert_eq!(backoff(50), Duration::from_secs(30));
    }
}

//! The loop of a worker: take a job, keep it alive, write its outcome, answer.
//!
//! The outcome is written to the store before the queue is answered, so that a job is lost only when it was not done. A
//! job whose outcome is in the store already is answered without being done again.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::queue::{self, Delivery, Event, Notice, Queue};
use lethe_shared::store::{self, Store};
use lethe_shared::telemetry::metrics::{End, metrics};
use lethe_shared::telemetry::trace::TraceContext;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::engine::{Engine, Error, Options};

/// How long one pull waits; a new one follows at once.
const PULL: Duration = Duration::from_secs(20);
/// Attempts to write a finished outcome before the job is given back.
const WRITES: u32 = 5;
/// A job whose input someone must mend first, or that another worker must do, is given back for this long.
const ASIDE: Duration = Duration::from_secs(2);
/// The same, when it comes again and again.
const ASIDE_AT_MOST: Duration = Duration::from_secs(60);

/// How long a job that was handed back may still compute before the process ends.
const SAFE_POINT: Duration = Duration::from_secs(8);

/// What does jobs.
pub trait Execute: Debug + Send + Sync {
    /// Does a job on the calling thread, which is none of the runtime's. Its outcome is not yet stored.
    ///
    /// # Errors
    /// Why there is no outcome.
    fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Error>;
}

impl Execute for Engine {
    fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Error> {
        Self::execute(self, job, cancel)
    }
}

/// Takes jobs from a queue until it is told to stop.
#[derive(Debug)]
pub struct Service {
    queue: Arc<dyn Queue>,
    store: Store,
    engine: Arc<dyn Execute>,
    name: String,
    threads: usize,
}

impl Service {
    /// A worker with this many engine threads, each of which does one job at a time. Must be called on a runtime.
    pub fn new(options: Options, threads: usize, queue: Arc<dyn Queue>, store: Store) -> Self {
        let name = options.worker.clone();
        let engine = Arc::new(Engine::new(options, store.clone(), Handle::current()));
        Self::over(engine, &name, threads, queue, store)
    }

    /// A worker that has its jobs done by anything.
    pub fn over(engine: Arc<dyn Execute>, name: &str, threads: usize, queue: Arc<dyn Queue>, store: Store) -> Self {
        Self { queue, store, engine, name: name.to_owned(), threads }
    }

    /// Works until `drain`, then finishes what it has in hand; at `cancel` that is dropped at its next safe point and
    /// handed back.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub async fn run(self, drain: CancellationToken, cancel: CancellationToken) -> std::io::Result<()> {
        let service = Arc::new(self);
        let mut slots = JoinSet::new();
        for number in 0..service.threads {
            let engine = EngineThread::start(number, Arc::clone(&service.engine), cancel.clone())?;
            let name = format!("{}/{number}", service.name);
            let slot = Slot { service: Arc::clone(&service), engine, name, cancel: cancel.clone() };
            slots.spawn(slot.run(drain.clone()));
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
    cancel: CancellationToken,
}

/// What a slot does after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Takes another.
    Work,
    /// Lets others have a turn first: the job was one for them.
    Pause,
}

impl Slot {
    async fn run(self, drain: CancellationToken) {
        let (mut failures, mut refusals) = (0u32, 0u32);
        loop {
            let pulled = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                pulled = self.service.queue.pull(PULL) => pulled,
            };
            let pause = match pulled {
                Ok(None) => {
                    failures = 0;
                    continue;
                }
                Ok(Some(delivery)) => {
                    failures = 0;
                    match self.handle(delivery).await {
                        Ok(Next::Work) => refusals = 0,
                        Ok(Next::Pause) => refusals += 1,
                        Err(error) => warn!(worker = %self.name, %error, "the queue did not take an answer; the job will come again"),
                    }
                    refusals
                }
                Err(error) => {
                    failures += 1;
                    warn!(worker = %self.name, %error, failures, "no job could be taken");
                    failures
                }
            };
            if pause > 0 {
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = tokio::time::sleep(backoff(pause).min(Duration::from_secs(5))) => {}
                }
            }
        }
    }

    /// One attempt is one span, under its job's and in its run's trace.
    async fn handle(&self, delivery: Delivery) -> Result<Next, queue::Error> {
        let job = &delivery.job;
        let parent = delivery.traceparent.parse().unwrap_or_else(|_| TraceContext::of_run(&job.run));
        let here = parent.child();
        let span = info_span!(
            "attempt",
            run = %job.run,
            job = %job.id(),
            kind = job.kind(),
            label = job.label(),
            attempt = delivery.attempt,
            worker = %self.name,
            trace = here.trace_id(),
            span = here.span_id(),
            parent = parent.span_id()
        );
        self.attempt(delivery).instrument(span).await
    }

    async fn attempt(&self, delivery: Delivery) -> Result<Next, queue::Error> {
        let Delivery { job, attempt, is_last, patience, receipt, .. } = delivery;
        let in_flight = metrics().attempt(job.kind(), attempt);
        let announce = |event| {
            let notice = Notice { run: job.run.clone(), job: job.id(), attempt, worker: self.name.clone(), event };
            async move {
                // Notices save time; the truth is in the store.
                if let Err(error) = self.service.queue.announce(&notice).await {
                    debug!(%error, "a notice was not sent");
                }
            }
        };
        let work = async {
            if let Some(done) = self.service.store.get_outcome(job.id()).await.map_err(Error::from_outcome)? {
                debug!(job = %job.label(), "was done before");
                return Ok((done, true));
            }
            announce(Event::Started).await;
            let outcome = self.engine.execute(job.clone()).await?;
            Ok((self.write(&outcome).await?, false))
        };
        tokio::pin!(work);
        let mut heartbeat = tokio::time::interval(patience / 3);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.tick().await;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                () = self.cancel.cancelled() => break Err(Error::Cancelled),
                _ = heartbeat.tick() => {
                    // The work goes on while the queue takes its time to answer.
                    tokio::select! {
                        result = &mut work => break result,
                        beaten = receipt.heartbeat() => if let Err(error) = beaten {
                            metrics().heartbeat_missed();
                            // Whoever does the job too finds our outcome, or we find theirs.
                            warn!(job = %job.label(), %error, "heartbeat failed");
                        },
                    }
                }
            }
        };
        in_flight.ended(match &result {
            Ok((_, true)) => End::Found,
            Ok((_, false)) => End::Done,
            Err(Error::Input(_)) => End::Buried,
            Err(Error::Transient(_) | Error::Memory { .. }) if is_last => End::Buried,
            Err(Error::Transient(_) | Error::Memory { .. }) => End::Failed,
            Err(_) => End::Returned,
        });
        match result {
            Ok((outcome, is_found)) => {
                if !is_found {
                    metrics().job_took(job.kind(), outcome.execution.seconds, &outcome.execution.stages);
                }
                info!(job = %job.label(), seconds = outcome.execution.seconds, "done");
                announce(Event::Finished { seconds: outcome.execution.seconds }).await;
                receipt.done().await?;
            }
            Err(Error::Cancelled) => {
                info!(job = %job.label(), "handed back");
                receipt.hand_back(Duration::ZERO).await?;
                // Others may begin with it; what computes here ends at its next safe point, or with the process.
                let _ = tokio::time::timeout(SAFE_POINT, work).await;
            }
            Err(Error::Input(error)) => {
                warn!(job = %job.label(), %error, "cannot be done");
                receipt.bury(&error).await?;
            }
            Err(error @ (Error::Transient(_) | Error::Memory { .. })) => {
                let error = error.to_string();
                warn!(job = %job.label(), %error, attempt, "failed");
                announce(Event::Failed { error: error.clone(), will_retry: !is_last }).await;
                receipt.retry(backoff(attempt), &error).await?;
            }
            Err(error @ (Error::Foreign(_) | Error::Damaged(_))) => {
                let problem = error.to_string();
                warn!(job = %job.label(), error = %problem, "not for this worker, not now");
                announce(Event::Failed { error: problem, will_retry: true }).await;
                if matches!(error, Error::Foreign(_)) {
                    receipt.hand_back(ASIDE).await?;
                    return Ok(Next::Pause);
                }
                // What mends it stands behind what comes again: each time this one waits longer, and the worker takes what is next.
                receipt.hand_back((ASIDE * attempt.max(1)).min(ASIDE_AT_MOST)).await?;
            }
        }
        Ok(Next::Work)
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
                Err(error) => return Err(Error::from_outcome(error)),
            }
        }
    }
}

impl Error {
    /// An outcome that cannot be read is the coordinator's to put aside: here it is nobody's input.
    fn from_outcome(error: store::Error) -> Self {
        match error {
            store::Error::Corrupt { .. } => Self::Damaged(error.to_string()),
            other => other.into(),
        }
    }
}

/// 0.5 s, doubling, at most 30 s.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(500 << attempt.saturating_sub(1).min(8)).min(Duration::from_secs(30))
}

type Work = (Job, oneshot::Sender<Result<Outcome, Error>>);

/// An OS thread on which tensors are computed: libtorch work never runs on the runtime's threads.
struct EngineThread {
    work: mpsc::Sender<Work>,
}

impl EngineThread {
    fn start(number: usize, engine: Arc<dyn Execute>, cancel: CancellationToken) -> std::io::Result<Self> {
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
        assert_eq!(backoff(1), Duration::from_millis(500));
        assert_eq!(backoff(3), Duration::from_secs(2));
        assert_eq!(backoff(50), Duration::from_secs(30));
    }
}

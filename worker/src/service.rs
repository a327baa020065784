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

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use lethe_operations::Health;
use lethe_operations::metrics::{End, InFlight, metrics};
use lethe_operations::trace::TraceContext;
use lethe_queue as queue;
use lethe_queue::{Delivery, Event, Notice, Queue};
use lethe_shared::fault::{Class, Decision, FAILURE_BACKOFF, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::retry::{GiveUp, RetryPolicy};
use lethe_store::Store;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::engine::{Engine, Options, Stopped};

/// How long one pull waits for a job. The next pull follows immediately.
const PULL_WAIT: Duration = Duration::from_secs(20);
/// Retries of writing a finished outcome before the job is released.
const OUTCOME_WRITE: RetryPolicy = RetryPolicy { give_up: GiveUp::Attempts(5), ..FAILURE_BACKOFF };
/// How long a released job may continue to compute until it notices its cancellation.
const CANCELLATION_WAIT: Duration = Duration::from_secs(8);
/// Delays between self-checks of a paused worker.
const SELF_CHECK_RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(1),
    most: Duration::from_secs(300),
    give_up: GiveUp::Never,
};
/// Delays after failed pulls, and after jobs that only other workers can execute.
const PULL_RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(500),
    most: Duration::from_secs(5),
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

    async fn announce(&self, job: &Job, event: Event) {
        let notice = Notice {
            run: job.run.clone(),
            job: job.id(),
            attempt: 1,
            worker: self.name.clone(),
            event,
        };
        if let Err(error) = self.queue.announce(&notice).await {
            debug!(%error, "cannot send a notice");
        }
    }
}

/// One engine thread with the loop that pulls jobs for it.
struct Slot {
    service: Arc<Service>,
    engine: EngineThread,
    name: String,
    cancel: CancellationToken,
}

/// The action of a slot after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Pull the next job.
    Pull,
    /// Wait before the next pull, because the job was one for other workers.
    Wait,
}

/// The source of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It was in the store already.
    Found,
    /// This worker executed the job.
    Executed,
}

impl Slot {
    async fn run(self, drain: CancellationToken) {
        let (mut failures, mut refusals) = (0u32, 0u32);
        let mut pause_reason = self.service.pause_reason.subscribe();
        loop {
            let resumed = async { _ = pause_reason.wait_for(Option::is_none).await };
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = resumed => {}
            }
            let paused = async {
                if pause_reason.wait_for(Option::is_some).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let pulled = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = paused => continue,
                pulled = self.service.queue.pull(PULL_WAIT) => pulled,
            };
            let setbacks = match pulled {
                Ok(None) => {
                    failures = 0;
                    continue;
                }
                Ok(Some(delivery)) => {
                    failures = 0;
                    match self.handle(delivery).await {
                        Ok(Next::Pull) => refusals = 0,
                        Ok(Next::Wait) => refusals += 1,
                        Err(error) => {
                            warn!(worker = %self.name, %error, "the queue did not confirm an acknowledgement; it will deliver the job again")
                        }
                    }
                    refusals
                }
                Err(error) => {
                    failures += 1;
                    warn!(worker = %self.name, %error, failures, "cannot pull a job");
                    failures
                }
            };
            if setbacks > 0 {
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = tokio::time::sleep(PULL_RETRY.pause(setbacks)) => {}
                }
            }
        }
    }

    /// Executes a delivered job within a tracing span of its own, which belongs to the run's trace.
    async fn handle(&self, delivery: Delivery) -> Result<Next, queue::Error> {
        let job = delivery.job.clone();
        let parent =
            delivery.traceparent.parse().unwrap_or_else(|_| TraceContext::of_run(&job.run));
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
        self.attempt(delivery, job).instrument(span).await
    }

    async fn attempt(&self, delivery: Delivery, job: Job) -> Result<Next, queue::Error> {
        let in_flight = metrics().attempt(job.kind(), delivery.attempt);
        let work = self.find_or_execute(&job, delivery.attempt);
        tokio::pin!(work);
        match self.with_heartbeats(&delivery, &job, work.as_mut()).await {
            Ok((outcome, source)) => {
                self.acknowledge(delivery, &job, &outcome, source, in_flight).await
            }
            Err(Stopped::Fault(fault)) => self.report_fault(delivery, &job, fault, in_flight).await,
            Err(Stopped::Cancelled) => {
                in_flight.ended(End::Released);
                info!(job = %job.label(), "released: this worker is stopping");
                delivery.release().await?;
                // Another worker may take the job now. The computation here ends when it notices
                // the cancellation, or with the process.
                let _ = tokio::time::timeout(CANCELLATION_WAIT, work).await;
                Ok(Next::Pull)
            }
        }
    }

    /// Reads a job's outcome from the store, or executes the job and stores its outcome.
    async fn find_or_execute(&self, job: &Job, attempt: u32) -> Result<(Outcome, Source), Stopped> {
        if let Some(outcome) = self
            .service
            .store
            .get_outcome(job.id())
            .await
            .map_err(|error| Stopped::Fault(error.fault()))?
        {
            debug!(job = %job.label(), "the job already has an outcome");
            return Ok((outcome, Source::Found));
        }
        self.announce(job, attempt, Event::Started).await;
        let outcome = self.engine.execute(job.clone()).await?;
        Ok((self.write(&outcome).await?, Source::Executed))
    }

    /// Waits for `work` and extends the job's ack wait by heartbeats meanwhile. Ends early, with
    /// [`Stopped::Cancelled`], when the worker's jobs are cancelled.
    async fn with_heartbeats<T>(
        &self,
        delivery: &Delivery,
        job: &Job,
        mut work: Pin<&mut impl Future<Output = Result<T, Stopped>>>,
    ) -> Result<T, Stopped> {
        let mut heartbeat = tokio::time::interval(delivery.limits.ack_wait / 3);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.tick().await;
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = self.cancel.cancelled() => return Err(Stopped::Cancelled),
                _ = heartbeat.tick() => {
                    // The work continues while the queue answers.
                    let beat = async {
                        self.announce(job, delivery.attempt, Event::Started).await;
                        delivery.heartbeat().await
                    };
                    tokio::select! {
                        result = &mut work => return result,
                        sent = beat => if let Err(error) = sent {
                            metrics().heartbeat_missed();
                            // If another worker gets the job too, the first stored outcome counts.
                            warn!(job = %job.label(), %error, "cannot send a heartbeat");
                        },
                    }
                }
            }
        }
    }

    /// Acknowledges a job whose outcome is in the store.
    async fn acknowledge(
        &self,
        delivery: Delivery,
        job: &Job,
        outcome: &Outcome,
        source: Source,
        in_flight: InFlight,
    ) -> Result<Next, queue::Error> {
        let seconds = outcome.execution.seconds;
        match source {
            Source::Found => in_flight.ended(End::Found),
            Source::Executed => {
                in_flight.ended(End::Done);
                metrics().job_took(job.kind(), seconds, &outcome.execution.stages);
                self.service.succeeded();
            }
        }
        info!(job = %job.label(), seconds, "done");
        self.announce(job, delivery.attempt, Event::Finished { seconds }).await;
        delivery.done().await?;
        Ok(Next::Pull)
    }

    /// Reports a failed attempt to the queue, which decides what happens to the job. Pauses the
    /// worker after an environment fault.
    async fn report_fault(
        &self,
        delivery: Delivery,
        job: &Job,
        fault: Fault,
        in_flight: InFlight,
    ) -> Result<Next, queue::Error> {
        let attempt = delivery.attempt;
        metrics().fault(fault.class.name());
        if fault.is_environment() {
            self.service.pause(job, &fault);
        }
        let decision = delivery.failed(&fault, &self.service.machine).await?;
        let will_retry = matches!(decision, Decision::Redeliver(_));
        warn!(job = %job.label(), class = fault.class.name(), error = %fault, attempt, will_retry, "the attempt failed");
        in_flight.ended(match (&decision, fault.class) {
            (Decision::DeadLetter(_), _) => End::DeadLettered,
            (Decision::Redeliver(_), Class::Transient) => End::Failed,
            (Decision::Redeliver(_), _) => End::Released,
        });
        let next = if fault.class == Class::Foreign { Next::Wait } else { Next::Pull };
        self.announce(job, attempt, Event::Failed { fault, will_retry }).await;
        Ok(next)
    }

    /// Announces an event to the coordinator. Notices only save time; the store is authoritative.
    async fn announce(&self, job: &Job, attempt: u32, event: Event) {
        let notice = Notice {
            run: job.run.clone(),
            job: job.id(),
            attempt,
            worker: self.name.clone(),
            event,
        };
        if let Err(error) = self.service.queue.announce(&notice).await {
            debug!(%error, "cannot send a notice");
        }
    }

    /// Writes an outcome, with retries so that finished work is not lost.
    async fn write(&self, outcome: &Outcome) -> Result<Outcome, Stopped> {
        OUTCOME_WRITE
            .run(|| self.service.store.put_outcome(outcome))
            .await
            .map_err(|error| Stopped::Fault(error.fault()))
    }
}

/// Converts a panic to a fault.
fn panicked(panic: &(dyn std::any::Any + Send)) -> Fault {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    Fault::computation(format!("lethe-worker panicked: {}", text.unwrap_or("unknown reason")))
}

type Work = (Job, oneshot::Sender<Result<Outcome, Stopped>>);

/// An OS thread that executes jobs. libtorch never runs on the runtime's threads.
struct EngineThread {
    work: mpsc::Sender<Work>,
}

impl EngineThread {
    fn start(
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

    async fn execute(&self, job: Job) -> Result<Outcome, Stopped> {
        let (reply, result) = oneshot::channel();
        let gone =
            || Stopped::Fault(Fault::computation("the engine thread has ended unexpectedly"));
        self.work.send((job, reply)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

    use lethe_queue::conformance::job;
    use lethe_queue::{Limits, MemoryQueue};
    use lethe_shared::outcome::Execution;
    use lethe_shared::reference::ArtifactRef;
    use lethe_shared::task::{Protect, ProtectOutput};

    use super::*;

    /// An engine that fails while it is broken.
    #[derive(Debug)]
    struct Fragile {
        broken: AtomicBool,
        fault: fn() -> Fault,
        executed: AtomicUsize,
    }

    impl Fragile {
        fn new(broken: bool, fault: fn() -> Fault) -> Arc<Self> {
            Arc::new(Self { broken: AtomicBool::new(broken), fault, executed: AtomicUsize::new(0) })
        }
    }

    impl Execute for Fragile {
        fn execute(&self, job: &Job, _: &CancellationToken) -> Result<Outcome, Stopped> {
            self.executed.fetch_add(1, Ordering::SeqCst);
            if self.broken.load(Ordering::SeqCst) {
                let fault = (self.fault)();
                assert!(!fault.message.contains("panic"), "{fault}");
                return Err(Stopped::Fault(fault));
            }
            let execution = Execution {
                worker: "w".into(),
                seconds: 0.0,
                stages: BTreeMap::new(),
                peak_memory_bytes: 0,
                device: "cpu".into(),
                arithmetic: "test".into(),
            };
            let artifact = ArtifactRef { digest: job.id().digest(), bytes: 1 };
            let output = ProtectOutput { inputs: artifact, inverse: artifact, vectors: 0 };
            Ok(Outcome::of::<Protect>(job.id(), &output, execution).unwrap())
        }

        fn check(&self, _: &Job) -> Result<(), Fault> {
            if self.broken.load(Ordering::SeqCst) { Err((self.fault)()) } else { Ok(()) }
        }
    }

    async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !met().await {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A broken worker takes one job, releases it without counting a failure, reports the problem,
    /// and takes jobs again when it is repaired. The same holds after a panic.
    #[tokio::test]
    async fn a_broken_worker_loses_no_job_and_resumes() {
        for fault in [
            || Fault::environment("permission denied"),
            || Fault::computation("panic: index out of bounds"),
        ] {
            let (queue, store, engine) = (
                MemoryQueue::new(Limits::default()),
                Store::in_memory(),
                Fragile::new(true, fault),
            );
            let (health, drain) = (Health::default(), CancellationToken::new());
            let service = Service::with_engine(
                engine.clone(),
                "w",
                2,
                Arc::new(queue.clone()),
                store.clone(),
            )
            .reporting_to(health.clone());
            let running = tokio::spawn(service.run(drain.clone(), CancellationToken::new()));
            queue.publish(&job("r", 0)).await.unwrap();
            until("the worker is not ready", async || !health.report().0).await;
            for number in 1..8 {
                queue.publish(&job("r", number)).await.unwrap();
            }
            // A paused worker takes no jobs.
            let taken = engine.executed.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(engine.executed.load(Ordering::SeqCst), taken);
            assert!(taken <= 2 && queue.dead_letters("r").await.unwrap().is_empty());
            engine.broken.store(false, Ordering::SeqCst);
            for number in 0..8 {
                until("every job is done", async || {
                    store.get_outcome(job("r", number).id()).await.unwrap().is_some()
                })
                .await;
            }
            assert!(health.report().0);
            drain.cancel();
            running.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_lost_device_ends_the_process() {
        let lost = || {
            Fault::new(
                Class::Environment(Origin::Device),
                "CUDA error: an illegal memory access was encountered",
            )
        };
        let (queue, engine) = (MemoryQueue::new(Limits::default()), Fragile::new(true, lost));
        let service =
            Service::with_engine(engine, "w", 2, Arc::new(queue.clone()), Store::in_memory());
        queue.publish(&job("r", 0)).await.unwrap();
        let running = service.run(CancellationToken::new(), CancellationToken::new());
        let ended = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it ends");
        assert!(ended.unwrap_err().to_string().contains("illegal memory access"));
        assert!(queue.dead_letters("r").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn bad_input_is_a_dead_letter_at_once() {
        let (queue, engine) = (
            MemoryQueue::new(Limits::default()),
            Fragile::new(true, || Fault::input("half a JPEG")),
        );
        let drain = CancellationToken::new();
        let service =
            Service::with_engine(engine, "w", 1, Arc::new(queue.clone()), Store::in_memory());
        let running = tokio::spawn(service.run(drain.clone(), CancellationToken::new()));
        queue.publish(&job("r", 0)).await.unwrap();
        until("a dead letter", async || !queue.dead_letters("r").await.unwrap().is_empty()).await;
        let dead_letter = queue.dead_letters("r").await.unwrap().remove(0);
        assert_eq!((dead_letter.attempts, dead_letter.fault), (1, Fault::input("half a JPEG")));
        drain.cancel();
        running.await.unwrap().unwrap();
    }
}

//! One slot of a worker: pulls a job, executes it while extending its ack wait, stores its outcome,
//! acknowledges it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use lethe_operations::metrics::{End, InFlight, metrics};
use lethe_operations::trace::TraceContext;
use lethe_queue as queue;
use lethe_queue::{Delivery, Event};
use lethe_shared::fault::{Class, Decision, FAILURE_BACKOFF, Fault};
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::retry::{GiveUp, RetryPolicy};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::engine_thread::EngineThread;
use super::state::State;
use crate::engine::Stopped;

/// How long one pull waits for a job. The next pull follows immediately.
const PULL_WAIT: Duration = Duration::from_secs(20);
/// Retries of writing a finished outcome before the job is released.
const OUTCOME_WRITE: RetryPolicy = RetryPolicy { give_up: GiveUp::Attempts(5), ..FAILURE_BACKOFF };
/// How long a released job may continue to compute until it notices its cancellation.
const CANCELLATION_WAIT: Duration = Duration::from_secs(8);
/// Delays after failed pulls, and after jobs that only other workers can execute.
const PULL_RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(500),
    most: Duration::from_secs(5),
    give_up: GiveUp::Never,
};

/// One engine thread with the loop that pulls jobs for it.
pub(super) struct Slot {
    pub(super) state: Arc<State>,
    pub(super) engine: EngineThread,
    pub(super) name: String,
    pub(super) cancel: CancellationToken,
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
    /// Pulls and executes jobs until `drain` is cancelled.
    pub(super) async fn run(self, drain: CancellationToken) {
        let (mut failures, mut refusals) = (0u32, 0u32);
        let mut pause_reason = self.state.pause_reason.subscribe();
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
                pulled = self.state.queue.pull(PULL_WAIT) => pulled,
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
            .state
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
                self.state.succeeded();
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
            self.state.pause(job, &fault);
        }
        let decision = delivery.failed(&fault, &self.state.machine).await?;
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

    async fn announce(&self, job: &Job, attempt: u32, event: Event) {
        self.state.announce(&self.name, job, attempt, event).await;
    }

    /// Writes an outcome, with retries so that finished work is not lost.
    async fn write(&self, outcome: &Outcome) -> Result<Outcome, Stopped> {
        OUTCOME_WRITE
            .run(|| self.state.store.put_outcome(outcome))
            .await
            .map_err(|error| Stopped::Fault(error.fault()))
    }
}

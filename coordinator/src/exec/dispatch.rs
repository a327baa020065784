//! Executes jobs: publishes those without an outcome, and waits until every job has an outcome or
//! is a dead letter.
//!
//! The store holds the authoritative state. Notices from the queue only shorten the wait; a lost
//! notice costs a few seconds. The dispatcher republishes jobs that the queue has lost, retries
//! calls to an unreachable store or queue, and quarantines a corrupt object of an earlier job and
//! runs that job again. A run without a fit worker reports the reason and fails after
//! [`Dispatcher::worker_wait`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lethe_operations::log::say;
use lethe_operations::metrics::{End, metrics};
use lethe_queue::{Event, Notice, Queue};
use lethe_shared::fault::{Class, Fault, StoredObject};
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_shared::reference::{ArtifactRef, JobId};
use lethe_shared::retry::RetryPolicy;
use lethe_store::{Checked, Store};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::exec::pending::Pending;
use crate::exec::workforce::{Stalled, Workforce};
use crate::failure::Failure;
use crate::lease::fence::Fence;
use crate::progress::{Progress, Show};
use crate::retry::retry;

/// Shortest time between two polls of the store for jobs without a notice.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Additional time per job on the queue, which bounds the request rate of large runs.
const LOOK_AGAIN_EACH: Duration = Duration::from_millis(50);
/// Number of polls after which jobs are republished even if the queue does not appear to have lost
/// any.
const PUBLISH_AGAIN: u32 = 6;
/// Outcomes that are read concurrently.
const AT_ONCE: usize = 32;
/// Smallest number of a run's jobs to keep on the queue.
const WINDOW: usize = 64;
/// Jobs of a run on the queue per job that workers can hold: enough to keep workers busy, few
/// enough that the jobs of another run come soon.
const WINDOW_EACH: usize = 3;
/// Largest number of times that a job runs again because its object is corrupt.
const REBUILDS: u32 = 3;

/// The result of a job: its outcome, or the fault of its dead letter.
pub type Ended = Result<Outcome, Fault>;

/// Publishes jobs and waits for their outcomes.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    /// Queue that receives jobs.
    pub queue: Arc<dyn Queue>,
    /// Store that holds outcomes.
    pub store: Store,
    /// Stops the wait.
    pub cancel: CancellationToken,
    /// Retry policy for an unreachable queue or store.
    pub retries: RetryPolicy,
    /// Longest time that a run goes on without a fit worker.
    pub worker_wait: Duration,
    /// Fence that is checked before every externally visible write.
    pub fence: Fence,
    /// Whether all jobs of the run must use the arithmetic class of its first outcome.
    pub same_arithmetic: bool,
    /// Cancelled when another coordinator has taken the run over.
    pub taken_over: CancellationToken,
    /// Destination of progress.
    pub show: Show,
    memory: Arc<Mutex<Memory>>,
}

/// State of the run's jobs across calls.
#[derive(Debug, Default)]
struct Memory {
    jobs: BTreeMap<JobId, Job>,
    /// The job that produced each object, from outcomes.
    made_by: BTreeMap<StoredObject, JobId>,
    /// Objects that are being produced again.
    rebuilding: BTreeSet<StoredObject>,
    /// The arithmetic class of the run's first outcome.
    arithmetic: Option<String>,
}

/// One call of [`Dispatcher::run`].
struct Call<'a> {
    run: &'a str,
    pending: Pending,
    workforce: Workforce,
    window: usize,
    looks: u32,
}

impl Dispatcher {
    /// Creates a dispatcher with an open fence, for a run without competing coordinators.
    pub fn new(
        queue: Arc<dyn Queue>,
        store: Store,
        cancel: CancellationToken,
        give_up: Duration,
    ) -> Self {
        Self {
            queue,
            store,
            cancel,
            retries: RetryPolicy::service(give_up),
            worker_wait: give_up,
            fence: Fence::open(),
            same_arithmetic: false,
            taken_over: CancellationToken::new(),
            show: Show::Stderr,
            memory: Arc::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Every change under the lock is a complete insertion or removal, so a poisoned lock is
        // consistent.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes these jobs and returns their results in the same order, and the number of stored
    /// outcomes that were reused.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when calls to queue or store fail past the retry policy, when no
    /// fit worker is left for [`worker_wait`](Self::worker_wait), when a corrupt object cannot be
    /// produced again, or when another coordinator has taken the run over. [`Failure::Cancelled`]
    /// when [`cancel`](Self::cancel) is cancelled. A cancellation during the wait for outcomes also
    /// removes the run's jobs from the queue, unless another coordinator has taken the run over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves published jobs on the queue, where workers still execute them. No
    /// outcome is lost: the next call with the same jobs reuses them.
    pub async fn run(
        &self,
        run: &str,
        jobs: &[Job],
        progress: &mut Progress,
    ) -> Result<(Vec<Ended>, usize), Failure> {
        // The subscription starts before the first publication, so that no notice is missed.
        let mut notices =
            retry(&self.retries, "listen", &self.cancel, || self.queue.notices(run)).await?;
        self.memory().jobs.extend(jobs.iter().map(|job| (job.id(), job.clone())));
        let mut ended: BTreeMap<JobId, Ended> = self.finished(jobs.iter().map(Job::id)).await?;
        let is_found = |job: &&Job| ended.contains_key(&job.id());
        let found = jobs.iter().filter(is_found).count();
        progress.start(jobs.len(), found);
        for job in jobs.iter().filter(is_found) {
            metrics().job_ended(job.kind(), End::Found);
        }
        let pending = Pending::new(jobs, |id| ended.contains_key(&id));
        let mut call =
            Call { run, pending, workforce: Workforce::default(), window: WINDOW, looks: 0 };
        self.forget_dead_letters(&call).await?;

        let mut look_at = Instant::now() + LOOK_AGAIN;
        loop {
            self.publish(&mut call).await?;
            if call.pending.is_done() {
                break;
            }
            if !call.pending.lost().is_empty() {
                return Err(Failure::Infrastructure(format!(
                    "{run}: jobs were lost before they were published; this is a fault in lethe"
                )));
            }
            let arrived = tokio::select! {
                () = self.cancel.cancelled() => {
                    self.take_back(run).await;
                    return Err(Failure::Cancelled);
                }
                notice = notices.next() => match notice {
                    Some(notice) => self.heard(&mut call, notice, progress).await?,
                    None => return Err(Failure::Infrastructure("the queue has closed".to_owned())),
                },
                () = tokio::time::sleep_until(look_at.into()) => {
                    let found = self.look(&mut call, progress).await?;
                    let on_queue = u32::try_from(call.pending.count_on_queue()).unwrap_or(u32::MAX);
                    look_at = Instant::now() + LOOK_AGAIN.max(LOOK_AGAIN_EACH.saturating_mul(on_queue));
                    found
                }
            };
            for (id, end) in arrived {
                progress.over(id);
                if call.pending.is_rebuild(id)
                    && let Err(fault) = &end
                {
                    return Err(Failure::Infrastructure(format!(
                        "a corrupt object could not be made again: {fault}"
                    )));
                }
                if let Some(job) = call.pending.end(id) {
                    metrics().job_ended(
                        job.kind(),
                        if end.is_ok() { End::Done } else { End::DeadLettered },
                    );
                    if end.is_ok() {
                        call.workforce.progress();
                    }
                    ended.insert(id, end);
                    progress.advance(jobs.len() - call.pending.left());
                }
            }
            progress.tick();
        }
        progress.finish();
        let in_order = jobs.iter().filter_map(|job| ended.get(&job.id()).cloned()).collect();
        Ok((in_order, found))
    }

    /// Reads an artifact that a job of this run produced. A corrupt artifact is quarantined, and
    /// its job runs again.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the artifact cannot be read or produced again;
    /// [`Failure::Cancelled`].
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn artifact(&self, run: &str, artifact: &ArtifactRef) -> Result<Bytes, Failure> {
        for _ in 0..REBUILDS {
            let error = match self
                .retries
                .run_until("read", &self.cancel, || self.store.get_artifact(artifact))
                .await?
            {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let Some(object) = error.corrupt_object() else { return Err(error.into()) };
            let Some(maker) = self.maker(object, &error.fault()).await? else {
                return Err(error.into());
            };
            Box::pin(self.run(run, &[maker], &mut Progress::silent())).await?;
        }
        Ok(self.store.get_artifact(artifact).await?)
    }

    /// Removes the run's jobs from the queue, unless another coordinator has taken the run over.
    async fn take_back(&self, run: &str) {
        let is_current =
            if self.taken_over.is_cancelled() { Ok(false) } else { self.fence.is_current().await };
        match is_current {
            Ok(true) => {
                if let Err(error) = self.queue.purge(run).await {
                    warn!(%error, "jobs could not be removed from the queue");
                }
            }
            Ok(false) => {
                info!(%run, "another coordinator has taken the run over; its jobs stay on the queue")
            }
            Err(error) => {
                warn!(%error, "jobs stay on the queue: the claim to the run could not be checked")
            }
        }
    }

    /// Deletes dead letters of an earlier attempt at these jobs.
    async fn forget_dead_letters(&self, call: &Call<'_>) -> Result<(), Failure> {
        if call.pending.is_done() {
            return Ok(());
        }
        for letter in
            retry(&self.retries, "ask", &self.cancel, || self.queue.dead_letters(call.run)).await?
        {
            let id = letter.job.id();
            if call.pending.waits_for(id) {
                // The fence prevents a superseded coordinator from deleting dead letters that its
                // successor needs.
                self.fence.check().await?;
                retry(&self.retries, "ask", &self.cancel, || {
                    self.queue.drop_dead_letter(call.run, id)
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Publishes jobs until the window is full.
    async fn publish(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let arithmetic = if self.same_arithmetic { self.memory().arithmetic.clone() } else { None };
        // The first outcome determines the arithmetic class of all other jobs.
        let window = if self.same_arithmetic && arithmetic.is_none() { 1 } else { call.window };
        while let Some(job) = call.pending.next(window) {
            let job = Job { arithmetic: arithmetic.clone(), ..job.clone() };
            retry(&self.retries, "publish", &self.cancel, || self.queue.publish(&job)).await?;
            call.pending.published(job);
        }
        Ok(())
    }

    /// Handles a notice. The store decides whether a job has ended.
    async fn heard(
        &self,
        call: &mut Call<'_>,
        notice: Notice,
        progress: &Progress,
    ) -> Result<BTreeMap<JobId, Ended>, Failure> {
        call.workforce.hear(&notice, Instant::now());
        if matches!(notice.event, Event::Paused { .. } | Event::Resumed) {
            progress.hear_worker(&notice);
        }
        let Some(job) = call.pending.on_queue(notice.job) else { return Ok(BTreeMap::new()) };
        progress.hear(job, &notice);
        match notice.event {
            Event::Finished { .. } => return self.finished(std::iter::once(notice.job)).await,
            Event::DeadLettered { fault } => {
                // Another worker may have executed the job nevertheless.
                let mut found = self.finished(std::iter::once(notice.job)).await?;
                found.entry(notice.job).or_insert(Err(fault));
                return Ok(found);
            }
            Event::Failed { fault, will_retry } => {
                warn!(job = %job.label(), worker = %notice.worker, class = fault.class.name(), error = %fault, will_retry, "an attempt failed");
                self.rebuild(call, &fault).await?;
            }
            Event::Started => debug!(job = %job.label(), worker = %notice.worker, "started"),
            Event::Paused { .. } | Event::Resumed => {}
        }
        Ok(BTreeMap::new())
    }

    /// Polls store and queue about every job on the queue.
    async fn look(
        &self,
        call: &mut Call<'_>,
        progress: &Progress,
    ) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let mut found = self.finished(call.pending.all_on_queue().map(|(id, _)| id)).await?;
        for letter in
            retry(&self.retries, "ask", &self.cancel, || self.queue.dead_letters(call.run)).await?
        {
            let id = letter.job.id();
            if call.pending.on_queue(id).is_some() {
                found.entry(id).or_insert(Err(letter.fault));
            }
        }
        let backlog = retry(&self.retries, "ask", &self.cancel, || self.queue.backlog()).await?;
        call.window = WINDOW.max(WINDOW_EACH * (backlog.in_hand + backlog.asking));
        call.looks += 1;
        // A queue with fewer messages than unfinished jobs has lost some. The converse does not
        // hold: the messages may belong to another run.
        let unfinished = call.pending.count_on_queue() - found.len();
        if backlog.waiting + backlog.in_hand < unfinished
            || call.looks.is_multiple_of(PUBLISH_AGAIN)
        {
            for (_, job) in call.pending.all_on_queue().filter(|(id, _)| !found.contains_key(id)) {
                // Publishing a job that is still on the queue has no effect.
                retry(&self.retries, "publish", &self.cancel, || self.queue.publish(job)).await?;
            }
        }
        if found.is_empty()
            && let Some(stalled) = call.workforce.look(&backlog, Instant::now())
        {
            self.stalled(call.run, &stalled, progress)?;
        }
        Ok(found)
    }

    /// Reports that no worker is fit, and fails the run when this has lasted too long. A run
    /// without any known worker keeps waiting, because workers may be starting.
    fn stalled(&self, run: &str, stalled: &Stalled, progress: &Progress) -> Result<(), Failure> {
        let Some(reason) = &stalled.reason else {
            if stalled.say {
                say(
                    "warning",
                    &format!(
                        "{run}: no worker asks for jobs; start lethe-worker with the same --nats and --store"
                    ),
                );
            }
            return Ok(());
        };
        if stalled.time >= self.worker_wait {
            let seconds = stalled.time.as_secs();
            return Err(Failure::Infrastructure(format!(
                "no fit worker has been left for {seconds} s: {reason}; finished work is kept, and the same command continues it"
            )));
        }
        if stalled.say {
            let left = self.worker_wait.saturating_sub(stalled.time).as_secs();
            let problem = format!("no fit worker is left: {reason}");
            progress.problem(&problem);
            say("warning", &format!("{run}: {problem}; giving up in {left} s"));
        }
        Ok(())
    }

    /// Publishes the job that produces the corrupt object of a fault.
    async fn rebuild(&self, call: &mut Call<'_>, fault: &Fault) -> Result<(), Failure> {
        let Some(object) = fault.corrupt_object() else { return Ok(()) };
        let Some(maker) = self.maker(object, fault).await? else { return Ok(()) };
        let Some(times) = call.pending.rebuild(&maker) else { return Ok(()) };
        if times > REBUILDS {
            return Err(Failure::Infrastructure(format!(
                "{} was done {times} times, and an object that it makes is corrupt each time: {fault}",
                maker.label()
            )));
        }
        info!(job = %maker.label(), "runs again: an object that it made is corrupt");
        retry(&self.retries, "publish", &self.cancel, || self.queue.publish(&maker)).await
    }

    /// Quarantines a corrupt object and returns the job that has to run again. Returns `None` if
    /// the object is intact (again), or if its job is on the queue anyway.
    async fn maker(&self, object: StoredObject, fault: &Fault) -> Result<Option<Job>, Failure> {
        // A superseded coordinator may know an object as corrupt that its successor has already
        // replaced.
        self.fence.check().await?;
        match retry(&self.retries, "read", &self.cancel, || self.store.check(object)).await? {
            Checked::Sound => return Ok(None),
            Checked::Absent => {}
            Checked::Quarantined(key) => warn!(%object, %key, "a corrupt object was quarantined"),
        }
        // A corrupt outcome belongs to the waiting job itself.
        let StoredObject::Artifact(_) = object else { return Ok(None) };
        let maker = {
            let mut memory = self.memory();
            let maker = memory.made_by.get(&object).and_then(|id| memory.jobs.get(id)).cloned();
            match maker {
                Some(maker) => {
                    memory.rebuilding.insert(object);
                    maker
                }
                None if memory.rebuilding.contains(&object) => return Ok(None),
                None => {
                    return Err(Failure::Infrastructure(format!(
                        "{fault}; no job of this run made it: run the same command again"
                    )));
                }
            }
        };
        let outcome = StoredObject::Outcome(maker.id());
        retry(&self.retries, "write", &self.cancel, || self.store.quarantine(outcome)).await?;
        Ok(Some(maker))
    }

    /// Returns the outcomes of those jobs that have one.
    async fn finished(
        &self,
        jobs: impl Iterator<Item = JobId>,
    ) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let asked: BTreeSet<JobId> = jobs.collect();
        let found: Vec<Option<(JobId, Ended)>> = futures::stream::iter(asked)
            .map(|id| async move {
                Ok::<_, Failure>(self.outcome(id).await?.map(|outcome| (id, Ok(outcome))))
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns a job's outcome. A corrupt outcome is quarantined, and its job runs again.
    async fn outcome(&self, id: JobId) -> Result<Option<Outcome>, Failure> {
        let quarantine = async |problem: String| {
            let object = StoredObject::Outcome(id);
            self.fence.check().await?;
            let key = retry(&self.retries, "write", &self.cancel, || self.store.quarantine(object))
                .await?;
            warn!(%problem, %key, "a corrupt outcome was quarantined");
            Ok(None)
        };
        let outcome = match self
            .retries
            .run_until("read", &self.cancel, || self.store.get_outcome(id))
            .await?
        {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(None),
            Err(error) if matches!(error.fault().class, Class::Corrupt(_)) => {
                return quarantine(error.to_string()).await;
            }
            Err(error) => return Err(error.into()),
        };
        let job = self.memory().jobs.get(&id).cloned();
        let Some(job) = job else { return Ok(Some(outcome)) };
        match job.task.objects(&outcome) {
            Ok(objects) => {
                let mut memory = self.memory();
                if memory.arithmetic.is_none() {
                    memory.arithmetic = Some(outcome.execution.arithmetic.clone());
                }
                for object in objects {
                    memory.rebuilding.remove(&object);
                    memory.made_by.insert(object, id);
                }
                drop(memory);
                Ok(Some(outcome))
            }
            Err(problem) => quarantine(problem.to_string()).await,
        }
    }
}

#[cfg(test)]
mod tests;

//! Gets jobs done: publishes what has no outcome yet, and waits until every job has one or is a dead letter.
//!
//! The store is the truth. Notices from the queue only say when to look; a lost notice costs a few seconds. A queue that
//! lost its jobs gets them again, a store or queue that cannot be reached is waited for, and what an earlier job made is
//! made again when it turns out damaged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lethe_shared::digest::Digest;
use lethe_shared::job::{ArtifactRef, Job, JobId};
use lethe_shared::outcome::Outcome;
use lethe_shared::queue::{Backlog, Cause, Event, Notice, Queue};
use lethe_shared::store::{self, Claim, Damaged, Found, Store};
use lethe_shared::telemetry::metrics::{End, metrics};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::failure::Failure;
use crate::patience::Patience;
use crate::progress::{Progress, Show};

/// How often at most the store is asked about jobs that no notice spoke of.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How much longer it may take for each job that is out, so that many jobs do not make many requests.
const LOOK_AGAIN_EACH: Duration = Duration::from_millis(50);
/// Looks after which jobs are published again, unless the queue has clearly lost some before.
const PUBLISH_AGAIN: u32 = 6;
/// Outcomes asked for at once.
const AT_ONCE: usize = 32;
/// Jobs of a run that are on the queue at least, while there are so many.
const WINDOW: usize = 64;
/// Jobs of a run that are on the queue for each one that workers can hold: enough to keep them busy, few enough that
/// another run's jobs come soon.
const WINDOW_EACH: usize = 3;
/// Times that one artifact is made again when it is damaged each time.
const REPAIRS: u32 = 3;

/// A job's end: its outcome, or why it has none.
pub type Ended = Result<Outcome, Lost>;

/// Why a job has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The last error.
    pub error: String,
    /// Whose fault it is.
    pub cause: Cause,
}

/// Publishes jobs and waits for their outcomes.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    /// Where jobs go.
    pub queue: Arc<dyn Queue>,
    /// Where outcomes are.
    pub store: Store,
    /// Stops the wait.
    pub cancel: CancellationToken,
    /// How long a queue or store that cannot be reached is waited for.
    pub patience: Patience,
    /// This coordinator's claim to the run, where there may be others.
    pub claim: Option<Claim>,
    /// Who sees progress.
    pub show: Show,
    /// Jobs that were dispatched: one of them made whatever turns out damaged.
    history: Arc<Mutex<BTreeMap<JobId, Job>>>,
    /// Artifacts that are being made again.
    mending: Arc<Mutex<BTreeSet<Digest>>>,
}

/// Jobs of one call that have not ended.
struct Open<'a> {
    run: &'a str,
    /// Everything that is waited for, published or not.
    waiting: BTreeMap<JobId, &'a Job>,
    /// What is still to be published, in order.
    line: VecDeque<JobId>,
    /// What is on the queue.
    out: BTreeMap<JobId, Job>,
    /// Jobs done again because what they made is damaged; on the queue too.
    repairs: BTreeMap<JobId, u32>,
    window: usize,
    looks: u32,
}

impl Dispatcher {
    /// A dispatcher for a run that nobody else works on.
    pub fn new(queue: Arc<dyn Queue>, store: Store, cancel: CancellationToken, patience: Patience) -> Self {
        Self { queue, store, cancel, patience, claim: None, show: Show::Stderr, history: Arc::default(), mending: Arc::default() }
    }

    /// Outcomes of these jobs, in their order; jobs done before are not done again. The second value counts those.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when queue or store give up, [`Failure::Cancelled`].
    pub async fn run(&self, run: &str, jobs: &[Job], progress: &mut Progress) -> Result<(Vec<Ended>, usize), Failure> {
        // Listening starts before anything can happen.
        let mut notices = self.patience.keep("listen", &self.cancel, || self.queue.notices(run)).await?;
        self.history.lock().unwrap_or_else(PoisonError::into_inner).extend(jobs.iter().map(|job| (job.id(), job.clone())));
        let mut ended: BTreeMap<JobId, Ended> = self.finished(jobs.iter().map(Job::id)).await?;
        let found = ended.len();
        progress.start(jobs.len(), found);
        for job in jobs.iter().filter(|job| ended.contains_key(&job.id())) {
            metrics().job_ended(job.kind(), End::Found);
        }
        let waiting: BTreeMap<JobId, &Job> = jobs.iter().map(|job| (job.id(), job)).filter(|(id, _)| !ended.contains_key(id)).collect();
        let mut line: VecDeque<JobId> = VecDeque::with_capacity(waiting.len());
        for id in jobs.iter().map(Job::id).filter(|id| waiting.contains_key(id)) {
            if line.len() < waiting.len() {
                line.push_back(id);
            }
        }
        let mut open = Open { run, waiting, line, out: BTreeMap::new(), repairs: BTreeMap::new(), window: WINDOW, looks: 0 };
        self.forget_letters(&open).await?;

        let mut look_at = Instant::now() + LOOK_AGAIN;
        loop {
            self.publish(&mut open).await?;
            if open.waiting.is_empty() {
                break;
            }
            let arrived = tokio::select! {
                () = self.cancel.cancelled() => {
                    if let Err(error) = self.queue.purge(run).await {
                        warn!(%error, "jobs could not be taken back from the queue");
                    }
                    return Err(Failure::Cancelled);
                }
                notice = notices.next() => match notice {
                    Some(notice) => self.heard(&mut open, notice, progress).await?,
                    None => return Err(Failure::Infrastructure("the queue has closed".to_owned())),
                },
                () = tokio::time::sleep_until(look_at.into()) => {
                    let found = self.look(&mut open).await?;
                    look_at = Instant::now() + LOOK_AGAIN.max(LOOK_AGAIN_EACH * u32::try_from(open.out.len()).unwrap_or(u32::MAX));
                    found
                }
            };
            for (id, end) in arrived {
                open.out.remove(&id);
                progress.over(id);
                if open.repairs.contains_key(&id)
                    && let Err(lost) = &end
                {
                    return Err(Failure::Infrastructure(format!("what was damaged could not be made again: {}", lost.error)));
                }
                if let Some(job) = open.waiting.remove(&id) {
                    metrics().job_ended(job.kind(), if end.is_ok() { End::Done } else { End::Buried });
                    ended.insert(id, end);
                    progress.advance(jobs.len() - open.waiting.len());
                }
            }
            progress.tick();
        }
        progress.finish();
        let in_order = jobs.iter().filter_map(|job| ended.get(&job.id()).cloned()).collect();
        Ok((in_order, found))
    }

    /// Reads an artifact that a job of this run made, having it made again when it is damaged.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when it cannot be made again.
    pub async fn artifact(&self, run: &str, artifact: &ArtifactRef) -> Result<Bytes, Failure> {
        for _ in 0..REPAIRS {
            let damage = match self.patience.keep("read", &self.cancel, || self.store.get_artifact(artifact)).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            let Some(maker) = self.mend(&damage.to_string()).await? else { return Err(damage) };
            Box::pin(self.run(run, &[maker], &mut Progress::silent())).await?;
        }
        Ok(self.store.get_artifact(artifact).await?)
    }

    /// Ends the run when another coordinator has claimed it.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when it has.
    pub async fn check_claim(&self) -> Result<(), Failure> {
        let Some(claim) = &self.claim else { return Ok(()) };
        if self.patience.keep("read", &self.cancel, || self.store.holds(claim)).await? {
            return Ok(());
        }
        Err(Failure::Infrastructure(format!("another coordinator has taken over {}; this one publishes nothing more", claim.run)))
    }

    /// An earlier run's dead letters are no verdict on this one.
    async fn forget_letters(&self, open: &Open<'_>) -> Result<(), Failure> {
        if open.waiting.is_empty() {
            return Ok(());
        }
        for letter in self.patience.keep("ask", &self.cancel, || self.queue.dead_letters(open.run)).await? {
            let id = letter.job.id();
            if open.waiting.contains_key(&id) {
                self.patience.keep("ask", &self.cancel, || self.queue.drop_dead_letter(open.run, id)).await?;
            }
        }
        Ok(())
    }

    /// Puts as many jobs on the queue as it should hold.
    async fn publish(&self, open: &mut Open<'_>) -> Result<(), Failure> {
        while open.out.len() < open.window
            && let Some(id) = open.line.pop_front()
        {
            let Some(&job) = open.waiting.get(&id) else { continue };
            self.patience.keep("publish", &self.cancel, || self.queue.publish(job)).await?;
            open.out.insert(id, job.clone());
        }
        Ok(())
    }

    /// What a notice says, checked against the store.
    async fn heard(&self, open: &mut Open<'_>, notice: Notice, progress: &Progress) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let Some(job) = open.out.get(&notice.job) else { return Ok(BTreeMap::new()) };
        progress.hear(job, &notice);
        match notice.event {
            Event::Finished { .. } => return self.finished(std::iter::once(notice.job)).await,
            Event::Buried { error, cause } => {
                // It may have been done all the same, by another worker.
                let mut found = self.finished(std::iter::once(notice.job)).await?;
                found.entry(notice.job).or_insert(Err(Lost { error, cause }));
                return Ok(found);
            }
            Event::Failed { error, will_retry } => {
                warn!(job = %job.label(), worker = %notice.worker, %error, will_retry, "an attempt failed");
                self.repair(open, &error).await?;
            }
            Event::Started => debug!(job = %job.label(), worker = %notice.worker, "started"),
        }
        Ok(BTreeMap::new())
    }

    /// Asks store and queue about everything that is out.
    async fn look(&self, open: &mut Open<'_>) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let mut found = self.finished(open.out.keys().copied()).await?;
        for letter in self.patience.keep("ask", &self.cancel, || self.queue.dead_letters(open.run)).await? {
            let id = letter.job.id();
            if open.out.contains_key(&id) {
                found.entry(id).or_insert(Err(Lost { error: letter.error, cause: letter.cause }));
            }
        }
        let Backlog { waiting, in_hand, asking } = self.patience.keep("ask", &self.cancel, || self.queue.backlog()).await?;
        open.window = WINDOW.max(WINDOW_EACH * (in_hand + asking));
        open.looks += 1;
        // A queue that does not even hold as many jobs as we have out has lost some; one that does may hold another run's.
        let unfinished = open.out.len() - found.len();
        if waiting + in_hand < unfinished || open.looks.is_multiple_of(PUBLISH_AGAIN) {
            for job in open.out.iter().filter(|(id, _)| !found.contains_key(id)).map(|(_, job)| job) {
                // What is there already stays as it is.
                self.patience.keep("publish", &self.cancel, || self.queue.publish(job)).await?;
            }
        }
        Ok(found)
    }

    /// Has made again what an error says is damaged.
    async fn repair(&self, open: &mut Open<'_>, error: &str) -> Result<(), Failure> {
        let Some(maker) = self.mend(error).await? else { return Ok(()) };
        let id = maker.id();
        if open.out.contains_key(&id) {
            return Ok(());
        }
        let times = open.repairs.entry(id).or_default();
        *times += 1;
        if *times > REPAIRS {
            return Err(Failure::Infrastructure(format!(
                "{} is done again and again, and what it makes is damaged each time",
                maker.label()
            )));
        }
        info!(job = %maker.label(), "is done again: what it made is damaged");
        self.patience.keep("publish", &self.cancel, || self.queue.publish(&maker)).await?;
        open.out.insert(id, maker);
        Ok(())
    }

    /// Puts aside the damaged object that an error names; the job that must be done again for it. `None` when the error
    /// names none, or what it names is sound (again), or can be made by whoever is waiting for it.
    async fn mend(&self, error: &str) -> Result<Option<Job>, Failure> {
        let Some(object) = Damaged::in_text(error) else { return Ok(None) };
        match self.patience.keep("read", &self.cancel, || self.store.look_at(object)).await? {
            Found::Sound => return Ok(None),
            Found::Nothing => {}
            Found::PutAside(key) => warn!(object = %error, aside = %key, "a damaged object was put aside"),
        }
        let digest = match object {
            // Its own job is the one that waits.
            Damaged::Outcome(_) => return Ok(None),
            Damaged::Artifact(digest) => digest,
        };
        let named = digest.to_string();
        let history: Vec<Job> = self.history.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for job in history {
            let Some(outcome) = self.outcome(job.id()).await? else { continue };
            if serde_json::to_string(&outcome.result).is_ok_and(|text| text.contains(&named)) {
                self.mending.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
                self.patience.keep("write", &self.cancel, || self.store.put_aside(Damaged::Outcome(job.id()))).await?;
                return Ok(Some(job));
            }
        }
        if self.mending.lock().unwrap_or_else(PoisonError::into_inner).contains(&digest) {
            return Ok(None);
        }
        Err(Failure::Infrastructure(format!("{error}; no job of this run made it: run the same command again")))
    }

    /// Those of these jobs that have an outcome.
    async fn finished(&self, jobs: impl Iterator<Item = JobId>) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let asked: Vec<JobId> = jobs.collect();
        let found: Vec<Option<(JobId, Ended)>> = futures::stream::iter(asked)
            .map(|id| async move { Ok::<_, Failure>(self.outcome(id).await?.map(|outcome| (id, Ok(outcome)))) })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// A job's outcome; one that cannot be read is put aside, and its job is done again.
    async fn outcome(&self, job: JobId) -> Result<Option<Outcome>, Failure> {
        match self.patience.try_keep("read", &self.cancel, || self.store.get_outcome(job)).await? {
            Ok(outcome) => Ok(outcome),
            Err(error @ store::Error::Corrupt { .. }) => {
                let aside = self.patience.keep("write", &self.cancel, || self.store.put_aside(Damaged::Outcome(job))).await?;
                warn!(%error, %aside, "a damaged outcome was put aside");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::address::Address;
    use lethe_shared::job::{ModelRef, Task};
    use lethe_shared::manifest::Precision;
    use lethe_shared::outcome::{EvaluateResult, Execution, TaskResult};
    use lethe_shared::queue::{Limits, MemoryQueue, Notice};

    use super::*;

    fn jobs(count: u32) -> Vec<Job> {
        let model = ModelRef {
            weights: Digest::of(b"w"),
            settings: Digest::of(b"s"),
            precision: Precision::Float32,
            address: Address::parse("/m").unwrap(),
        };
        let job = |algorithm| Job { run: "r".into(), algorithm, model: model.clone(), task: Task::RetainReduce { parts: Vec::new() } };
        (0..count).map(job).collect()
    }

    fn outcome(job: &Job) -> Outcome {
        let execution = Execution { worker: "w".into(), seconds: 0.0, stages: BTreeMap::new(), peak_memory_bytes: 0, device: "cpu".into() };
        Outcome { job: job.id(), result: TaskResult::Evaluate(EvaluateResult::default()), execution }
    }

    /// A worker that writes outcomes, buries job 2, and tells of every second outcome only.
    async fn work(queue: MemoryQueue, store: Store) {
        while let Some(delivery) = queue.pull(Duration::from_secs(1)).await.unwrap() {
            if delivery.job.algorithm == 2 {
                delivery.receipt.bury("a broken image").await.unwrap();
                continue;
            }
            let outcome = outcome(&delivery.job);
            store.put_outcome(&outcome).await.unwrap();
            if delivery.job.algorithm % 2 == 0 {
                let event = Event::Finished { seconds: 0.0 };
                queue.announce(&Notice { run: "r".into(), job: outcome.job, attempt: 1, worker: "w".into(), event }).await.unwrap();
            }
            delivery.receipt.done().await.unwrap();
        }
    }

    #[tokio::test]
    async fn every_job_ends_even_when_notices_are_lost() {
        let (queue, store) = (MemoryQueue::new(Limits::default()), Store::in_memory());
        let jobs = jobs(6);
        store.put_outcome(&outcome(&jobs[0])).await.unwrap();
        let dispatcher = Dispatcher::new(Arc::new(queue.clone()), store.clone(), CancellationToken::new(), Patience::default());
        let worker = tokio::spawn(work(queue, store));
        let (ended, found) = dispatcher.run("r", &jobs, &mut Progress::silent()).await.unwrap();
        assert_eq!((ended.len(), found), (6, 1));
        for (number, end) in ended.iter().enumerate() {
            assert_eq!(end.is_err(), number == 2);
        }
        worker.await.unwrap();
    }

    #[tokio::test]
    async fn cancelling_takes_back_what_nobody_has_begun() {
        let (queue, cancel) = (MemoryQueue::new(Limits::default()), CancellationToken::new());
        let dispatcher = Dispatcher::new(Arc::new(queue.clone()), Store::in_memory(), cancel.clone(), Patience::default());
        cancel.cancel();
        assert!(matches!(dispatcher.run("r", &jobs(3), &mut Progress::silent()).await, Err(Failure::Cancelled)));
        assert!(queue.pull(Duration::ZERO).await.unwrap().is_none());
    }
}

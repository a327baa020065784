//! Gets jobs done: publishes what has no outcome yet, and waits until every job has one or is a dead letter.
//!
//! The store is the truth. Notices from the queue only say when to look; a lost notice costs a few seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use lethe_shared::job::{Job, JobId};
use lethe_shared::outcome::Outcome;
use lethe_shared::queue::{Cause, Event, Queue};
use lethe_shared::store::Store;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::failure::Failure;
use crate::progress::Progress;

/// How often the store is asked about jobs that no notice spoke of.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Outcomes asked for at once.
const AT_ONCE: usize = 32;

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
}

impl Dispatcher {
    /// Outcomes of these jobs, in their order; jobs done before are not done again. The second value counts those.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when queue or store give up, [`Failure::Cancelled`].
    pub async fn run(&self, run: &str, jobs: &[Job], progress: &mut Progress) -> Result<(Vec<Ended>, usize), Failure> {
        // Listening starts before anything can happen.
        let mut notices = self.queue.notices(run).await?;
        let mut ended: BTreeMap<JobId, Ended> = self.finished(jobs.iter().map(Job::id)).await?;
        let found = ended.len();
        progress.start(jobs.len(), found);
        let mut waiting: BTreeMap<JobId, &Job> = jobs.iter().map(|job| (job.id(), job)).filter(|(id, _)| !ended.contains_key(id)).collect();
        for job in jobs.iter().filter(|job| waiting.contains_key(&job.id())) {
            self.queue.publish(job).await?;
        }

        let mut look = tokio::time::interval(LOOK_AGAIN);
        look.tick().await;
        while !waiting.is_empty() {
            let arrived = tokio::select! {
                () = self.cancel.cancelled() => {
                    self.queue.purge(run).await?;
                    return Err(Failure::Cancelled);
                }
                notice = notices.next() => match notice {
                    Some(notice) if waiting.contains_key(&notice.job) => match notice.event {
                        Event::Finished { .. } => self.finished(std::iter::once(notice.job)).await?,
                        Event::Buried { error, cause } => BTreeMap::from([(notice.job, Err(Lost { error, cause }))]),
                        Event::Failed { error, will_retry } => {
                            warn!(job = %waiting[&notice.job].label(), %error, will_retry, "an attempt failed");
                            BTreeMap::new()
                        }
                        Event::Started => {
                            debug!(job = %waiting[&notice.job].label(), worker = %notice.worker, "started");
                            BTreeMap::new()
                        }
                    },
                    Some(_) => BTreeMap::new(),
                    None => return Err(Failure::Infrastructure("the queue has closed".to_owned())),
                },
                _ = look.tick() => {
                    let mut found = self.finished(waiting.keys().copied()).await?;
                    for letter in self.queue.dead_letters(run).await? {
                        found.entry(letter.job.id()).or_insert(Err(Lost { error: letter.error, cause: letter.cause }));
                    }
                    found
                }
            };
            for (id, end) in arrived {
                if waiting.remove(&id).is_some() {
                    ended.insert(id, end);
                    progress.advance(jobs.len() - waiting.len());
                }
            }
            progress.tick();
        }
        progress.finish();
        let in_order = jobs.iter().filter_map(|job| ended.get(&job.id()).cloned()).collect();
        Ok((in_order, found))
    }

    /// Those of these jobs that have an outcome.
    async fn finished(&self, jobs: impl Iterator<Item = JobId>) -> Result<BTreeMap<JobId, Ended>, Failure> {
        let asked: Vec<JobId> = jobs.collect();
        let found: Vec<Option<(JobId, Ended)>> = futures::stream::iter(asked)
            .map(|id| async move { Ok::<_, Failure>(self.store.get_outcome(id).await?.map(|outcome| (id, Ok(outcome)))) })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::address::Address;
    use lethe_shared::digest::Digest;
    use lethe_shared::job::{ModelRef, Task};
    use lethe_shared::outcome::{EvaluateResult, Execution, TaskResult};
    use lethe_shared::queue::{MemoryQueue, Notice, Options};

    use super::*;

    fn jobs(count: u32) -> Vec<Job> {
        let model = ModelRef { weights: Digest::of(b"w"), settings: Digest::of(b"s"), address: Address::parse("/m").unwrap() };
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
        let (queue, store) = (MemoryQueue::new(Options::default()), Store::in_memory());
        let jobs = jobs(6);
        store.put_outcome(&outcome(&jobs[0])).await.unwrap();
        let dispatcher = Dispatcher { queue: Arc::new(queue.clone()), store: store.clone(), cancel: CancellationToken::new() };
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
        let (queue, cancel) = (MemoryQueue::new(Options::default()), CancellationToken::new());
        let dispatcher = Dispatcher { queue: Arc::new(queue.clone()), store: Store::in_memory(), cancel: cancel.clone() };
        cancel.cancel();
        assert!(matches!(dispatcher.run("r", &jobs(3), &mut Progress::silent()).await, Err(Failure::Cancelled)));
        assert!(queue.pull(Duration::ZERO).await.unwrap().is_none());
    }
}

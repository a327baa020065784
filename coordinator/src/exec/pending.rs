//! The unfinished jobs of one call: those to publish, and those on the queue. Pure.
//!
//! Invariant: every unfinished job is either in the line or published, and equal jobs are stored
//! once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lethe_shared::job::Job;
use lethe_shared::reference::JobId;

/// The unfinished jobs of a call.
#[derive(Debug, Default)]
pub struct Pending {
    /// Unfinished jobs whose results the caller needs.
    waiting: BTreeMap<JobId, Job>,
    /// Jobs to publish, in order.
    line: VecDeque<JobId>,
    /// Jobs on the queue, including jobs that run again.
    published: BTreeMap<JobId, Job>,
    /// Number of times that each job was republished because its object is corrupt.
    rebuilds: BTreeMap<JobId, u32>,
}

impl Pending {
    /// Creates the set of the unfinished jobs, in their order.
    pub fn new(jobs: &[Job], is_finished: impl Fn(JobId) -> bool) -> Self {
        let mut pending = Self::default();
        for job in jobs {
            let id = job.id();
            if !is_finished(id) && pending.waiting.insert(id, job.clone()).is_none() {
                pending.line.push_back(id);
            }
        }
        pending
    }

    /// Returns whether the caller waits for no job.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the number of jobs that the caller waits for.
    pub fn left(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether the caller waits for a job.
    pub fn waits_for(&self, id: JobId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Returns the next job to publish if fewer than `window` jobs are on the queue. The caller
    /// publishes it and calls [`published`](Self::published).
    pub fn next(&self, window: usize) -> Option<&Job> {
        if self.published.len() >= window {
            return None;
        }
        self.line.front().and_then(|id| self.waiting.get(id))
    }

    /// Records that the job returned by [`next`](Self::next) is on the queue, in this form.
    pub fn published(&mut self, job: Job) {
        let id = job.id();
        self.line.retain(|waiting| *waiting != id);
        self.published.insert(id, job);
    }

    /// Returns the job of a notice if it is on the queue for this call.
    pub fn on_queue(&self, id: JobId) -> Option<&Job> {
        self.published.get(&id)
    }

    /// Returns the jobs on the queue.
    pub fn all_on_queue(&self) -> impl Iterator<Item = (JobId, &Job)> {
        self.published.iter().map(|(id, job)| (*id, job))
    }

    /// Returns the number of jobs on the queue.
    pub fn count_on_queue(&self) -> usize {
        self.published.len()
    }

    /// Records that a job is on the queue again because its object is corrupt. Returns the number
    /// of times so far, or `None` if the job is on the queue already.
    pub fn rebuild(&mut self, job: &Job) -> Option<u32> {
        let id = job.id();
        if self.published.contains_key(&id) {
            return None;
        }
        self.line.retain(|waiting| *waiting != id);
        self.published.insert(id, job.clone());
        let times = self.rebuilds.entry(id).or_default();
        *times += 1;
        Some(*times)
    }

    /// Returns whether a job was republished because its object is corrupt.
    pub fn is_rebuild(&self, id: JobId) -> bool {
        self.rebuilds.contains_key(&id)
    }

    /// Records that a job has ended. Returns the job if the caller waits for it.
    pub fn end(&mut self, id: JobId) -> Option<Job> {
        self.published.remove(&id);
        self.line.retain(|waiting| *waiting != id);
        self.waiting.remove(&id)
    }

    /// Returns the unfinished jobs that are neither in the line nor on the queue. The set is always
    /// empty; otherwise the call would never end.
    pub fn lost(&self) -> BTreeSet<JobId> {
        let known: BTreeSet<JobId> =
            self.line.iter().chain(self.published.keys()).copied().collect();
        self.waiting.keys().filter(|id| !known.contains(id)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use lethe_queue::conformance::job;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Publish,
        End(u32),
        Rebuild(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Publish),
            3 => (0u32..8).prop_map(Step::End),
            1 => (0u32..12).prop_map(Step::Rebuild),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        /// For any multiset of jobs, and any order of endings and rebuilds: no unfinished job is
        /// lost, equal jobs are stored once, and the call ends once all jobs are published and
        /// ended.
        #[test]
        fn no_job_is_lost(
            numbers in proptest::collection::vec(0u32..8, 0..20),
            finished in proptest::collection::btree_set(0u32..8, 0..4),
            window in 1usize..5,
            steps in steps(),
        ) {
            let jobs: Vec<Job> = numbers.iter().map(|&number| job("r", number)).collect();
            let ids: BTreeSet<JobId> = finished.iter().map(|&number| job("r", number).id()).collect();
            let mut pending = Pending::new(&jobs, |id| ids.contains(&id));
            let distinct: BTreeSet<JobId> = jobs.iter().map(Job::id).filter(|id| !ids.contains(id)).collect();
            prop_assert_eq!(pending.left(), distinct.len());
            let mut published = Vec::new();
            for step in steps {
                match step {
                    Step::Publish => {
                        if let Some(job) = pending.next(window).cloned() {
                            published.push(job.id());
                            pending.published(job);
                        }
                    }
                    Step::End(number) => _ = pending.end(job("r", number).id()),
                    Step::Rebuild(number) => _ = pending.rebuild(&job("r", number)),
                }
                prop_assert!(pending.lost().is_empty());
            }
            while let Some(job) = pending.next(usize::MAX).cloned() {
                published.push(job.id());
                pending.published(job);
            }
            // Each distinct job leaves the line at most once.
            let once: BTreeSet<JobId> = published.iter().copied().collect();
            prop_assert_eq!(once.len(), published.len());
            let left: Vec<JobId> = pending.all_on_queue().map(|(id, _)| id).collect();
            left.into_iter().for_each(|id| _ = pending.end(id));
            prop_assert!(pending.is_done() && pending.lost().is_empty());
        }
    }
}

//! Jobs of several kinds that run together, and their outputs by kind.

use std::marker::PhantomData;
use std::ops::Range;

use lethe_shared::fault::Fault;
use lethe_shared::job::{Job, TypedJob};
use lethe_shared::outcome::Outcome;
use lethe_shared::task::Task;

use crate::exec::dispatch::Ended;
use crate::failure::Failure;

/// Jobs in publication order.
#[derive(Debug, Default)]
pub struct Batch {
    jobs: Vec<Job>,
}

/// Handle to the outputs of one kind of job in a [`Batch`].
#[derive(Debug)]
pub struct Ticket<T> {
    range: Range<usize>,
    kind: PhantomData<T>,
}

impl Batch {
    /// Creates a batch with jobs of one kind.
    pub fn of<T: Task>(jobs: impl IntoIterator<Item = TypedJob<T>>) -> (Self, Ticket<T>) {
        let mut batch = Self::default();
        let ticket = batch.add(jobs);
        (batch, ticket)
    }

    /// Adds jobs of one kind. The ticket returns their outputs.
    pub fn add<T: Task>(&mut self, jobs: impl IntoIterator<Item = TypedJob<T>>) -> Ticket<T> {
        let start = self.jobs.len();
        self.jobs.extend(jobs.into_iter().map(|job| job.job().clone()));
        Ticket { range: start..self.jobs.len(), kind: PhantomData }
    }

    /// Returns the jobs.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }
}

/// The results of a [`Batch`].
#[derive(Debug)]
pub struct Results {
    ended: Vec<Ended>,
}

impl Results {
    /// Creates the results, in the order of the batch.
    pub fn new(ended: Vec<Ended>) -> Self {
        Self { ended }
    }

    /// Returns the faults of dead letters, in the order of `batch`, which must be the batch of
    /// these results.
    pub fn faults<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = (&'a Job, &'a Fault)> {
        batch.jobs.iter().zip(&self.ended).filter_map(|(job, end)| Some((job, end.as_ref().err()?)))
    }

    /// Returns the results of one kind: each an output, or the fault of a dead letter.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when an outcome is of another kind, which the dispatcher rules
    /// out.
    pub fn take<T: Task>(
        &self,
        ticket: &Ticket<T>,
    ) -> Result<Vec<Result<T::Output, Fault>>, Failure> {
        let ended = self.ended.get(ticket.range.clone()).unwrap_or_default();
        ended
            .iter()
            .map(|end| {
                end.as_ref().map_or_else(
                    |fault| Ok(Err(fault.clone())),
                    |outcome| read::<T>(outcome).map(Ok),
                )
            })
            .collect()
    }
}

fn read<T: Task>(outcome: &Outcome) -> Result<T::Output, Failure> {
    let wrong = |error: serde_json::Error| {
        Failure::Infrastructure(format!("outcome of {} job {}: {error}", T::KIND, outcome.job))
    };
    outcome.output::<T>().map_err(wrong)
}

//! A run in progress: its phases, and the results of its jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lethe_shared::edit::Edit;
use lethe_shared::fault::{Class, Fault};
use lethe_shared::job::TypedJob;
use lethe_shared::record::Missing;
use lethe_shared::reference::{ArtifactRef, JobId};
use lethe_shared::task::Task;

use crate::compose::apply::{self, Change, Directions};
use crate::compose::merge;
use crate::exec::batch::{Batch, Results, Ticket};
use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::present::run_summary::Phase;
use crate::progress::Progress;

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) dispatcher: &'a Dispatcher,
    pub(super) classes: ArtifactRef,
    /// The classes of the plan's concepts.
    pub(super) removed: ArtifactRef,
    pub(super) quiet: bool,
    /// The current phase, for progress without a bar.
    pub(super) current: Option<Current>,
    pub(super) phases: Vec<Phase>,
    pub(super) began: Instant,
    pub(super) found: usize,
    pub(super) done: usize,
    /// Jobs that earlier phases waited for. Later phases find their outcomes, and count them once.
    pub(super) seen: BTreeSet<JobId>,
    pub(super) peak_memory: u64,
    /// Seconds of the jobs of each concept, by id.
    pub(super) concept_seconds: BTreeMap<String, f64>,
    pub(super) stages: BTreeMap<String, f64>,
    /// Classes of arithmetic of the outcomes.
    pub(super) arithmetic: BTreeSet<String>,
}

/// Totals of one phase, over all its rounds.
pub(super) struct Current {
    pub(super) name: &'static str,
    pub(super) jobs: usize,
    pub(super) found: usize,
    pub(super) took: Duration,
}

impl<'a> Run<'a> {
    pub(super) async fn new(
        plan: &'a Plan,
        dispatcher: &'a Dispatcher,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let text = serde_json::to_vec(&plan.class_texts).map_err(Failure::input)?;
        let classes = dispatcher.store.put_artifact(Bytes::from(text)).await?;
        let removed: BTreeSet<u32> =
            plan.concepts.iter().map(|planned| planned.concept.class_index).collect();
        let removed = serde_json::to_vec(&removed).map_err(Failure::input)?;
        let removed = dispatcher.store.put_artifact(Bytes::from(removed)).await?;
        Ok(Self {
            plan,
            dispatcher,
            classes,
            removed,
            quiet,
            current: None,
            phases: Vec::new(),
            began: Instant::now(),
            found: 0,
            done: 0,
            seen: BTreeSet::new(),
            peak_memory: 0,
            concept_seconds: BTreeMap::new(),
            stages: BTreeMap::new(),
            arithmetic: BTreeSet::new(),
        })
    }

    pub(super) async fn phase(
        &mut self,
        name: &'static str,
        batch: &Batch,
    ) -> Result<Results, Failure> {
        let (began, jobs) = (Instant::now(), batch.jobs());
        let mut progress = if self.quiet {
            Progress::silent()
        } else {
            self.dispatcher.show.progress(name, jobs.len())
        };
        if self.current.as_ref().is_some_and(|current| current.name != name) {
            self.tell();
        }
        let (ended, found) = self.dispatcher.run(&self.plan.run, jobs, &mut progress).await?;
        let current =
            self.current.get_or_insert(Current { name, jobs: 0, found: 0, took: Duration::ZERO });
        current.jobs += jobs.len();
        current.found += found;
        current.took += began.elapsed();
        self.found +=
            found - jobs.iter().filter(|job| !self.seen.insert(job.id())).count().min(found);
        self.done += ended.len() - found;
        for (job, outcome) in jobs.iter().zip(&ended) {
            let Ok(outcome) = outcome else { continue };
            self.peak_memory = self.peak_memory.max(outcome.execution.peak_memory_bytes);
            self.arithmetic.insert(outcome.execution.arithmetic.clone());
            if let Some(concept) = &job.concept {
                *self.concept_seconds.entry(concept.clone()).or_default() +=
                    outcome.execution.seconds;
                for (stage, seconds) in &outcome.execution.stages {
                    *self.stages.entry(stage.clone()).or_default() += seconds;
                }
            }
        }
        self.took(name, began);
        Ok(Results::new(ended))
    }

    /// Reports the phase that has ended.
    pub(super) fn tell(&mut self) {
        if let Some(Current { name, jobs, found, took }) =
            self.current.take().filter(|_| !self.quiet)
        {
            self.dispatcher.show.ended(name, jobs, found, took);
        }
    }

    pub(super) fn took(&mut self, name: &str, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.seconds += seconds,
            None => self.phases.push(Phase { name: name.to_owned(), seconds }),
        }
    }

    /// Executes a phase in which every job must succeed.
    pub(super) async fn must(
        &mut self,
        name: &'static str,
        batch: &Batch,
    ) -> Result<Outputs, Failure> {
        let results = self.phase(name, batch).await?;
        let (mut problems, mut gave_up) = (Vec::new(), None);
        for (job, fault) in results.faults(batch) {
            match fault.class {
                Class::Input => problems.push(format!("{}: {fault}", job.label())),
                _ => gave_up = gave_up.or_else(|| Some(given_up(&job.label(), fault))),
            }
        }
        match gave_up {
            Some(failure) => Err(failure),
            None if problems.is_empty() => Ok(Outputs(results)),
            None => Err(Failure::BadInput(problems)),
        }
    }

    /// Executes jobs of one kind, all of which must succeed.
    pub(super) async fn all<T: Task>(
        &mut self,
        name: &'static str,
        jobs: Vec<TypedJob<T>>,
    ) -> Result<Vec<T::Output>, Failure> {
        let (batch, ticket) = Batch::of(jobs);
        self.must(name, &batch).await?.take(&ticket)
    }

    /// Executes one job, which must succeed.
    pub(super) async fn one<T: Task>(
        &mut self,
        name: &'static str,
        job: TypedJob<T>,
    ) -> Result<T::Output, Failure> {
        let (batch, ticket) = Batch::of([job]);
        self.must(name, &batch).await?.only(&ticket)
    }

    /// Executes one job per concept, and returns an output or the fault of the dead letter for
    /// each.
    pub(super) async fn of_concepts<T: Task>(
        &mut self,
        name: &'static str,
        jobs: Vec<TypedJob<T>>,
    ) -> Result<Vec<Result<T::Output, Fault>>, Failure> {
        let (batch, ticket) = Batch::of(jobs);
        self.phase(name, &batch).await?.take(&ticket)
    }

    /// Composes edits. The change is also stored as an artifact, for the evaluation jobs.
    pub(super) async fn compose(
        &mut self,
        edits: &[Edit],
        directions: &impl Directions,
    ) -> Result<(Change, ArtifactRef), Failure> {
        let began = Instant::now();
        let change = apply::compose(
            &self.plan.checkpoint,
            edits,
            merge::rule(&self.plan.manifest.composition),
            directions,
        )
        .await?;
        let encoded = self
            .dispatcher
            .store
            .put_artifact(apply::encode(&self.plan.checkpoint, &change)?.into())
            .await?;
        self.took("compose", began);
        Ok((change, encoded))
    }
}

pub(super) fn given_up(job: &str, fault: &Fault) -> Failure {
    Failure::Infrastructure(format!("{job} was given up: {fault}"))
}

/// The outputs of a phase in which every job succeeded.
pub(super) struct Outputs(Results);

impl Outputs {
    pub(super) fn take<T: Task>(&mut self, ticket: &Ticket<T>) -> Result<Vec<T::Output>, Failure> {
        self.0
            .take(ticket)?
            .into_iter()
            .map(|output| output.map_err(|fault| given_up(T::KIND, &fault)))
            .collect()
    }

    pub(super) fn only<T: Task>(&mut self, ticket: &Ticket<T>) -> Result<T::Output, Failure> {
        self.take(ticket)?
            .pop()
            .ok_or_else(|| Failure::Infrastructure(format!("a {} job has no output", T::KIND)))
    }
}

/// Returns the outputs of concept jobs with their concepts. A concept whose job is a dead letter
/// with an input fault is recorded as missing.
pub(super) fn concept_results<'a, Output>(
    concepts: &[&'a PlannedConcept],
    ended: Vec<Result<Output, Fault>>,
    missing: &mut Vec<Missing>,
) -> Result<Vec<(&'a PlannedConcept, Output)>, Failure> {
    let mut results = Vec::with_capacity(ended.len());
    for (&planned, end) in concepts.iter().zip(ended) {
        let id = &planned.concept.id;
        match end {
            Ok(output) => results.push((planned, output)),
            Err(Fault { class: Class::Input, message }) => {
                missing.push(Missing { id: id.clone(), reason: message })
            }
            // Another attempt may succeed, and reuses all stored outcomes.
            Err(fault) => return Err(given_up(&format!("concept {id}"), &fault)),
        }
    }
    Ok(results)
}

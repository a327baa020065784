//! The built-in probes: is a removal held under other words, in a rounded model, after merging with
//! the base, after fine-tuning, by learned tokens? And what does a random change of the same size do?
//!
//! A probe's result is a function of the plan and of the change. `docs/probes.md` has the numbers
//! of each.

mod features;
mod forgetting;
mod recovered;
mod relearn;
mod soft_prompt;
mod subject;
mod words;

use lethe_shared::digest::Digest;
use lethe_shared::manifest::BuiltInProbe;
use lethe_shared::record::ProbeRecord;

use self::subject::Found;
pub(super) use self::subject::Subject;
use super::context::Run;
use super::judgement::held_out;
use crate::compose::apply::Change;
use crate::compose::controls;
use crate::compose::rounding::{self, Rounding};
use crate::exec::dispatch::Dispatcher;
use crate::exec::{jobs, probe_jobs};
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// Returns the version of a probe; raised when it measures otherwise.
const fn version(probe: BuiltInProbe) -> &'static str {
    match probe {
        BuiltInProbe::Rounded | BuiltInProbe::Relearn => "2",
        BuiltInProbe::Words
        | BuiltInProbe::Halfway
        | BuiltInProbe::Random
        | BuiltInProbe::Features
        | BuiltInProbe::Forgetting
        | BuiltInProbe::SoftPrompt => "1",
    }
}

/// Results of built-in probes.
#[derive(Debug)]
pub struct Probed {
    /// In the order of their names.
    pub results: Vec<ProbeRecord>,
    /// Jobs whose stored outcome was reused.
    pub jobs_found: usize,
    /// Jobs executed by this invocation.
    pub jobs_done: usize,
}

/// Measures a changed model with built-in probes. `edited` are the plan's concepts that have an
/// edit.
///
/// # Errors
/// As [`run`](super::run).
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn probe_change(
    plan: &Plan,
    dispatcher: &Dispatcher,
    change: &Change,
    edited: &[&PlannedConcept],
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    probe(plan, plan, dispatcher, change, edited, probes).await
}

/// Measures the model of `other`, a plan of the same data and concepts as `plan`, with built-in
/// probes.
///
/// # Errors
/// As [`run`](super::run); [`Failure::BadInput`] when a probe compares the two models and their
/// tensors differ.
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn probe_model(
    plan: &Plan,
    other: &Plan,
    dispatcher: &Dispatcher,
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    probe(plan, other, dispatcher, &Change::new(), &concepts, probes).await
}

async fn probe(
    base_plan: &Plan,
    plan: &Plan,
    dispatcher: &Dispatcher,
    change: &Change,
    edited: &[&PlannedConcept],
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    let mut run = Run::new(plan, dispatcher, false).await?;
    let jobs = jobs::base_evaluation(base_plan, run.classes, run.removed);
    let base = held_out(run.all("base", jobs).await?);
    let subject = Subject { base_plan, change, edited, base: &base };
    let results = run.probes(probes, &subject).await?;
    run.tell();
    Ok(Probed { results, jobs_found: run.found, jobs_done: run.done })
}

/// Returns the digest of what a probe does, which stands in its result for a file.
pub fn digest(probe: BuiltInProbe) -> Digest {
    Digest::of_json(&("built-in probe", probe, version(probe)))
}

/// Returns the number of jobs of a probe in a run whose concepts all get an edit, besides those that
/// the run has anyway.
pub fn job_count(plan: &Plan, probe: BuiltInProbe) -> usize {
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let removed: Vec<&PlannedConcept> =
        concepts.iter().copied().filter(|planned| planned.concept.strength > 0.0).collect();
    let sets = [&plan.validation, &plan.test].into_iter().filter(|set| !set.is_empty()).count();
    let evaluation = sets + concepts.len().div_ceil(jobs::CONCEPTS_PER_JOB);
    match probe {
        BuiltInProbe::Words => words::job_count(plan, &removed),
        BuiltInProbe::Rounded => Rounding::ALL.len() * evaluation,
        BuiltInProbe::Halfway | BuiltInProbe::Random => evaluation,
        BuiltInProbe::Relearn if removed.is_empty() => 0,
        BuiltInProbe::Relearn => relearn::JOBS,
        BuiltInProbe::Features => 2,
        BuiltInProbe::Forgetting => 0,
        BuiltInProbe::SoftPrompt => 2 * removed.len().div_ceil(probe_jobs::PROMPTS_PER_JOB),
    }
}

impl Run<'_> {
    /// Measures with some probes, in the order of their names.
    pub(super) async fn probes(
        &mut self,
        probes: &[BuiltInProbe],
        subject: &Subject<'_>,
    ) -> Result<Vec<ProbeRecord>, Failure> {
        let mut records = Vec::with_capacity(probes.len());
        for &probe in probes {
            let found = match probe {
                BuiltInProbe::Words => self.words(subject).await?,
                BuiltInProbe::Rounded => self.rounded(subject).await?,
                BuiltInProbe::Halfway => {
                    let (base, model) = (&subject.base_plan.checkpoint, &self.plan.checkpoint);
                    let change = controls::halfway(base, model, subject.change)?;
                    self.under(subject, &change, "").await?
                }
                BuiltInProbe::Random => {
                    let (base, model) = (&subject.base_plan.checkpoint, &self.plan.checkpoint);
                    let change = controls::random(base, model, subject.change)?;
                    self.under(subject, &change, "").await?
                }
                BuiltInProbe::Relearn => self.relearn(subject).await?,
                BuiltInProbe::Features => self.features(subject).await?,
                BuiltInProbe::Forgetting => self.forgetting(subject).await?,
                BuiltInProbe::SoftPrompt => self.soft_prompt(subject).await?,
            };
            records.push(ProbeRecord {
                name: probe.name().to_owned(),
                file: digest(probe),
                command: Vec::new(),
                version: version(probe).to_owned(),
                exit_code: 0,
                numbers: found.numbers,
                pictures: Vec::new(),
                notes: found.notes,
            });
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    async fn rounded(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let mut found = Found::default();
        for rounding in Rounding::ALL {
            let change = rounding::rounded(&self.plan.checkpoint, subject.change, rounding)?;
            let prefix = format!("{}.", rounding.name());
            found.numbers.extend(self.under(subject, &change, &prefix).await?.numbers);
        }
        Ok(found)
    }
}

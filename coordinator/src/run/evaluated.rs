//! What is left of what must go, and of what must stay, in a composed model: for a run's release, and later for one composed again.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::job::ArtifactRef;
use lethe_shared::outcome::{Answers, Hits, Outcome, TaskResult};
use lethe_shared::record::{Measured, Said, Utility};

use super::Run;
use crate::compose::{self, Change};
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::jobs;
use crate::measure::{self, Fates};
use crate::plan::{Plan, PlannedConcept};

/// Hits on the held-out sets.
#[derive(Default)]
pub(super) struct HeldOut {
    pub(super) validation: Option<Hits>,
    pub(super) test: Option<Hits>,
}

/// The numbers of a composed model.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// How well each concept that has an edit is still known, by id.
    pub concepts: BTreeMap<String, Measured>,
    /// What the model says of each concept's forget images, by id.
    pub said: BTreeMap<String, Said>,
    /// What must stay, before and after.
    pub utility: Utility,
    /// Jobs whose outcome was there already.
    pub jobs_found: usize,
    /// Jobs done by this invocation.
    pub jobs_done: usize,
}

/// Judges a changed model. `edited` are those of the plan's concepts that have an edit, by id; their classes and the plan's others'
/// need not stay. The jobs are a run's own: what it has done is not done again.
///
/// # Errors
/// [`Failure`], as a run's.
pub async fn evaluate(plan: &Plan, dispatcher: &Dispatcher, change: &Change, edited: &[&PlannedConcept]) -> Result<Judgement, Failure> {
    let encoded = dispatcher.store.put_artifact(compose::encode(&plan.checkpoint, change)?.into()).await?;
    let mut run = Run::new(plan, dispatcher, false).await?;
    let before = run.must("base", &jobs::base_evaluation(plan, run.classes)).await?;
    run.judge(edited, &held_out(before), encoded).await
}

impl Run<'_> {
    /// Evaluates the model under a change, given what the unchanged one knows.
    pub(super) async fn judge(&mut self, edited: &[&PlannedConcept], base: &HeldOut, change: ArtifactRef) -> Result<Judgement, Failure> {
        let outcomes = self.must("evaluate", &jobs::composed_evaluation(self.plan, edited, change, self.classes)).await?;
        self.tell();
        let (mut hits, answers) = items(outcomes);
        let composed = HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) };
        let forget = Forgotten { hits, answers };
        Ok(Judgement { jobs_found: self.found, jobs_done: self.done, ..judge(self.plan, edited, base, &composed, &forget) })
    }
}

/// How the composed model fares on forget sets, by the names of [`jobs::forget_item`].
struct Forgotten {
    hits: BTreeMap<String, Hits>,
    answers: BTreeMap<String, Answers>,
}

/// From hits to numbers.
fn judge(plan: &Plan, edited: &[&PlannedConcept], base: &HeldOut, composed: &HeldOut, forget: &Forgotten) -> Judgement {
    let empty = Hits::default();
    let of = |planned: &&PlannedConcept| {
        let concept = &planned.concept;
        let hits = forget.hits.get(&jobs::forget_item(&concept.id)).unwrap_or(&empty);
        (concept.id.clone(), measure::composed(hits, concept.class_index, composed.validation.as_ref()))
    };
    let names = plan.classes.names();
    let said = |planned: &&PlannedConcept| {
        let answers = forget.answers.get(&jobs::forget_item(&planned.concept.id))?;
        Some((planned.concept.id.clone(), measure::said(answers, names)))
    };
    let removed: BTreeSet<u32> = edited.iter().map(|planned| planned.concept.class_index).collect();
    let retains = plan.retains();
    let fates = Fates { retained: &retains, covered: &plan.covered, removed: &removed };
    let on = |before: &Option<Hits>, after: &Option<Hits>| {
        before.as_ref().zip(after.as_ref()).map(|(before, after)| measure::utility(before, after, &fates, names))
    };
    Judgement {
        concepts: edited.iter().map(of).collect(),
        said: edited.iter().filter_map(said).collect(),
        utility: Utility {
            retained_classes: Some((0..names.len() as u32).filter(|&class| retains(class)).count() as u64),
            validation: on(&base.validation, &composed.validation),
            test: on(&base.test, &composed.test),
        },
        jobs_found: 0,
        jobs_done: 0,
    }
}

fn items(outcomes: Vec<Outcome>) -> (BTreeMap<String, Hits>, BTreeMap<String, Answers>) {
    let (mut hits, mut answers) = (BTreeMap::new(), BTreeMap::new());
    for outcome in outcomes {
        if let TaskResult::Evaluate(result) = outcome.result {
            hits.extend(result.items);
            answers.extend(result.answers);
        }
    }
    (hits, answers)
}

/// Hits on the held-out sets alone.
pub(super) fn held_out(outcomes: Vec<Outcome>) -> HeldOut {
    let (mut hits, _) = items(outcomes);
    HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) }
}

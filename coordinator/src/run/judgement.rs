//! Evaluates a composed model on removed concepts and retained classes, for a run's release or for
//! a release composed later.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::measurement::{Answers, Hits};
use lethe_shared::record::Utility;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::EvaluateOutput;

use super::context::Run;
use crate::compose::apply::{self, Change};
use crate::compose::measure::{self, Fates, Judgement};
use crate::exec::dispatch::Dispatcher;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// Hits on the held-out sets.
#[derive(Default)]
pub(super) struct HeldOut {
    pub(super) validation: Option<Hits>,
    pub(super) test: Option<Hits>,
}

/// Evaluates a changed model. `edited` are the plan's concepts that have an edit, by id; the
/// classes of all concepts in the plan are not retained. The jobs are the run's own, so its stored
/// outcomes are reused.
///
/// # Errors
/// As [`run`](super::run).
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn judge_change(
    plan: &Plan,
    dispatcher: &Dispatcher,
    change: &Change,
    edited: &[&PlannedConcept],
) -> Result<Judgement, Failure> {
    let encoded =
        dispatcher.store.put_artifact(apply::encode(&plan.checkpoint, change)?.into()).await?;
    let mut run = Run::new(plan, dispatcher, false).await?;
    let before = run.all("base", jobs::base_evaluation(plan, run.classes)).await?;
    run.judge(edited, &held_out(before), encoded).await
}

impl Run<'_> {
    /// Evaluates the model under a change, given the hits of the unchanged model.
    pub(super) async fn judge(
        &mut self,
        edited: &[&PlannedConcept],
        base: &HeldOut,
        change: ArtifactRef,
    ) -> Result<Judgement, Failure> {
        let outputs = self
            .all("evaluate", jobs::composed_evaluation(self.plan, edited, change, self.classes))
            .await?;
        self.tell();
        let (mut hits, answers) = items(outputs);
        for planned in edited {
            counted(&hits, planned)?;
        }
        let composed =
            HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) };
        let forget = Forgotten { hits, answers };
        Ok(Judgement {
            jobs_found: self.found,
            jobs_done: self.done,
            ..judge(self.plan, edited, base, &composed, &forget)
        })
    }
}

/// Results of the composed model on forget sets, by the names of [`jobs::forget_item`].
struct Forgotten {
    hits: BTreeMap<String, Hits>,
    answers: BTreeMap<String, Answers>,
}

/// Computes a judgement from hits.
fn judge(
    plan: &Plan,
    edited: &[&PlannedConcept],
    base: &HeldOut,
    composed: &HeldOut,
    forget: &Forgotten,
) -> Judgement {
    let empty = Hits::default();
    let of = |planned: &&PlannedConcept| {
        let concept = &planned.concept;
        let hits = forget.hits.get(&jobs::forget_item(&concept.id)).unwrap_or(&empty);
        (
            concept.id.clone(),
            measure::composed(hits, concept.class_index, composed.validation.as_ref()),
        )
    };
    let names = plan.classes.names();
    let said = |planned: &&PlannedConcept| {
        let answers = forget.answers.get(&jobs::forget_item(&planned.concept.id))?;
        Some((planned.concept.id.clone(), measure::top_predictions(answers, names)))
    };
    let removed: BTreeSet<u32> = edited.iter().map(|planned| planned.concept.class_index).collect();
    let retains = plan.retains();
    let fates = Fates { retained: &retains, covered: &plan.covered, removed: &removed };
    let on = |before: &Option<Hits>, after: &Option<Hits>| {
        before
            .as_ref()
            .zip(after.as_ref())
            .map(|(before, after)| measure::utility(before, after, &fates, names))
    };
    Judgement {
        concepts: edited.iter().map(of).collect(),
        said: edited.iter().filter_map(said).collect(),
        utility: Utility {
            retained_classes: Some(
                (0..names.len() as u32).filter(|&class| retains(class)).count() as u64
            ),
            validation: on(&base.validation, &composed.validation),
            test: on(&base.test, &composed.test),
        },
        jobs_found: 0,
        jobs_done: 0,
    }
}

/// Returns the hits on a concept's forget images. Without any hits, the concept cannot be measured,
/// which is an error.
pub(super) fn counted<'a>(
    hits: &'a BTreeMap<String, Hits>,
    planned: &PlannedConcept,
) -> Result<&'a Hits, Failure> {
    let concept = &planned.concept;
    let found = hits.get(&jobs::forget_item(&concept.id));
    found.filter(|hits| hits.classes.get(&concept.class_index).is_some_and(|class| class.n > 0)).ok_or_else(|| {
        Failure::Infrastructure(format!(
            "the evaluation of concept {} counts none of its forget images; its outcome is damaged",
            concept.id
        ))
    })
}

fn items(outputs: Vec<EvaluateOutput>) -> (BTreeMap<String, Hits>, BTreeMap<String, Answers>) {
    let (mut hits, mut answers) = (BTreeMap::new(), BTreeMap::new());
    for output in outputs {
        hits.extend(output.items);
        answers.extend(output.answers);
    }
    (hits, answers)
}

/// Returns the hits on the held-out sets alone.
pub(super) fn held_out(outputs: Vec<EvaluateOutput>) -> HeldOut {
    let (mut hits, _) = items(outputs);
    HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) }
}

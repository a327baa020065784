//! Evaluates a composed model on removed concepts and retained classes, for a run's release or for
//! a release composed later.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::measurement::{Answers, Hits, ImageRanks, NameSearch};
use lethe_shared::record::{Measured, TowerAlone, Utility};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::EvaluateOutput;
use lethe_shared::vocabulary::{Stop, Tower, Towers};

use super::context::Run;
use super::edits::EditedConcept;
use crate::compose::apply::{self, Change};
use crate::compose::effect_matrix::Recognition;
use crate::compose::measure::{self, ConceptRanks, Fates, Judgement};
use crate::exec::dispatch::Dispatcher;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// Results on the held-out sets.
#[derive(Default)]
pub(super) struct HeldOut {
    pub(super) validation: Option<Hits>,
    pub(super) test: Option<Hits>,
    /// Searches for images by the names of the plan's concepts, by set.
    searches: BTreeMap<String, Vec<NameSearch>>,
}

impl HeldOut {
    /// Returns the hits on the test set, or without one on the validation set.
    pub(super) fn on_a_set(&self) -> Option<&Hits> {
        self.test.as_ref().or(self.validation.as_ref())
    }
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
    let before = run.all("base", jobs::base_evaluation(plan, run.classes, run.removed)).await?;
    let judgement = run.judge(edited, &held_out(before), Some(encoded)).await?;
    run.tell();
    Ok(judgement)
}

/// The measurements of a model that is not a release, beside those of a plan's base model.
#[derive(Debug)]
pub struct ModelJudgement {
    /// Accuracy of the base model on each concept, by id.
    pub before: BTreeMap<String, Measured>,
    /// The measurements of the model.
    pub after: Judgement,
}

/// Evaluates the model of `other`, a plan of the same data and concepts, beside the model of
/// `plan`. The classes of all concepts count as removed.
///
/// # Errors
/// As [`run`](super::run).
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn judge_model(
    plan: &Plan,
    other: &Plan,
    dispatcher: &Dispatcher,
) -> Result<ModelJudgement, Failure> {
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let mut run = Run::new(plan, dispatcher, false).await?;
    let (classes, removed) = (run.classes, run.removed);
    let mut measured = Vec::new();
    for (name, of) in [("base", plan), ("evaluate", other)] {
        let mut jobs = jobs::base_evaluation(of, classes, removed);
        jobs.extend(jobs::forget_evaluation(of, &concepts, None, classes, Some(removed)));
        let mut items = Items::of(run.all(name, jobs).await?);
        run.tell();
        for planned in &concepts {
            counted(&items.hits, planned)?;
        }
        measured.push((items.held_out(), items));
    }
    let judged = |(before, after): (usize, usize)| {
        let ((base, unedited), (held_out, forget)) = (&measured[before], &measured[after]);
        judge(plan, &concepts, (base, held_out), (unedited, forget))
    };
    let before = judged((0, 0)).concepts;
    let after = Judgement { jobs_found: run.found, jobs_done: run.done, ..judged((0, 1)) };
    Ok(ModelJudgement { before, after })
}

impl Run<'_> {
    /// Evaluates the model under a change, given the hits of the unchanged model.
    pub(super) async fn judge(
        &mut self,
        edited: &[&PlannedConcept],
        base: &HeldOut,
        change: Option<ArtifactRef>,
    ) -> Result<Judgement, Failure> {
        let (composed, base_jobs) =
            jobs::composed_evaluation(self.plan, edited, change, self.classes, self.removed);
        let count = composed.len();
        let mut outputs =
            self.all("evaluate", composed.into_iter().chain(base_jobs).collect()).await?;
        let unedited = outputs.split_off(count.min(outputs.len()));
        let (mut composed, unedited) = (Items::of(outputs), Items::of(unedited));
        for planned in edited {
            counted(&composed.hits, planned)?;
        }
        let held_out = composed.held_out();
        Ok(Judgement {
            jobs_found: self.found,
            jobs_done: self.done,
            ..judge(self.plan, edited, (base, &held_out), (&unedited, &composed))
        })
    }
}

impl Run<'_> {
    /// Evaluates the model under the change of each tower by itself, when the manifest asks for
    /// edits of both and both change.
    pub(super) async fn judge_towers(
        &mut self,
        found: &[EditedConcept<'_>],
        base: &HeldOut,
        change: &Change,
    ) -> Result<Vec<TowerAlone>, Failure> {
        let layers = |tower: Tower| -> BTreeSet<&str> {
            let ranked = found.iter().flat_map(|found| &found.ranking);
            ranked.filter(|layer| layer.tower == tower).map(|layer| layer.layer.as_str()).collect()
        };
        let mut parts: Vec<(Tower, Change)> = Vec::new();
        if self.plan.manifest.composition.towers == Towers::Both {
            for tower in [Tower::Text, Tower::Vision] {
                let layers = layers(tower);
                let own = change.iter().filter(|(layer, _)| layers.contains(layer.as_str()));
                let own: Change =
                    own.map(|(layer, bytes)| (layer.clone(), bytes.clone())).collect();
                if !own.is_empty() {
                    parts.push((tower, own));
                }
            }
        }
        if parts.len() < 2 {
            return Ok(Vec::new());
        }
        let edited: Vec<&PlannedConcept> = found.iter().map(|found| found.planned).collect();
        let acts = |planned: &&&PlannedConcept| planned.concept.strength > 0.0;
        let mut towers = Vec::with_capacity(parts.len());
        for (tower, part) in parts {
            let file = apply::encode(&self.plan.checkpoint, &part)?.into();
            let encoded = self.dispatcher.store.put_artifact(file).await?;
            let judgement = self.judge(&edited, base, Some(encoded)).await?;
            let measured: Vec<&Measured> = edited
                .iter()
                .filter(acts)
                .filter_map(|planned| judgement.concepts.get(&planned.concept.id))
                .collect();
            let mean = |share: fn(&Measured) -> f64| {
                let sum: f64 = measured.iter().map(|measured| share(measured)).sum();
                sum / measured.len().max(1) as f64
            };
            towers.push(TowerAlone {
                tower,
                fa1: mean(|measured| measured.fa1),
                fa5: mean(|measured| measured.fa5),
                recognition: judgement.recognition,
                utility: judgement.utility,
            });
        }
        Ok(towers)
    }
}

/// Results of evaluation jobs, by the names of their items.
#[derive(Default)]
struct Items {
    hits: BTreeMap<String, Hits>,
    answers: BTreeMap<String, Answers>,
    ranks: BTreeMap<String, Vec<ImageRanks>>,
    searches: BTreeMap<String, Vec<NameSearch>>,
}

impl Items {
    fn of(outputs: Vec<EvaluateOutput>) -> Self {
        let mut items = Self::default();
        for output in outputs {
            items.hits.extend(output.items);
            items.answers.extend(output.answers);
            items.ranks.extend(output.ranks);
            items.searches.extend(output.searches);
        }
        items
    }

    /// Takes the results on the held-out sets.
    fn held_out(&mut self) -> HeldOut {
        HeldOut {
            validation: self.hits.remove(jobs::VALIDATION),
            test: self.hits.remove(jobs::TEST),
            searches: std::mem::take(&mut self.searches),
        }
    }

    /// Returns the ranks of a concept's forget images.
    fn ranks_of(&self, planned: &PlannedConcept) -> &[ImageRanks] {
        self.ranks.get(&jobs::forget_item(&planned.concept.id)).map_or(&[], Vec::as_slice)
    }
}

/// Computes a judgement from the results of the unedited and of the composed model: on the held-out
/// sets, and on the forget sets.
fn judge(
    plan: &Plan,
    edited: &[&PlannedConcept],
    (base, composed): (&HeldOut, &HeldOut),
    (unedited, forget): (&Items, &Items),
) -> Judgement {
    let empty = Hits::default();
    let others = plan.classes.names().len().saturating_sub(1) as u32;
    let of = |planned: &&PlannedConcept| {
        let concept = &planned.concept;
        let hits = forget.hits.get(&jobs::forget_item(&concept.id)).unwrap_or(&empty);
        let within = measure::within(planned.stop, others, forget.ranks_of(planned));
        let measured =
            measure::composed(hits, concept.class_index, composed.validation.as_ref(), within);
        (concept.id.clone(), measured)
    };
    let within_before = |planned: &&PlannedConcept| {
        let within = measure::within(planned.stop, others, unedited.ranks_of(planned))?;
        Some((planned.concept.id.clone(), within))
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
    let ranks: Vec<ConceptRanks<'_>> = edited
        .iter()
        .filter(|planned| planned.concept.strength > 0.0)
        .map(|planned| ConceptRanks {
            before: unedited.ranks_of(planned),
            after: forget.ranks_of(planned),
        })
        .collect();
    let retained_count = (0..names.len() as u32).filter(|&class| retains(class)).count() as u32;
    let searches = |set: &'static str| {
        measure::name_search(set, base.searches.get(set)?, composed.searches.get(set)?, &removed)
    };
    Judgement {
        concepts: edited.iter().map(of).collect(),
        within_before: edited.iter().filter_map(within_before).collect(),
        recognition: measure::recognition(
            &ranks,
            retained_count,
            [jobs::VALIDATION, jobs::TEST].into_iter().filter_map(searches).collect(),
        ),
        said: edited.iter().filter_map(said).collect(),
        utility: Utility {
            retained_classes: Some(u64::from(retained_count)),
            validation: on(&base.validation, &composed.validation),
            test: on(&base.test, &composed.test),
        },
        jobs_found: 0,
        jobs_done: 0,
    }
}

/// Measures how well a changed model still recognises each of these concepts, by its own criterion.
/// With the classes `removed`, the jobs are those of the final evaluation.
pub(super) async fn recognition(
    run: &mut Run<'_>,
    concepts: &[&PlannedConcept],
    change: ArtifactRef,
    removed: Option<ArtifactRef>,
) -> Result<Vec<Recognition>, Failure> {
    let tasks = jobs::forget_evaluation(run.plan, concepts, Some(change), run.classes, removed);
    let (mut hits, mut best) = (BTreeMap::new(), BTreeMap::new());
    for output in run.all("doses", tasks).await? {
        hits.extend(output.items);
        best.extend(output.best);
    }
    let recognition = |planned: &&PlannedConcept| {
        let item = jobs::forget_item(&planned.concept.id);
        let hits = counted(&hits, planned)?;
        let own = |class: u32| class == planned.concept.class_index;
        let share = match planned.stop {
            Stop::Fa1 => hits.mean_top1(own),
            // A manifest that names a share of ranks uses margins.
            Stop::Fa5 | Stop::Rank(_) => hits.mean_top5(own),
        };
        Ok(Recognition { share, best: best.get(&item).copied().unwrap_or(0) })
    };
    concepts.iter().map(recognition).collect()
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

/// Returns the results on the held-out sets alone.
pub(super) fn held_out(outputs: Vec<EvaluateOutput>) -> HeldOut {
    Items::of(outputs).held_out()
}

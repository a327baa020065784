//! The jobs of a run, phase by phase. Pure: from a plan and earlier outcomes to jobs.

use lethe_shared::job::{
    ALGORITHM_VERSION, ArtifactRef, ConceptTask, Correction, DirectionTask, EvaluateItem, InterferencePart, Job, Label, MethodSettings,
    MomentSource, MomentsPart, MomentsReduceTask, ProtectTask, RetainPart, SurveyTask, Task,
};
use lethe_shared::manifest::{CompositionMethod, Towers};
use lethe_shared::outcome::{GradientSumResult, Tower};

use crate::plan::{Plan, PlannedConcept};

/// Concepts whose forget sets one evaluation job looks at. Part of those jobs' ids, so never the number of workers.
pub const CONCEPTS_PER_JOB: usize = 25;

fn job(plan: &Plan, task: Task) -> Job {
    Job { run: plan.run.clone(), algorithm: ALGORITHM_VERSION, model: plan.model.clone(), task }
}

/// Towers whose layers are ranked: those that edits may change. (SLUG's full search looks at both.)
fn ranked(plan: &Plan) -> Towers {
    let composition = &plan.manifest.composition;
    if composition.method.corrects() { composition.towers } else { Towers::Both }
}

/// One job per retain shard.
pub fn retain_gradients(plan: &Plan) -> Vec<Job> {
    let (batch_size, towers) = (plan.settings.batch_size, ranked(plan));
    plan.retain.iter().map(|shard| job(plan, Task::RetainGradient { shard: shard.clone(), batch_size, towers })).collect()
}

/// The job that makes the retain gradient of its parts, in shard order.
pub fn retain_reduce(plan: &Plan, parts: &[GradientSumResult]) -> Job {
    let part = |p: &GradientSumResult| RetainPart { sum: p.sum, batches: p.batches, loss_sum: p.loss_sum };
    job(plan, Task::RetainReduce { parts: parts.iter().map(part).collect() })
}

/// The second moments of one tower: jobs over the retain set, then jobs over unlabelled data.
#[derive(Debug)]
pub struct MomentJobs {
    /// One per retain shard.
    pub paired: Vec<Job>,
    /// One per slice of unlabelled texts, or per shard of unlabelled images.
    pub unlabelled: Vec<Job>,
}

/// The moment jobs of each tower that may change; `texts` are the slices of unlabelled texts, as artifacts.
pub fn moments(plan: &Plan, texts: &[ArtifactRef]) -> Vec<MomentJobs> {
    let of = |source| job(plan, Task::Moments(source));
    let mut towers = Vec::new();
    if plan.manifest.composition.towers.include(Tower::Text) {
        towers.push(MomentJobs {
            paired: plan.retain.iter().map(|shard| of(MomentSource::Captions(shard.clone()))).collect(),
            unlabelled: texts.iter().map(|&slice| of(MomentSource::Texts(slice))).collect(),
        });
    }
    if plan.manifest.composition.towers.include(Tower::Vision) {
        towers.push(MomentJobs {
            paired: plan.retain.iter().map(|shard| of(MomentSource::Images(shard.clone()))).collect(),
            unlabelled: plan.retain_images.iter().map(|shard| of(MomentSource::ImagesAlone(shard.clone()))).collect(),
        });
    }
    towers
}

/// The job that makes of a tower's sums what directions are corrected by.
pub fn moments_reduce(plan: &Plan, paired: Vec<MomentsPart>, unlabelled: Vec<MomentsPart>) -> Job {
    let composition = &plan.manifest.composition;
    let correction = match composition.method {
        CompositionMethod::NullSpace => Correction::NullSpace(composition.null_energy),
        _ => Correction::Ridge { inputs: composition.ridge, outputs: composition.output_ridge },
    };
    let unlabelled_weight = composition.unlabelled_weight;
    job(plan, Task::MomentsReduce(MomentsReduceTask { paired, unlabelled, unlabelled_weight, correction }))
}

/// One survey per concept.
pub fn surveys(plan: &Plan, retain_gradient: ArtifactRef, folds: &[ArtifactRef]) -> Vec<Job> {
    let task = |planned: &PlannedConcept| SurveyTask {
        concept: planned.concept.id.clone(),
        forget: planned.forget.clone(),
        retain_gradient,
        folds: folds.to_vec(),
        towers: ranked(plan),
        method: plan.settings.clone(),
    };
    plan.concepts.iter().map(|planned| job(plan, Task::Survey(Box::new(task(planned))))).collect()
}

/// The job that turns directions on these layers of the text tower aside from what `texts` put into them.
pub fn protect(plan: &Plan, texts: ArtifactRef, layers: Vec<String>, inverses: &[ArtifactRef]) -> Job {
    job(plan, Task::Protect(ProtectTask { texts, layers, inverses: inverses.to_vec() }))
}

/// The settings by which one concept's edit is searched.
fn settings(plan: &Plan, planned: &PlannedConcept) -> MethodSettings {
    MethodSettings { stop: planned.stop, ..plan.settings.clone() }
}

/// The direction job of one concept on its layer; `layers` are all that the run uses.
pub fn direction(
    plan: &Plan,
    planned: &PlannedConcept,
    layer: &str,
    layers: &[String],
    inverses: &[ArtifactRef],
    classes: ArtifactRef,
) -> Job {
    job(
        plan,
        Task::Direction(Box::new(DirectionTask {
            concept: planned.concept.id.clone(),
            class: planned.concept.class_index,
            forget: planned.forget.clone(),
            validation: plan.validation.clone(),
            inverses: inverses.to_vec(),
            classes,
            layer: layer.to_owned(),
            layers: layers.to_vec(),
            method: settings(plan, planned),
        })),
    )
}

/// The job that works out what each edit does to each concept.
pub fn interference(plan: &Plan, concepts: Vec<InterferencePart>) -> Job {
    job(plan, Task::Interference { concepts })
}

/// One job per concept.
pub fn concepts(plan: &Plan, retain_gradient: ArtifactRef, classes: ArtifactRef) -> Vec<Job> {
    let task = |planned: &PlannedConcept| ConceptTask {
        concept: planned.concept.id.clone(),
        class: planned.concept.class_index,
        forget: planned.forget.clone(),
        validation: plan.validation.clone(),
        retain_gradient,
        classes,
        layers: plan.layers.as_ref().map(|layers| layers.iter().cloned().collect()),
        method: settings(plan, planned),
    };
    plan.concepts.iter().map(|planned| job(plan, Task::Concept(Box::new(task(planned))))).collect()
}

/// Name of the validation set in evaluations.
pub const VALIDATION: &str = "validation";
/// Name of the test set in evaluations.
pub const TEST: &str = "test";

/// Name of a concept's forget set in evaluations.
pub fn forget_item(concept: &str) -> String {
    format!("forget/{concept}")
}

/// Hits of the unedited model on validation and test set. (On forget sets, concept jobs measure them.)
pub fn base_evaluation(plan: &Plan, classes: ArtifactRef) -> Vec<Job> {
    held_out(plan, None, classes)
}

/// Hits of the composed model on the forget sets of concepts that have an edit, on validation and test set.
pub fn composed_evaluation(plan: &Plan, edited: &[&PlannedConcept], change: ArtifactRef, classes: ArtifactRef) -> Vec<Job> {
    let mut jobs = held_out(plan, Some(change), classes);
    jobs.extend(forget_evaluation(plan, edited, change, classes));
    jobs
}

/// Hits of a composed model on the forget sets of these concepts.
pub fn forget_evaluation(plan: &Plan, edited: &[&PlannedConcept], change: ArtifactRef, classes: ArtifactRef) -> Vec<Job> {
    let item = |planned: &PlannedConcept| EvaluateItem {
        name: forget_item(&planned.concept.id),
        shards: planned.forget.clone(),
        label: Label::Class(planned.concept.class_index),
    };
    let slice = |slice: &[&PlannedConcept]| {
        job(plan, Task::Evaluate { change: Some(change), items: slice.iter().map(|planned| item(planned)).collect(), classes })
    };
    edited.chunks(CONCEPTS_PER_JOB).map(slice).collect()
}

fn held_out(plan: &Plan, change: Option<ArtifactRef>, classes: ArtifactRef) -> Vec<Job> {
    [(VALIDATION, &plan.validation), (TEST, &plan.test)]
        .into_iter()
        .filter(|(_, shards)| !shards.is_empty())
        .map(|(name, shards)| {
            let item = EvaluateItem { name: name.to_owned(), shards: shards.clone(), label: Label::Caption };
            job(plan, Task::Evaluate { change, items: vec![item], classes })
        })
        .collect()
}

//! The jobs of a run, phase by phase. Pure: from a plan and earlier outcomes to jobs.

use lethe_shared::job::{ALGORITHM_VERSION, ArtifactRef, ConceptTask, EvaluateItem, Job, Label, RetainPart, Task};
use lethe_shared::outcome::GradientSumResult;

use crate::plan::{Plan, PlannedConcept};

/// Concepts whose forget sets one evaluation job looks at. Part of those jobs' ids, so never the number of workers.
pub const CONCEPTS_PER_JOB: usize = 25;

fn job(plan: &Plan, task: Task) -> Job {
    Job { run: plan.run.clone(), algorithm: ALGORITHM_VERSION, model: plan.model.clone(), task }
}

/// One job per retain shard.
pub fn retain_gradients(plan: &Plan) -> Vec<Job> {
    let batch_size = plan.settings.batch_size;
    plan.retain.iter().map(|shard| job(plan, Task::RetainGradient { shard: shard.clone(), batch_size })).collect()
}

/// The job that makes the retain gradient of its parts, in shard order.
pub fn retain_reduce(plan: &Plan, parts: &[GradientSumResult]) -> Job {
    let part = |p: &GradientSumResult| RetainPart { sum: p.sum, batches: p.batches, loss_sum: p.loss_sum };
    job(plan, Task::RetainReduce { parts: parts.iter().map(part).collect() })
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
        method: plan.settings.clone(),
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
    let item = |planned: &PlannedConcept| EvaluateItem {
        name: forget_item(&planned.concept.id),
        shards: planned.forget.clone(),
        label: Label::Class(planned.concept.class_index),
    };
    for slice in edited.chunks(CONCEPTS_PER_JOB) {
        jobs.push(job(plan, Task::Evaluate { change: Some(change), items: slice.iter().map(|planned| item(planned)).collect(), classes }));
    }
    jobs
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

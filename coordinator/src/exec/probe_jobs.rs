//! Creates the jobs of built-in probes. Pure.

use lethe_shared::job::TypedJob;
use lethe_shared::reference::{ArtifactRef, ShardRef};
use lethe_shared::task::{EvaluateItem, Features, Relearn, RelearnSource, SoftPrompt};

use super::jobs::{TEST, VALIDATION, forget_set, held_out_set, job, specs};
use crate::intake::plan::{Plan, PlannedConcept};

/// How a changed model is fine-tuned.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// Pairs per step.
    pub batch_size: u32,
    /// Learning rate.
    pub rate: f64,
    /// Numbers of steps after which the model is evaluated, ascending.
    pub steps: &'a [u32],
}

/// Prompts that one job fits together.
pub const PROMPTS_PER_JOB: usize = 25;

/// How prompts are fitted.
#[derive(Debug, Clone, Copy)]
pub struct Prompting<'a> {
    /// Tokens of a prompt.
    pub tokens: u32,
    /// Learning rate.
    pub rate: f64,
    /// Numbers of steps after which the prompts are evaluated, ascending.
    pub steps: &'a [u32],
}

/// Returns the jobs that fit a prompt to each removed concept's forget images in a changed model. The
/// prompts are evaluated on those images, and on the concept's images of the test set, or without
/// one of the validation set.
pub fn soft_prompt(
    plan: &Plan,
    removed: &[&PlannedConcept],
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    prompting: Prompting<'_>,
) -> Vec<TypedJob<SoftPrompt>> {
    let (name, set) = unseen_set(plan);
    let slice = |slice: &[&PlannedConcept]| {
        let task = SoftPrompt {
            change,
            concepts: slice.iter().map(forget_set).collect(),
            unseen: (!set.is_empty()).then(|| held_out_set(name, set)),
            tokens: prompting.tokens,
            rate: prompting.rate,
            steps: prompting.steps.to_vec(),
            classes,
        };
        job(plan, None, task, slice.iter().flat_map(|planned| &planned.forget).chain(set))
    };
    removed.chunks(PROMPTS_PER_JOB).map(slice).collect()
}

/// Returns the images that no edit was found on: the test set, or without one the validation set.
fn unseen_set(plan: &Plan) -> (&'static str, &[ShardRef]) {
    match plan.test.as_slice() {
        [] => (VALIDATION, &plan.validation),
        test => (TEST, test),
    }
}

/// Returns the job that fine-tunes a changed model: on `pairs` pairs of each removed concept among a
/// batch of retained ones, without which a single concept could be told from nothing; or on retained
/// pairs alone if that is 0. The model is evaluated on the forget sets of the removed concepts,
/// and on the test set, or without one on the validation set.
pub fn relearn(
    plan: &Plan,
    removed: &[&PlannedConcept],
    pairs: u32,
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    training: Training<'_>,
) -> TypedJob<Relearn> {
    let retained = match pairs {
        0 => training.steps.iter().max().map_or(1, |steps| steps * training.batch_size),
        _ => training.batch_size,
    };
    let mut sources = vec![RelearnSource { shards: specs(&plan.retain), most: retained }];
    if pairs > 0 {
        let source = |planned: &&PlannedConcept| RelearnSource {
            shards: specs(&planned.forget),
            most: pairs,
        };
        sources.extend(removed.iter().map(source));
    }
    let (name, set) = unseen_set(plan);
    let mut items: Vec<EvaluateItem> = removed.iter().map(forget_set).collect();
    if !set.is_empty() {
        items.push(held_out_set(name, set));
    }
    let task = Relearn {
        change,
        sources,
        batch_size: training.batch_size,
        rate: training.rate,
        steps: training.steps.to_vec(),
        items,
        classes,
    };
    let forget = removed.iter().flat_map(|planned| &planned.forget);
    job(plan, None, task, plan.retain.iter().chain(set).chain(forget))
}

/// Returns the job that compares the embeddings of a changed model with the base model's. Forget
/// and validation images are the reference of a classifier, test images are classified; without a
/// test set, validation images are, and forget images are the reference.
pub fn features(
    plan: &Plan,
    edited: &[&PlannedConcept],
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    removed: ArtifactRef,
    neighbours: u32,
) -> TypedJob<Features> {
    let set =
        |name: &str, shards: &[ShardRef]| (!shards.is_empty()).then(|| held_out_set(name, shards));
    let mut reference: Vec<EvaluateItem> = edited.iter().map(forget_set).collect();
    let shown = match set(TEST, &plan.test) {
        Some(test) => {
            reference.extend(set(VALIDATION, &plan.validation));
            Some(test)
        }
        None => set(VALIDATION, &plan.validation),
    };
    let shown = shown.into_iter().collect();
    let forget = edited.iter().flat_map(|planned| &planned.forget);
    let task = Features { change, reference, shown, classes, removed, neighbours };
    job(plan, None, task, plan.validation.iter().chain(&plan.test).chain(forget))
}

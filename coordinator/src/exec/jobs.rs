//! Creates the jobs of a run, phase by phase. Pure: from a plan and earlier outputs to jobs.

use lethe_shared::job::TypedJob;
use lethe_shared::manifest::CompositionMethod;
use lethe_shared::reference::{ArtifactRef, FileSpec, Locations, ShardRef};
use lethe_shared::task::{
    AnyTask, Condense, Constraints, Correction, Direction, Effects, EffectsPart, Evaluate,
    EvaluateItem, ImageEffects, ImageEffectsPart, Kernel, KeyMoments, Keys, Label, LeastSquares,
    LeastSquaresPart, Margins, MarginsOf, MomentSource, Moments, MomentsOutput, MomentsPart,
    MomentsReduce, Protect, RetainGradient, RetainGradientOutput, RetainPart, RetainReduce, Search,
    Survey, Task, Tokens, WeightedChange, WeightedConstraints,
};
use lethe_shared::vocabulary::{MethodSettings, Tower, Towers};

use crate::downstream::Target;
use crate::intake::plan::{Plan, PlannedConcept};

/// Number of concepts whose forget sets one evaluation job covers. It is part of those jobs' ids,
/// so it must not depend on the number of workers.
pub const CONCEPTS_PER_JOB: usize = 25;

/// Returns a job of this plan. `shards` are the files that it reads.
pub(super) fn job<'a, T: Task + Into<AnyTask>>(
    plan: &Plan,
    concept: Option<&str>,
    task: T,
    shards: impl IntoIterator<Item = &'a ShardRef>,
) -> TypedJob<T> {
    TypedJob::new(&plan.run, concept, plan.model.spec(), task, Locations::of(&plan.model, shards))
}

pub(super) fn specs(shards: &[ShardRef]) -> Vec<FileSpec> {
    shards.iter().map(ShardRef::spec).collect()
}

/// Returns the towers whose layers are ranked: those that edits may change. (SLUG's full search
/// ranks both.)
fn ranked(plan: &Plan) -> Towers {
    let composition = &plan.manifest.composition;
    if composition.method().corrects() { composition.towers } else { Towers::Both }
}

/// Returns one job per retain shard.
pub fn retain_gradients(plan: &Plan) -> Vec<TypedJob<RetainGradient>> {
    let (batch_size, towers) = (plan.settings.batch_size, ranked(plan));
    let one = |shard: &ShardRef| {
        job(plan, None, RetainGradient { shard: shard.spec(), batch_size, towers }, [shard])
    };
    plan.retain.iter().map(one).collect()
}

/// Returns the job that sums the parts of the retain gradient, in shard order.
pub fn retain_reduce(plan: &Plan, parts: &[RetainGradientOutput]) -> TypedJob<RetainReduce> {
    let part = |p: &RetainGradientOutput| RetainPart {
        sum: p.sum,
        batches: p.batches,
        loss_sum: p.loss_sum,
    };
    job(plan, None, RetainReduce { parts: parts.iter().map(part).collect() }, [])
}

/// The second moments of one tower: jobs over the retain set, then jobs over unlabelled data.
#[derive(Debug)]
pub struct MomentJobs {
    /// The tower.
    pub tower: Tower,
    /// One job per retain shard.
    pub paired: Vec<TypedJob<Moments>>,
    /// One job per slice of unlabelled texts, or per shard of unlabelled images.
    pub unlabelled: Vec<TypedJob<Moments>>,
}

/// Returns whether layers get an efficiency, for which second moments are cross-fit. `margins`
/// chooses layers by trial compositions instead, and `least-squares` edits the last one.
fn cross_fits(plan: &Plan) -> bool {
    let method = plan.manifest.composition.method();
    !matches!(method, CompositionMethod::Margins | CompositionMethod::LeastSquares)
}

/// Returns the moment jobs of each tower that may change. `texts` are the artifacts of the slices
/// of unlabelled texts.
pub fn moments(plan: &Plan, texts: &[ArtifactRef]) -> Vec<MomentJobs> {
    let tokens = match plan.manifest.composition.method() {
        CompositionMethod::Margins => Tokens::Together,
        _ => Tokens::Apart,
    };
    let cross_fit = cross_fits(plan);
    let moments = |source| Moments { source, tokens, cross_fit };
    let of = |shards: &[ShardRef],
              source: fn(FileSpec) -> MomentSource|
     -> Vec<TypedJob<Moments>> {
        shards.iter().map(|shard| job(plan, None, moments(source(shard.spec())), [shard])).collect()
    };
    let of_texts = |texts: &ArtifactRef| job(plan, None, moments(MomentSource::Texts(*texts)), []);
    let mut towers = Vec::new();
    if plan.manifest.composition.towers.include(Tower::Text) {
        towers.push(MomentJobs {
            tower: Tower::Text,
            paired: of(&plan.retain, MomentSource::Captions),
            unlabelled: texts.iter().map(of_texts).collect(),
        });
    }
    if plan.manifest.composition.towers.include(Tower::Vision) {
        let unlabelled = of(&plan.retain_images, MomentSource::ImagesAlone);
        let paired = of(&plan.retain, MomentSource::Images);
        towers.push(MomentJobs { tower: Tower::Vision, paired, unlabelled });
    }
    towers
}

/// Returns the token that texts are padded with: the one of the first pipeline among the targets.
fn padding(plan: &Plan) -> Option<u32> {
    plan.targets.iter().find_map(Target::padding)
}

/// Returns the jobs that sum the second moments of the inputs of these layers at the tokens of texts:
/// those over the retain set and the list `covered`, and those over the slices of unlabelled `texts`.
pub fn key_moments(
    plan: &Plan,
    covered: ArtifactRef,
    texts: &[ArtifactRef],
    layers: &[String],
) -> (Vec<TypedJob<KeyMoments>>, Vec<TypedJob<KeyMoments>>) {
    let task = |source| KeyMoments {
        source,
        padding: padding(plan),
        layers: layers.to_vec(),
        tokens: plan.manifest.composition.tokens(),
    };
    let of_shard =
        |shard: &ShardRef| job(plan, None, task(MomentSource::Captions(shard.spec())), [shard]);
    let of_texts = |texts: &ArtifactRef| job(plan, None, task(MomentSource::Texts(*texts)), []);
    // Captions name retained classes among other words; their class texts are what users write.
    let paired = plan.retain.iter().map(of_shard).chain([of_texts(&covered)]).collect();
    (paired, texts.iter().map(of_texts).collect())
}

/// A layer that takes a share of the residuals of removed texts, in `least-squares`.
#[derive(Debug, Clone, Copy)]
pub struct ShareOfLayer<'a> {
    /// The layer.
    pub layer: &'a str,
    /// The layer after whose block the states are read.
    pub read: &'a str,
    /// Edits of the layers before.
    pub change: Option<ArtifactRef>,
    /// The share, above 0 and at most 1.
    pub share: f64,
}

/// Default of `composition.vision_cost`: on the demo, it keeps most of the retained classes.
const VISION_COST: f64 = 16.0;

/// Returns the jobs that compute, from a tower's sums, the matrices that correct directions: one per
/// layer.
pub fn moments_reduces(
    plan: &Plan,
    tower: Tower,
    paired: &[MomentsOutput],
    unlabelled: &[MomentsOutput],
) -> Vec<TypedJob<MomentsReduce>> {
    let composition = &plan.manifest.composition;
    let correction = match composition.method() {
        CompositionMethod::NullSpace => Correction::NullSpace(composition.null_energy),
        _ => Correction::Ridge { inputs: composition.ridge, outputs: composition.output_ridge },
    };
    let cost = match (tower, composition.towers) {
        (Tower::Vision, Towers::Both) => composition.vision_cost.unwrap_or(VISION_COST),
        _ => 1.0,
    };
    let of_layer = |layer: &String| {
        // All sums of a tower have the same layers.
        let parts = |outputs: &[MomentsOutput]| -> Vec<MomentsPart> {
            let part = |output: &MomentsOutput| {
                Some(MomentsPart { sum: *output.layers.get(layer)?, items: output.items })
            };
            outputs.iter().filter_map(part).collect()
        };
        let task = MomentsReduce {
            layer: layer.clone(),
            paired: parts(paired),
            unlabelled: parts(unlabelled),
            unlabelled_weight: composition.unlabelled_weight,
            correction,
            cost,
            cross_fit: cross_fits(plan),
        };
        job(plan, None, task, [])
    };
    paired.first().into_iter().flat_map(|first| first.layers.keys()).map(of_layer).collect()
}

/// Returns one survey job per concept. Without `cross_fit` moments, layers get no efficiency.
pub fn surveys(
    plan: &Plan,
    retain_gradient: ArtifactRef,
    cross_fit: &[ArtifactRef],
) -> Vec<TypedJob<Survey>> {
    let one = |planned: &PlannedConcept| {
        let task = Survey {
            forget: specs(&planned.forget),
            retain_gradient,
            cross_fit: cross_fit.to_vec(),
            towers: ranked(plan),
            batch_size: plan.settings.batch_size,
            normalisation_gains: plan.settings.normalisation_gains,
        };
        job(plan, Some(&planned.concept.id), task, &planned.forget)
    };
    plan.concepts.iter().map(one).collect()
}

/// Returns the job that makes directions on these text layers orthogonal to the layer inputs of
/// `texts`.
pub fn protect(
    plan: &Plan,
    texts: ArtifactRef,
    layers: Vec<String>,
    inverses: &[ArtifactRef],
) -> TypedJob<Protect> {
    job(plan, None, Protect { texts, layers, inverses: inverses.to_vec() }, [])
}

/// Returns the search settings of one concept.
fn settings(plan: &Plan, planned: &PlannedConcept) -> MethodSettings {
    MethodSettings { stop: planned.stop, ..plan.settings.clone() }
}

/// Returns the direction job of one concept on its layer, with the layer's tower. `layers` are those
/// that gradients are kept of.
pub fn direction(
    plan: &Plan,
    planned: &PlannedConcept,
    (layer, tower): (&str, Tower),
    layers: &[String],
    inverses: &[ArtifactRef],
    classes: ArtifactRef,
) -> TypedJob<Direction> {
    let task = Direction {
        class: planned.concept.class_index,
        forget: specs(&planned.forget),
        validation: specs(&plan.validation),
        inverses: inverses.to_vec(),
        classes,
        layer: layer.to_owned(),
        layers: layers.to_vec(),
        rank: plan.manifest.composition.rank(tower),
        method: settings(plan, planned),
    };
    job(plan, Some(&planned.concept.id), task, planned.forget.iter().chain(&plan.validation))
}

/// Returns the job that computes the effect of each edit on each concept. `layers` are the run's
/// layers.
pub fn effects(plan: &Plan, layers: &[String], concepts: Vec<EffectsPart>) -> TypedJob<Effects> {
    job(plan, None, Effects { layers: layers.to_vec(), concepts }, [])
}

/// Returns one search job per concept.
pub fn searches(
    plan: &Plan,
    retain_gradient: ArtifactRef,
    classes: ArtifactRef,
) -> Vec<TypedJob<Search>> {
    let one = |planned: &PlannedConcept| {
        let task = Search {
            class: planned.concept.class_index,
            forget: specs(&planned.forget),
            validation: specs(&plan.validation),
            retain_gradient,
            classes,
            layers: plan.layers.as_ref().map(|layers| layers.iter().cloned().collect()),
            method: settings(plan, planned),
        };
        job(plan, Some(&planned.concept.id), task, planned.forget.iter().chain(&plan.validation))
    };
    plan.concepts.iter().map(one).collect()
}

/// Returns one job per concept that computes its margin constraints at some layers.
pub fn constraints(
    plan: &Plan,
    concepts: &[&PlannedConcept],
    layers: &[String],
    inverses: &[ArtifactRef],
    classes: ArtifactRef,
) -> Vec<TypedJob<Constraints>> {
    let one = |planned: &&PlannedConcept| {
        let task = Constraints {
            class: planned.concept.class_index,
            forget: specs(&planned.forget),
            classes,
            layers: layers.to_vec(),
            inverses: inverses.to_vec(),
            images: plan.manifest.composition.images,
        };
        job(plan, Some(&planned.concept.id), task, &planned.forget)
    };
    concepts.iter().map(one).collect()
}

/// Most rows of the problem that `least-squares` solves; it is solved by one job, in the memory that
/// the square of this number takes.
const MAX_ROWS: usize = 12_000;

/// Returns one job for each of these concepts that computes its keys and residuals at a layer.
pub fn keys(
    plan: &Plan,
    concepts: &[&PlannedConcept],
    at: ShareOfLayer<'_>,
    inverses: &[ArtifactRef],
    classes: ArtifactRef,
) -> Vec<TypedJob<Keys>> {
    let rows = (MAX_ROWS / plan.concepts.len().max(1)).clamp(1, 16) as u32;
    let one = |planned: &&PlannedConcept| {
        let task = Keys {
            class: planned.concept.class_index,
            forget: specs(&planned.forget),
            classes,
            padding: padding(plan),
            layer: at.layer.to_owned(),
            read: at.read.to_owned(),
            tokens: plan.manifest.composition.tokens(),
            change: at.change,
            share: at.share,
            inverses: inverses.to_vec(),
            texts: plan.manifest.composition.images,
            rows,
            // Before any edit, that is with the first layer.
            images: at.change.is_none(),
        };
        job(plan, Some(&planned.concept.id), task, &planned.forget)
    };
    concepts.iter().map(one).collect()
}

/// Returns the job that solves the edits of concepts at a layer.
pub fn least_squares(
    plan: &Plan,
    layer: &str,
    concepts: Vec<LeastSquaresPart>,
    inverses: &[ArtifactRef],
) -> TypedJob<LeastSquares> {
    let composition = &plan.manifest.composition;
    let task = LeastSquares {
        layer: layer.to_owned(),
        concepts,
        inverses: inverses.to_vec(),
        retain_weight: composition.retain_weight(),
        rank: composition.rank(Tower::Text).unwrap_or(u32::MAX),
    };
    job(plan, None, task, [])
}

/// Returns one job per layer that computes the kernel of all constraints there.
pub fn kernels(
    plan: &Plan,
    layers: &[String],
    concepts: &[ArtifactRef],
    inverses: &[ArtifactRef],
) -> Vec<TypedJob<Kernel>> {
    let one = |layer: &String| {
        let task = Kernel {
            layer: layer.clone(),
            concepts: concepts.to_vec(),
            inverses: inverses.to_vec(),
        };
        job(plan, None, task, [])
    };
    layers.iter().map(one).collect()
}

/// Returns the job that computes the change of some layers by all constraints.
pub fn weighted_change(
    plan: &Plan,
    layers: &[String],
    concepts: Vec<WeightedConstraints>,
    inverses: &[ArtifactRef],
) -> TypedJob<WeightedChange> {
    let task = WeightedChange { layers: layers.to_vec(), concepts, inverses: inverses.to_vec() };
    job(plan, None, task, [])
}

/// Returns the jobs that measure the margins of the forget images of these concepts.
pub fn margins(
    plan: &Plan,
    concepts: &[&PlannedConcept],
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
) -> Vec<TypedJob<Margins>> {
    let others = plan.classes.names().len().saturating_sub(1) as u32;
    let of = |planned: &&PlannedConcept| MarginsOf {
        class: planned.concept.class_index,
        rank: planned.stop.rank(others),
        forget: specs(&planned.forget),
    };
    let slice = |slice: &[&PlannedConcept]| {
        let task = Margins {
            change,
            concepts: slice.iter().map(of).collect(),
            classes,
            images: plan.manifest.composition.images,
        };
        job(plan, None, task, slice.iter().flat_map(|planned| &planned.forget))
    };
    concepts.chunks(CONCEPTS_PER_JOB).map(slice).collect()
}

/// Returns the job that condenses a concept's constraints to one direction per layer.
pub fn condense(
    plan: &Plan,
    planned: &PlannedConcept,
    layers: &[String],
    constraints: WeightedConstraints,
    inverses: &[ArtifactRef],
    ranks: &[u32],
) -> TypedJob<Condense> {
    let task = Condense {
        layers: layers.to_vec(),
        factors: constraints.factors,
        coefficients: constraints.coefficients,
        inverses: inverses.to_vec(),
        ranks: ranks.to_vec(),
    };
    job(plan, Some(&planned.concept.id), task, [])
}

/// Returns the job that computes the effect of each concept's edit on each forget image.
pub fn image_effects(
    plan: &Plan,
    layers: &[String],
    concepts: Vec<ImageEffectsPart>,
) -> TypedJob<ImageEffects> {
    job(plan, None, ImageEffects { layers: layers.to_vec(), concepts }, [])
}

/// Returns the jobs that evaluate a changed model on the validation set; none without one.
pub fn validation(
    plan: &Plan,
    change: ArtifactRef,
    classes: ArtifactRef,
) -> Vec<TypedJob<Evaluate>> {
    let mut jobs = held_out(plan, Some(change), classes, None);
    jobs.truncate(usize::from(!plan.validation.is_empty()));
    jobs
}

/// Name of the validation set in evaluation jobs.
pub const VALIDATION: &str = "validation";
/// Name of the test set in evaluation jobs.
pub const TEST: &str = "test";

/// Returns the name of a concept's forget set in evaluation jobs.
pub fn forget_item(concept: &str) -> String {
    format!("forget/{concept}")
}

/// Returns the jobs that evaluate the unedited model on validation and test set. (Concept jobs
/// evaluate it on forget sets.)
pub fn base_evaluation(
    plan: &Plan,
    classes: ArtifactRef,
    removed: ArtifactRef,
) -> Vec<TypedJob<Evaluate>> {
    held_out(plan, None, classes, Some(removed))
}

/// Returns the jobs that evaluate a changed model on validation and test set.
pub fn held_out_evaluation(
    plan: &Plan,
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    removed: ArtifactRef,
) -> Vec<TypedJob<Evaluate>> {
    held_out(plan, change, classes, Some(removed))
}

/// Returns the jobs that evaluate the composed model on the forget sets of edited concepts and on
/// validation and test set, and the unedited model on the forget sets.
pub fn composed_evaluation(
    plan: &Plan,
    edited: &[&PlannedConcept],
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    removed: ArtifactRef,
) -> (Vec<TypedJob<Evaluate>>, Vec<TypedJob<Evaluate>>) {
    let mut composed = held_out_evaluation(plan, change, classes, removed);
    composed.extend(forget_evaluation(plan, edited, change, classes, Some(removed)));
    (composed, forget_evaluation(plan, edited, None, classes, Some(removed)))
}

/// Returns the jobs that evaluate a model on the forget sets of these concepts.
pub fn forget_evaluation(
    plan: &Plan,
    edited: &[&PlannedConcept],
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    removed: Option<ArtifactRef>,
) -> Vec<TypedJob<Evaluate>> {
    let slice = |slice: &[&PlannedConcept]| {
        let items = slice.iter().map(forget_set).collect();
        let task = Evaluate { change, items, classes, removed };
        job(plan, None, task, slice.iter().flat_map(|planned| &planned.forget))
    };
    edited.chunks(CONCEPTS_PER_JOB).map(slice).collect()
}

/// Returns a concept's forget set as a set to evaluate.
pub(super) fn forget_set(planned: &&PlannedConcept) -> EvaluateItem {
    EvaluateItem {
        name: forget_item(&planned.concept.id),
        shards: specs(&planned.forget),
        label: Label::Class(planned.concept.class_index),
    }
}

/// Returns a set whose captions are class names as a set to evaluate.
pub(super) fn held_out_set(name: &str, shards: &[ShardRef]) -> EvaluateItem {
    EvaluateItem { name: name.to_owned(), shards: specs(shards), label: Label::Caption }
}

fn held_out(
    plan: &Plan,
    change: Option<ArtifactRef>,
    classes: ArtifactRef,
    removed: Option<ArtifactRef>,
) -> Vec<TypedJob<Evaluate>> {
    [(VALIDATION, &plan.validation), (TEST, &plan.test)]
        .into_iter()
        .filter(|(_, shards)| !shards.is_empty())
        .map(|(name, shards)| {
            let items = vec![held_out_set(name, shards)];
            job(plan, None, Evaluate { change, items, classes, removed }, shards)
        })
        .collect()
}

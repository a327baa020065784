//! What a finished job leaves behind: numbers here, tensors as artifacts named by digest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::{ArtifactRef, JobId, MomentsPart};

/// One of CLIP's two towers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// Images.
    Vision,
    /// Texts.
    Text,
}

impl Tower {
    /// Its name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Text => "text",
        }
    }
}

/// The outcome of one job, written once under the job's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The job.
    pub job: JobId,
    /// What was found; determined by the job alone.
    pub result: TaskResult,
    /// How it went; differs from one execution to the next.
    pub execution: Execution,
}

/// Circumstances of one execution; nothing in a release depends on them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// Who did it.
    pub worker: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Wall-clock seconds per stage of the job, where it has stages.
    pub stages: BTreeMap<String, f64>,
    /// Largest resident set of the worker process when the job ended, bytes.
    pub peak_memory_bytes: u64,
    /// CPU or GPU, as the worker names it.
    pub device: String,
}

/// What a job of each kind finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskResult {
    /// Of [`Task::RetainGradient`](crate::job::Task::RetainGradient).
    RetainGradient(GradientSumResult),
    /// Of [`Task::RetainReduce`](crate::job::Task::RetainReduce).
    RetainReduce(RetainGradientResult),
    /// Of [`Task::Concept`](crate::job::Task::Concept).
    Concept(Box<ConceptResult>),
    /// Of [`Task::Evaluate`](crate::job::Task::Evaluate).
    Evaluate(EvaluateResult),
    /// Of [`Task::Moments`](crate::job::Task::Moments).
    Moments(MomentsPart),
    /// Of [`Task::MomentsReduce`](crate::job::Task::MomentsReduce).
    MomentsReduce(MomentsResult),
    /// Of [`Task::Survey`](crate::job::Task::Survey).
    Survey(SurveyResult),
    /// Of [`Task::Direction`](crate::job::Task::Direction).
    Direction(Box<DirectionResult>),
    /// Of [`Task::Protect`](crate::job::Task::Protect).
    Protect(ProtectResult),
    /// Of [`Task::Interference`](crate::job::Task::Interference).
    Interference(InterferenceResult),
}

/// The second moments of a tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsResult {
    /// For each layer `NAME`, float32: `NAME.inputs` `[inputs, inputs]` stands to the right of a gradient to be corrected, and
    /// `NAME.outputs` `[outputs, outputs]`, where the correction has one, to its left.
    pub inverse: ArtifactRef,
    /// For each layer `NAME`: the same two of one half of the data, as `NAME.inputs.inverse` and `NAME.outputs.inverse`, and the
    /// moments of the other half of the retain set, as `NAME.inputs.moment` and `NAME.outputs.moment`, so that a direction can be
    /// judged on what did not shape it.
    pub folds: ArtifactRef,
    /// Texts or images of the retain set in it.
    pub paired: u64,
    /// Unlabelled texts or images in it.
    pub unlabelled: u64,
}

/// How the layers of one concept score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SurveyResult {
    /// Forget pairs.
    pub pairs: u64,
    /// L_f at the original weights.
    pub forget_loss: f64,
    /// Every candidate, by tower, then by name in checkpoint order.
    pub ranking: Vec<RankedLayer>,
}

/// One concept's direction on its layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionResult {
    /// FA@1 and FA@5 at the original weights.
    pub before: Accuracy,
    /// Every trial of the step search, in the order made.
    pub search: Vec<Trial>,
    /// The smallest step that forgot, with the direction as factors; `None` when none did.
    pub chosen: Option<Chosen>,
    /// Factors of the forget gradient at every layer that some concept is removed by.
    pub gradients: ArtifactRef,
    /// Largest rank of a factorisation.
    pub rank: u32,
    /// Largest ‖g − g'‖ / ‖g‖ of a factorisation g'.
    pub residual: f64,
    /// What the unedited model says of the forget images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Answers>,
    /// The first forget images, small: see [`ConceptResult::thumbnails`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnails: Option<ArtifactRef>,
}

/// What texts that must not change put into layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectResult {
    /// A safetensors file. For each layer `NAME`, float32: `NAME.inputs` `[vectors, inputs]` are the distinct inputs x, at every token
    /// up to the one that is read, and `NAME.outputs` `[vectors]` the size ‖Wx + b‖ of the layer's output there. `NAME.texts` and
    /// `NAME.vectors`, of one length and whole numbers, say which text has which vector.
    pub inputs: ArtifactRef,
    /// For each layer `NAME`: `NAME.inputs` `[inputs, inputs]`, float32, what stands to the right of a gradient in place of
    /// [`MomentsResult::inverse`]'s.
    pub inverse: ArtifactRef,
    /// Vectors of the layer that has most.
    pub vectors: u64,
}

/// What each edit does to each concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterferenceResult {
    /// A safetensors file with the float64 matrix `effect`: row i, column j is ⟨g_i, D_j⟩, by how much a step of 1 along
    /// the direction of concept j raises the forget loss of concept i, to first order.
    pub effect: ArtifactRef,
}

/// The retain gradient over one shard, not yet divided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GradientSumResult {
    /// Sum of batch gradients: a safetensors file with one float32 tensor per layer.
    pub sum: ArtifactRef,
    /// Full batches in it.
    pub batches: u64,
    /// Pairs of the short last batch, which is dropped.
    pub dropped_pairs: u64,
    /// Sum of the batches' losses L_r.
    pub loss_sum: f64,
}

/// The retain gradient of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainGradientResult {
    /// Mean of batch gradients g_r: a safetensors file with one float32 tensor per layer.
    pub gradient: ArtifactRef,
    /// Batches it is the mean of.
    pub batches: u64,
    /// Mean loss L_r.
    pub loss: f64,
}

/// Zero-shot accuracy on a concept's forget images, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accuracy {
    /// FA@1.
    pub fa1: f64,
    /// FA@5.
    pub fa5: f64,
}

/// What a model says of images of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// Mean cosine between the images and the text of their own class, to six decimals.
    pub similarity: f64,
    /// The classes that most often rank first, and on how many images; at most [`Answers::MOST`], most first, then in the list's order.
    pub first: Vec<(u32, u32)>,
}

impl Answers {
    /// Classes listed.
    pub const MOST: usize = 3;
}

/// Zero-shot hits of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClassHits {
    /// Images.
    pub n: u32,
    /// Images whose true class ranked first.
    pub top1: u32,
    /// Images whose true class was among the first five.
    pub top5: u32,
}

/// Zero-shot hits by class (line of the class list, from 0), so that accuracy over any set of classes follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hits {
    /// Hits by class; classes without images are absent.
    pub classes: BTreeMap<u32, ClassHits>,
}

impl Hits {
    /// Counts an image of this class with so many classes before its own.
    pub fn count(&mut self, rank: i64, class: u32) {
        let hits = self.classes.entry(class).or_default();
        hits.n += 1;
        hits.top1 += u32::from(rank < 1);
        hits.top5 += u32::from(rank < 5);
    }

    /// Top-1 accuracy over all images of the chosen classes, 0 to 1; 0 when there are none.
    pub fn mean_top1(&self, chosen: impl Fn(u32) -> bool) -> f64 {
        self.mean(chosen, |hits| hits.top1)
    }

    /// Top-5 accuracy over all images of the chosen classes, 0 to 1; 0 when there are none.
    pub fn mean_top5(&self, chosen: impl Fn(u32) -> bool) -> f64 {
        self.mean(chosen, |hits| hits.top5)
    }

    fn mean(&self, chosen: impl Fn(u32) -> bool, count: impl Fn(&ClassHits) -> u32) -> f64 {
        let (mut hit, mut all) = (0u64, 0u64);
        for hits in self.classes.iter().filter(|(class, _)| chosen(**class)).map(|(_, hits)| hits) {
            hit += u64::from(count(hits));
            all += u64::from(hits.n);
        }
        if all == 0 { 0.0 } else { hit as f64 / all as f64 }
    }
}

/// One candidate layer's place in the ranking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankedLayer {
    /// Name of the weight tensor in the checkpoint.
    pub layer: String,
    /// Its tower.
    pub tower: Tower,
    /// ‖g_f,l‖₂ / ‖θ_l‖₂.
    pub importance: f64,
    /// |cos(g_f,l , g_r,l)|.
    pub alignment: f64,
    /// cos(g_f,l , g_r,l), signed.
    pub cosine: f64,
    /// Whether it is on its tower's Pareto front.
    pub pareto: bool,
    /// η = ⟨g, D⟩ / √tr(M₁ D C₁ Dᵀ) with D corrected by C₀ and M₀: forgetting gained per change of what must stay and did not
    /// shape the direction; where second moments are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub efficiency: Option<f64>,
}

/// One evaluation of the step search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The layer.
    pub layer: String,
    /// Step size λ.
    pub step: f64,
    /// FA@1 there.
    pub fa1: f64,
    /// FA@5 there.
    pub fa5: f64,
    /// Whether the measure that `stop` names was 0.
    pub forgotten: bool,
    /// Utility on the validation set, where it was measured: at the answer of a layer, unless it became plain on the way that the
    /// answer is not the best.
    #[serde(default)]
    pub utility: Option<f64>,
}

/// The smallest step that forgot, on one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerAnswer {
    /// The layer.
    pub layer: String,
    /// Its tower.
    pub tower: Tower,
    /// Step size λ.
    pub step: f64,
    /// λ / R, where R = ‖θ_l‖ / ‖g_f,l‖: the size of the change relative to the layer.
    pub relative_step: f64,
    /// FA@1 there.
    pub fa1: f64,
    /// FA@5 there.
    pub fa5: f64,
    /// Mean TA@1 over the other classes' validation images there, 0 to 1.
    pub utility: f64,
}

/// What a concept's job found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptResult {
    /// Forget pairs.
    pub pairs: u64,
    /// L_f at the original weights.
    pub forget_loss: f64,
    /// FA@1 and FA@5 at the original weights.
    pub before: Accuracy,
    /// Every candidate, by tower, then by name in checkpoint order.
    pub ranking: Vec<RankedLayer>,
    /// Every trial of every front layer, in the order made.
    pub search: Vec<Trial>,
    /// The edit; `None` when no layer on a front forgot within the budget.
    pub chosen: Option<Chosen>,
    /// What the unedited model says of the forget images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Answers>,
    /// The first forget images, at most three, each cut to a square of 64 pixels, side by side in one JPEG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thumbnails: Option<ArtifactRef>,
}

/// A concept's edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Layer, step, accuracy, utility.
    pub answer: LayerAnswer,
    /// Direction on that layer: a safetensors file with one float32 tensor named as the layer, or with its two factors.
    pub direction: ArtifactRef,
    /// Hits on the validation set with this edit alone.
    pub validation: Hits,
}

/// Hits of one evaluation job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateResult {
    /// By item name, in the job's order.
    pub items: BTreeMap<String, Hits>,
    /// By item name: the best rank of the true class over the item's images, 0 for first. For items of one class.
    #[serde(default)]
    pub best: BTreeMap<String, u64>,
    /// By item name: what the model says. For items of one class, unless edits have driven the model out of range.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub answers: BTreeMap<String, Answers>,
}

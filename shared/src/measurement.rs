//! Measurements that outcomes and records hold: zero-shot hits, layer scores, the step search.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reference::ArtifactRef;
use crate::vocabulary::Tower;

/// Zero-shot accuracy on a concept's forget images, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accuracy {
    /// FA@1.
    pub fa1: f64,
    /// FA@5.
    pub fa5: f64,
}

/// Top predictions of a model for images of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// Mean cosine between the images and the text of their own class, to six decimal places.
    pub similarity: f64,
    /// The classes that most often rank first, with their numbers of images: at most
    /// [`Answers::MOST`], by descending number, then in the order of the class list.
    pub first: Vec<(u32, u32)>,
}

impl Answers {
    /// Most classes that are listed.
    pub const MOST: usize = 3;
}

/// The ranks of one image's class: how many classes score higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRanks {
    /// Of all other classes.
    pub all: u32,
    /// Of the retained classes.
    pub retained: u32,
}

/// A search for images by the text of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameSearch {
    /// The class: position in the class list.
    pub class: u32,
    /// How many images of other classes score higher than the best image of this class.
    pub rank: u32,
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

/// Zero-shot hits by class (line of the class list, from 0), from which the accuracy over any set
/// of classes follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hits {
    /// Hits by class; classes without images are absent.
    pub classes: BTreeMap<u32, ClassHits>,
}

impl Hits {
    /// Counts an image of this class; `rank` is the number of classes that rank before its own.
    pub fn count(&mut self, rank: i64, class: u32) {
        let hits = self.classes.entry(class).or_default();
        hits.n += 1;
        hits.top1 += u32::from(rank < 1);
        hits.top5 += u32::from(rank < 5);
    }

    /// Returns the top-1 accuracy over all images of the chosen classes, 0 to 1; 0 when there are
    /// none.
    pub fn mean_top1(&self, chosen: impl Fn(u32) -> bool) -> f64 {
        self.mean(chosen, |hits| hits.top1)
    }

    /// Returns the top-5 accuracy over all images of the chosen classes, 0 to 1; 0 when there are
    /// none.
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

/// A candidate layer in the ranking.
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
    /// Whether it is on the Pareto front of its tower.
    pub pareto: bool,
    /// η = ⟨g, D⟩ / √tr(M₁ D C₁ Dᵀ), with D preconditioned by C₀ and M₀: the gain in forgetting per
    /// change of retained data that did not shape the direction. Only when second moments are
    /// known.
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
    /// Whether the measure `stop` was 0.
    pub forgotten: bool,
    /// Utility on the validation set. It is measured only at the answer of a layer, and not when
    /// that answer can no longer be the best.
    #[serde(default)]
    pub utility: Option<f64>,
}

/// The smallest forgetting step on one layer.
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

/// A concept's edit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Layer, step, accuracy, utility.
    pub answer: LayerAnswer,
    /// Direction on that layer: a safetensors file with one float32 tensor named as the layer, or
    /// with its two factors.
    pub direction: ArtifactRef,
    /// Hits on the validation set with this edit alone.
    pub validation: Hits,
}

//! The effect matrix: the effect of each edit on each concept.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Computes the first-order effect of every edit on the forget loss of every concept.
///
/// Every concept has gradients at the run's layers, and at the layer of its own edit. An edit on
/// another layer has an effect of 0 on the concepts without a gradient there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effects {
    /// The run's layers.
    pub layers: Vec<String>,
    /// The concepts, by id.
    pub concepts: Vec<EffectsPart>,
}

/// One concept of an effect matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EffectsPart {
    /// The layer that its edit changes.
    pub layer: String,
    /// Factors of its forget gradient at the run's layers and at `layer`.
    pub gradients: ArtifactRef,
    /// Factors of its direction.
    pub direction: ArtifactRef,
}

/// The matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EffectsOutput {
    /// A safetensors file with the float64 matrix `effect`: row i, column j is ⟨g_i, D_j⟩, the
    /// first-order increase of the forget loss of concept i for a step of 1 along the direction of
    /// concept j. It is 0 where concept i has no gradient at the layer of edit j.
    pub effect: ArtifactRef,
}

impl Task for Effects {
    const KIND: &'static str = "effects";
    const VERSION: u32 = 10;
    type Output = EffectsOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("effects of {} concepts on each other", self.concepts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.effect]
    }
}

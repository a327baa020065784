//! The effect of each concept's edit on the margin of each constraint.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Computes the first-order effect of every concept's direction on the margin of every constraint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEffects {
    /// The layers that change.
    pub layers: Vec<String>,
    /// The concepts, by id.
    pub concepts: Vec<ImageEffectsPart>,
}

/// One concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEffectsPart {
    /// [`ConstraintsOutput::factors`](super::ConstraintsOutput::factors).
    pub factors: ArtifactRef,
    /// [`CondenseOutput::direction`](super::CondenseOutput::direction).
    pub direction: ArtifactRef,
}

/// The effects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEffectsOutput {
    /// A safetensors file with the float64 matrix `effect` `[constraints, concepts]`: by how much a
    /// step of 1 along the direction of a concept lowers the margin of a constraint.
    pub effect: ArtifactRef,
}

impl Task for ImageEffects {
    const KIND: &'static str = "image-effects";
    const VERSION: u32 = 1;
    type Output = ImageEffectsOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("effects of {} concepts on forget images", self.concepts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.effect]
    }
}

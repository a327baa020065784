//! The kernel of margin constraints: the effect of each constraint's edit on each margin.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Computes, at one layer, the first-order effect of an edit along each constraint's direction on
/// the margin of each constraint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// The layer.
    pub layer: String,
    /// [`ConstraintsOutput::factors`](super::ConstraintsOutput::factors) of each concept, by id.
    pub concepts: Vec<ArtifactRef>,
    /// Preconditioners of the layer.
    pub inverses: Vec<ArtifactRef>,
}

/// The kernel of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelOutput {
    /// A safetensors file with the symmetric float64 matrix `kernel`: row i, column j is ⟨G_i,
    /// D_j⟩ at this layer, by which a step of 1 along the direction of constraint j lowers the
    /// margin of constraint i. Constraints stand in the order of concepts, then of images.
    pub kernel: ArtifactRef,
}

impl Task for Kernel {
    const KIND: &'static str = "kernel";
    const VERSION: u32 = 1;
    type Output = KernelOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("kernel of {} concepts at {}", self.concepts.len(), self.layer)
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.kernel]
    }
}

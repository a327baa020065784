//! Protection of texts whose embeddings must not change.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Collects the inputs that protected texts give to some layers, and makes preconditioners
/// orthogonal to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protect {
    /// The texts: a JSON list of strings.
    pub texts: ArtifactRef,
    /// Layers of the text tower.
    pub layers: Vec<String>,
    /// The preconditioners so far, see [`Direction::inverses`](super::Direction::inverses).
    pub inverses: Vec<ArtifactRef>,
}

/// The inputs that protected texts give to layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectOutput {
    /// A safetensors file. For each layer `NAME`, float32: `NAME.inputs` `[vectors, inputs]` are
    /// the distinct inputs x, at every token up to the one that is read, and `NAME.outputs`
    /// `[vectors]` the size ‖Wx + b‖ of the layer's output there. `NAME.texts` and `NAME.vectors`,
    /// of one length and whole numbers, say which text has which vector.
    pub inputs: ArtifactRef,
    /// For each layer `NAME`: `NAME.inputs` `[inputs, inputs]`, float32, the right factor of a
    /// gradient that replaces the one in
    /// [`MomentsReduceOutput::inverse`](super::MomentsReduceOutput::inverse).
    pub inverse: ArtifactRef,
    /// Largest number of vectors of a layer.
    pub vectors: u64,
}

impl Task for Protect {
    const KIND: &'static str = "protect";
    const VERSION: u32 = 9;
    type Output = ProtectOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("protection of texts {} at {} layers", self.texts.digest.short(), self.layers.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.inputs, output.inverse]
    }
}

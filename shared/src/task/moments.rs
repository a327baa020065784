//! Second moments over one source of retained data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Sums second moments over retained data for every second MLP layer of the tower: of the layer's
/// inputs, and of the gradients at its outputs. Inputs are weighted by how much the output of the
/// layer affects the embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// The data.
    pub source: MomentSource,
    /// How the tokens of one item add up.
    pub tokens: Tokens,
    /// Whether two halves of the items are summed separately, for
    /// [cross-fitting](super::MomentsReduceOutput::cross_fit).
    pub cross_fit: bool,
}

/// How the tokens of one item add up in its second moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tokens {
    /// As items of their own: C = Σ ‖δ_t‖² x_t x_tᵀ and M = Σ δ_t δ_tᵀ, over items and tokens.
    Apart,
    /// As the one gradient that they make, G = Σ_t δ_t x_tᵀ: C = Σ GᵀG and M = Σ G Gᵀ, over items.
    /// A change that moves all tokens the same way then costs what it does to the item.
    Together,
}

/// The data that second moments are computed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentSource {
    /// The captions of a shard, through the text tower.
    Captions(FileSpec),
    /// The images of a shard, through the vision tower.
    Images(FileSpec),
    /// Unlabelled texts, through the text tower: a JSON list of strings.
    Texts(ArtifactRef),
    /// Unlabelled images of a shard, through the vision tower.
    ImagesAlone(FileSpec),
}

impl MomentSource {
    /// Returns the file outside the store that it is read from, if there is one.
    pub(super) fn files(&self) -> Vec<FileSpec> {
        match self {
            Self::Captions(shard) | Self::Images(shard) | Self::ImagesAlone(shard) => vec![*shard],
            Self::Texts(_) => Vec::new(),
        }
    }
}

/// Sums of second moments by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsOutput {
    /// For each layer `NAME`, a safetensors file with the upper triangles of C and M, row by row,
    /// float32: `NAME.inputs.0` and `NAME.outputs.0`. With cross-fitting, these are of one half of
    /// the items, and `NAME.inputs.1` and `NAME.outputs.1` of the other.
    pub layers: BTreeMap<String, ArtifactRef>,
    /// Texts or images in the sums.
    pub items: u64,
}

impl Task for Moments {
    const KIND: &'static str = "moments";
    const VERSION: u32 = 11;
    type Output = MomentsOutput;

    fn label(&self, _: Option<&str>, locations: &Locations) -> String {
        match &self.source {
            MomentSource::Captions(shard) => format!("moments of the captions of {}", locations.name(shard)),
            MomentSource::Images(shard) => format!("moments of the images of {}", locations.name(shard)),
            MomentSource::Texts(texts) => format!("moments of texts {}", texts.digest.short()),
            MomentSource::ImagesAlone(shard) => format!("moments of the unlabelled images of {}", locations.name(shard)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.source.files()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        output.layers.values().copied().collect()
    }
}

//! Preconditioners from the second moments of a layer.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_count};

/// Adds the sums of a layer in the given order, weights them, and computes preconditioners from
/// them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsReduce {
    /// The layer.
    pub layer: String,
    /// Sums over the retain set.
    pub paired: Vec<MomentsPart>,
    /// Sums over unlabelled data.
    pub unlabelled: Vec<MomentsPart>,
    /// Weight of the unlabelled mean relative to that of the retain set, both scaled to the same
    /// trace.
    pub unlabelled_weight: f64,
    /// The kind of preconditioner.
    pub correction: Correction,
    /// Factor on the sensitivities of the tower: what a change of its embeddings costs, relative to
    /// the same change of the other tower's.
    pub cost: f64,
    /// Whether the sums are separate for two halves of the data, and matrices for cross-fitting are
    /// computed from them.
    pub cross_fit: bool,
}

/// The sum of second moments of one layer over one source of data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsPart {
    /// The layer's artifact of [`MomentsOutput::layers`](super::MomentsOutput::layers).
    pub sum: ArtifactRef,
    /// Texts or images in it.
    pub items: u64,
}

/// The factors of a gradient that keep retained data unaffected by a step along it. C are the
/// second moments of a layer's inputs, M those of the gradients at its outputs, both scaled to a
/// mean diagonal of 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Correction {
    /// D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹.
    Ridge {
        /// ρ.
        inputs: f64,
        /// ρ_M.
        outputs: f64,
    },
    /// D = g P, with P the projection onto the eigenvectors of C with the smallest eigenvalues, as
    /// many as together hold at most this share of its trace (AlphaEdit, arXiv 2410.02355).
    NullSpace(f64),
}

/// Preconditioners of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsReduceOutput {
    /// For the layer `NAME`, float32: `NAME.inputs` `[inputs, inputs]` is multiplied from the
    /// right to a gradient, and `NAME.outputs` `[outputs, outputs]`, when the correction has one,
    /// from the left. `NAME.sensitivity` `[1]` is the mean diagonal of C per item before it is
    /// scaled, times [`cost`](MomentsReduce::cost), by which costs at different layers are compared.
    pub inverse: ArtifactRef,
    /// For the layer `NAME`, with cross-fitting: preconditioners from one half of the data
    /// (`NAME.inputs.inverse`, `NAME.outputs.inverse`) and second moments of the other half of the
    /// retain set (`NAME.inputs.moment`, `NAME.outputs.moment`), so that a direction is scored on
    /// data that did not shape it.
    #[serde(rename = "folds", default, skip_serializing_if = "Option::is_none")]
    pub cross_fit: Option<ArtifactRef>,
    /// Number of texts or images of the retain set.
    pub paired: u64,
    /// Number of unlabelled texts or images.
    pub unlabelled: u64,
}

impl Task for MomentsReduce {
    const KIND: &'static str = "moments-reduce";
    const VERSION: u32 = 12;
    type Output = MomentsReduceOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("moments of {} from {} parts", self.layer, self.paired.len() + self.unlabelled.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        [Some(output.inverse), output.cross_fit].into_iter().flatten().collect()
    }

    fn check(&self) -> Result<(), String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let sensible = match self.correction {
            Correction::Ridge { inputs, outputs } => positive(inputs) && positive(outputs),
            Correction::NullSpace(energy) => positive(energy),
        };
        if !positive(self.cost) {
            return Err(format!("a cost of {} is out of range", self.cost));
        }
        if !(self.unlabelled_weight.is_finite() && self.unlabelled_weight >= 0.0 && sensible) {
            return Err(format!("weight {} or {:?} is out of range", self.unlabelled_weight, self.correction));
        }
        self.paired.iter().chain(&self.unlabelled).try_for_each(|part| check_count(part.items))
    }
}

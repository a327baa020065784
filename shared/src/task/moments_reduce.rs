//! Preconditioners from the second moments of a tower.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_count};
use super::moments::MomentsPart;

/// Adds the sums of a tower in the given order, weights them, and computes preconditioners from
/// them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsReduce {
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

/// Preconditioners of a tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsReduceOutput {
    /// For each layer `NAME`, float32: `NAME.inputs` `[inputs, inputs]` is multiplied from the
    /// right to a gradient, and `NAME.outputs` `[outputs, outputs]`, when the correction has one,
    /// from the left. `NAME.sensitivity` `[1]` is the mean diagonal of C per item before it is
    /// scaled, times [`cost`](MomentsReduce::cost), by which costs at different layers are compared.
    pub inverse: ArtifactRef,
    /// For each layer `NAME`, cross-fit: preconditioners from one half of the data
    /// (`NAME.inputs.inverse`, `NAME.outputs.inverse`) and second moments of the other half of the
    /// retain set (`NAME.inputs.moment`, `NAME.outputs.moment`), so that a direction is scored on
    /// data that did not shape it.
    #[serde(rename = "folds")]
    pub cross_fit: ArtifactRef,
    /// Number of texts or images of the retain set.
    pub paired: u64,
    /// Number of unlabelled texts or images.
    pub unlabelled: u64,
}

impl Task for MomentsReduce {
    const KIND: &'static str = "moments-reduce";
    const VERSION: u32 = 11;
    type Output = MomentsReduceOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("moments of {} parts", self.paired.len() + self.unlabelled.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.inverse, output.cross_fit]
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

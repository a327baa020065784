//! The retain gradient of one shard.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::Towers;
use super::kind::{Task, check_at_least_one};

/// Sums the retain gradient over the full batches of one shard, for every linear weight and gain of
/// some towers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainGradient {
    /// Shard of retained image-text pairs.
    pub shard: FileSpec,
    /// Pairs per batch.
    pub batch_size: u32,
    /// Towers whose gradient is computed.
    pub towers: Towers,
}

/// The retain gradient over one shard, not yet divided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainGradientOutput {
    /// Sum of batch gradients: a safetensors file with one float32 tensor per layer.
    pub sum: ArtifactRef,
    /// Number of full batches.
    pub batches: u64,
    /// Pairs of the incomplete last batch, which is dropped.
    pub dropped_pairs: u64,
    /// Sum of the batches' losses L_r.
    pub loss_sum: f64,
}

impl Task for RetainGradient {
    const KIND: &'static str = "retain-gradient";
    const VERSION: u32 = 9;
    type Output = RetainGradientOutput;

    fn label(&self, _: Option<&str>, locations: &Locations) -> String {
        format!("retain gradient of {}", locations.name(&self.shard))
    }

    fn files(&self) -> Vec<FileSpec> {
        vec![self.shard]
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.sum]
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.batch_size, "batch_size")
    }
}

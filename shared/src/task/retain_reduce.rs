//! The retain gradient of a run.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_count};

/// Adds the sums of shards in the given order, in float64, and divides by the number of batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainReduce {
    /// Sums with their numbers of batches.
    pub parts: Vec<RetainPart>,
}

/// The sum of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainPart {
    /// Sum of batch gradients.
    pub sum: ArtifactRef,
    /// Number of batches.
    pub batches: u64,
    /// Sum of the losses of the batches.
    pub loss_sum: f64,
}

/// The mean gradient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainReduceOutput {
    /// Mean of batch gradients g_r: a safetensors file with one float32 tensor per layer.
    pub gradient: ArtifactRef,
    /// Number of batches.
    pub batches: u64,
    /// Mean loss L_r.
    pub loss: f64,
}

impl Task for RetainReduce {
    const KIND: &'static str = "retain-reduce";
    const VERSION: u32 = 9;
    type Output = RetainReduceOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("mean retain gradient of {} shards", self.parts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.gradient]
    }

    fn check(&self) -> Result<(), String> {
        self.parts.iter().try_for_each(|part| check_count(part.batches))
    }
}

//! Types that manifests, jobs, outcomes and records share.
//!
//! This file imports no other file of the crate, so that each of them can use it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of CLIP's two towers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// Images.
    Vision,
    /// Texts.
    Text,
}

impl Tower {
    /// Its name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Text => "text",
        }
    }
}

/// Which towers edits may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Towers {
    /// The text tower only: image embeddings do not change.
    #[default]
    Text,
    /// The vision tower only: text embeddings do not change.
    Vision,
    /// Either tower, whichever suits a concept better.
    Both,
}

impl Towers {
    /// Whether this tower is one of them.
    pub fn include(self, tower: Tower) -> bool {
        match self {
            Self::Text => tower == Tower::Text,
            Self::Vision => tower == Tower::Vision,
            Self::Both => true,
        }
    }
}

/// Precision of matrix multiplications in a model's towers. Weights, activations between blocks,
/// sums, directions and edits always have float32 or better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Float32.
    #[default]
    Float32,
    /// Factors are rounded to TF32 (10 bits of mantissa) on GPUs that support it; a CPU multiplies
    /// in float32.
    Tf32,
    /// Factors and products are rounded to bfloat16 (7 bits of mantissa).
    Bfloat16,
}

impl Precision {
    /// Returns whether all multiplications are in float32.
    pub fn is_float32(&self) -> bool {
        *self == Self::Float32
    }

    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// The forget accuracy that must reach 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// Top-1 forget accuracy.
    Fa1,
    /// Top-5 forget accuracy, as used by the authors of SLUG.
    #[default]
    Fa5,
}

impl Stop {
    /// Returns the number of ranks among which a class counts as found.
    pub fn rank(self) -> u32 {
        match self {
            Self::Fa1 => 1,
            Self::Fa5 => 5,
        }
    }

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fa1 => "fa1",
            Self::Fa5 => "fa5",
        }
    }
}

/// The settings of `[method]` that the jobs of a concept need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSettings {
    /// Pairs per gradient batch.
    pub batch_size: u32,
    /// Step-size evaluations per front layer.
    pub search_evaluations: u32,
    /// The search ends when the relative width of the bracket is below this.
    pub search_tolerance: f64,
    /// Which forget accuracy has to reach 0.
    pub stop: Stop,
    /// Whether the gains of layer norms are candidates as well.
    pub normalisation_gains: bool,
}

impl MethodSettings {
    /// Checks that every number is in range.
    ///
    /// # Errors
    /// The problem, with the field.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (field, value) in
            [("batch_size", self.batch_size), ("search_evaluations", self.search_evaluations)]
        {
            if value == 0 {
                return Err(format!("{field} is 0"));
            }
        }
        if (0.0..1.0).contains(&self.search_tolerance) {
            Ok(())
        } else {
            Err(format!("search_tolerance is {}", self.search_tolerance))
        }
    }
}

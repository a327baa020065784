//! How well a model knows a concept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::measurement::{Accuracy, ClassHits};

/// How well a concept is still known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// FA@1 on forget data, 0 to 1.
    pub fa1: f64,
    /// FA@5 on forget data, 0 to 1.
    pub fa5: f64,
    /// Share of the forget images that count as recognised by the concept's own criterion, where
    /// that is a share of ranks (`stop = "rank 0.5"`), 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<f64>,
    /// On the class's validation pairs, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<ClassHits>,
    /// TA@1 over all other classes' validation images, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility: Option<f64>,
}

impl Measured {
    /// Accuracy on forget data.
    pub fn accuracy(&self) -> Accuracy {
        Accuracy { fa1: self.fa1, fa5: self.fa5 }
    }
}

//! What the change of one tower does by itself.

use serde::{Deserialize, Serialize};

use super::recognition::Recognition;
use super::utility::Utility;
use crate::vocabulary::Tower;

/// The base model with the change of one tower only. A model that takes over this tower alone sees
/// no more of a removal than this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerAlone {
    /// The tower whose change is applied.
    pub tower: Tower,
    /// FA@1 of the forget images: mean over concepts with a strength above 0.
    pub fa1: f64,
    /// FA@5, likewise.
    pub fa5: f64,
    /// What can still be told of removed concepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recognition: Option<Recognition>,
    /// Accuracy on retained classes, before and after.
    pub utility: Utility,
}

//! What can still be told of removed concepts.

use serde::{Deserialize, Serialize};

/// What can still be told of removed concepts. A class that ranks below five of a thousand others
/// may still be the best of a few, and its images may still be found by its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recognition {
    /// A removed name among few others, on forget images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidates>,
    /// Searches for images by the removed names, by set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<NameSearches>,
}

/// How often the removed name is the best of few: its class against retained classes drawn at
/// random. A probability over all draws, averaged over the images of a concept, then over concepts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// Number of retained classes beside the removed one.
    pub others: u32,
    /// Of the base model, 0 to 1.
    pub before: f64,
    /// Of the composed model, 0 to 1.
    pub after: f64,
}

/// Searches for images by the names of removed concepts in one set, among images of all classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameSearches {
    /// The set: `validation` or `test`.
    pub set: String,
    /// Names of removed concepts that have an image in the set.
    pub names: u64,
    /// By the base model.
    pub before: Recall,
    /// By the composed model.
    pub after: Recall,
}

/// The share of searches that find an image of the concept among the first images, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Among the first image alone.
    pub r1: f64,
    /// Among the first 5.
    pub r5: f64,
    /// Among the first 20.
    pub r20: f64,
}

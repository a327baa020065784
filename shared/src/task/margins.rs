//! The margins of forget images.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_at_least_one};

/// Measures the margin of each forget image of some concepts: the score of its own class minus the
/// k-th best score of another class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margins {
    /// Tensors that replace those of the model; `None` measures the unedited model.
    pub change: Option<ArtifactRef>,
    /// The concepts.
    pub concepts: Vec<MarginsOf>,
    /// The class list.
    pub classes: ArtifactRef,
    /// Most images of a concept, as in [`Constraints::images`](super::Constraints::images).
    pub images: u32,
}

/// A concept whose margins are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarginsOf {
    /// Its class: position in the class list.
    pub class: u32,
    /// k: an image is forgotten when k other classes rank above its own.
    pub rank: u32,
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
}

/// Margins by concept, in the order of [`Margins::concepts`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarginsOutput {
    /// The margin of each image that is a constraint, in order.
    pub margins: Vec<Vec<f64>>,
}

impl Task for Margins {
    const KIND: &'static str = "margins";
    const VERSION: u32 = 1;
    type Output = MarginsOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        let what = if self.change.is_some() { "composed" } else { "base" };
        format!("margins of {} concepts on the {what} model", self.concepts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        self.concepts.iter().flat_map(|concept| concept.forget.iter().copied()).collect()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.images, "images")?;
        self.concepts.iter().try_for_each(|concept| check_at_least_one(concept.rank, "rank"))
    }
}

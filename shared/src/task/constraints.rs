//! The margin constraints of one concept: the gradient of each forget image's margin.

use serde::{Deserialize, Serialize};

use crate::measurement::{Accuracy, Answers};
use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_at_least_one, places};

/// Computes, for each forget image of a concept, the gradient of its margin at some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
    /// The class list.
    pub classes: ArtifactRef,
    /// Layers at which gradients are taken, in order; of one tower or both.
    pub layers: Vec<String>,
    /// Preconditioners of these layers, as in [`Direction::inverses`](super::Direction::inverses).
    pub inverses: Vec<ArtifactRef>,
    /// Most images that become constraints; more images are thinned out evenly.
    pub images: u32,
}

/// The constraints of one concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstraintsOutput {
    /// FA@1 and FA@5 of the unedited model on all forget images.
    pub before: Accuracy,
    /// Number of images that became constraints.
    pub images: u32,
    /// For each layer `NAME`, the gradients of all images as factors: `NAME.deltas` `[rows,
    /// outputs]` and `NAME.inputs` `[rows, inputs]`, float32, and `NAME.image` `[rows]`, int64, the
    /// image of each row. The gradient G_i by which an edit lowers the margin of image i is the sum
    /// of `deltasᵀ · inputs` over its rows.
    pub factors: ArtifactRef,
    /// Largest number of rows of one image at one layer.
    pub rank: u32,
    /// Largest relative error of the factors of an image's gradient, in the norm that prices
    /// changes.
    pub residual: f64,
    /// Top predictions of the unedited model for the forget images.
    pub said: Answers,
    /// The first forget images, small: see
    /// [`SearchOutput::thumbnails`](super::SearchOutput::thumbnails).
    pub thumbnails: Option<ArtifactRef>,
}

impl Task for Constraints {
    const KIND: &'static str = "constraints";
    const VERSION: u32 = 3;
    type Output = ConstraintsOutput;

    fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match concept {
            Some(concept) => format!("constraints of concept {concept}"),
            None => format!("constraints of {}", places(&self.forget, locations)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.forget.clone()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        [output.factors].into_iter().chain(output.thumbnails).collect()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.images, "images")
    }
}

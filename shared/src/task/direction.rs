//! The preconditioned direction of one concept, and its step.

use serde::{Deserialize, Serialize};

use crate::measurement::{Accuracy, Answers, Chosen, Trial};
use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::MethodSettings;
use super::kind::{Task, places};

/// Finds the preconditioned direction of one concept on a given layer, and the step that forgets
/// it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
    /// Shards for measuring utility; captions are class names.
    pub validation: Vec<FileSpec>,
    /// Preconditioners, one file per tower that may change:
    /// [`MomentsReduceOutput::inverse`](super::MomentsReduceOutput::inverse). A matrix replaces one
    /// of the same name in an earlier file;
    /// [`ProtectOutput::inverse`](super::ProtectOutput::inverse) comes last.
    pub inverses: Vec<ArtifactRef>,
    /// The class list.
    pub classes: ArtifactRef,
    /// The layer that the edit changes.
    pub layer: String,
    /// The layers that gradients are kept of: the run's layers, and `layer` if it is none of them.
    pub layers: Vec<String>,
    /// Largest rank of the direction; `None` keeps it whole.
    pub rank: Option<u32>,
    /// Settings.
    pub method: MethodSettings,
}

/// The direction of one concept on its layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionOutput {
    /// FA@1 and FA@5 at the original weights.
    pub before: Accuracy,
    /// Every trial of the step search, in the order made.
    pub search: Vec<Trial>,
    /// The smallest step that forgets the concept, with the direction as factors; `None` when no
    /// step does.
    pub chosen: Option<Chosen>,
    /// Factors of the forget gradient at every layer in `layers`.
    pub gradients: ArtifactRef,
    /// Rank of the direction.
    pub rank: u32,
    /// Relative error of the direction by its rank, in the norm that prices changes.
    pub residual: f64,
    /// Top predictions of the unedited model for the forget images.
    pub said: Answers,
    /// The first forget images, small: see
    /// [`SearchOutput::thumbnails`](super::SearchOutput::thumbnails).
    pub thumbnails: Option<ArtifactRef>,
}

impl Task for Direction {
    const KIND: &'static str = "direction";
    const VERSION: u32 = 11;
    type Output = DirectionOutput;

    fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match concept {
            Some(concept) => format!("direction of concept {concept}"),
            None => format!("direction of {}", places(&self.forget, locations)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.forget.iter().chain(&self.validation).copied().collect()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        output.chosen.iter().map(|chosen| chosen.direction).chain([output.gradients]).chain(output.thumbnails).collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.rank == Some(0) {
            return Err("the largest rank of a direction is 0".to_owned());
        }
        self.method.check()
    }
}

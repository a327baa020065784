//! One concept's edit by SLUG's full procedure.

use serde::{Deserialize, Serialize};

use crate::measurement::{Accuracy, Answers, Chosen, RankedLayer, Trial};
use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::MethodSettings;
use super::kind::{Task, places};

/// Finds one concept's edit: every layer on a Pareto front is searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
    /// Shards that the step search may use; captions are class names.
    pub validation: Vec<FileSpec>,
    /// g_r.
    pub retain_gradient: ArtifactRef,
    /// The class list.
    pub classes: ArtifactRef,
    /// The layers that the edit may change, in order; `None` for all candidates.
    pub layers: Option<Vec<String>>,
    /// Settings.
    pub method: MethodSettings,
}

/// The result of the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchOutput {
    /// Forget pairs.
    pub pairs: u64,
    /// L_f at the original weights.
    pub forget_loss: f64,
    /// FA@1 and FA@5 at the original weights.
    pub before: Accuracy,
    /// All candidates, by tower, then in checkpoint order.
    pub ranking: Vec<RankedLayer>,
    /// All trials of all front layers, in order.
    pub search: Vec<Trial>,
    /// The edit; `None` when no layer on a front forgot the concept within the budget.
    pub chosen: Option<Chosen>,
    /// Top predictions of the unedited model for the forget images.
    pub said: Answers,
    /// The first forget images, at most three, each cut to a square of 64 pixels, side by side in
    /// one JPEG.
    pub thumbnails: Option<ArtifactRef>,
}

impl Task for Search {
    const KIND: &'static str = "search";
    const VERSION: u32 = 9;
    type Output = SearchOutput;

    fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match concept {
            Some(concept) => format!("concept {concept}"),
            None => format!("concept of {}", places(&self.forget, locations)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.forget.iter().chain(&self.validation).copied().collect()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        output.chosen.iter().map(|chosen| chosen.direction).chain(output.thumbnails).collect()
    }

    fn check(&self) -> Result<(), String> {
        self.method.check()
    }
}

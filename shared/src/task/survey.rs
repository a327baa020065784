//! Scores of candidate layers for one concept.

use serde::{Deserialize, Serialize};

use crate::measurement::RankedLayer;
use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::Towers;
use super::kind::{Task, check_at_least_one, places};

/// Scores all candidate layers of the towers that may change for one concept, without a step
/// search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
    /// g_r.
    pub retain_gradient: ArtifactRef,
    /// Cross-fit moments for computing and scoring directions, one file per layer; none when the
    /// layers get no efficiency: [`MomentsReduceOutput::cross_fit`](super::MomentsReduceOutput::cross_fit).
    #[serde(rename = "folds")]
    pub cross_fit: Vec<ArtifactRef>,
    /// Towers whose layers are scored.
    pub towers: Towers,
    /// Pairs per gradient batch.
    pub batch_size: u32,
    /// Whether the gains of layer norms are candidates as well.
    pub normalisation_gains: bool,
}

/// The scores of candidate layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SurveyOutput {
    /// Forget pairs.
    pub pairs: u64,
    /// L_f at the original weights.
    pub forget_loss: f64,
    /// All candidates, by tower, then in checkpoint order.
    pub ranking: Vec<RankedLayer>,
}

impl Task for Survey {
    const KIND: &'static str = "survey";
    const VERSION: u32 = 10;
    type Output = SurveyOutput;

    fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match concept {
            Some(concept) => format!("survey of concept {concept}"),
            None => format!("survey of {}", places(&self.forget, locations)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.forget.clone()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.batch_size, "batch_size")
    }
}

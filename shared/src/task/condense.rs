//! One direction per layer for a concept, from the coefficients of its constraints.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_at_least_one};

/// Sums the directions of one concept's constraints, and factorises the sum at each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condense {
    /// The layers that change.
    pub layers: Vec<String>,
    /// [`ConstraintsOutput::factors`](super::ConstraintsOutput::factors).
    pub factors: ArtifactRef,
    /// The coefficient of each image.
    pub coefficients: Vec<f64>,
    /// Preconditioners of these layers.
    pub inverses: Vec<ArtifactRef>,
    /// Largest rank of the direction at each layer.
    pub ranks: Vec<u32>,
}

/// The condensed direction of one concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CondenseOutput {
    /// Factors of the direction at each layer.
    pub direction: ArtifactRef,
    /// Largest rank at a layer.
    pub rank: u32,
    /// Relative error over all layers, in the norm that prices changes.
    pub residual: f64,
    /// ‖D‖/‖θ‖ of each layer, in the order of [`Condense::layers`].
    pub sizes: Vec<f64>,
}

impl Task for Condense {
    const KIND: &'static str = "condense";
    const VERSION: u32 = 3;
    type Output = CondenseOutput;

    fn label(&self, concept: Option<&str>, _: &Locations) -> String {
        match concept {
            Some(concept) => format!("direction of concept {concept}"),
            None => "direction of a concept".to_owned(),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.direction]
    }

    fn check(&self) -> Result<(), String> {
        if self.ranks.len() != self.layers.len() {
            return Err(format!("{} ranks for {} layers", self.ranks.len(), self.layers.len()));
        }
        self.ranks.iter().try_for_each(|&rank| check_at_least_one(rank, "rank"))?;
        if self.coefficients.iter().all(|a| a.is_finite()) { Ok(()) } else { Err("a coefficient is not finite".to_owned()) }
    }
}

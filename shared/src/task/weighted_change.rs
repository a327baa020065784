//! The change of a model that follows from a coefficient per margin constraint.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Adds the directions of all constraints, each times its coefficient, to the model's layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedChange {
    /// The layers that change.
    pub layers: Vec<String>,
    /// The constraints of each concept, by id.
    pub concepts: Vec<WeightedConstraints>,
    /// Preconditioners of these layers.
    pub inverses: Vec<ArtifactRef>,
}

/// The constraints of one concept with their coefficients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedConstraints {
    /// [`ConstraintsOutput::factors`](super::ConstraintsOutput::factors).
    pub factors: ArtifactRef,
    /// The coefficient of each image.
    pub coefficients: Vec<f64>,
}

/// The changed layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedChangeOutput {
    /// A safetensors file with the new values of each layer, as
    /// [`Evaluate::change`](super::Evaluate::change).
    pub change: ArtifactRef,
    /// ‖Δ‖/‖θ‖ over all these layers.
    pub size: f64,
}

impl Task for WeightedChange {
    const KIND: &'static str = "weighted-change";
    const VERSION: u32 = 2;
    type Output = WeightedChangeOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("change by the constraints of {} concepts", self.concepts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        vec![output.change]
    }

    fn check(&self) -> Result<(), String> {
        let finite = |concept: &WeightedConstraints| concept.coefficients.iter().all(|a| a.is_finite());
        if self.concepts.iter().all(finite) { Ok(()) } else { Err("a coefficient is not finite".to_owned()) }
    }
}

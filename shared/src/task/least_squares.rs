//! The edits of all concepts at one layer, by least squares.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::{Task, check_at_least_one};

/// Solves the edit of one layer that maps the keys of all concepts to their residuals and moves
/// retained texts least:
///
/// ```text
/// minimise  Σ_c ‖K_c Δᵀ − R_c‖²  +  w · tr(Δ (C + ρ·tr(C)/n · I) Δᵀ)
/// ```
///
/// C is the mean of x xᵀ over the tokens of retained texts, and R_c has the residuals of a concept
/// times its factor. Returns Δ as a sum over concepts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeastSquares {
    /// The layer.
    pub layer: String,
    /// The concepts.
    pub concepts: Vec<LeastSquaresPart>,
    /// Preconditioner of the layer.
    pub inverses: Vec<ArtifactRef>,
    /// w: the weight of retained texts, in concepts.
    pub retain_weight: f64,
    /// Largest rank of the direction of a concept.
    pub rank: u32,
}

/// The keys of one concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeastSquaresPart {
    /// [`KeysOutput::factors`](super::KeysOutput::factors).
    pub factors: ArtifactRef,
    /// Multiplies the residuals: above 1, states go beyond those of a mean text, away from the
    /// concept's own.
    pub overshoot: f64,
}

/// The edits, in the order of [`LeastSquares::concepts`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeastSquaresOutput {
    /// One edit per concept.
    pub edits: Vec<LeastSquaresEdit>,
}

/// The edit of one concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeastSquaresEdit {
    /// Factors of its direction.
    pub direction: ArtifactRef,
    /// Rank of the direction.
    pub rank: u32,
    /// Relative error by the cut to that rank, in the norm that prices changes.
    pub residual: f64,
    /// ‖D‖/‖θ‖.
    pub size: f64,
}

impl Task for LeastSquares {
    const KIND: &'static str = "least-squares";
    const VERSION: u32 = 2;
    type Output = LeastSquaresOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        format!("edits of {} concepts by least squares", self.concepts.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        Vec::new()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        output.edits.iter().map(|edit| edit.direction).collect()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.rank, "rank")?;
        let in_range = |value: f64| value > 0.0 && value.is_finite();
        if !in_range(self.retain_weight) {
            return Err("the weight of retained texts is out of range".to_owned());
        }
        match self.concepts.iter().all(|part| in_range(part.overshoot)) {
            true => Ok(()),
            false => Err("a factor of residuals is out of range".to_owned()),
        }
    }
}

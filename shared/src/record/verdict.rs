//! The verdict on each concept that has an edit: a pure function of the numbers in the record.
//!
//! | status | strength | the composed model, by the concept's [`Criterion`] |
//! |---|---|---|
//! | `removed` | above 0 | meets it, and the base model did not |
//! | `showing` | 1 or more | does not meet it |
//! | `weakened` | above 0, below 1 | does not meet it, as expected with a strength below 1 |
//! | `unknown-before` | above 0 | meets it or was not measured, and the base model met it: nothing shows that the edit removed anything |
//! | `not-applied` | 0 | is not judged: the edit is not in it |
//! | `not-measured` | above 0 | was not measured, and the base model did not meet it |

use serde::{Deserialize, Serialize};

use super::measured::Measured;
use crate::vocabulary::Stop;

/// When a concept counts as forgotten: at most the share `tolerance` of its forget images is
/// recognised by the measure `stop`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// The measure that decides.
    pub stop: Stop,
    /// Share of the forget images that may still be recognised, 0 to 1.
    pub tolerance: f64,
}

impl Criterion {
    /// Returns the share of the forget images that are recognised by the measure `stop`, 0 to 1.
    pub fn share(&self, measured: &Measured) -> f64 {
        match self.stop {
            Stop::Fa1 => measured.fa1,
            Stop::Fa5 => measured.fa5,
            // Without this measurement nothing shows that the concept is forgotten.
            Stop::Rank(_) => measured.within.unwrap_or(1.0),
        }
    }

    /// Returns whether a concept with these measurements counts as forgotten; `false` for NaN.
    pub fn is_met(&self, measured: &Measured) -> bool {
        self.share(measured) <= self.tolerance
    }
}

/// The status of a concept that has an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConceptStatus {
    /// The base model knew it and the composed model does not.
    Removed,
    /// The composed model still recognises it.
    Showing,
    /// The composed model still recognises it, and its strength is below 1.
    Weakened,
    /// The base model did not know it, and neither does the composed model where it was measured.
    UnknownBefore,
    /// Its strength is 0.
    NotApplied,
    /// The composed model was not measured.
    NotMeasured,
}

impl ConceptStatus {
    /// Returns its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Showing => "still recognised",
            Self::Weakened => "weakened",
            Self::UnknownBefore => "unknown before",
            Self::NotApplied => "not applied",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A concept's status and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// The status.
    pub status: ConceptStatus,
    /// The reason, without the name of the concept.
    pub reason: String,
}

/// A concept with its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedConcept {
    /// Its id.
    pub id: String,
    /// What became of it.
    pub status: ConceptStatus,
    /// Why.
    pub reason: String,
}

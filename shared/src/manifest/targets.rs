//! `[[release.target]]`: models that have one of CLIP's towers inside, and get the release's edits too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::outcome::Tower;

/// What a target is, and so which of CLIP's towers is in it, and what it reads of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A pipeline folder of diffusers, with the text tower in `text_encoder/` (and `text_encoder_2/`).
    StableDiffusion,
    /// A LLaVA checkpoint, with the vision tower in it, as transformers or LLaVA's own code names it.
    Llava,
}

impl TargetKind {
    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "stable-diffusion",
            Self::Llava => "llava",
        }
    }

    /// The tower that is in it.
    pub fn tower(self) -> Tower {
        match self {
            Self::StableDiffusion => Tower::Text,
            Self::Llava => Tower::Vision,
        }
    }
}

/// What becomes of a target's files that no edit changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PassThrough {
    /// They are copied into the release, by the store itself where it can.
    #[default]
    Copy,
    /// They are left where they are, and named with their digests in the target's `target.json`.
    Reference,
}

/// One of `[[release.target]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseTarget {
    /// Its name in the release, where it stands at `targets/NAME/`: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// What it is.
    pub kind: TargetKind,
    /// Its folder.
    pub uri: String,
    /// What becomes of its files that no edit changes.
    #[serde(default)]
    pub pass_through: PassThrough,
    /// How far a tensor of its tower may be from the model's, ‖θ' − θ‖/‖θ‖. Without it, as far as rounding to the type it is stored in
    /// explains: the edits of one model do something else in another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub tolerance: Option<f64>,
}

/// Largest tolerance: two models that were not made from each other are at 1 and beyond.
const MAX_TOLERANCE: f64 = 0.5;

/// What is wrong with the targets of a manifest: a field, and the problem.
pub(super) fn problem(targets: &[ReleaseTarget]) -> Option<String> {
    for (number, target) in targets.iter().enumerate() {
        let name = &target.name;
        if !super::is_id(name) {
            return Some(format!("has a target named `{name}`; use letters, digits, `.`, `_`, `-`, at most 100"));
        }
        if targets[..number].iter().any(|other| other.name == *name) {
            return Some(format!("has two targets named `{name}`"));
        }
        if target.uri.is_empty() {
            return Some(format!("`{name}` has no uri; give the target's folder"));
        }
        if let Some(tolerance) = target.tolerance.filter(|tolerance| !(0.0..=MAX_TOLERANCE).contains(tolerance)) {
            return Some(format!("`{name}` has tolerance {tolerance}, expected 0 to {MAX_TOLERANCE}"));
        }
    }
    None
}

//! `[[release.target]]`: models that contain one of CLIP's towers, and receive the edits of the
//! release.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::is_id;
use crate::vocabulary::Tower;

/// The kind of a target. It determines which of CLIP's towers the target contains, and which
/// outputs of the tower it uses. Records have the older names, whatever a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A pipeline folder of diffusers with CLIP text encoders in it: Stable Diffusion, FLUX.1 and
    /// others (`docs/targets.md`). `diffusion` names the same kind.
    #[serde(alias = "diffusion")]
    StableDiffusion,
    /// A vision-language model with a CLIP or SigLIP vision tower in it, as transformers or LLaVA's
    /// own code writes it: LLaVA, PaliGemma, Gemma 3 and others. `vision-language` names the same
    /// kind.
    #[serde(alias = "vision-language")]
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

    /// Returns the tower that it contains.
    pub fn tower(self) -> Tower {
        match self {
            Self::StableDiffusion => Tower::Text,
            Self::Llava => Tower::Vision,
        }
    }
}

/// What happens to files of a target that no edit changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PassThrough {
    /// They are copied into the release, server-side where the store supports it.
    #[default]
    Copy,
    /// They are not copied; `target.json` of the target lists them with their digests.
    Reference,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseTarget {
    /// Its name; its folder in the release is `targets/NAME/`. Letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Its kind.
    pub kind: TargetKind,
    /// Its folder.
    pub uri: String,
    /// What happens to its files that no edit changes.
    #[serde(default)]
    pub pass_through: PassThrough,
    /// Largest relative distance of a tensor of its tower from the model's, ‖θ' − θ‖/‖θ‖. By
    /// default, only rounding to the stored type is allowed, because the edits of one model have
    /// other effects in another model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub tolerance: Option<f64>,
}

/// Largest tolerance. Unrelated models have distances of 1 and more.
const MAX_TOLERANCE: f64 = 0.5;

/// Returns the first problem of the targets of a manifest.
pub(super) fn problem(targets: &[ReleaseTarget]) -> Option<String> {
    for (number, target) in targets.iter().enumerate() {
        let name = &target.name;
        if !is_id(name) {
            return Some(format!(
                "has a target named `{name}`; use letters, digits, `.`, `_`, `-`, at most 100"
            ));
        }
        if targets[..number].iter().any(|other| other.name == *name) {
            return Some(format!("has two targets named `{name}`"));
        }
        if target.uri.is_empty() {
            return Some(format!("`{name}` has no uri; give the target's folder"));
        }
        if let Some(tolerance) =
            target.tolerance.filter(|tolerance| !(0.0..=MAX_TOLERANCE).contains(tolerance))
        {
            return Some(format!(
                "`{name}` has tolerance {tolerance}, expected 0 to {MAX_TOLERANCE}"
            ));
        }
    }
    None
}

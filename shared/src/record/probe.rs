//! What probes measured of a release.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::reference::ArtifactRef;

/// The result of a probe: one of the built-in ones, or a command of the operator that measures a
/// release by means of its own, for example by drawing with a diffusion pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecord {
    /// Its name.
    pub name: String,
    /// SHA-256 of the probe file; of a built-in probe, of its name and version.
    pub file: Digest,
    /// The command; empty for a built-in probe.
    pub command: Vec<String>,
    /// Its version, as the command has it.
    pub version: String,
    /// Exit code of the command: 0, because the results of others are not kept.
    pub exit_code: i32,
    /// The measured numbers by name.
    pub numbers: BTreeMap<String, f64>,
    /// Pictures, in the command's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pictures: Vec<ProbePicture>,
    /// Sentences about the numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Pictures made by the base model and by the release, as artifacts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbePicture {
    /// What they show.
    pub title: String,
    /// By the base model, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<ArtifactRef>,
    /// By the release.
    pub after: ArtifactRef,
}

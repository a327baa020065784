//! What a probe is told about the release.

use std::path::Path;

use serde::Serialize;

/// Version of the format.
const VERSION: u32 = 1;

/// The input of a probe, which it reads as JSON from the file that `LETHE_PROBE_INPUT` names.
#[derive(Debug, Serialize)]
pub struct Input<'a> {
    version: u32,
    /// Name of the release.
    pub name: &'a str,
    /// SHA-256 over the release's weights.
    pub digest: String,
    /// The release: a CLIP folder.
    pub release: &'a Path,
    /// The base model's folder; null where it is no longer at its address.
    pub base: Option<&'a Path>,
    /// Other models with the edits.
    pub targets: Vec<InputTarget>,
    /// The concepts that have an edit, by id.
    pub concepts: Vec<InputConcept<'a>>,
    /// The folder that `result.json` and pictures are written into.
    pub output: &'a Path,
}

/// Another model with the edits.
#[derive(Debug, Serialize)]
pub struct InputTarget {
    /// Its name in the manifest.
    pub name: String,
    /// Its kind in the manifest.
    pub kind: &'static str,
    /// Its folder in the release.
    pub folder: std::path::PathBuf,
    /// The folder that it was made from; null where it is no longer at its address.
    pub base: Option<std::path::PathBuf>,
}

/// A concept that has an edit.
#[derive(Debug, Serialize)]
pub struct InputConcept<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its class.
    pub class: &'a str,
    /// Strength α.
    pub strength: f64,
    /// Its status by the release's own measurements.
    pub status: &'static str,
}

impl<'a> Input<'a> {
    /// Creates the input of a release without targets and concepts.
    pub fn new(name: &'a str, digest: String, release: &'a Path, output: &'a Path) -> Self {
        Self {
            version: VERSION,
            name,
            digest,
            release,
            base: None,
            targets: Vec::new(),
            concepts: Vec::new(),
            output,
        }
    }
}

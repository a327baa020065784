//! Targets in the record: models that contain one of CLIP's towers, and received the edits.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::manifest::{PassThrough, TargetKind, is_id};
use crate::printable::printable;
use crate::reference::ArtifactRef;
use crate::vocabulary::Tower;

/// The folder of all targets in a release.
pub const TARGETS: &str = "targets";
/// The file that lists the files of a target that are not copied.
pub const TARGET_FILE: &str = "target.json";

/// One target of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRecord {
    /// Its name; its folder is `targets/NAME/`.
    pub name: String,
    /// What it is.
    pub kind: TargetKind,
    /// The class of a pipeline, or `model_type` of a vision-language model; empty in older records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// Where the model is that was edited.
    pub address: String,
    /// What became of files that no edit changes.
    pub pass_through: PassThrough,
    /// How far its towers were allowed to be from the base's, where more than rounding was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// The towers in it that are the base's.
    pub towers: Vec<TargetTower>,
    /// Text encoders in it that read every prompt too and are not edited, because they are no towers
    /// of the base's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unedited: Vec<UneditedEncoder>,
    /// Ids of removed concepts whose edit cannot act here: the target lacks the layer, or does not
    /// use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// Files of the source model: both those that are passed through and the originals of those
    /// that are changed.
    pub source: BTreeMap<String, ArtifactRef>,
    /// Files that are changed, as they are here.
    pub changed: BTreeMap<String, ArtifactRef>,
    /// [`TARGET_FILE`], where files are left where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<ArtifactRef>,
    /// Files of the model that hold its tower in a form that is not edited, and are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A text encoder of a target that is not edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UneditedEncoder {
    /// The folder in the target.
    pub folder: String,
    /// Its class.
    pub class: String,
}

/// A tower inside a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetTower {
    /// The folder in the target; empty for the target's own.
    pub folder: String,
    /// Which tower.
    pub tower: Tower,
    /// Its blocks.
    pub blocks: usize,
    /// How many of them the target uses.
    pub blocks_used: usize,
    /// What the target reads of the tower, for a person; empty for copies that it does not read, and
    /// in older records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reads: String,
    /// Largest distance of a tensor from the base's, ‖θ' − θ‖/‖θ‖; 0 where all are the same.
    pub distance: f64,
    /// What became of each tensor that an edit acts in, by file (or index) and name.
    pub tensors: BTreeMap<String, BTreeMap<String, ChangedTensor>>,
}

/// A change of one tensor of a target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedTensor {
    /// ‖Δ‖/‖θ‖, as stored.
    pub change: f64,
    /// Share of the change that is lost by rounding to the stored type: ‖stored − wanted‖/‖wanted‖.
    pub rounding: f64,
}

impl TargetRecord {
    /// Its folder in a release.
    pub fn folder(&self) -> String {
        format!("{TARGETS}/{}", self.name)
    }

    /// The file of this name as it is in the target with its edits.
    pub fn file(&self, name: &str) -> Option<ArtifactRef> {
        self.changed.get(name).or_else(|| self.source.get(name)).copied()
    }

    /// Returns all files in the folder of the target in the release.
    pub fn files(&self) -> BTreeMap<String, ArtifactRef> {
        let mut files = match self.pass_through {
            PassThrough::Copy => self.source.clone(),
            PassThrough::Reference => BTreeMap::new(),
        };
        files.extend(self.changed.clone());
        files.extend(self.listing.map(|listing| (TARGET_FILE.to_owned(), listing)));
        files
    }

    /// Its class or `model_type`, or where a record has none, its kind.
    pub fn shown_kind(&self) -> &str {
        if self.architecture.is_empty() { self.kind.name() } else { &self.architecture }
    }

    /// Returns what it reads of its towers, for a person.
    pub fn reads(&self) -> String {
        let of = |tower: &TargetTower| match tower.folder.as_str() {
            "" => tower.reads.clone(),
            folder => format!("{folder}: {}", tower.reads),
        };
        let reads: Vec<String> =
            self.towers.iter().filter(|tower| !tower.reads.is_empty()).map(of).collect();
        if reads.is_empty() { "not recorded".to_owned() } else { reads.join("; ") }
    }

    /// Returns what is said of its text encoders that are not edited, if there are any.
    pub fn unedited_sentence(&self) -> Option<String> {
        let of = |encoder: &UneditedEncoder| format!("{} ({})", encoder.folder, encoder.class);
        let named: Vec<String> = self.unedited.iter().map(of).collect();
        (!named.is_empty()).then(|| {
            format!(
                "Text encoders of {} that read prompts too and are not edited: {}. They may still know what was removed.",
                self.name,
                named.join(", ")
            )
        })
    }

    /// What is wrong with it, when it was not written by Lethe.
    pub fn problem(&self) -> Option<String> {
        if !is_id(&self.name) {
            return Some(format!("`{}` names no target", self.name.escape_default()));
        }
        if let Some(name) =
            self.source.keys().chain(self.changed.keys()).find(|name| !is_target_file(name))
        {
            return Some(format!(
                "names `{}`, which is no file of target `{}`",
                name.escape_default(),
                self.name
            ));
        }
        const SHOWN: usize = 300;
        let shown = [&self.architecture]
            .into_iter()
            .chain(self.unedited.iter().flat_map(|encoder| [&encoder.folder, &encoder.class]))
            .chain(self.towers.iter().map(|tower| &tower.reads));
        if let Some(long) = shown.into_iter().find(|text| text.len() > SHOWN) {
            return Some(format!(
                "says `{}` of target `{}`, more than {SHOWN} bytes",
                printable(long),
                self.name
            ));
        }
        let stray = self.changed.keys().find(|name| !self.source.contains_key(*name));
        stray.map(|name| {
            format!("changes `{}`, which target `{}` does not have", printable(name), self.name)
        })
    }
}

/// What is wrong with the targets of a record.
pub fn problem(targets: &[TargetRecord]) -> Option<String> {
    let names: BTreeSet<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    if names.len() < targets.len() {
        return Some("names a target twice".to_owned());
    }
    targets.iter().find_map(TargetRecord::problem)
}

/// Whether this is the name of a file in a target's folder: a relative path without `..` and hidden
/// parts.
pub fn is_target_file(name: &str) -> bool {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(part) if part.to_str().is_some_and(|part| !part.starts_with('.')));
    !name.is_empty()
        && !name.contains('\\')
        && !name.contains("//")
        && !name.ends_with('/')
        && Path::new(name).components().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_target_stay_in_its_folder() {
        for name in ["config.json", "unet/diffusion_pytorch_model.safetensors", "a b/c"] {
            assert!(is_target_file(name), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".git/config",
            "a/.hidden",
            "a\\b",
            "./a",
        ] {
            assert!(!is_target_file(name), "{name}");
        }
    }
}

//! `composition.json`: the record of a release. Nothing in it depends on when, where or how fast it was made.

pub mod targets;

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::job::{ArtifactRef, MethodSettings, ShardRef};
use crate::manifest::{Gates, Precision};
use crate::outcome::{Accuracy, ClassHits, RankedLayer, Tower, Trial};
use crate::record::targets::TargetRecord;

/// Version of the record's format.
pub const VERSION: u32 = 1;

/// The record of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composition {
    /// [`VERSION`].
    pub version: u32,
    /// Name in the manifest.
    pub name: String,
    /// The run that found its edits.
    pub run: String,
    /// The release it was composed from, where no run made it. Nothing was measured on it then: what is measured of the whole is
    /// absent, and what is measured of single edits holds as before. `lethe evaluate` measures it later, beside the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What was edited.
    pub base: Base,
    /// SHA-256 over the checkpoint's tensor bytes in name order.
    pub digest: Digest,
    /// How edits were composed.
    pub method: String,
    /// How the edits of one layer became one change.
    #[serde(default, skip_serializing_if = "Merge::is_sum")]
    pub merge: Merge,
    /// How edits were found.
    pub search: MethodSettings,
    /// What directions were corrected by, one artifact per tower that may change. Only edits that were corrected by the same are
    /// dosed together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<ArtifactRef>,
    /// Every concept that was removed, by id.
    pub concepts: Vec<ConceptRecord>,
    /// Concepts of the manifest that are not removed.
    pub missing: Vec<Missing>,
    /// Groups of concepts that the model hardly tells apart, by id: what removes one goes far towards removing the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near_duplicates: Vec<Vec<String>>,
    /// What must stay, before and after.
    pub utility: Utility,
    /// Texts that must not change, in their file's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<ProtectedText>,
    /// ‖Δ‖/‖θ‖ of every layer that is changed, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, f64>,
    /// Bounds that the manifest sets before a channel may lead to it, where it sets some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// What edits were found from. Absent in releases of earlier versions of Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Other models that got the edits too, by the manifest's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetRecord>,
    /// Every file of the release but this one and those of targets: SHA-256 and size.
    pub files: BTreeMap<String, ArtifactRef>,
}

impl Composition {
    /// Whether the model as a whole was measured: by its run, or by `lethe evaluate` since.
    pub fn is_measured(&self) -> bool {
        self.parent.is_none() || self.utility.retained_classes.is_some()
    }
}

/// What edits were found from: nothing of where or when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Digest over everything that determines the run's result: settings, model, data and concepts. Its first digits end the run's name.
    pub manifest: Digest,
    /// Version of the algorithm, see [`crate::job::ALGORITHM_VERSION`].
    pub algorithm: u32,
    /// How the model's towers multiplied matrices.
    #[serde(default, skip_serializing_if = "Precision::is_float32")]
    pub precision: Precision,
    /// Whether names are hashed: ids, names, classes and groups of concepts are then no words.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hashed_names: bool,
    /// Class names in the class list.
    pub classes: u64,
    /// Digest of class list and prompt.
    pub class_texts: Digest,
    /// Prompt around a class name.
    pub template: String,
    /// Shards of pairs that must stay.
    pub retain: Vec<DataFile>,
    /// Files of unlabelled texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_texts: Vec<DataFile>,
    /// Shards of unlabelled images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retain_images: Vec<DataFile>,
    /// File of names that must not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<DataFile>,
    /// Shards that search and choice looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<DataFile>,
    /// Shards that nothing looked at before the numbers were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<DataFile>,
    /// Licence of the weights for the model card, as the Hub names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What the base model is called on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
}

/// A file of data by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Image-text pairs in it, or texts.
    pub items: u64,
}

impl From<&ShardRef> for DataFile {
    fn from(shard: &ShardRef) -> Self {
        Self { digest: shard.digest, bytes: shard.bytes, items: shard.pairs }
    }
}

/// How the edits of one layer become one change. Δ_i is an edit's change α·dose·λ·D.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Merge {
    /// Σ Δ_i.
    #[default]
    Sum,
    /// Σ Δ_i / n, with n the layer's edits (model soups, arXiv 2203.05482).
    Mean,
    /// TIES (arXiv 2306.01708): of each Δ_i the share `density` of largest magnitude is kept; each value's sign is that of the sum of
    /// what is kept; the mean is taken over what agrees with it.
    Ties {
        /// Share kept, above 0 and at most 1.
        density: f64,
    },
    /// DARE (arXiv 2311.03099): each value of each Δ_i is dropped with probability `drop`, what stays is divided by 1 − `drop`,
    /// and everything is added. What is dropped depends on concept and layer alone.
    Dare {
        /// Share dropped, at least 0 and below 1.
        drop: f64,
    },
}

impl Merge {
    fn is_sum(&self) -> bool {
        *self == Self::Sum
    }
}

/// A release that another one was composed from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Which one.
    pub release: ReleaseRef,
    /// What was changed, in the order it was done.
    pub changes: Vec<Amendment>,
}

/// A release, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// Its name.
    pub name: String,
    /// SHA-256 of its `composition.json`.
    pub record: Digest,
}

impl fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.record.short())
    }
}

/// A change to what a release removes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Amendment {
    /// A concept of another release is removed too.
    Add {
        /// Its id.
        id: String,
        /// The release it is from.
        from: ReleaseRef,
    },
    /// A concept is no longer removed.
    Remove {
        /// Its id.
        id: String,
    },
    /// A concept is removed at another strength.
    Strength {
        /// Its id.
        id: String,
        /// Strength α before.
        before: f64,
        /// Strength α now.
        after: f64,
    },
}

impl fmt::Display for Amendment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { id, from } => write!(f, "{id} added from {from}"),
            Self::Remove { id } => write!(f, "{id} left out"),
            Self::Strength { id, before, after } => write!(f, "{id} at strength {after} instead of {before}"),
        }
    }
}

/// The checkpoint that was edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Where it was found.
    pub address: String,
    /// SHA-256 over its tensor bytes in name order.
    pub digest: Digest,
}

/// One removed concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptRecord {
    /// Id in the manifest.
    pub id: String,
    /// Name in the manifest.
    pub name: String,
    /// Class name.
    pub class: String,
    /// Group in the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The run that found its edit, where that is not the release's: of what was added from another release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Tower of the edited layer.
    pub tower: Tower,
    /// The edited layer.
    pub layer: String,
    /// Step size λ.
    pub step: f64,
    /// λ/R: size of the change relative to the layer.
    pub relative_step: f64,
    /// Strength α it is applied at.
    pub strength: f64,
    /// What the composition multiplies the step by, solved together with all other concepts': the direction is applied at
    /// α · dose · λ. 1 where doses are not solved.
    pub dose: f64,
    /// By how much its forget loss is to be raised at strength 1, to first order: what its dose is solved for. Absent where doses
    /// are not solved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Predicted rise of its forget loss that comes of the other concepts' edits, to first order, as a share of what is wanted of
    /// it (α times the target); below 0 when they work against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_others: Option<f64>,
    /// Importance of the layer.
    pub importance: f64,
    /// Alignment of the layer.
    pub alignment: f64,
    /// The edit's direction on the layer, in the artifact store.
    pub direction: ArtifactRef,
    /// Factors of its forget gradient at every layer of its run, in the artifact store; where doses are solved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradients: Option<ArtifactRef>,
    /// Forget pairs.
    pub pairs: u64,
    /// The shards they are in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<DataFile>,
    /// Before any edit.
    pub before: Measured,
    /// With this edit alone, at strength 1.
    pub alone: Measured,
    /// With all edits at their strengths; absent where nobody measured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composed: Option<Measured>,
    /// What the model said of the forget images before any edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_before: Option<Said>,
    /// What it says with all edits at their strengths; absent where nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_composed: Option<Said>,
    /// Every candidate layer.
    pub ranking: Vec<RankedLayer>,
    /// Every trial of the step search.
    pub search: Vec<Trial>,
}

/// What a model says of a concept's forget images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    /// Mean cosine between the images and the text of the concept's class, to six decimals.
    pub similarity: f64,
    /// The classes that most often rank first, most first.
    pub first: Vec<FirstClass>,
}

/// A class that ranks first on some images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstClass {
    /// Class name.
    pub class: String,
    /// Images it ranks first on.
    pub images: u32,
}

/// How well a concept is still known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// FA@1 on forget data, 0 to 1.
    pub fa1: f64,
    /// FA@5 on forget data, 0 to 1.
    pub fa5: f64,
    /// On the class's validation pairs, where it has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<ClassHits>,
    /// TA@1 over all other classes' validation images, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utility: Option<f64>,
}

impl Measured {
    /// Accuracy on forget data.
    pub fn accuracy(&self) -> Accuracy {
        Accuracy { fa1: self.fa1, fa5: self.fa5 }
    }
}

/// A text that must not change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectedText {
    /// Its name in the manifest's list.
    pub name: String,
    /// By how much the outputs of the edited layers move, against those outputs, at the token that moves most: ‖Δx‖/‖Wx + b‖ of the
    /// unedited model's inputs x.
    pub moved: f64,
}

/// A concept of the manifest that is not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// What must stay: classes that no concept of the manifest names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Utility {
    /// Retained classes in the class list, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_classes: Option<u64>,
    /// On the validation set, which step search and choice looked at.
    pub validation: Option<UtilityOn>,
    /// On the test set, which nothing looked at.
    pub test: Option<UtilityOn>,
}

/// Zero-shot accuracy on one set: over all retained classes, and over groups of classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtilityOn {
    /// Images of retained classes.
    pub images: u64,
    /// TA@1 and TA@5 of the base model.
    pub before: Retained,
    /// TA@1 and TA@5 of the composed model.
    pub after: Retained,
    /// The ten classes that lost most, worst first.
    pub worst: Vec<WorstClass>,
    /// Retained classes that a retain caption or an unlabelled text names: statistics over them have seen these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covered: Option<Group>,
    /// Retained classes that none names: what is left of these shows how far protection reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never_seen: Option<Group>,
    /// Classes of the removed concepts: whether they are forgotten on images outside their forget sets too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Group>,
}

impl UtilityOn {
    /// What the groups are, in a sentence.
    pub const GROUPS: &str = "Covered are retained classes that a retain caption or an unlabelled text names, so that what protects \
                              them has seen something of them; never seen are those that none names; removed are the classes of the \
                              removed concepts, here on images outside their forget sets.";

    /// The groups that have images, with their names.
    pub fn groups(&self) -> impl Iterator<Item = (&'static str, &Group)> {
        let groups = [("covered", &self.covered), ("never seen", &self.never_seen), ("removed", &self.removed)];
        groups.into_iter().filter_map(|(name, group)| Some((name, group.as_ref()?)))
    }
}

/// Zero-shot accuracy over the images of some classes; there is at least one image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Classes that have images in the set.
    pub classes: u64,
    /// Their images.
    pub images: u64,
    /// Of the base model.
    pub before: Retained,
    /// Of the composed model.
    pub after: Retained,
}

/// Zero-shot accuracy over all images of some classes, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retained {
    /// Top-1.
    pub ta1: f64,
    /// Top-5.
    pub ta5: f64,
}

/// A retained class and what it lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorstClass {
    /// Class name.
    pub class: String,
    /// Hits of the base model.
    pub before: ClassHits,
    /// Hits of the composed model.
    pub after: ClassHits,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_sentences() {
        let from = ReleaseRef { name: "other".into(), record: Digest::of(b"record") };
        let short = from.record.short();
        let of = |change: Amendment| change.to_string();
        assert_eq!(of(Amendment::Add { id: "a".into(), from }), format!("a added from other/{short}"));
        assert_eq!(of(Amendment::Remove { id: "a".into() }), "a left out");
        assert_eq!(of(Amendment::Strength { id: "a".into(), before: 1.0, after: 0.5 }), "a at strength 0.5 instead of 1");
    }

    #[test]
    fn numbers_survive_their_json() {
        // Doses follow from these to the last bit.
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f64::from_bits((state >> 12) | 0x3f30_0000_0000_0000);
            assert_eq!(serde_json::from_str::<f64>(&serde_json::to_string(&value).unwrap()).unwrap(), value);
        }
    }
}

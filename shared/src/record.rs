//! `composition.json`: the record of a release. It holds no time, no worker and no duration; of
//! places it holds the addresses of the base model and of the targets' models.

mod judge;
mod measured;
mod probe;
mod recognition;
pub mod targets;
mod tower_alone;
mod utility;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::measured::Measured;
pub use self::probe::{ProbePicture, ProbeRecord};
pub use self::recognition::{Candidates, NameSearches, Recall, Recognition};
use self::targets::TargetRecord;
pub use self::tower_alone::TowerAlone;
pub use self::utility::{Group, Retained, Utility, UtilityOn, WorstClass};
use self::verdict::{Criterion, Verdict};
use crate::digest::Digest;
use crate::manifest::{CompositionMethod, Gates};
use crate::measurement::{RankedLayer, Trial};
use crate::reference::{ArtifactRef, ShardRef};
use crate::vocabulary::{MethodSettings, Precision, Tower};

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
    /// The release that it was composed from, when no run produced it. It was not evaluated then:
    /// measurements of the whole model are absent, and those of single edits still apply. `lethe
    /// evaluate` measures it later and stores the result beside the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The model that was edited.
    pub base: Base,
    /// SHA-256 over the checkpoint's tensor bytes in name order.
    pub digest: Digest,
    /// How edits were composed.
    pub method: String,
    /// How the edits of one layer were merged into one change.
    #[serde(default, skip_serializing_if = "Merge::is_sum")]
    pub merge: Merge,
    /// How edits were found.
    pub search: MethodSettings,
    /// The preconditioners of directions, one artifact per layer with second moments, and one of
    /// protected names. Coefficients are solved together only for edits with the same
    /// preconditioners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moments: Vec<ArtifactRef>,
    /// Every concept that has an edit, by id; its verdict says whether it is removed.
    pub concepts: Vec<ConceptRecord>,
    /// Concepts of the manifest that have no edit.
    pub missing: Vec<Missing>,
    /// Groups of concepts that the model hardly distinguishes, by id: removing one of them largely
    /// removes the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near_duplicates: Vec<Vec<String>>,
    /// Accuracy on retained classes, before and after.
    pub utility: Utility,
    /// What can still be told of removed concepts: of the base model and of the composed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recognition: Option<Recognition>,
    /// What the change of each tower does by itself, when edits change both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub towers: Vec<TowerAlone>,
    /// Results of probes, by name: of those of the manifest (`evaluation.probes`). Others are made
    /// after the release, and so not in its own record but in the one that its pages show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeRecord>,
    /// Texts that must not change, in their file's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<ProtectedText>,
    /// ‖Δ‖/‖θ‖ of every layer that is changed, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, f64>,
    /// How a bound on the change scaled the edits, when there was one and they exceeded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_bound: Option<ChangeBound>,
    /// Whether concepts that the base model did not know get a receipt as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub receipts_for_unknown: bool,
    /// The gates of the manifest, when there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// The inputs of the run that found the edits. Absent in releases of earlier versions of Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Other models that received the edits, in the order of the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetRecord>,
    /// All files of the release except for this one and those of targets: SHA-256 and size.
    pub files: BTreeMap<String, ArtifactRef>,
}

impl Composition {
    /// Returns the number of concepts that the base model knew, and that are forgotten with their
    /// edit alone; `None` when no edit was measured alone.
    pub fn forgotten_alone(&self) -> Option<usize> {
        let forgotten = |concept: &&ConceptRecord| {
            self.was_known(concept)
                && concept.alone.is_some_and(|alone| self.criterion(concept).is_met(&alone))
        };
        let measured = self.concepts.iter().any(|concept| concept.alone.is_some());
        (measured || self.concepts.is_empty())
            .then(|| self.concepts.iter().filter(forgotten).count())
    }

    /// Returns what kind of edits it has, for pages: `single-layer edits`, or `edits of 6 layers`.
    pub fn kind_of_edits(&self) -> String {
        let layers: BTreeSet<&str> = self.concepts.iter().flat_map(ConceptRecord::layers).collect();
        if self.concepts.iter().any(|concept| concept.layers.len() > 1) {
            format!("edits of {} layers", layers.len())
        } else {
            "single-layer edits".to_owned()
        }
    }

    /// Returns whether its edits were solved by least squares, and are added as they are.
    pub fn is_by_least_squares(&self) -> bool {
        self.method == CompositionMethod::LeastSquares.name()
    }

    /// Returns what a run with this method uses the validation set for, besides measuring, for pages.
    pub fn use_of_validation(&self) -> &'static str {
        if self.is_by_least_squares() {
            "used for nothing else"
        } else {
            "used by the step search or the choice of layers too"
        }
    }

    /// Returns the number that a probe measured. `name` is the probe's name and the number's, as in
    /// `sd.ua`.
    pub fn probe_number(&self, name: &str) -> Option<f64> {
        let (probe, number) = name.split_once('.')?;
        self.probe(probe)?.numbers.get(number).copied()
    }

    /// Returns the result of the probe of this name.
    pub fn probe(&self, name: &str) -> Option<&ProbeRecord> {
        self.probes.iter().find(|result| result.name == name)
    }

    /// Returns the layer that changes most relative to its size, with ‖Δ‖/‖θ‖.
    pub fn largest_change(&self) -> Option<(&str, f64)> {
        let largest = self.layers.iter().max_by(|a, b| a.1.total_cmp(b.1));
        largest.map(|(layer, &change)| (layer.as_str(), change))
    }

    /// Returns whether the whole model was evaluated, by its run or later by `lethe evaluate`.
    pub fn is_measured(&self) -> bool {
        self.parent.is_none() || self.utility.retained_classes.is_some()
    }
}

/// Edits that were scaled so that no layer changes by more than a bound (`composition.change`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeBound {
    /// Largest ‖Δ‖/‖θ‖ of a layer that the manifest allows.
    pub most: f64,
    /// Largest ‖Δ‖/‖θ‖ of a layer before.
    pub found: f64,
    /// Factor of the targets of all concepts, and so of the change: `most` / `found`.
    pub scale: f64,
}

impl fmt::Display for ChangeBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "all edits were scaled by {:.3}, because a layer changed by {:.1} times its weights and composition.change allows {}",
            self.scale, self.found, self.most
        )
    }
}

/// The inputs of the run that found the edits, without addresses and times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Digest over everything that determines the result of the run: settings, model, data and
    /// concepts. The name of the run ends with its first digits.
    pub manifest: Digest,
    /// Version of the algorithm, see [`crate::task::ALGORITHM_VERSION`].
    pub algorithm: u32,
    /// Arithmetic classes of its jobs, see
    /// [`Execution::arithmetic`](crate::outcome::Execution::arithmetic). With more than one, the
    /// last bits depend on which worker did which job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arithmetic: Vec<String>,
    /// Precision of matrix multiplications.
    #[serde(default, skip_serializing_if = "Precision::is_float32")]
    pub precision: Precision,
    /// Whether ids, names, classes and groups of concepts are hashed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hashed_names: bool,
    /// Class names in the class list.
    pub classes: u64,
    /// Digest of class list and prompt.
    pub class_texts: Digest,
    /// Prompt around a class name.
    pub template: String,
    /// Shards of retained pairs.
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
    /// Shards that the step search and the choice of a layer used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<DataFile>,
    /// Shards that were used for evaluation only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<DataFile>,
    /// Licence of the weights for the model card, as the Hub names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Name of the base model on the Hub.
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

/// How the edits of one layer are merged into one change. Δ_i is the change α·a·λ·D of one edit
/// with coefficient a.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Merge {
    /// Σ Δ_i.
    #[default]
    Sum,
    /// Σ Δ_i / n, with n the layer's edits (model soups, arXiv 2203.05482).
    Mean,
    /// TIES (arXiv 2306.01708): keeps the share `density` of largest magnitude of each Δ_i, elects
    /// the sign of each value by the sum of the kept values, and takes the mean over the values
    /// that agree with it.
    Ties {
        /// Share kept, above 0 and at most 1.
        density: f64,
    },
    /// DARE (arXiv 2311.03099): drops each value of each Δ_i with probability `drop`, divides the
    /// others by 1 − `drop`, and adds all edits. The dropped values depend on concept and layer
    /// alone.
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
    /// The release.
    pub release: ReleaseRef,
    /// What was changed, in the order it was done.
    pub changes: Vec<Amendment>,
}

/// A reference to a release, independent of its address.
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
            Self::Strength { id, before, after } => {
                write!(f, "{id} at strength {after} instead of {before}")
            }
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

/// One concept that has an edit.
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
    /// The run that found its edit, when the edit was added from another release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Tower of the edited layer.
    pub tower: Tower,
    /// The edited layer; of several, the one that changes most.
    pub layer: String,
    /// All edited layers, when there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// Step size λ.
    pub step: f64,
    /// λ/R: size of the change relative to the layer.
    pub relative_step: f64,
    /// Strength α of the edit.
    pub strength: f64,
    /// The coefficient of the edit, solved together with those of all other concepts: the direction
    /// is applied with the factor α · coefficient · λ. 1 when coefficients are not solved.
    #[serde(rename = "dose")]
    pub coefficient: f64,
    /// The first-order increase of its forget loss at strength 1 that its coefficient is solved
    /// for. Absent when coefficients are not solved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Predicted first-order increase of its forget loss by the edits of other concepts, as a share
    /// of the wanted increase (α times `target`); negative when they work against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_others: Option<f64>,
    /// Importance of the layer.
    pub importance: f64,
    /// Alignment of the layer.
    pub alignment: f64,
    /// The edit's direction on the layer, in the artifact store.
    pub direction: ArtifactRef,
    /// Largest rank of its direction at a layer; absent when directions are stored whole, and in
    /// releases of earlier versions of Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Relative error of its direction by this rank, over all layers, in the norm that prices
    /// changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
    /// Factors of its forget gradient at every edited layer of its run, in the artifact store; when
    /// coefficients are solved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradients: Option<ArtifactRef>,
    /// The criterion by which it counts as forgotten. Absent in releases of earlier versions of
    /// Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criterion: Option<Criterion>,
    /// Its verdict by the numbers of this record. Absent in releases of earlier versions of Lethe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Forget pairs.
    pub pairs: u64,
    /// The shards of the forget pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<DataFile>,
    /// Before any edit.
    pub before: Measured,
    /// With this edit alone, at strength 1; absent when edits are found together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<Measured>,
    /// With all edits at their strengths; absent when it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composed: Option<Measured>,
    /// Top predictions for the forget images before any edit.
    #[serde(default, rename = "said_before", skip_serializing_if = "Option::is_none")]
    pub predictions_before: Option<TopPredictions>,
    /// Top predictions with all edits at their strengths; absent when they were not measured.
    #[serde(default, rename = "said_composed", skip_serializing_if = "Option::is_none")]
    pub predictions_composed: Option<TopPredictions>,
    /// Every candidate layer.
    pub ranking: Vec<RankedLayer>,
    /// Every trial of the step search.
    pub search: Vec<Trial>,
}

impl ConceptRecord {
    /// Returns the towers of all edited layers.
    pub fn towers(&self) -> BTreeSet<Tower> {
        let of = |layer: &str| {
            let ranked = self.ranking.iter().find(|ranked| ranked.layer == layer);
            ranked.map_or(self.tower, |ranked| ranked.tower)
        };
        self.layers().into_iter().map(of).collect()
    }

    /// Returns all edited layers.
    pub fn layers(&self) -> Vec<&str> {
        match self.layers.as_slice() {
            [] => vec![&self.layer],
            layers => layers.iter().map(String::as_str).collect(),
        }
    }
}

/// Top predictions of a model for the forget images of a concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopPredictions {
    /// Mean cosine between the images and the text of the concept's class, to six decimal places.
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

/// A text that must not change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectedText {
    /// Its name in the manifest's list.
    pub name: String,
    /// Largest relative change of the outputs of the edited layers over its tokens: ‖Δx‖/‖Wx + b‖
    /// at inputs x of the unedited model.
    pub moved: f64,
}

/// A concept of the manifest that has no edit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A concept as a record of an earlier version of Lethe has it.
    pub(super) fn concept() -> ConceptRecord {
        let measured = serde_json::json!({ "fa1": 0.5, "fa5": 1.0 });
        let read = serde_json::json!({
            "id": "a", "name": "a", "class": "a", "tower": "text", "layer": "l", "step": 1.0, "relative_step": 1.0, "strength": 1.0,
            "dose": 1.0, "importance": 0.0, "alignment": 0.0, "direction": { "digest": Digest::of(b""), "bytes": 0 }, "pairs": 4,
            "before": measured, "alone": measured, "composed": measured, "ranking": [], "search": [],
        });
        serde_json::from_value(read).unwrap()
    }

    #[test]
    fn concepts_of_earlier_records_are_read_and_stay_as_they_are() {
        let concept = concept();
        assert_eq!((concept.criterion, &concept.verdict), (None, &None));
        let written = serde_json::to_value(&concept).unwrap();
        assert!(
            written.get("criterion").is_none() && written.get("verdict").is_none(),
            "{written}"
        );
    }

    #[test]
    fn changes_read_as_sentences() {
        let from = ReleaseRef { name: "other".into(), record: Digest::of(b"record") };
        let short = from.record.short();
        let of = |change: Amendment| change.to_string();
        assert_eq!(
            of(Amendment::Add { id: "a".into(), from }),
            format!("a added from other/{short}")
        );
        assert_eq!(of(Amendment::Remove { id: "a".into() }), "a left out");
        assert_eq!(
            of(Amendment::Strength { id: "a".into(), before: 1.0, after: 0.5 }),
            "a at strength 0.5 instead of 1"
        );
    }

    #[test]
    fn numbers_survive_their_json() {
        // Coefficients follow from these to the last bit.
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let value = f64::from_bits((state >> 12) | 0x3f30_0000_0000_0000);
            assert_eq!(
                serde_json::from_str::<f64>(&serde_json::to_string(&value).unwrap()).unwrap(),
                value
            );
        }
    }
}

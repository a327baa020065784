//! Zero-shot evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measurement::{Answers, Hits, ImageRanks, NameSearch};
use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::kind::Task;

/// Counts zero-shot hits of the model, with or without a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Tensors that replace those of the model, a safetensors artifact; `None` evaluates the base
    /// model.
    pub change: Option<ArtifactRef>,
    /// The sets of images to evaluate.
    pub items: Vec<EvaluateItem>,
    /// The class list.
    pub classes: ArtifactRef,
    /// The classes that are removed, a JSON list of positions in the class list. With it, ranks
    /// among the other classes and searches by the removed names are measured as well.
    pub removed: Option<ArtifactRef>,
}

/// A set of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateItem {
    /// Key in [`EvaluateOutput::items`].
    pub name: String,
    /// The shards.
    pub shards: Vec<FileSpec>,
    /// The source of the true class.
    pub label: Label,
}

/// The source of the true class of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// All images are of this class.
    Class(u32),
    /// The caption of each image is its class name.
    Caption,
}

/// Hits of one evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateOutput {
    /// By item name, in the job's order.
    pub items: BTreeMap<String, Hits>,
    /// By item name: the best rank of the true class over the item's images, 0 for first. For items
    /// of one class.
    pub best: BTreeMap<String, u64>,
    /// By item name: top predictions. For items of one class, unless the edited model gives values
    /// that are not finite.
    pub answers: BTreeMap<String, Answers>,
    /// By item name: the ranks of each image's class. For items of one class, with
    /// [`Evaluate::removed`].
    pub ranks: BTreeMap<String, Vec<ImageRanks>>,
    /// By item name: searches in its images by the text of each removed class that has an image
    /// there. For items with captions, with [`Evaluate::removed`].
    pub searches: BTreeMap<String, Vec<NameSearch>>,
}

impl Task for Evaluate {
    const KIND: &'static str = "evaluate";
    const VERSION: u32 = 10;
    type Output = EvaluateOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        let what = if self.change.is_some() { "composed" } else { "base" };
        let sets = if self.items.len() == 1 { "set" } else { "sets" };
        format!("evaluation of {} {sets} on the {what} model", self.items.len())
    }

    fn files(&self) -> Vec<FileSpec> {
        self.items.iter().flat_map(|item| item.shards.iter().copied()).collect()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }
}

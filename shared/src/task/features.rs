//! What a change does to embeddings, beside zero-shot accuracy.

use serde::{Deserialize, Serialize};

use crate::measurement::Hits;
use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::EvaluateItem;
use super::kind::Task;

/// Most neighbours of a class.
const MAX_NEIGHBOURS: u32 = 1_000;

/// Measures the embeddings of the model under a change: how far they move from the base model's, and
/// whether a classifier that is fitted to them finds the removed classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// Tensors that replace those of the model, a safetensors artifact; `None` for the base model.
    pub change: Option<ArtifactRef>,
    /// Images whose mean embedding by class is the classifier.
    pub reference: Vec<EvaluateItem>,
    /// Images that are classified.
    pub shown: Vec<EvaluateItem>,
    /// The class list.
    pub classes: ArtifactRef,
    /// The classes that are removed, a JSON list of positions in the class list.
    pub removed: ArtifactRef,
    /// Number of nearest retained classes that are looked for.
    pub neighbours: u32,
}

/// The embeddings of a changed model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesOutput {
    /// Mean cosine of a retained class text's embeddings by the base model and by the changed one.
    pub text_similarity: Option<f64>,
    /// The same for the shown images of retained classes.
    pub image_similarity: Option<f64>,
    /// Hits of the nearest class mean on the shown images whose class has a mean.
    pub class_means: Hits,
    /// For each removed class, in the order of the list, the retained classes whose texts are
    /// nearest to its own by the base model, nearest first.
    pub neighbours: Vec<Vec<u32>>,
}

impl Task for Features {
    const KIND: &'static str = "features";
    const VERSION: u32 = 1;
    type Output = FeaturesOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        let what = if self.change.is_some() { "composed" } else { "base" };
        format!("embeddings of the {what} model")
    }

    fn files(&self) -> Vec<FileSpec> {
        let items = self.reference.iter().chain(&self.shown);
        items.flat_map(|item| item.shards.iter().copied()).collect()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }

    fn check(&self) -> Result<(), String> {
        if self.neighbours > MAX_NEIGHBOURS {
            return Err(format!("more than {MAX_NEIGHBOURS} neighbours are asked for"));
        }
        Ok(())
    }
}

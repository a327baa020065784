//! Fine-tuning of an edited model, to see what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::measurement::Hits;
use crate::reference::{ArtifactRef, FileSpec, Locations};
use super::EvaluateItem;
use super::kind::{Task, check_at_least_one, check_training};

/// Fine-tunes all parameters of the model under a change, with CLIP's contrastive loss and Adam, and
/// counts its zero-shot hits after some numbers of steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relearn {
    /// Tensors that replace those of the model, a safetensors artifact; `None` starts from the base
    /// model.
    pub change: Option<ArtifactRef>,
    /// The pairs. Batches take one pair of every source, then the next of each, and begin again
    /// where they end.
    pub sources: Vec<RelearnSource>,
    /// Pairs per step; all of them if there are fewer.
    pub batch_size: u32,
    /// Learning rate of Adam.
    pub rate: f64,
    /// Numbers of steps after which hits are counted, ascending.
    pub steps: Vec<u32>,
    /// The sets of images to evaluate.
    pub items: Vec<EvaluateItem>,
    /// The class list.
    pub classes: ArtifactRef,
}

/// Pairs to fine-tune on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelearnSource {
    /// Shards of image-text pairs.
    pub shards: Vec<FileSpec>,
    /// How many of their pairs are used, from the first one.
    pub most: u32,
}

/// Hits of a fine-tuned model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelearnOutput {
    /// By item name, one map for each of [`Relearn::steps`].
    pub hits: Vec<BTreeMap<String, Hits>>,
}

impl Task for Relearn {
    const KIND: &'static str = "relearn";
    const VERSION: u32 = 1;
    type Output = RelearnOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        let steps = self.steps.last().copied().unwrap_or_default();
        format!("fine-tuning for {steps} steps at a rate of {}", self.rate)
    }

    fn files(&self) -> Vec<FileSpec> {
        let sources = self.sources.iter().flat_map(|source| &source.shards);
        sources.chain(self.items.iter().flat_map(|item| &item.shards)).copied().collect()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.batch_size, "batch_size")?;
        for source in &self.sources {
            check_at_least_one(source.most, "most")?;
        }
        check_training(self.rate, &self.steps)?;
        if self.sources.is_empty() {
            return Err("there are no pairs to learn from".to_owned());
        }
        Ok(())
    }
}

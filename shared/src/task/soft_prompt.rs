//! Prompts of learned tokens, to see what a model still recognises by them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EvaluateItem;
use super::kind::{Task, check_at_least_one, check_training};
use crate::measurement::Hits;
use crate::reference::{ArtifactRef, FileSpec, Locations};

/// Most tokens of a prompt.
const MAX_TOKENS: u32 = 64;

/// Fits a prompt to the forget images of each concept: token embeddings between the start and the end
/// of a text, learned by Adam from those of the concept's class name. The loss is the cross-entropy
/// of the images among all class texts, with the prompt in place of the concept's own. Nothing else
/// is trained, and no prompt depends on another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftPrompt {
    /// Tensors that replace those of the model, a safetensors artifact; `None` fits prompts in the base
    /// model.
    pub change: Option<ArtifactRef>,
    /// The forget images of each concept, with its class as their label.
    pub concepts: Vec<EvaluateItem>,
    /// Images that no prompt is fitted to. Those of the concepts' classes are evaluated.
    pub unseen: Option<EvaluateItem>,
    /// Tokens of a prompt.
    pub tokens: u32,
    /// Learning rate of Adam.
    pub rate: f64,
    /// Numbers of steps after which hits are counted, ascending.
    pub steps: Vec<u32>,
    /// The class list.
    pub classes: ArtifactRef,
}

/// Hits with learned prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftPromptOutput {
    /// By item name, one map for each of [`SoftPrompt::steps`].
    pub hits: Vec<BTreeMap<String, Hits>>,
}

impl Task for SoftPrompt {
    const KIND: &'static str = "soft-prompt";
    const VERSION: u32 = 1;
    type Output = SoftPromptOutput;

    fn label(&self, _: Option<&str>, _: &Locations) -> String {
        let steps = self.steps.last().copied().unwrap_or_default();
        format!("{} prompts of {} tokens, {steps} steps", self.concepts.len(), self.tokens)
    }

    fn files(&self) -> Vec<FileSpec> {
        let items = self.concepts.iter().chain(&self.unseen);
        items.flat_map(|item| &item.shards).copied().collect()
    }

    fn artifacts(_: &Self::Output) -> Vec<ArtifactRef> {
        Vec::new()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.tokens, "tokens")?;
        if self.tokens > MAX_TOKENS {
            return Err(format!("a prompt has more than {MAX_TOKENS} tokens"));
        }
        check_training(self.rate, &self.steps)
    }
}

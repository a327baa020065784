//! What the texts of one concept are at one layer: its inputs, and how far its outputs are from
//! those of a mean text.

use serde::{Deserialize, Serialize};

use crate::measurement::{Accuracy, Answers};
use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::TextTokens;
use super::kind::{Task, check_at_least_one, places};

/// Computes the keys and the residuals of one concept at one layer of the text tower.
///
/// A *key* is an input of the layer at one token of a text of the concept; its *residual* is the
/// state after the block of the layer that is read, at that token of a mean text, minus the state of
/// this text, times a share. An edit Δ that maps each key to its whole residual leaves nothing of
/// the concept in what is read of its texts; edits of several layers take a share each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<FileSpec>,
    /// The class list.
    pub classes: ArtifactRef,
    /// The token that texts are padded with; `None`: each with its own end-of-text token.
    pub padding: Option<u32>,
    /// The layer: the one that ends the MLP of a block.
    pub layer: String,
    /// The layer after whose block the states are read: the same, or one of a later block.
    pub read: String,
    /// The tokens whose states are to be those of a mean text.
    pub tokens: TextTokens,
    /// The edits of earlier layers, a safetensors artifact.
    pub change: Option<ArtifactRef>,
    /// The share of a residual that this layer takes, above 0 and at most 1.
    pub share: f64,
    /// Preconditioner of the layer, as in [`Direction::inverses`](super::Direction::inverses).
    pub inverses: Vec<ArtifactRef>,
    /// Most texts: the class text, and captions of the pairs.
    pub texts: u32,
    /// Most rows that keys are reduced to.
    pub rows: u32,
    /// Whether the images are looked at too: once per concept is enough.
    pub images: bool,
}

/// The keys and residuals of one concept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysOutput {
    /// `keys` `[rows, inputs]` and `residuals` `[rows, outputs]`, float32: K and R of which KᵀK and
    /// KᵀR are the means over the tokens of the concept's texts.
    pub factors: ArtifactRef,
    /// What [`Keys::images`] asks for.
    pub images: Option<ForgetImages>,
}

/// What the unedited model makes of a concept's forget images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetImages {
    /// FA@1 and FA@5 on all of them.
    pub before: Accuracy,
    /// Its top predictions.
    pub said: Answers,
    /// The first forget images, small: see
    /// [`SearchOutput::thumbnails`](super::SearchOutput::thumbnails).
    pub thumbnails: Option<ArtifactRef>,
}

impl Task for Keys {
    const KIND: &'static str = "keys";
    const VERSION: u32 = 3;
    type Output = KeysOutput;

    fn label(&self, concept: Option<&str>, locations: &Locations) -> String {
        match concept {
            Some(concept) => format!("keys of concept {concept}"),
            None => format!("keys of {}", places(&self.forget, locations)),
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.forget.clone()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        let thumbnails = output.images.as_ref().and_then(|images| images.thumbnails);
        [output.factors].into_iter().chain(thumbnails).collect()
    }

    fn check(&self) -> Result<(), String> {
        check_at_least_one(self.texts, "texts")?;
        check_at_least_one(self.rows, "rows")?;
        if self.share > 0.0 && self.share <= 1.0 {
            Ok(())
        } else {
            Err(format!("a share of {} is out of range", self.share))
        }
    }
}

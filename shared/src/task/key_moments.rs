//! Second moments of the inputs of some layers at the tokens of retained texts.

use serde::{Deserialize, Serialize};

use crate::reference::{ArtifactRef, FileSpec, Locations};
use crate::vocabulary::TextTokens;
use super::kind::Task;
use super::{MomentSource, MomentsOutput};

/// Sums C = Σ x xᵀ over the inputs x of layers of the text tower: at every token of the context, also
/// at those after the end of a text, which a diffusion model reads; or at every token up to the end of
/// a text.
///
/// The output has the form of [`Moments`](super::Moments): its items are tokens, and its moments of
/// output gradients are the identity, because the change of every state counts the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyMoments {
    /// The data: captions or texts.
    pub source: MomentSource,
    /// The token that texts are padded with; `None`: each with its own end-of-text token.
    pub padding: Option<u32>,
    /// The layers, front to back.
    pub layers: Vec<String>,
    /// [`TextTokens::Read`] leaves out the tokens after the end of a text.
    pub tokens: TextTokens,
}

impl Task for KeyMoments {
    const KIND: &'static str = "key-moments";
    const VERSION: u32 = 3;
    type Output = MomentsOutput;

    fn label(&self, _: Option<&str>, locations: &Locations) -> String {
        match &self.source {
            MomentSource::Texts(texts) => format!("key moments of texts {}", texts.digest.short()),
            MomentSource::Captions(shard) | MomentSource::Images(shard) | MomentSource::ImagesAlone(shard) => {
                format!("key moments of the captions of {}", locations.name(shard))
            }
        }
    }

    fn files(&self) -> Vec<FileSpec> {
        self.source.files()
    }

    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef> {
        output.layers.values().copied().collect()
    }

    fn check(&self) -> Result<(), String> {
        if self.layers.is_empty() {
            return Err("there are no layers".to_owned());
        }
        match self.source {
            MomentSource::Captions(_) | MomentSource::Texts(_) => Ok(()),
            MomentSource::Images(_) | MomentSource::ImagesAlone(_) => Err("key moments are those of texts".to_owned()),
        }
    }
}

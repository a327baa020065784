//! Sizes and options of a model.

use std::fmt;

use super::error::Error;
use crate::input::Cleaning;
use lethe_shared::checkpoint::Names;
use lethe_shared::printable::printable_excerpt;

/// Activation of the MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)`, as in OpenAI's models.
    QuickGelu,
    /// The exact GELU, by the error function.
    Gelu,
    /// The tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
        })
    }
}

/// The pooled token of a text: the one whose hidden state becomes the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPooling {
    /// The first token with this id.
    FirstOf(i64),
    /// The token with the largest id (open_clip, and `transformers` where `eos_token_id` is 2).
    LargestId,
    /// The last token of the context, to which every text is padded (SigLIP).
    Last,
}

impl fmt::Display for TextPooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstOf(end) => write!(f, "the first token {end} (eos_token_id)"),
            Self::LargestId => f.write_str("the token with the largest id"),
            Self::Last => f.write_str("the last token, to which texts are padded"),
        }
    }
}

/// The loss by which a model was trained, and by which retained pairs are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contrast {
    /// The symmetric softmax over a batch of pairs (CLIP).
    Softmax,
    /// A sigmoid for each image and text of a batch (SigLIP).
    Sigmoid,
}

impl fmt::Display for Contrast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Softmax => "CLIP",
            Self::Sigmoid => "SigLIP, trained with the sigmoid loss",
        })
    }
}

impl TextPooling {
    /// Returns the position of the pooled token; `None` when the text does not have it.
    pub fn position(self, ids: &[u32]) -> Option<usize> {
        match self {
            Self::FirstOf(end) => ids.iter().position(|&id| i64::from(id) == end),
            // The first of several equal ids, like argmax.
            Self::LargestId => {
                ids.iter().max().and_then(|most| ids.iter().position(|id| id == most))
            }
            Self::Last => ids.len().checked_sub(1),
        }
    }

    /// Checks that a text is pooled at its last token, as a whole text of a CLIP is.
    ///
    /// # Errors
    /// A sentence with the setting that is wrong.
    pub fn check(self, ids: &[u32]) -> Result<(), String> {
        let Some(&last) = ids.last() else { return Err("a text has no token".to_owned()) };
        if self.position(ids) == Some(ids.len() - 1) {
            return Ok(());
        }
        Err(match self {
            Self::FirstOf(end) => format!(
                "text_config.eos_token_id in config.json is {end} (49407 where it is missing; text_config_dict counts where there is one), but \
                 tokenizer.json ends a text with token {last}; set eos_token_id to {last} if tokenizer.json belongs to this model"
            ),
            Self::LargestId => format!(
                "a text is pooled at its largest token id (in open_clip, and where text_config.eos_token_id in config.json is 2), but \
                 tokenizer.json ends a text with token {last}, which is not the largest; use the tokenizer of this model, or, where \
                 config.json has an eos_token_id, set it to {last}"
            ),
            Self::Last => "a text has no last token".to_owned(),
        })
    }
}

/// Names, sizes and options of one transformer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TowerConfig {
    /// How its parameters are named and stored.
    pub names: &'static Names,
    /// Width of the residual stream.
    pub width: i64,
    /// Width of the MLP's inner layer.
    pub mlp_width: i64,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads; divides `width`.
    pub heads: i64,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// ε of the layer norms.
    pub norm_epsilon: f64,
    /// Whether a token attends only to itself and to earlier ones.
    pub is_causal: bool,
}

impl fmt::Display for TowerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} blocks of width {}, MLP width {}, {} heads, {}",
            self.layers, self.width, self.mlp_width, self.heads, self.activation
        )?;
        if self.names.pool.is_some() { f.write_str(", attention-pooling head") } else { Ok(()) }
    }
}

/// Everything the forward pass needs besides the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The image tower.
    pub vision: TowerConfig,
    /// The text tower.
    pub text: TowerConfig,
    /// Side of the square input image, pixels.
    pub image_size: i64,
    /// Side of a patch, pixels.
    pub patch_size: i64,
    /// Largest number of tokens of a text, including start and end.
    pub context_length: i64,
    /// Number of token ids in the vocabulary.
    pub vocabulary: i64,
    /// Width of the shared embedding space.
    pub embedding: i64,
    /// How the pooled token of a text is found.
    pub pooling: TextPooling,
    /// What is done to a text before it is tokenized.
    pub cleaning: Cleaning,
    /// The loss by which the model was trained.
    pub contrast: Contrast,
}

impl ClipConfig {
    /// Returns the number of tokens of an image: the patches, and the class token if there is one.
    pub fn image_tokens(&self) -> i64 {
        i64::from(self.vision.names.class.is_some()) + (self.image_size / self.patch_size).pow(2)
    }

    pub(super) fn check(&self, file: &str) -> Result<(), Error> {
        let sizes = [
            ("image_size", self.image_size, 4096),
            ("patch_size", self.patch_size, 4096),
            ("context_length", self.context_length, 65_536),
            ("vocab_size", self.vocabulary, 10_000_000),
            ("projection width", self.embedding, 65_536),
            ("vision width", self.vision.width, 65_536),
            ("vision MLP width", self.vision.mlp_width, 1 << 20),
            ("vision layers", self.vision.layers as i64, 1024),
            ("text width", self.text.width, 65_536),
            ("text MLP width", self.text.mlp_width, 1 << 20),
            ("text layers", self.text.layers as i64, 1024),
        ];
        for (what, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return Err(bad(file, format!("{what} is {value}, expected 1 to {most}")));
            }
        }
        for (what, tower) in [("vision", &self.vision), ("text", &self.text)] {
            if !(0.0..=1.0).contains(&tower.norm_epsilon) {
                return Err(bad(
                    file,
                    format!(
                        "the {what} tower's layer_norm_eps is {}, expected 0 to 1",
                        tower.norm_epsilon
                    ),
                ));
            }
            if tower.heads < 1 || tower.width % tower.heads != 0 {
                return Err(bad(
                    file,
                    format!(
                        "the {what} tower's width {} does not divide into {} heads",
                        tower.width, tower.heads
                    ),
                ));
            }
        }
        if self.patch_size > self.image_size {
            return Err(bad(
                file,
                format!(
                    "a patch of {} pixels is larger than the image of {}",
                    self.patch_size, self.image_size
                ),
            ));
        }
        Ok(())
    }
}

pub(super) fn bad(file: &str, problem: impl Into<String>) -> Error {
    Error::Config { file: file.to_owned(), problem: printable_excerpt(&problem.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_pooled_at_its_end() {
        assert!(TextPooling::FirstOf(3).check(&[1, 5, 3]).is_ok());
        assert!(TextPooling::LargestId.check(&[1, 5, 9]).is_ok());
        for (pooling, ids) in [
            (TextPooling::FirstOf(49_407), [1, 5, 3]),
            (TextPooling::FirstOf(1), [1, 5, 3]),
            (TextPooling::FirstOf(3), [3, 5, 3]),
            (TextPooling::LargestId, [1, 5, 3]),
        ] {
            let problem = pooling.check(&ids).unwrap_err();
            assert!(problem.contains("eos_token_id") && problem.contains("token 3"), "{problem}");
        }
        assert!(TextPooling::LargestId.check(&[]).is_err());
    }
}

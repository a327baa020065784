//! What a tower embeds: images, padded token ids, or a prefix tree of texts.

use lethe_shared::vocabulary::Tower;
use tch::{Device, Tensor};

use super::config::ClipConfig;
use super::error::Error;
use super::prefix_tree::PrefixTree;

/// Token ids of a batch of texts, padded on the right.
///
/// Where attention is causal, tokens after the one that the embedding is read from have no effect. A
/// batch is then only as long as its longest text, regardless of the model's context length.
#[derive(Debug)]
pub struct TokenBatch {
    /// Ids `[texts, tokens]`, int64.
    pub ids: Tensor,
    /// Position of each text's pooled token `[texts]`, int64.
    pub pooled: Tensor,
}

/// Takes the values of one token of each text `[texts, tokens, width]`, at these positions `[texts]`:
/// `[texts, 1, width]`.
pub(super) fn at_positions(of_tokens: &Tensor, positions: &Tensor) -> Result<Tensor, Error> {
    let (texts, width) = (of_tokens.size()[0], of_tokens.size()[2]);
    let index = positions.f_view([texts, 1, 1])?.f_expand([texts, 1, width], false)?;
    Ok(of_tokens.f_gather(1, &index, false)?)
}

impl TokenBatch {
    /// Takes the values of each text's pooled token `[texts, width]` from those of all tokens
    /// `[texts, tokens, width]`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn at_pooled(&self, of_tokens: &Tensor) -> Result<Tensor, Error> {
        Ok(at_positions(of_tokens, &self.pooled)?.f_squeeze_dim(1)?)
    }

    /// Returns rows `start .. start + length`, without the columns that none of them needs.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self, Error> {
        let pooled = self.pooled.f_narrow(0, start, length)?;
        let tokens = pooled.f_max()?.int64_value(&[]) + 1;
        Ok(Self { ids: self.ids.f_narrow(0, start, length)?.f_narrow(1, 0, tokens)?, pooled })
    }
}

/// The input of a tower, borrowed. [`Batch`] is the owned form.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Preprocessed images `[n, 3, image_size, image_size]`, float32, on the model's device or on
    /// the host.
    Images(&'a Tensor),
    /// Texts as padded token ids.
    Texts(&'a TokenBatch),
    /// Texts as a prefix tree.
    PrefixTree(&'a PrefixTree),
}

impl Input<'_> {
    /// Returns the tower that embeds this input.
    pub fn tower(&self) -> Tower {
        match self {
            Self::Images(_) => Tower::Vision,
            Self::Texts(_) | Self::PrefixTree(_) => Tower::Text,
        }
    }

    /// Returns the number of tokens of the longest item.
    pub fn tokens(&self, config: &ClipConfig) -> i64 {
        match self {
            Self::Images(_) => config.image_tokens(),
            Self::Texts(texts) => texts.ids.size()[1],
            Self::PrefixTree(tree) => tree.tokens(),
        }
    }

    /// Returns the number of items.
    pub fn items(&self) -> i64 {
        match self {
            Self::Images(pixels) => pixels.size()[0],
            Self::Texts(texts) => texts.ids.size()[0],
            Self::PrefixTree(tree) => tree.len() as i64,
        }
    }

    /// Returns items `start .. start + length`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Batch, Error> {
        Ok(match self {
            Self::Images(pixels) => Batch::Images(pixels.f_narrow(0, start, length)?),
            Self::Texts(texts) => Batch::Texts(texts.narrow(start, length)?),
            Self::PrefixTree(tree) => {
                Batch::PrefixTree(tree.select(start as usize..(start + length) as usize)?)
            }
        })
    }
}

/// The input of a tower, owned. [`Input`] is the borrowed form.
#[derive(Debug)]
pub enum Batch {
    /// Preprocessed images `[n, 3, image_size, image_size]`, float32.
    Images(Tensor),
    /// Texts as padded token ids.
    Texts(TokenBatch),
    /// Texts as a prefix tree.
    PrefixTree(PrefixTree),
}

impl Batch {
    /// Borrows the batch as the input of a tower.
    pub fn input(&self) -> Input<'_> {
        match self {
            Self::Images(pixels) => Input::Images(pixels),
            Self::Texts(texts) => Input::Texts(texts),
            Self::PrefixTree(tree) => Input::PrefixTree(tree),
        }
    }

    /// Returns the items at these positions, and the device that holds them.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn select(&self, positions: &[i64]) -> Result<(Self, Device), Error> {
        let pick = |tensor: &Tensor| -> Result<Tensor, Error> {
            Ok(tensor
                .f_index_select(0, &Tensor::f_from_slice(positions)?.f_to(tensor.device())?)?)
        };
        Ok(match self {
            Self::Images(pixels) => (Self::Images(pick(pixels)?), pixels.device()),
            Self::Texts(texts) => (
                Self::Texts(TokenBatch { ids: pick(&texts.ids)?, pooled: pick(&texts.pooled)? }),
                texts.ids.device(),
            ),
            Self::PrefixTree(tree) => (
                Self::PrefixTree(tree.select(positions.iter().map(|&position| position as usize))?),
                tree.device(),
            ),
        })
    }

    /// Returns another handle to the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Images(pixels) => Self::Images(pixels.shallow_clone()),
            Self::Texts(texts) => Self::Texts(TokenBatch {
                ids: texts.ids.shallow_clone(),
                pooled: texts.pooled.shallow_clone(),
            }),
            Self::PrefixTree(tree) => Self::PrefixTree(tree.shallow_clone()),
        }
    }
}

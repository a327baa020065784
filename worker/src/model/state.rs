//! The activations of a tower between two stages of its forward pass.

use std::convert::Infallible;

use tch::Tensor;

use super::architecture::{Part, Stage};
use super::error::Error;
use super::prefix_tree::PrefixTree;

/// How the rows of an activation tensor map to items and tokens.
#[derive(Debug)]
pub(super) enum Tokens {
    /// `[images, tokens, width]`; the first token is the pooled one.
    Images,
    /// `[texts, tokens, width]`, with the position of each text's pooled token `[texts]`.
    Texts(Tensor),
    /// `[nodes, width]`: one row for each node of the tree.
    PrefixTree(PrefixTree),
}

impl Tokens {
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Images => Self::Images,
            Self::Texts(pooled) => Self::Texts(pooled.shallow_clone()),
            Self::PrefixTree(tree) => Self::PrefixTree(tree.shallow_clone()),
        }
    }
}

/// The tensors that the next stage reads. `x` is the residual stream in the shape that [`Tokens`]
/// describes. The attention of the last block reduces it to the pooled tokens `[items, width]`.
#[derive(Debug)]
pub(super) enum Activations {
    Attention { x: Tensor },
    OutProj { x: Tensor, attended: Tensor },
    Fc1 { x: Tensor },
    Fc2 { x: Tensor, inner: Tensor },
    Project { x: Tensor },
}

impl Activations {
    pub(super) fn map<E>(&self, act: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Attention { x } => Self::Attention { x: act(x)? },
            Self::OutProj { x, attended } => Self::OutProj { x: act(x)?, attended: act(attended)? },
            Self::Fc1 { x } => Self::Fc1 { x: act(x)? },
            Self::Fc2 { x, inner } => Self::Fc2 { x: act(x)?, inner: act(inner)? },
            Self::Project { x } => Self::Project { x: act(x)? },
        })
    }

    fn shallow_clone(&self) -> Self {
        let Ok(same) = self.map(|tensor| Ok::<_, Infallible>(tensor.shallow_clone()));
        same
    }
}

/// The activations of one tower before a stage.
#[derive(Debug)]
pub struct TowerState {
    pub(super) activations: Activations,
    pub(super) tokens: Tokens,
    /// Index of the current block.
    pub(super) block: usize,
}

impl TowerState {
    /// The state before the first block.
    pub(super) fn embedded(x: Tensor, tokens: Tokens) -> Self {
        Self { activations: Activations::Attention { x }, tokens, block: 0 }
    }

    /// Returns another handle to the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            activations: self.activations.shallow_clone(),
            tokens: self.tokens.shallow_clone(),
            block: self.block,
        }
    }

    /// Keeps only some tokens of each image: `tokens` `[items, kept]`, int64, ascending, and
    /// including the pooled token. Training uses this to drop patches. Texts are not supported
    /// because their pooled positions would change.
    ///
    /// # Errors
    /// When the items are texts, the state is in the middle of a block, or libtorch returns an
    /// error.
    pub fn keep_tokens(&self, tokens: &Tensor) -> Result<Self, Error> {
        let (Activations::Attention { x }, Tokens::Images) = (&self.activations, &self.tokens)
        else {
            let problem = "tokens can be dropped only from images and only between blocks".into();
            return Err(Error::Tensor { tensor: "hidden".into(), problem });
        };
        let (items, kept) = tokens.size2()?;
        let index = tokens.f_unsqueeze(2)?.f_expand([items, kept, x.size()[2]], false)?;
        let activations = Activations::Attention { x: x.f_gather(1, &index, false)? };
        Ok(Self { activations, tokens: Tokens::Images, block: self.block })
    }

    /// Returns the next stage to compute.
    pub fn stage(&self) -> Stage {
        match self.activations {
            Activations::Attention { .. } => Stage::Block(self.block, Part::Attention),
            Activations::OutProj { .. } => Stage::Block(self.block, Part::OutProj),
            Activations::Fc1 { .. } => Stage::Block(self.block, Part::Fc1),
            Activations::Fc2 { .. } => Stage::Block(self.block, Part::Fc2),
            Activations::Project { .. } => Stage::Project,
        }
    }

    /// Returns the residual stream: `[items, tokens, width]` (`[nodes, width]` for a prefix tree).
    /// After the attention of the last block it holds the pooled tokens only: `[items, width]`.
    pub fn residual(&self) -> &Tensor {
        match &self.activations {
            Activations::Attention { x }
            | Activations::OutProj { x, .. }
            | Activations::Fc1 { x }
            | Activations::Fc2 { x, .. }
            | Activations::Project { x } => x,
        }
    }

    /// Returns the size of the activations in bytes.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let branch = match &self.activations {
            Activations::OutProj { attended: branch, .. }
            | Activations::Fc2 { inner: branch, .. } => bytes(branch),
            Activations::Attention { .. }
            | Activations::Fc1 { .. }
            | Activations::Project { .. } => 0,
        };
        bytes(self.residual()) + branch
    }
}

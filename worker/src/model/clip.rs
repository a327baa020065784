//! The forward pass of CLIP, whole or from any stage on.

use std::convert::Infallible;

use lethe_shared::outcome::Tower;
use tch::{Device, Kind, Tensor};

use super::architecture::{Block, Part};
use super::block::{self, Reach, norm};
use super::config::{ClipConfig, Layout, TextPooling, TowerConfig};
use super::tree::TokenTree;
use super::{Architecture, Error, ParameterId, Stage, Weights};

/// Token ids of some texts, padded at the right.
///
/// Attention is causal and one token stands for the text, so that what follows that token changes nothing: a batch is
/// only as long as its longest text, whatever the model's context length.
#[derive(Debug)]
pub struct TokenBatch {
    /// Ids `[texts, tokens]`, int64.
    pub ids: Tensor,
    /// Position of the token that stands for each text `[texts]`, int64.
    pub pooled: Tensor,
}

impl TokenBatch {
    /// The rows `start .. start + length`, without the columns that none of them needs.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self, Error> {
        let pooled = self.pooled.f_narrow(0, start, length)?;
        let tokens = pooled.f_max()?.int64_value(&[]) + 1;
        Ok(Self { ids: self.ids.f_narrow(0, start, length)?.f_narrow(1, 0, tokens)?, pooled })
    }
}

/// Which activation belongs to which token of which item.
#[derive(Debug)]
pub(super) enum Tokens {
    /// `[images, tokens, width]`; the first token stands for the image.
    Images,
    /// `[texts, tokens, width]`, with the position of the token that stands for each text `[texts]`.
    Texts(Tensor),
    /// `[nodes, width]`.
    Tree(TokenTree),
}

impl Tokens {
    fn shallow_clone(&self) -> Self {
        match self {
            Self::Images => Self::Images,
            Self::Texts(pooled) => Self::Texts(pooled.shallow_clone()),
            Self::Tree(tree) => Self::Tree(tree.shallow_clone()),
        }
    }
}

/// What a pass holds before each stage. `x` is the residual stream, as [`Tokens`] says; of the last block, attention makes its pooled
/// tokens `[items, width]`.
#[derive(Debug)]
enum Activations {
    Attention { x: Tensor },
    Output { x: Tensor, attended: Tensor },
    Expand { x: Tensor },
    Contract { x: Tensor, inner: Tensor },
    Project { x: Tensor },
}

impl Activations {
    fn map<E>(&self, act: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(match self {
            Self::Attention { x } => Self::Attention { x: act(x)? },
            Self::Output { x, attended } => Self::Output { x: act(x)?, attended: act(attended)? },
            Self::Expand { x } => Self::Expand { x: act(x)? },
            Self::Contract { x, inner } => Self::Contract { x: act(x)?, inner: act(inner)? },
            Self::Project { x } => Self::Project { x: act(x)? },
        })
    }

    fn shallow_clone(&self) -> Self {
        let Ok(same) = self.map(|tensor| Ok::<_, Infallible>(tensor.shallow_clone()));
        same
    }
}

/// Activations of one tower before some stage.
#[derive(Debug)]
pub struct TowerState {
    activations: Activations,
    tokens: Tokens,
    /// The block that is under way.
    block: usize,
}

impl TowerState {
    /// Before the first block.
    fn embedded(x: Tensor, tokens: Tokens) -> Self {
        Self { activations: Activations::Attention { x }, tokens, block: 0 }
    }

    /// Another handle on the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { activations: self.activations.shallow_clone(), tokens: self.tokens.shallow_clone(), block: self.block }
    }

    /// Keeps some tokens of each item: `tokens` `[items, kept]`, int64, in rising order and with the pooled one. For
    /// images only (training drops patches); a text's pooled position would no longer fit.
    ///
    /// # Errors
    /// When libtorch refuses, the items are texts, or a block is under way.
    pub fn keep_tokens(&self, tokens: &Tensor) -> Result<Self, Error> {
        let (Activations::Attention { x }, Tokens::Images) = (&self.activations, &self.tokens) else {
            let problem = "tokens can be dropped of images alone, between blocks".into();
            return Err(Error::Tensor { tensor: "hidden".into(), problem });
        };
        let (items, kept) = tokens.size2()?;
        let index = tokens.f_unsqueeze(2)?.f_expand([items, kept, x.size()[2]], false)?;
        let activations = Activations::Attention { x: x.f_gather(1, &index, false)? };
        Ok(Self { activations, tokens: Tokens::Images, block: self.block })
    }

    /// The stage that comes next.
    pub fn stage(&self) -> Stage {
        match self.activations {
            Activations::Attention { .. } => Stage::Block(self.block, Part::Attention),
            Activations::Output { .. } => Stage::Block(self.block, Part::Output),
            Activations::Expand { .. } => Stage::Block(self.block, Part::Expand),
            Activations::Contract { .. } => Stage::Block(self.block, Part::Contract),
            Activations::Project { .. } => Stage::Project,
        }
    }

    /// The residual stream: `[items, tokens, width]` (`[nodes, width]` of a tree of texts), once the last block has attended that of the
    /// token that stands for each item `[items, width]`.
    pub fn residual(&self) -> &Tensor {
        match &self.activations {
            Activations::Attention { x }
            | Activations::Output { x, .. }
            | Activations::Expand { x }
            | Activations::Contract { x, .. }
            | Activations::Project { x } => x,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let branch = match &self.activations {
            Activations::Output { attended: branch, .. } | Activations::Contract { inner: branch, .. } => bytes(branch),
            Activations::Attention { .. } | Activations::Expand { .. } | Activations::Project { .. } => 0,
        };
        bytes(self.residual()) + branch
    }
}

/// What a tower embeds.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Preprocessed images `[n, 3, image_size, image_size]`, float32, on the model's device or on the host.
    Images(&'a Tensor),
    /// Texts.
    Texts(&'a TokenBatch),
    /// Texts as a tree of their beginnings.
    Tree(&'a TokenTree),
}

impl Input<'_> {
    /// The tower that embeds this.
    pub fn tower(&self) -> Tower {
        match self {
            Self::Images(_) => Tower::Vision,
            Self::Texts(_) | Self::Tree(_) => Tower::Text,
        }
    }

    /// Tokens of the longest item.
    pub fn tokens(&self, config: &ClipConfig) -> i64 {
        match self {
            Self::Images(_) => config.image_tokens(),
            Self::Texts(texts) => texts.ids.size()[1],
            Self::Tree(tree) => tree.tokens(),
        }
    }

    /// Number of items.
    pub fn items(&self) -> i64 {
        match self {
            Self::Images(pixels) => pixels.size()[0],
            Self::Texts(texts) => texts.ids.size()[0],
            Self::Tree(tree) => tree.len() as i64,
        }
    }

    /// The items `start .. start + length`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Batch, Error> {
        Ok(match self {
            Self::Images(pixels) => Batch::Images(pixels.f_narrow(0, start, length)?),
            Self::Texts(texts) => Batch::Texts(texts.narrow(start, length)?),
            Self::Tree(tree) => Batch::Tree(tree.select(start as usize..(start + length) as usize)?),
        })
    }
}

/// An [`Input`] that is owned.
#[derive(Debug)]
pub enum Batch {
    /// Preprocessed images `[n, 3, image_size, image_size]`, float32.
    Images(Tensor),
    /// Texts.
    Texts(TokenBatch),
    /// Texts as a tree of their beginnings.
    Tree(TokenTree),
}

impl Batch {
    /// What a tower takes.
    pub fn input(&self) -> Input<'_> {
        match self {
            Self::Images(pixels) => Input::Images(pixels),
            Self::Texts(texts) => Input::Texts(texts),
            Self::Tree(tree) => Input::Tree(tree),
        }
    }

    /// The items at these places, and the device they are on.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn select(&self, places: &[i64]) -> Result<(Self, Device), Error> {
        let pick = |tensor: &Tensor| -> Result<Tensor, Error> {
            Ok(tensor.f_index_select(0, &Tensor::f_from_slice(places)?.f_to(tensor.device())?)?)
        };
        Ok(match self {
            Self::Images(pixels) => (Self::Images(pick(pixels)?), pixels.device()),
            Self::Texts(texts) => (Self::Texts(TokenBatch { ids: pick(&texts.ids)?, pooled: pick(&texts.pooled)? }), texts.ids.device()),
            Self::Tree(tree) => (Self::Tree(tree.select(places.iter().map(|&place| place as usize))?), tree.device()),
        })
    }

    /// Another handle on the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Images(pixels) => Self::Images(pixels.shallow_clone()),
            Self::Texts(texts) => Self::Texts(TokenBatch { ids: texts.ids.shallow_clone(), pooled: texts.pooled.shallow_clone() }),
            Self::Tree(tree) => Self::Tree(tree.shallow_clone()),
        }
    }
}

/// The structure of a CLIP; its methods are pure functions of the [`Weights`] they are given.
#[derive(Debug, Clone)]
pub struct Clip {
    config: ClipConfig,
    architecture: Architecture,
}

impl Clip {
    /// The structure that this configuration describes.
    pub fn new(config: ClipConfig) -> Self {
        let architecture = Architecture::new(&config);
        Self { config, architecture }
    }

    /// Sizes and switches.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Names, shapes and roles of the parameters.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// `exp(logit_scale)`, the factor on cosines in the contrastive loss; a tensor without dimensions.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn scale(&self, weights: &Weights) -> Result<Tensor, Error> {
        Ok(weights.get(self.architecture.logit_scale).f_exp()?)
    }

    /// Puts tokenised texts into one batch.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no text, one is longer than the context, or lacks the token that ends it.
    pub fn token_batch(&self, texts: &[Vec<u32>], device: Device) -> Result<TokenBatch, Error> {
        let pooled = self.pooled(texts)?;
        let length = pooled.iter().max().map_or(0, |&p| p as usize + 1);
        let mut ids = vec![0i64; texts.len() * length];
        for (row, text) in ids.chunks_exact_mut(length).zip(texts) {
            for (slot, &id) in row.iter_mut().zip(text) {
                *slot = i64::from(id);
            }
        }
        Ok(TokenBatch {
            ids: Tensor::f_from_slice(&ids)?.f_view([texts.len() as i64, length as i64])?.f_to(device)?,
            pooled: Tensor::f_from_slice(&pooled)?.f_to(device)?,
        })
    }

    /// The same as a tree of their beginnings, for passes without a graph.
    ///
    /// # Errors
    /// As [`token_batch`](Self::token_batch).
    pub fn token_tree(&self, texts: &[Vec<u32>], device: Device) -> Result<TokenTree, Error> {
        let pooled = self.pooled(texts)?;
        TokenTree::new(texts.iter().zip(pooled).map(|(text, end)| text[..=end as usize].to_vec()).collect(), device)
    }

    /// Position of the token that stands for each text.
    fn pooled(&self, texts: &[Vec<u32>]) -> Result<Vec<i64>, Error> {
        let wrong = |problem: String| Error::Tensor { tensor: "input_ids".into(), problem };
        let mut pooled = Vec::with_capacity(texts.len());
        for (i, ids) in texts.iter().enumerate() {
            if ids.len() as i64 > self.config.context_length {
                return Err(wrong(format!("text {i} has {} tokens, the model takes {}", ids.len(), self.config.context_length)));
            }
            let at = match self.config.pooling {
                TextPooling::FirstOf(end) => ids.iter().position(|&id| i64::from(id) == end),
                // The first of several equal ids, as argmax does.
                TextPooling::LargestId => ids.iter().max().and_then(|most| ids.iter().position(|id| id == most)),
            };
            let at = at.ok_or_else(|| wrong(format!("text {i} has no end-of-text token; does tokenizer.json belong to this model?")))?;
            pooled.push(at as i64);
        }
        if pooled.is_empty() {
            return Err(wrong("no text to embed".into()));
        }
        Ok(pooled)
    }

    /// The first stage that a change of this parameter reaches: [`TowerState`]s before it stay valid. `None` when the change acts
    /// before the first block (or in no tower).
    pub fn first_stage(&self, id: ParameterId) -> Option<Stage> {
        let spec = self.architecture.spec(id);
        (spec.tower.is_some() && spec.stage != Stage::Embed).then_some(spec.stage)
    }

    /// Unit embeddings `[n, embedding]`.
    ///
    /// # Errors
    /// When shapes do not fit or libtorch refuses.
    pub fn embed(&self, weights: &Weights, input: Input<'_>) -> Result<Tensor, Error> {
        self.finish(weights, input.tower(), self.start(weights, input)?)
    }

    /// Everything before the first block.
    ///
    /// # Errors
    /// When shapes do not fit or libtorch refuses.
    pub fn start(&self, weights: &Weights, input: Input<'_>) -> Result<TowerState, Error> {
        match input {
            Input::Images(pixels) => {
                let tower = &self.architecture.vision;
                let patch = weights.factor(tower.patch)?;
                // A whole shard of pixels may be more than the device holds; what passes is not.
                let patches = self.patches(&pixels.f_to(patch.device())?)?;
                let patches = weights.product(&patches, &patch.f_flatten(1, -1)?, None)?.f_to_kind(Kind::Float)?;
                let class = weights.get(tower.class).f_expand([patches.size()[0], 1, self.config.vision.width], false)?;
                let hidden = Tensor::f_cat(&[class, patches], 1)?.f_add(weights.get(tower.position))?;
                let hidden = norm(weights, &tower.norm_before, &hidden, &self.config.vision)?;
                Ok(TowerState::embedded(hidden, Tokens::Images))
            }
            Input::Texts(batch) => {
                let tower = &self.architecture.text;
                let tokens = batch.ids.size()[1];
                let hidden = Tensor::f_embedding(weights.get(tower.token), &batch.ids, -1, false, false)?;
                let hidden = hidden.f_add(&weights.get(tower.position).f_narrow(0, 0, tokens)?)?;
                Ok(TowerState::embedded(hidden, Tokens::Texts(batch.pooled.shallow_clone())))
            }
            Input::Tree(tree) => {
                let tower = &self.architecture.text;
                let hidden = Tensor::f_embedding(weights.get(tower.token), &tree.ids, -1, false, false)?;
                let hidden = hidden.f_add(&weights.get(tower.position).f_index_select(0, &tree.positions)?)?;
                Ok(TowerState::embedded(hidden, Tokens::Tree(tree.shallow_clone())))
            }
        }
    }

    /// The patches of images `[n, 3, s, s]`, row by row, each flat as a patch of the embedding's weight is: `[n, patches, 3 · p · p]`. So
    /// that embedding them is a matrix product as any other (a convolution has a library of its own, with a plan for each shape).
    fn patches(&self, pixels: &Tensor) -> Result<Tensor, Error> {
        let (n, side) = (pixels.size()[0], self.config.patch_size);
        let across = self.config.image_size / side;
        let pixels = pixels.f_narrow(2, 0, across * side)?.f_narrow(3, 0, across * side)?;
        let grid = pixels.f_reshape([n, 3, across, side, across, side])?.f_permute([0, 2, 4, 1, 3, 5])?;
        Ok(grid.f_reshape([n, across * across, 3 * side * side])?)
    }

    /// Goes on until `stage` comes next.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn advance(&self, weights: &Weights, tower: Tower, state: &TowerState, stage: Stage) -> Result<TowerState, Error> {
        let config = self.tower_config(tower);
        let blocks = self.blocks(tower);
        let mut now = state.shallow_clone();
        while now.stage() < stage {
            let Some(block) = blocks.get(now.block) else { break };
            let last = now.block + 1 == blocks.len();
            now.activations = match now.activations {
                Activations::Attention { x } => {
                    // After the last block only the pooled token is read, so only it is computed.
                    let reach = if last { Reach::Pooled } else { Reach::Every };
                    let (x, attended) = block::attention(weights, block, config, &x, &now.tokens, reach)?;
                    Activations::Output { x, attended }
                }
                Activations::Output { x, attended } => Activations::Expand { x: block::output(weights, block, &x, &attended)? },
                Activations::Expand { x } => Activations::Contract { inner: block::expand(weights, block, config, &x)?, x },
                Activations::Contract { x, inner } => {
                    let x = block::contract(weights, block, &x, &inner)?;
                    now.block += 1;
                    if last { Activations::Project { x } } else { Activations::Attention { x } }
                }
                Activations::Project { .. } => break,
            };
        }
        Ok(now)
    }

    /// The same items so many times, one group after another: what weights with a stack in place of one parameter take.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn repeat(&self, tower: Tower, state: &TowerState, times: i64) -> Result<TowerState, Error> {
        let pooled = state.stage() > Stage::Block(self.blocks(tower).len() - 1, Part::Attention);
        let tokens = match &state.tokens {
            Tokens::Images => Tokens::Images,
            Tokens::Texts(pooled) | Tokens::Tree(TokenTree { pooled, .. }) => Tokens::Texts(pooled.f_repeat([times])?),
        };
        let activations = state.activations.map(|tensor| -> Result<Tensor, Error> {
            let tensor = match &state.tokens {
                Tokens::Tree(tree) if !pooled => tree.spread(tensor)?,
                _ => tensor.shallow_clone(),
            };
            let mut repeats = vec![1; tensor.dim()];
            repeats[0] = times;
            Ok(tensor.f_repeat(repeats)?)
        })?;
        Ok(TowerState { activations, tokens, block: state.block })
    }

    /// Runs what is left of a tower: unit embeddings `[n, embedding]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn finish(&self, weights: &Weights, tower: Tower, state: TowerState) -> Result<Tensor, Error> {
        let Activations::Project { x: pooled } = self.advance(weights, tower, &state, Stage::Project)?.activations else {
            return Err(Error::Tensor { tensor: "hidden".into(), problem: "does not come to the projection".into() });
        };
        let (after, projection) = match tower {
            Tower::Vision => (&self.architecture.vision.norm_after, self.architecture.vision.projection),
            Tower::Text => (&self.architecture.text.norm_after, self.architecture.text.projection),
        };
        let pooled = norm(weights, after, &pooled, self.tower_config(tower))?;
        let projection = weights.factor(projection)?;
        let embedding = match self.config.layout {
            Layout::HuggingFace => weights.product(&pooled, &projection, None)?,
            Layout::OpenClip => weights.product(&pooled, &projection.f_transpose(-2, -1)?, None)?,
        };
        let embedding = embedding.f_to_kind(Kind::Float)?;
        let length = embedding.f_norm_scalaropt_dim(2, [-1], true)?;
        Ok(embedding.f_div(&length)?)
    }

    /// Bytes that one item of this many tokens takes in a pass through a tower, by estimate and rather too many: with a graph what
    /// every block keeps for the backward pass, without one what the widest moment of one block takes.
    pub fn pass_bytes(&self, tower: Tower, tokens: i64, graph: bool) -> u64 {
        let config = self.tower_config(tower);
        let (width, mlp) = (config.width.unsigned_abs(), config.mlp_width.unsigned_abs());
        let floats = match graph {
            // Two normed inputs, queries, keys, values, attended, two sums; the MLP's hidden units before, in and after their activation.
            true => (9 * width + 4 * mlp) * config.layers as u64,
            false => 8 * width + 3 * mlp,
        };
        size_of::<f32>() as u64 * tokens.unsigned_abs() * floats
    }

    /// The same of one pair of an image and a text of this many tokens, with a graph in the towers that have some of these layers;
    /// `seen` where the image is embedded already.
    pub fn pair_bytes(&self, layers: &[ParameterId], tokens: i64, seen: bool) -> u64 {
        let graph = |tower| layers.iter().any(|&layer| self.architecture.spec(layer).tower == Some(tower));
        let image = if seen { 0 } else { self.pass_bytes(Tower::Vision, self.config.image_tokens(), graph(Tower::Vision)) };
        image + self.pass_bytes(Tower::Text, tokens, graph(Tower::Text))
    }

    /// Number of blocks in a tower.
    pub fn block_count(&self, tower: Tower) -> usize {
        self.blocks(tower).len()
    }

    /// The layers that end each block's MLP, from the widest inputs of a block to its residual stream.
    pub fn mlp_ends(&self, tower: Tower) -> Vec<ParameterId> {
        self.blocks(tower).iter().map(|block| block.contract.weight).collect()
    }

    fn blocks(&self, tower: Tower) -> &[Block] {
        match tower {
            Tower::Vision => &self.architecture.vision.blocks,
            Tower::Text => &self.architecture.text.blocks,
        }
    }

    fn tower_config(&self, tower: Tower) -> &TowerConfig {
        match tower {
            Tower::Vision => &self.config.vision,
            Tower::Text => &self.config.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_what_was_measured_or_rather_more() {
        let large = serde_json::json!({ "model_type": "clip", "projection_dim": 768,
            "text_config": { "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12 },
            "vision_config": { "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "image_size": 224, "patch_size": 14 } });
        let clip = Clip::new(ClipConfig::from_json("config.json", &large).unwrap());
        let gigabytes = |tower, tokens, graph| clip.pass_bytes(tower, tokens, graph) as f64 / 1e9;
        // 32 pairs in one pass through both towers of ViT-L/14 took 11 GB more than the model and its gradients.
        let pair = gigabytes(Tower::Vision, 257, true) + gigabytes(Tower::Text, 10, true);
        assert!((0.35..0.8).contains(&pair), "{pair} GB");
        assert!(gigabytes(Tower::Vision, 257, false) < 0.05 * pair);
        let text = clip.architecture().ids().find(|&id| clip.architecture().spec(id).tower == Some(Tower::Text)).unwrap();
        let seen = clip.pair_bytes(&[text], 10, true);
        assert_eq!(seen, clip.pass_bytes(Tower::Text, 10, true));
        assert_eq!(clip.pair_bytes(&[text], 10, false), seen + clip.pass_bytes(Tower::Vision, 257, false));
    }
}

//! The forward pass of CLIP, whole or from a block boundary on.

use lethe_shared::outcome::Tower;
use tch::{Device, Kind, Tensor};

use super::architecture::{Block, Linear, Norm, QueryKeyValue};
use super::config::{Activation, ClipConfig, Layout, TextPooling, TowerConfig};
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

/// Activations of one tower at a block boundary.
#[derive(Debug)]
pub struct TowerState {
    /// Input of block `block`, `[items, tokens, width]`; for the last boundary the pooled tokens `[items, width]`.
    hidden: Tensor,
    /// Position of the token that stands for each item `[items]`; `None` where it is the first (images).
    pooled: Option<Tensor>,
    /// The block whose input this is; the number of blocks after the last one.
    block: usize,
}

impl TowerState {
    /// Another handle on the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { hidden: self.hidden.shallow_clone(), pooled: self.pooled.as_ref().map(Tensor::shallow_clone), block: self.block }
    }

    /// Keeps some tokens of each item: `tokens` `[items, kept]`, int64, in rising order and with the pooled one. For
    /// images only (training drops patches); a text's pooled position would no longer fit.
    ///
    /// # Errors
    /// When libtorch refuses, or the items are texts.
    pub fn keep_tokens(&self, tokens: &Tensor) -> Result<Self, Error> {
        if self.pooled.is_some() {
            return Err(Error::Tensor { tensor: "input_ids".into(), problem: "tokens of texts cannot be dropped".into() });
        }
        let (items, kept) = tokens.size2()?;
        let index = tokens.f_unsqueeze(2)?.f_expand([items, kept, self.hidden.size()[2]], false)?;
        Ok(Self { hidden: self.hidden.f_gather(1, &index, false)?, pooled: None, block: self.block })
    }

    /// The activations: `[items, tokens, width]`, after the last block those of the token that stands for each item `[items, width]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// The block whose input this is.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.hidden.numel() * self.hidden.kind().elt_size_in_bytes()
    }
}

/// What a tower embeds.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// Preprocessed images `[n, 3, image_size, image_size]`, float32, on the model's device or on the host.
    Images(&'a Tensor),
    /// Texts.
    Texts(&'a TokenBatch),
}

impl Input<'_> {
    /// The tower that embeds this.
    pub fn tower(&self) -> Tower {
        match self {
            Self::Images(_) => Tower::Vision,
            Self::Texts(_) => Tower::Text,
        }
    }

    /// Number of items.
    pub fn items(&self) -> i64 {
        match self {
            Self::Images(pixels) => pixels.size()[0],
            Self::Texts(texts) => texts.ids.size()[0],
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
}

impl Batch {
    /// What a tower takes.
    pub fn input(&self) -> Input<'_> {
        match self {
            Self::Images(pixels) => Input::Images(pixels),
            Self::Texts(texts) => Input::Texts(texts),
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
        })
    }

    /// Another handle on the same memory.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Images(pixels) => Self::Images(pixels.shallow_clone()),
            Self::Texts(texts) => Self::Texts(TokenBatch { ids: texts.ids.shallow_clone(), pooled: texts.pooled.shallow_clone() }),
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
        let length = pooled.iter().max().map(|&p| p as usize + 1).ok_or_else(|| wrong("no text to embed".into()))?;
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

    /// The first block that a change of this parameter reaches: [`TowerState`]s up to its input stay valid.
    /// `None` when the change acts before the first block (or in no tower).
    pub fn first_block(&self, id: ParameterId) -> Option<usize> {
        let spec = self.architecture.spec(id);
        match (spec.stage, spec.tower?) {
            (Stage::Embed, _) => None,
            (Stage::Block(i), _) => Some(i),
            (Stage::Project, tower) => Some(self.blocks(tower).len()),
        }
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
                let patch = weights.get(tower.patch);
                // A whole shard of pixels may be more than the device holds; what passes is not.
                let patches = pixels.f_to(patch.device())?.f_conv2d(
                    patch,
                    None::<&Tensor>,
                    [self.config.patch_size, self.config.patch_size],
                    [0, 0],
                    [1, 1],
                    1,
                )?;
                let patches = patches.f_flatten(2, -1)?.f_transpose(1, 2)?;
                let class = weights.get(tower.class).f_expand([patches.size()[0], 1, self.config.vision.width], false)?;
                let hidden = Tensor::f_cat(&[class, patches], 1)?.f_add(weights.get(tower.position))?;
                let hidden = norm(weights, &tower.norm_before, &hidden, &self.config.vision)?;
                Ok(TowerState { hidden, pooled: None, block: 0 })
            }
            Input::Texts(batch) => {
                let tower = &self.architecture.text;
                let tokens = batch.ids.size()[1];
                let hidden = Tensor::f_embedding(weights.get(tower.token), &batch.ids, -1, false, false)?;
                let hidden = hidden.f_add(&weights.get(tower.position).f_narrow(0, 0, tokens)?)?;
                Ok(TowerState { hidden, pooled: Some(batch.pooled.shallow_clone()), block: 0 })
            }
        }
    }

    /// Runs blocks until `state` is the input of `block`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn advance(&self, weights: &Weights, tower: Tower, state: &TowerState, block: usize) -> Result<TowerState, Error> {
        let config = self.tower_config(tower);
        let blocks = self.blocks(tower);
        let mut now = state.shallow_clone();
        while now.block < block.min(blocks.len()) {
            // After the last block only the pooled token is read, so only it is computed.
            now.hidden = if now.block + 1 == blocks.len() {
                last_block(weights, &blocks[now.block], config, &now.hidden, now.pooled.as_ref())?
            } else {
                full_block(weights, &blocks[now.block], config, &now.hidden, tower == Tower::Text)?
            };
            now.block += 1;
        }
        Ok(now)
    }

    /// Runs what is left of a tower: unit embeddings `[n, embedding]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn finish(&self, weights: &Weights, tower: Tower, state: TowerState) -> Result<Tensor, Error> {
        let pooled = self.advance(weights, tower, &state, self.blocks(tower).len())?.hidden;
        let (after, projection) = match tower {
            Tower::Vision => (&self.architecture.vision.norm_after, self.architecture.vision.projection),
            Tower::Text => (&self.architecture.text.norm_after, self.architecture.text.projection),
        };
        let pooled = norm(weights, after, &pooled, self.tower_config(tower))?;
        let projection = weights.get(projection);
        let embedding = match self.config.layout {
            Layout::HuggingFace => pooled.f_linear(projection, None::<&Tensor>)?,
            Layout::OpenClip => pooled.f_matmul(projection)?,
        };
        let length = embedding.f_norm_scalaropt_dim(2, [-1], true)?;
        Ok(embedding.f_div(&length)?)
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

fn norm(weights: &Weights, norm: &Norm, x: &Tensor, config: &TowerConfig) -> Result<Tensor, Error> {
    Ok(x.f_layer_norm([config.width], Some(weights.get(norm.gain)), Some(weights.get(norm.bias)), config.norm_epsilon, false)?)
}

fn linear(weights: &Weights, linear: &Linear, x: &Tensor) -> Result<Tensor, Error> {
    let y = x.f_linear(weights.get(linear.weight), Some(weights.get(linear.bias)))?;
    weights.pass(linear.weight, x, &y)?;
    Ok(y)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, Error> {
    Ok(match activation {
        Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
    })
}

/// `[n, tokens, width]` to `[n, heads, tokens, width / heads]`.
fn heads(x: &Tensor, config: &TowerConfig) -> Result<Tensor, Error> {
    let (n, tokens) = (x.size()[0], x.size()[1]);
    Ok(x.f_view([n, tokens, config.heads, config.width / config.heads])?.f_transpose(1, 2)?)
}

/// The part of a fused projection that makes queries (0), keys (1) or values (2); `count` parts from there on.
fn fused_part(weights: &Weights, fused: &Linear, config: &TowerConfig, part: i64, count: i64, x: &Tensor) -> Result<Tensor, Error> {
    let weight = weights.get(fused.weight).f_narrow(0, part * config.width, count * config.width)?;
    let bias = weights.get(fused.bias).f_narrow(0, part * config.width, count * config.width)?;
    Ok(x.f_linear(&weight, Some(&bias))?)
}

fn mlp(weights: &Weights, block: &Block, config: &TowerConfig, x: &Tensor) -> Result<Tensor, Error> {
    let inner = linear(weights, &block.expand, &norm(weights, &block.norm2, x, config)?)?;
    Ok(x.f_add(&linear(weights, &block.contract, &activate(config.activation, &inner)?)?)?)
}

fn full_block(weights: &Weights, block: &Block, config: &TowerConfig, x: &Tensor, causal: bool) -> Result<Tensor, Error> {
    let normed = norm(weights, &block.norm1, x, config)?;
    let (query, key, value) = match &block.attention {
        QueryKeyValue::Split { query, key, value } => {
            (linear(weights, query, &normed)?, linear(weights, key, &normed)?, linear(weights, value, &normed)?)
        }
        QueryKeyValue::Fused(fused) => {
            let mut parts = fused_part(weights, fused, config, 0, 3, &normed)?.f_chunk(3, -1)?.into_iter();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(q), Some(k), Some(v)) => (q, k, v),
                _ => return Err(Error::Tensor { tensor: "in_proj_weight".into(), problem: "does not split into three".into() }),
            }
        }
    };
    let attended = Tensor::f_scaled_dot_product_attention(
        &heads(&query, config)?,
        &heads(&key, config)?,
        &heads(&value, config)?,
        None::<&Tensor>,
        0.0,
        causal,
        None,
        false,
    )?;
    let attended = attended.f_transpose(1, 2)?.f_reshape(x.size())?;
    mlp(weights, block, config, &x.f_add(&linear(weights, &block.out, &attended)?)?)
}

/// The last block for the pooled token alone: keys and values of every token, one query. `[n, width]`.
fn last_block(weights: &Weights, block: &Block, config: &TowerConfig, x: &Tensor, pooled: Option<&Tensor>) -> Result<Tensor, Error> {
    let (n, tokens) = (x.size()[0], x.size()[1]);
    let normed = norm(weights, &block.norm1, x, config)?;
    // Row `pooled[i]` of item i; images pool their first token.
    let pick = |t: &Tensor| -> Result<Tensor, Error> {
        Ok(match pooled {
            None => t.f_narrow(1, 0, 1)?,
            Some(at) => t.f_gather(1, &at.f_view([n, 1, 1])?.f_expand([n, 1, config.width], false)?, false)?,
        })
    };
    let one = pick(&normed)?;
    let (query, key, value) = match &block.attention {
        QueryKeyValue::Split { query, key, value } => {
            (linear(weights, query, &one)?, linear(weights, key, &normed)?, linear(weights, value, &normed)?)
        }
        QueryKeyValue::Fused(fused) => {
            let query = fused_part(weights, fused, config, 0, 1, &one)?;
            let both = fused_part(weights, fused, config, 1, 2, &normed)?;
            (query, both.f_narrow(-1, 0, config.width)?, both.f_narrow(-1, config.width, config.width)?)
        }
    };
    // The pooled token sees itself and what comes before.
    let mask = match pooled {
        None => None,
        Some(at) => {
            let positions = Tensor::f_arange(tokens, (Kind::Int64, x.device()))?;
            Some(positions.f_le_tensor(&at.f_unsqueeze(1)?)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
        }
    };
    let attended = Tensor::f_scaled_dot_product_attention(
        &heads(&query, config)?,
        &heads(&key, config)?,
        &heads(&value, config)?,
        mask.as_ref(),
        0.0,
        false,
        None,
        false,
    )?;
    let attended = attended.f_transpose(1, 2)?.f_reshape([n, config.width])?;
    let x = pick(x)?.f_squeeze_dim(1)?;
    mlp(weights, block, config, &x.f_add(&linear(weights, &block.out, &attended)?)?)
}

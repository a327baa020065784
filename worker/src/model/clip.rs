//! The forward pass of a CLIP, from the input or from any stage.

use lethe_shared::vocabulary::Tower;
use tch::{Device, Kind, Tensor};

use super::architecture::{Architecture, Block, ParameterId, Part, Stage};
use super::batch::{Batch, Input, TokenBatch};
use super::block::{self, Reach, norm};
use super::config::{ClipConfig, TextPooling, TowerConfig};
use super::error::Error;
use super::prefix_tree::PrefixTree;
use super::state::{Activations, Tokens, TowerState};
use super::weights::Weights;

/// The structure of a CLIP model. Its methods are pure functions of the [`Weights`] that they are
/// given.
#[derive(Debug, Clone)]
pub struct Clip {
    config: ClipConfig,
    architecture: Architecture,
}

/// What a block does at every token of some texts.
#[derive(Debug)]
pub struct BlockStates {
    /// The inputs of the layer that ends its MLP `[texts, tokens, inputs]`.
    pub inputs: Tensor,
    /// The states after the block `[texts, tokens, width]`.
    pub outputs: Tensor,
}

impl Clip {
    /// Creates the structure that a configuration describes.
    pub fn new(config: ClipConfig) -> Self {
        let architecture = Architecture::new(&config);
        Self { config, architecture }
    }

    /// Returns the configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Returns the names, shapes and roles of the parameters.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns `exp(logit_scale)`, the factor that the contrastive loss applies to cosines; a
    /// scalar tensor.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn scale(&self, weights: &Weights) -> Result<Tensor, Error> {
        Ok(weights.get(self.architecture.logit_scale).f_exp()?)
    }

    /// Returns the bias that the sigmoid loss adds to scaled cosines, a scalar tensor; `None` for a
    /// model that was trained with the softmax loss.
    pub fn logit_bias<'a>(&self, weights: &'a Weights) -> Option<&'a Tensor> {
        self.architecture.logit_bias.map(|bias| weights.get(bias))
    }

    /// Batches tokenized texts for passes without an autograd graph: as a prefix tree where attention
    /// is causal.
    ///
    /// # Errors
    /// The same as for [`token_batch`](Self::token_batch).
    pub fn text_batch(&self, texts: &[Vec<u32>], device: Device) -> Result<Batch, Error> {
        Ok(if self.config.text.is_causal {
            Batch::PrefixTree(self.prefix_tree(texts, device)?)
        } else {
            Batch::Texts(self.token_batch(texts, device)?)
        })
    }

    /// Pads tokenized texts into one batch.
    ///
    /// # Errors
    /// [`Error::Tensor`] when `texts` is empty, or a text is longer than the context or lacks its
    /// end-of-text token.
    pub fn token_batch(&self, texts: &[Vec<u32>], device: Device) -> Result<TokenBatch, Error> {
        let pooled = self.pooled_positions(texts)?;
        let length = pooled.iter().max().map_or(0, |&p| p as usize + 1);
        let mut ids = vec![0i64; texts.len() * length];
        for (row, text) in ids.chunks_exact_mut(length).zip(texts) {
            for (slot, &id) in row.iter_mut().zip(text) {
                *slot = i64::from(id);
            }
        }
        Ok(TokenBatch {
            ids: Tensor::f_from_slice(&ids)?
                .f_view([texts.len() as i64, length as i64])?
                .f_to(device)?,
            pooled: Tensor::f_from_slice(&pooled)?.f_to(device)?,
        })
    }

    /// Pads tokenized texts to the whole context with this token, or each with its own end-of-text
    /// token, as the tokenizers of diffusion pipelines do.
    ///
    /// # Errors
    /// The same as for [`token_batch`](Self::token_batch), and when there is no such token.
    pub fn whole_batch(
        &self,
        texts: &[Vec<u32>],
        padding: Option<u32>,
        device: Device,
    ) -> Result<TokenBatch, Error> {
        let pooled = self.pooled_positions(texts)?;
        if let Some(token) = padding.filter(|&token| i64::from(token) >= self.config.vocabulary) {
            let problem = format!("texts are padded with token {token}, which the model lacks");
            return Err(Error::Tensor { tensor: "input_ids".into(), problem });
        }
        let length = self.config.context_length;
        let mut ids = Vec::with_capacity(texts.len() * length as usize);
        for (text, &end) in texts.iter().zip(&pooled) {
            let token = i64::from(padding.unwrap_or(text[end as usize]));
            let text = &text[..=end as usize];
            ids.extend(text.iter().map(|&id| i64::from(id)));
            ids.extend(std::iter::repeat_n(token, length as usize - text.len()));
        }
        Ok(TokenBatch {
            ids: Tensor::f_from_slice(&ids)?.f_view([-1, length])?.f_to(device)?,
            pooled: Tensor::f_from_slice(&pooled)?.f_to(device)?,
        })
    }

    /// Passes texts through the text tower once, and calls `act` with the place of each of `layers`,
    /// which are front to back, and with what its block does at every token (of a prefix tree: at every
    /// node): the inputs of the layer that ends its MLP, and the states after the block.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a layer ends no MLP of the text tower or comes after a later one;
    /// otherwise when libtorch or `act` returns an error.
    pub fn each_block(
        &self,
        weights: &Weights,
        texts: Input<'_>,
        layers: &[ParameterId],
        mut act: impl FnMut(usize, BlockStates) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (blocks, config) = (self.blocks(Tower::Text), &self.config.text);
        let mut state = self.start(weights, texts)?;
        for (index, &layer) in layers.iter().enumerate() {
            let wrong = |problem: &str| Error::Tensor {
                tensor: self.architecture.spec(layer).name.clone(),
                problem: problem.into(),
            };
            let place = blocks.iter().position(|block| block.fc2.weight == layer);
            let place = place.ok_or_else(|| wrong("ends no MLP of the text tower"))?;
            if place < state.block {
                return Err(wrong("comes after a layer of a later block"));
            }
            let before =
                self.advance(weights, Tower::Text, &state, Stage::Block(place, Part::Attention))?;
            let block = &blocks[place];
            let (x, attended) = block::attention(
                weights,
                block,
                config,
                before.residual(),
                &before.tokens,
                Reach::All,
            )?;
            let x = block::out_proj(weights, block, &x, &attended)?;
            let inputs = block::fc1(weights, block, config, &x)?;
            let outputs = block::fc2(weights, block, &x, &inputs)?;
            state = TowerState {
                activations: Activations::Attention { x: outputs.shallow_clone() },
                tokens: before.tokens,
                block: place + 1,
            };
            act(index, BlockStates { inputs, outputs })?;
        }
        Ok(())
    }

    /// Builds the prefix tree of tokenized texts, for passes without an autograd graph.
    ///
    /// # Errors
    /// The same as for [`token_batch`](Self::token_batch), and when attention is not causal: then a
    /// token depends on those after it too.
    pub fn prefix_tree(&self, texts: &[Vec<u32>], device: Device) -> Result<PrefixTree, Error> {
        if !self.config.text.is_causal {
            let problem = "texts share no computation where attention is not causal".to_owned();
            return Err(Error::Tensor { tensor: "input_ids".into(), problem });
        }
        let pooled = self.pooled_positions(texts)?;
        PrefixTree::new(
            texts.iter().zip(pooled).map(|(text, end)| text[..=end as usize].to_vec()).collect(),
            device,
        )
    }

    /// Returns the position of each text's pooled token.
    fn pooled_positions(&self, texts: &[Vec<u32>]) -> Result<Vec<i64>, Error> {
        let wrong = |problem: String| Error::Tensor { tensor: "input_ids".into(), problem };
        let mut pooled = Vec::with_capacity(texts.len());
        for (i, ids) in texts.iter().enumerate() {
            if ids.len() as i64 > self.config.context_length {
                return Err(wrong(format!(
                    "text {i} has {} tokens, the model accepts {}",
                    ids.len(),
                    self.config.context_length
                )));
            }
            if self.config.pooling == TextPooling::Last
                && ids.len() as i64 != self.config.context_length
            {
                return Err(wrong(format!(
                    "text {i} has {} tokens, but the model reads texts that are padded to {}",
                    ids.len(),
                    self.config.context_length
                )));
            }
            let at = self.config.pooling.position(ids).ok_or_else(|| {
                let problem = self.config.pooling.check(ids).err().unwrap_or_default();
                wrong(format!("text {i} has no end-of-text token: {problem}"))
            })?;
            pooled.push(at as i64);
        }
        if pooled.is_empty() {
            return Err(wrong("there is no text to embed".into()));
        }
        Ok(pooled)
    }

    /// Returns the first stage that depends on this parameter: a [`TowerState`] before that stage
    /// stays valid when the parameter changes. Returns `None` when the parameter acts before the
    /// first block or outside both towers.
    pub fn first_stage(&self, id: ParameterId) -> Option<Stage> {
        let spec = self.architecture.spec(id);
        (spec.tower.is_some() && spec.stage != Stage::Embed).then_some(spec.stage)
    }

    /// Returns unit embeddings `[n, embedding]`.
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error.
    pub fn embed(&self, weights: &Weights, input: Input<'_>) -> Result<Tensor, Error> {
        self.finish(weights, input.tower(), self.start(weights, input)?)
    }

    /// Computes everything before the first block.
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error.
    pub fn start(&self, weights: &Weights, input: Input<'_>) -> Result<TowerState, Error> {
        match input {
            Input::Images(pixels) => {
                let tower = &self.architecture.vision;
                let patch = weights.operand(tower.patch)?;
                // Pixels may be on the host: a whole shard can exceed the device's memory, one pass
                // does not.
                let patches = self.patches(&pixels.f_to(patch.device())?)?;
                let mut hidden = weights
                    .linear(&patches, &patch.f_flatten(1, -1)?, None)?
                    .f_to_kind(Kind::Float)?;
                if let Some(bias) = tower.patch_bias {
                    hidden = hidden.f_add(weights.get(bias))?;
                }
                if let Some(class) = tower.class {
                    let class = weights
                        .get(class)
                        .f_expand([hidden.size()[0], 1, self.config.vision.width], false)?;
                    hidden = Tensor::f_cat(&[class, hidden], 1)?;
                }
                hidden = hidden.f_add(weights.get(tower.position))?;
                if let Some(before) = &tower.norm_before {
                    hidden = norm(weights, before, &hidden, &self.config.vision)?;
                }
                Ok(TowerState::embedded(hidden, Tokens::Images))
            }
            Input::Texts(batch) => {
                self.start_text(weights, batch, &self.token_embeddings(weights, &batch.ids)?)
            }
            Input::PrefixTree(tree) => {
                let tower = &self.architecture.text;
                let hidden =
                    Tensor::f_embedding(weights.get(tower.token), &tree.ids, -1, false, false)?;
                let hidden = hidden
                    .f_add(&weights.get(tower.position).f_index_select(0, &tree.positions)?)?;
                Ok(TowerState::embedded(hidden, Tokens::PrefixTree(tree.shallow_clone())))
            }
        }
    }

    /// Returns the embeddings of tokens `[…, width]` by their ids `[…]`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn token_embeddings(&self, weights: &Weights, ids: &Tensor) -> Result<Tensor, Error> {
        let table = weights.get(self.architecture.text.token);
        Ok(Tensor::f_embedding(table, ids, -1, false, false)?)
    }

    /// Computes what [`start`](Self::start) does for texts whose tokens have these embeddings
    /// `[texts, tokens, width]` in place of their own.
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error.
    pub fn start_text(
        &self,
        weights: &Weights,
        batch: &TokenBatch,
        embeddings: &Tensor,
    ) -> Result<TowerState, Error> {
        let positions = weights.get(self.architecture.text.position);
        let hidden = embeddings.f_add(&positions.f_narrow(0, 0, batch.ids.size()[1])?)?;
        Ok(TowerState::embedded(hidden, Tokens::Texts(batch.pooled.shallow_clone())))
    }

    /// Cuts images `[n, 3, s, s]` into flattened patches, row by row: `[n, patches, 3 · p · p]`.
    /// The patch embedding becomes a plain matrix product, which avoids cuDNN's convolutions and
    /// their separate plan for every shape.
    fn patches(&self, pixels: &Tensor) -> Result<Tensor, Error> {
        let (n, side) = (pixels.size()[0], self.config.patch_size);
        let across = self.config.image_size / side;
        let pixels = pixels.f_narrow(2, 0, across * side)?.f_narrow(3, 0, across * side)?;
        let grid =
            pixels.f_reshape([n, 3, across, side, across, side])?.f_permute([0, 2, 4, 1, 3, 5])?;
        Ok(grid.f_reshape([n, across * across, 3 * side * side])?)
    }

    /// Computes the tower up to, but not including, `stage`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn advance(
        &self,
        weights: &Weights,
        tower: Tower,
        state: &TowerState,
        stage: Stage,
    ) -> Result<TowerState, Error> {
        let config = self.tower_config(tower);
        let blocks = self.blocks(tower);
        let mut now = state.shallow_clone();
        while now.stage() < stage {
            let Some(block) = blocks.get(now.block) else { break };
            let last = now.block + 1 == blocks.len();
            now.activations = match now.activations {
                Activations::Attention { x } => {
                    // Only the pooled token is read after the last block, so only that token is
                    // computed. An attention-pooling head has no other.
                    let reach = if last { Reach::Pooled } else { Reach::All };
                    let (x, attended) =
                        block::attention(weights, block, config, &x, &now.tokens, reach)?;
                    Activations::OutProj { x, attended }
                }
                Activations::OutProj { x, attended } => {
                    Activations::Fc1 { x: block::out_proj(weights, block, &x, &attended)? }
                }
                Activations::Fc1 { x } => {
                    Activations::Fc2 { inner: block::fc1(weights, block, config, &x)?, x }
                }
                Activations::Fc2 { x, inner } => {
                    let x = block::fc2(weights, block, &x, &inner)?;
                    now.block += 1;
                    if last { Activations::Project { x } } else { Activations::Attention { x } }
                }
                Activations::Project { .. } => break,
            };
        }
        Ok(now)
    }

    /// Repeats the items `times` times, one group after another, as weights that hold a stack of
    /// tensors for one parameter require.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn repeat(
        &self,
        tower: Tower,
        state: &TowerState,
        times: i64,
    ) -> Result<TowerState, Error> {
        let pooled = state.stage() > Stage::Block(self.blocks(tower).len() - 1, Part::Attention);
        let tokens = match &state.tokens {
            Tokens::Images => Tokens::Images,
            Tokens::Texts(pooled) | Tokens::PrefixTree(PrefixTree { pooled, .. }) => {
                Tokens::Texts(pooled.f_repeat([times])?)
            }
        };
        let activations = state.activations.map(|tensor| -> Result<Tensor, Error> {
            let tensor = match &state.tokens {
                Tokens::PrefixTree(tree) if !pooled => tree.to_tokens(tensor)?,
                _ => tensor.shallow_clone(),
            };
            let mut repeats = vec![1; tensor.dim()];
            repeats[0] = times;
            Ok(tensor.f_repeat(repeats)?)
        })?;
        Ok(TowerState { activations, tokens, block: state.block })
    }

    /// Computes the rest of a tower and returns unit embeddings `[n, embedding]`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn finish(
        &self,
        weights: &Weights,
        tower: Tower,
        state: TowerState,
    ) -> Result<Tensor, Error> {
        let Activations::Project { x: pooled } =
            self.advance(weights, tower, &state, Stage::Project)?.activations
        else {
            return Err(Error::Tensor {
                tensor: "hidden".into(),
                problem: "does not reach the projection".into(),
            });
        };
        let (after, projection) = match tower {
            Tower::Vision => {
                (&self.architecture.vision.norm_after, &self.architecture.vision.projection)
            }
            Tower::Text => (&self.architecture.text.norm_after, &self.architecture.text.projection),
        };
        let pooled = match after {
            Some(after) => norm(weights, after, &pooled, self.tower_config(tower))?,
            None => pooled,
        };
        let embedding = match projection {
            Some(projection) => {
                let weight = weights.operand(projection.weight)?;
                let weight = match projection.is_transposed {
                    true => weight.f_transpose(-2, -1)?,
                    false => weight,
                };
                let bias = projection.bias.map(|bias| weights.operand(bias)).transpose()?;
                weights.linear(&pooled, &weight, bias.as_ref())?
            }
            None => pooled,
        };
        let embedding = embedding.f_to_kind(Kind::Float)?;
        let length = embedding.f_norm_scalaropt_dim(2, [-1], true)?;
        Ok(embedding.f_div(&length)?)
    }

    /// Estimates, on the high side, the bytes that one item of `tokens` tokens takes in a pass
    /// through a tower. With an autograd graph every block's saved activations count; without one
    /// only the peak of a single block does.
    pub fn pass_bytes(&self, tower: Tower, tokens: i64, graph: bool) -> u64 {
        let config = self.tower_config(tower);
        let (width, mlp) = (config.width.unsigned_abs(), config.mlp_width.unsigned_abs());
        let floats = match graph {
            // Two layer norm outputs, queries, keys, values, attention output, two residual sums;
            // MLP units before, during and after activation.
            true => (9 * width + 4 * mlp) * config.layers as u64,
            false => 8 * width + 3 * mlp,
        };
        size_of::<f32>() as u64 * tokens.unsigned_abs() * floats
    }

    /// Estimates the bytes of one image-text pair in the same way, with an autograd graph in each
    /// tower that contains one of `layers`. `image_embedded` says that the image's embedding is
    /// already known.
    pub fn pair_bytes(&self, layers: &[ParameterId], tokens: i64, image_embedded: bool) -> u64 {
        let graph =
            |tower| layers.iter().any(|&layer| self.architecture.spec(layer).tower == Some(tower));
        let image = if image_embedded {
            0
        } else {
            self.pass_bytes(Tower::Vision, self.config.image_tokens(), graph(Tower::Vision))
        };
        image + self.pass_bytes(Tower::Text, tokens, graph(Tower::Text))
    }

    /// Returns the number of blocks in a tower; an attention-pooling head counts as one.
    pub fn block_count(&self, tower: Tower) -> usize {
        self.blocks(tower).len()
    }

    /// Returns the weight of every block's `fc2`, the second linear layer of its MLP.
    pub fn fc2_layers(&self, tower: Tower) -> Vec<ParameterId> {
        self.blocks(tower).iter().map(|block| block.fc2.weight).collect()
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
    fn pass_estimates_are_at_least_the_measured_memory() {
        let large = serde_json::json!({ "model_type": "clip", "projection_dim": 768,
            "text_config": { "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12 },
            "vision_config": { "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "image_size": 224, "patch_size": 14 } });
        let clip = Clip::new(ClipConfig::from_json("config.json", &large).unwrap());
        let gigabytes = |tower, tokens, graph| clip.pass_bytes(tower, tokens, graph) as f64 / 1e9;
        // 32 pairs in one pass through both towers of ViT-L/14 took 11 GB more than the model and
        // its gradients.
        let pair = gigabytes(Tower::Vision, 257, true) + gigabytes(Tower::Text, 10, true);
        assert!((0.35..0.8).contains(&pair), "{pair} GB");
        assert!(gigabytes(Tower::Vision, 257, false) < 0.05 * pair);
        let text = clip
            .architecture()
            .ids()
            .find(|&id| clip.architecture().spec(id).tower == Some(Tower::Text))
            .unwrap();
        let text_only = clip.pair_bytes(&[text], 10, true);
        assert_eq!(text_only, clip.pass_bytes(Tower::Text, 10, true));
        assert_eq!(
            clip.pair_bytes(&[text], 10, false),
            text_only + clip.pass_bytes(Tower::Vision, 257, false)
        );
    }
}

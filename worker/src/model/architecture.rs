//! Names, shapes and roles of a CLIP's parameters in every checkpoint layout.

use std::collections::{BTreeMap, HashSet};

use lethe_shared::checkpoint::{Dtype, Map, PoolNames, TensorInfo};
use lethe_shared::vocabulary::Tower;

use super::config::{ClipConfig, Contrast, TowerConfig};

/// Index of a parameter in [`Architecture::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(pub(super) usize);

/// The role of a parameter, which decides whether it can be edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token, position, class or patch embedding, or the learned query of an attention-pooling head:
    /// never a candidate.
    Embedding,
    /// Weight of a linear layer: a candidate.
    Linear,
    /// Gain of a layer norm: a candidate when the manifest enables it.
    Gain,
    /// Any bias: never a candidate.
    Bias,
    /// The contrastive temperature, or the bias of logits: never a candidate.
    Scale,
}

/// The stage of a tower in which a parameter acts. A change of the parameter leaves all earlier
/// stages unchanged. An attention-pooling head counts as one more block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the first block.
    Embed,
    /// In one part of a block.
    Block(usize, Part),
    /// After the last block: final norm and projection.
    Project,
}

impl Stage {
    /// Returns the first stage of the same block; `None` outside of blocks.
    #[must_use]
    pub fn block_start(self) -> Option<Self> {
        match self {
            Self::Block(block, _) => Some(Self::Block(block, Part::Attention)),
            Self::Embed | Self::Project => None,
        }
    }
}

/// The parts of a transformer block, in the order of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The first layer norm, the query, key and value projections, and attention itself.
    Attention,
    /// The projection of the attention heads back to the residual stream (`out_proj`).
    OutProj,
    /// The second layer norm and the first linear layer of the MLP with its activation (`fc1`).
    Fc1,
    /// The second linear layer of the MLP, back to the residual stream (`fc2`).
    Fc2,
}

impl Part {
    /// All parts, in order.
    pub const ALL: [Self; 4] = [Self::Attention, Self::OutProj, Self::Fc1, Self::Fc2];
}

/// One parameter of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<i64>,
    /// Its role.
    pub role: Role,
    /// The tower it belongs to; `None` for `logit_scale` and `logit_bias`.
    pub tower: Option<Tower>,
    /// The stage in which it acts.
    pub stage: Stage,
}

#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) gain: ParameterId,
    pub(super) bias: ParameterId,
}

#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) weight: ParameterId,
    pub(super) bias: ParameterId,
}

#[derive(Debug, Clone)]
pub(super) enum QueryKeyValue {
    /// Three weights `[width, width]`.
    Split { query: Linear, key: Linear, value: Linear },
    /// One weight `[3 · width, width]`: queries, keys, values, in this order.
    Fused(Linear),
    /// A weight `[width, width]` of queries, and one `[2 · width, width]`: keys, values.
    QueryAndFused { query: Linear, key_value: Linear },
}

/// A transformer block, or an attention-pooling head: a block with one query of its own in place of
/// the tokens', to whose output nothing is added.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// The query of an attention-pooling head `[1, 1, width]`.
    pub(super) probe: Option<ParameterId>,
    pub(super) norm1: Norm,
    pub(super) attention: QueryKeyValue,
    pub(super) out_proj: Linear,
    pub(super) norm2: Norm,
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
}

/// The projection into the shared space.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) weight: ParameterId,
    pub(super) bias: Option<ParameterId>,
    /// Whether the weight is stored `[in, out]`.
    pub(super) is_transposed: bool,
}

#[derive(Debug, Clone)]
pub(super) struct VisionTower {
    pub(super) class: Option<ParameterId>,
    pub(super) patch: ParameterId,
    pub(super) patch_bias: Option<ParameterId>,
    pub(super) position: ParameterId,
    pub(super) norm_before: Option<Norm>,
    /// The blocks, and after them the attention-pooling head, if there is one.
    pub(super) blocks: Vec<Block>,
    /// The last norm; `None` where the attention-pooling head has it.
    pub(super) norm_after: Option<Norm>,
    pub(super) projection: Option<Projection>,
}

#[derive(Debug, Clone)]
pub(super) struct TextTower {
    pub(super) token: ParameterId,
    pub(super) position: ParameterId,
    pub(super) blocks: Vec<Block>,
    pub(super) norm_after: Option<Norm>,
    pub(super) projection: Option<Projection>,
}

/// Tensors that some checkpoints have besides the parameters: constants that both libraries compute
/// anew, and the bias that is added to every logit, which has no effect on a softmax.
const BUFFERS: [&str; 7] = [
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
    "logit_bias",
];

/// All parameters of a model and their roles.
#[derive(Debug, Clone)]
pub struct Architecture {
    parameters: Vec<ParameterSpec>,
    pub(super) vision: VisionTower,
    pub(super) text: TextTower,
    pub(super) logit_scale: ParameterId,
    /// Of a model that was trained with the sigmoid loss.
    pub(super) logit_bias: Option<ParameterId>,
}

impl Architecture {
    /// Lists the parameters that a checkpoint of this configuration contains.
    pub fn new(config: &ClipConfig) -> Self {
        let mut builder = Builder { parameters: Vec::new(), tower: None, stage: Stage::Project };
        let logit_scale = builder.add("logit_scale".into(), vec![], Role::Scale);
        let logit_bias = match config.contrast {
            Contrast::Softmax => None,
            Contrast::Sigmoid => Some(builder.add("logit_bias".into(), vec![], Role::Scale)),
        };
        let text = text_tower(&mut builder, config);
        let vision = vision_tower(&mut builder, config);
        Self { parameters: builder.parameters, vision, text, logit_scale, logit_bias }
    }

    /// Returns all parameters, indexed by [`ParameterId`].
    pub fn parameters(&self) -> &[ParameterSpec] {
        &self.parameters
    }

    /// Returns the ids of all parameters, in order.
    pub fn ids(&self) -> impl Iterator<Item = ParameterId> + use<> {
        (0..self.parameters.len()).map(ParameterId)
    }

    /// Returns the description of a parameter.
    pub fn spec(&self, id: ParameterId) -> &ParameterSpec {
        &self.parameters[id.0]
    }

    /// Looks a parameter up by its name in the checkpoint.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.parameters.iter().position(|p| p.name == name).map(ParameterId)
    }

    /// Compares the tensors of a checkpoint with the parameters: a sentence for each tensor that is
    /// missing, of another shape or type, or no part of the architecture. Such a part would change
    /// the forward pass of the library that wrote it, or hold the model once more.
    pub fn problems(&self, tensors: &BTreeMap<String, TensorInfo>) -> Vec<String> {
        let mut problems = Vec::new();
        for spec in &self.parameters {
            let name = &spec.name;
            let Some(info) = tensors.get(name) else {
                problems.push(format!(
                    "tensor `{name}` is missing from the checkpoint; check that its configuration belongs to these weights"
                ));
                continue;
            };
            let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
            // `logit_scale` is stored as [], by SigLIPs and some converters as [1].
            if shape != spec.shape && !(spec.shape.is_empty() && shape == [1]) {
                problems.push(format!(
                    "tensor `{name}` has shape {shape:?}, but the configuration requires {:?}",
                    spec.shape
                ));
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
                problems.push(format!(
                    "tensor `{name}` is stored as {:?}; weights must be F32, F16, BF16 or F64",
                    info.dtype
                ));
            }
        }
        let known: HashSet<&str> = self.parameters.iter().map(|spec| spec.name.as_str()).collect();
        let unknown = tensors
            .keys()
            .filter(|name| !known.contains(name.as_str()) && !BUFFERS.contains(&name.as_str()));
        problems.extend(unknown.map(|name| {
            format!(
                "tensor `{}` is no part of the CLIP that the configuration describes; Lethe edits ViT CLIPs and SigLIPs",
                name.escape_debug()
            )
        }));
        problems
    }

    /// Returns the layers that may be edited (method.md, "Which layers are candidates"): linear
    /// weights of both towers, and layer norm gains when `gains` is set.
    pub fn candidates(&self, gains: bool) -> Vec<ParameterId> {
        self.ids()
            .filter(|&id| match self.spec(id).role {
                Role::Linear => true,
                Role::Gain => gains,
                Role::Embedding | Role::Bias | Role::Scale => false,
            })
            .collect()
    }
}

/// Collects the parameters of a layout.
struct Builder {
    parameters: Vec<ParameterSpec>,
    tower: Option<Tower>,
    stage: Stage,
}

impl Builder {
    fn add(&mut self, name: String, shape: Vec<i64>, role: Role) -> ParameterId {
        self.parameters.push(ParameterSpec {
            name,
            shape,
            role,
            tower: self.tower,
            stage: self.stage,
        });
        ParameterId(self.parameters.len() - 1)
    }

    fn norm(&mut self, prefix: &str, width: i64) -> Norm {
        Norm {
            gain: self.add(format!("{prefix}.weight"), vec![width], Role::Gain),
            bias: self.add(format!("{prefix}.bias"), vec![width], Role::Bias),
        }
    }

    fn linear(&mut self, prefix: &str, output: i64, input: i64) -> Linear {
        self.linear_named(format!("{prefix}.weight"), format!("{prefix}.bias"), output, input)
    }

    fn linear_named(&mut self, weight: String, bias: String, output: i64, input: i64) -> Linear {
        Linear {
            weight: self.add(weight, vec![output, input], Role::Linear),
            bias: self.add(bias, vec![output], Role::Bias),
        }
    }

    /// Sets the stage of the parameters that are added next.
    fn part(&mut self, block: usize, part: Part) -> &mut Self {
        self.stage = Stage::Block(block, part);
        self
    }

    fn at(&mut self, tower: Option<Tower>, stage: Stage) {
        self.tower = tower;
        self.stage = stage;
    }
}

/// Collects the parameters of one tower.
struct TowerBuilder<'a> {
    builder: &'a mut Builder,
    config: TowerConfig,
}

impl TowerBuilder<'_> {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.config.names.prefix)
    }

    /// Adds a tensor of the tower outside of its blocks.
    fn embedding(&mut self, name: &str, shape: Vec<i64>) -> ParameterId {
        self.builder.add(self.named(name), shape, Role::Embedding)
    }

    fn norm(&mut self, name: &str) -> Norm {
        self.builder.norm(&self.named(name), self.config.width)
    }

    fn linear(&mut self, name: &str, output: i64, input: i64) -> Linear {
        self.builder.linear(&self.named(name), output, input)
    }

    /// Adds a linear layer of this width whose outputs are `parts` times as wide.
    fn fused(&mut self, name: &str, parts: i64) -> Linear {
        let (name, width) = (self.named(name), self.config.width);
        self.builder.linear_named(
            format!("{name}weight"),
            format!("{name}bias"),
            parts * width,
            width,
        )
    }

    fn part(&mut self, block: usize, part: Part) -> &mut Self {
        self.builder.part(block, part);
        self
    }

    fn projection(&mut self, embedding: i64) -> Option<Projection> {
        let TowerConfig { names, width, .. } = self.config;
        let named = names.projection(names.prefix)?;
        let shape =
            if named.is_transposed { vec![width, embedding] } else { vec![embedding, width] };
        Some(Projection {
            weight: self.builder.add(named.weight, shape, Role::Linear),
            bias: named.bias.map(|name| self.builder.add(name, vec![embedding], Role::Bias)),
            is_transposed: named.is_transposed,
        })
    }

    /// Adds the blocks and the norm after them; a pooling head has that norm itself.
    fn blocks(&mut self) -> (Vec<Block>, Option<Norm>) {
        let TowerConfig { names, layers, .. } = self.config;
        let mut blocks: Vec<Block> = (0..layers).map(|block| self.block(block)).collect();
        match names.pool {
            Some(pool) => {
                blocks.push(self.pool(pool));
                (blocks, None)
            }
            None => {
                self.builder.stage = Stage::Project;
                (blocks, Some(self.norm(names.last_norm)))
            }
        }
    }

    fn block(&mut self, block: usize) -> Block {
        let TowerConfig { names, width, mlp_width, .. } = self.config;
        let named = |map| {
            let name = names.maps.iter().find(|(of, _)| *of == map).map_or("", |(_, name)| name);
            format!("{}.{block}.{name}", names.block)
        };
        Block {
            probe: None,
            norm1: self.part(block, Part::Attention).norm(&named(Map::Norm1)),
            attention: match names.fused {
                Some(fused) => {
                    let name = format!("{}.{block}.{fused}", names.block);
                    QueryKeyValue::Fused(self.fused(&name, 3))
                }
                None => QueryKeyValue::Split {
                    query: self.linear(&named(Map::Query), width, width),
                    key: self.linear(&named(Map::Key), width, width),
                    value: self.linear(&named(Map::Value), width, width),
                },
            },
            out_proj: self.part(block, Part::OutProj).linear(&named(Map::OutProj), width, width),
            norm2: self.part(block, Part::Fc1).norm(&named(Map::Norm2)),
            fc1: self.linear(&named(Map::Fc1), mlp_width, width),
            fc2: self.part(block, Part::Fc2).linear(&named(Map::Fc2), width, mlp_width),
        }
    }

    fn pool(&mut self, pool: &PoolNames) -> Block {
        let TowerConfig { names, width, mlp_width, layers, .. } = self.config;
        let at = self.part(layers, Part::Attention);
        Block {
            probe: Some(at.embedding(pool.probe, vec![1, 1, width])),
            norm1: at.norm(names.last_norm),
            attention: match pool.query {
                Some(query) => QueryKeyValue::QueryAndFused {
                    query: at.linear(query, width, width),
                    key_value: at.fused(pool.fused, 2),
                },
                None => QueryKeyValue::Fused(at.fused(pool.fused, 3)),
            },
            out_proj: at.part(layers, Part::OutProj).linear(pool.out_proj, width, width),
            norm2: at.part(layers, Part::Fc1).norm(pool.norm),
            fc1: at.linear(pool.fc1, mlp_width, width),
            fc2: at.part(layers, Part::Fc2).linear(pool.fc2, width, mlp_width),
        }
    }
}

fn text_tower(builder: &mut Builder, config: &ClipConfig) -> TextTower {
    builder.at(Some(Tower::Text), Stage::Embed);
    let TowerConfig { names, width, .. } = config.text;
    let mut tower = TowerBuilder { builder, config: config.text };
    let token = tower.embedding(names.input, vec![config.vocabulary, width]);
    let position = tower.embedding(names.position, vec![config.context_length, width]);
    let (blocks, norm_after) = tower.blocks();
    let projection = tower.projection(config.embedding);
    TextTower { token, position, blocks, norm_after, projection }
}

fn vision_tower(builder: &mut Builder, config: &ClipConfig) -> VisionTower {
    builder.at(Some(Tower::Vision), Stage::Embed);
    let TowerConfig { names, width, .. } = config.vision;
    let mut tower = TowerBuilder { builder, config: config.vision };
    let class = names.class.map(|name| tower.embedding(name, vec![width]));
    let patch = tower.embedding(names.input, vec![width, 3, config.patch_size, config.patch_size]);
    let patch_bias =
        names.input_bias.map(|name| tower.builder.add(tower.named(name), vec![width], Role::Bias));
    let tokens = config.image_tokens();
    // timm's position embedding has a dimension for the batch.
    let shape =
        if names.is_position_batched { vec![1, tokens, width] } else { vec![tokens, width] };
    let position = tower.embedding(names.position, shape);
    let norm_before = names.first_norm.map(|name| tower.norm(name));
    let (blocks, norm_after) = tower.blocks();
    let projection = tower.projection(config.embedding);
    VisionTower { class, patch, patch_bias, position, norm_before, blocks, norm_after, projection }
}

//! Names, shapes and roles of CLIP's parameters in both checkpoint layouts.

use std::collections::{BTreeMap, HashSet};

use lethe_shared::checkpoint::{Dtype, Map, Names, TensorInfo};
use lethe_shared::vocabulary::Tower;

use super::config::{ClipConfig, TowerConfig};

/// Index of a parameter in [`Architecture::parameters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(pub(super) usize);

/// The role of a parameter, which decides whether it can be edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token, position, class or patch embedding: never a candidate.
    Embedding,
    /// Weight of a linear layer: a candidate.
    Linear,
    /// Gain of a layer norm: a candidate when the manifest enables it.
    Gain,
    /// Any bias: never a candidate.
    Bias,
    /// The contrastive temperature: never a candidate.
    Scale,
}

/// The stage of a tower in which a parameter acts. A change of the parameter leaves all earlier
/// stages unchanged.
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
    /// The tower it belongs to; `None` for `logit_scale`.
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
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) norm1: Norm,
    pub(super) attention: QueryKeyValue,
    pub(super) out_proj: Linear,
    pub(super) norm2: Norm,
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
}

#[derive(Debug, Clone)]
pub(super) struct VisionTower {
    pub(super) class: ParameterId,
    pub(super) patch: ParameterId,
    pub(super) position: ParameterId,
    pub(super) norm_before: Norm,
    pub(super) blocks: Vec<Block>,
    pub(super) norm_after: Norm,
    pub(super) projection: ParameterId,
}

#[derive(Debug, Clone)]
pub(super) struct TextTower {
    pub(super) token: ParameterId,
    pub(super) position: ParameterId,
    pub(super) blocks: Vec<Block>,
    pub(super) norm_after: Norm,
    pub(super) projection: ParameterId,
}

/// Tensors that some checkpoints have besides the parameters: constants that both libraries compute
/// anew, and the bias that is added to every logit.
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
}

impl Architecture {
    /// Lists the parameters that a checkpoint of this configuration contains.
    pub fn new(config: &ClipConfig) -> Self {
        let mut builder = Builder { parameters: Vec::new(), tower: None, stage: Stage::Project };
        let logit_scale = builder.add("logit_scale".into(), vec![], Role::Scale);
        let text = text_tower(&mut builder, config);
        let vision = vision_tower(&mut builder, config);
        Self { parameters: builder.parameters, vision, text, logit_scale }
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
            // Both libraries store logit_scale as []; some converters store it as [1].
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
                "tensor `{}` is no part of the CLIP that the configuration describes; Lethe edits plain ViT CLIPs",
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
    names: &'static Names,
    config: TowerConfig,
}

impl TowerBuilder<'_> {
    /// Adds a tensor of the tower outside of its blocks.
    fn embedding(&mut self, name: &str, shape: Vec<i64>) -> ParameterId {
        self.builder.add(format!("{}{name}", self.names.prefix), shape, Role::Embedding)
    }

    fn norm(&mut self, name: &str) -> Norm {
        self.builder.norm(&format!("{}{name}", self.names.prefix), self.config.width)
    }

    fn projection(&mut self, embedding: i64) -> ParameterId {
        let width = self.config.width;
        let shape = if self.names.is_projection_transposed {
            vec![width, embedding]
        } else {
            vec![embedding, width]
        };
        self.builder.add(self.names.projection(self.names.prefix), shape, Role::Linear)
    }

    fn blocks(&mut self) -> Vec<Block> {
        (0..self.config.layers).map(|block| self.block(block)).collect()
    }

    fn block(&mut self, block: usize) -> Block {
        let TowerConfig { width, mlp_width, .. } = self.config;
        let (b, names) = (&mut *self.builder, self.names);
        let named = |map| names.map(block, map).unwrap_or_default();
        Block {
            norm1: b.part(block, Part::Attention).norm(&named(Map::Norm1), width),
            attention: match names.fused {
                Some(fused) => {
                    let name = format!("{}{}.{block}.{fused}", names.prefix, names.block);
                    QueryKeyValue::Fused(b.linear_named(
                        format!("{name}weight"),
                        format!("{name}bias"),
                        3 * width,
                        width,
                    ))
                }
                None => QueryKeyValue::Split {
                    query: b.linear(&named(Map::Query), width, width),
                    key: b.linear(&named(Map::Key), width, width),
                    value: b.linear(&named(Map::Value), width, width),
                },
            },
            out_proj: b.part(block, Part::OutProj).linear(&named(Map::OutProj), width, width),
            norm2: b.part(block, Part::Fc1).norm(&named(Map::Norm2), width),
            fc1: b.linear(&named(Map::Fc1), mlp_width, width),
            fc2: b.part(block, Part::Fc2).linear(&named(Map::Fc2), width, mlp_width),
        }
    }
}

fn text_tower(builder: &mut Builder, config: &ClipConfig) -> TextTower {
    builder.at(Some(Tower::Text), Stage::Embed);
    let names = Names::of(config.layout, Tower::Text);
    let mut tower = TowerBuilder { builder, names, config: config.text };
    let width = config.text.width;
    let token = tower.embedding(names.input, vec![config.vocabulary, width]);
    let position = tower.embedding(names.position, vec![config.context_length, width]);
    let blocks = tower.blocks();
    tower.builder.at(Some(Tower::Text), Stage::Project);
    let norm_after = tower.norm(names.last_norm);
    let projection = tower.projection(config.embedding);
    TextTower { token, position, blocks, norm_after, projection }
}

fn vision_tower(builder: &mut Builder, config: &ClipConfig) -> VisionTower {
    builder.at(Some(Tower::Vision), Stage::Embed);
    let names = Names::of(config.layout, Tower::Vision);
    let mut tower = TowerBuilder { builder, names, config: config.vision };
    let width = config.vision.width;
    let class = tower.embedding(names.class.unwrap_or_default(), vec![width]);
    let patch = tower.embedding(names.input, vec![width, 3, config.patch_size, config.patch_size]);
    let position = tower.embedding(names.position, vec![config.image_tokens(), width]);
    let norm_before = tower.norm(names.first_norm.unwrap_or_default());
    let blocks = tower.blocks();
    tower.builder.at(Some(Tower::Vision), Stage::Project);
    let norm_after = tower.norm(names.last_norm);
    let projection = tower.projection(config.embedding);
    VisionTower { class, patch, position, norm_before, blocks, norm_after, projection }
}

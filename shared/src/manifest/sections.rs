//! The sections of a manifest as they are written, with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::concepts;
use super::error::Error;
use super::gates::Gates;
use super::targets::ReleaseTarget;
use crate::address::Address;
use crate::vocabulary::{MethodSettings, Precision, Stop, TextTokens, Tower, Towers};

/// A manifest as it is written; see [the module](super) for an overview.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Lethe manifest")]
pub struct Manifest {
    /// Version of this format: 1.
    pub version: u32,
    /// Name of the run and of the release: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// The model to edit.
    pub model: ModelSection,
    /// Data that must be retained, and data for evaluation.
    pub data: DataSection,
    /// The concepts to remove.
    pub concepts: ConceptsSection,
    /// How edits are searched for.
    #[serde(default)]
    pub method: MethodSection,
    /// How edits are composed.
    #[serde(default)]
    pub composition: CompositionSection,
    /// When a run counts as complete.
    #[serde(default)]
    pub policy: PolicySection,
    /// Bounds that the release must meet before `latest` is moved to it; a run that misses one ends
    /// with exit code 4.
    #[serde(default)]
    pub gates: Gates,
    /// What the release is measured by, beside its accuracy.
    #[serde(default, skip_serializing_if = "EvaluationSection::is_empty")]
    pub evaluation: EvaluationSection,
    /// What a run computes on: `workers` and `device` apply without `--nats`, `arithmetic` to every
    /// run.
    #[serde(default)]
    pub execution: ExecutionSection,
    /// Where results are written.
    #[serde(default)]
    pub release: ReleaseSection,
    /// The file that it was read from.
    #[serde(skip)]
    pub file: PathBuf,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Folder of a CLIP checkpoint as `transformers` or open_clip writes it.
    pub uri: String,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// WebDataset shards of image-text pairs that the model must retain.
    pub retain: Vec<String>,
    /// UTF-8 text files with one unlabelled text per line, from any corpus that does not name the
    /// removed concepts. They extend the retain statistics of the text tower, and so protect more.
    #[serde(default)]
    pub retain_texts: Vec<String>,
    /// Shards of images that show none of the removed concepts; captions are ignored. They extend
    /// the retain statistics of the vision tower.
    #[serde(default)]
    pub retain_images: Vec<String>,
    /// UTF-8 text file with one name per line. The template makes texts of them, whose embeddings
    /// must not change: edits of the text tower avoid the inputs that these texts give to the
    /// edited layer. `gates.protected` bounds the remaining change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<String>,
    /// Shards that the step search and the choice of a layer may use; captions are class names.
    /// Without any, the smaller change decides between equal layers.
    #[serde(default)]
    pub validation: Vec<String>,
    /// Shards that are used for the report only; captions are class names.
    #[serde(default)]
    pub test: Vec<String>,
    /// File of zero-shot class names, one per line.
    pub classes: String,
    /// Prompt in which `{}` or `{name}` stands for the class name.
    #[serde(default = "default_template")]
    pub template: String,
}

fn default_template() -> String {
    "{}".to_owned()
}

/// `[concepts]`: a table or a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConceptsSection {
    /// CSV or JSONL file with the columns `id`, `name`, `class`, `forget`, `strength`, `group`,
    /// `stop`, `tolerance`.
    #[serde(default)]
    pub table: Option<String>,
    /// The same fields in the manifest itself.
    #[serde(default)]
    pub list: Vec<concepts::Row>,
    /// Strengths of groups; each is multiplied by the strength of the concept.
    #[serde(default)]
    pub groups: BTreeMap<String, f64>,
}

/// `[method]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MethodSection {
    /// Pairs per gradient batch.
    #[schemars(range(min = 2, max = 65536))]
    pub batch_size: u32,
    /// Not for `margins`: steps tried on a concept's layer, or with a search of SLUG (`sum`, `mean`,
    /// `ties`, `dare`), on each layer of its Pareto front.
    #[schemars(range(min = 1, max = 1000))]
    pub search_evaluations: u32,
    /// Not for `margins`: the search on a layer ends when the relative width of its bracket is below this; 0 uses all
    /// evaluations.
    pub search_tolerance: f64,
    /// The accuracy on a concept's forget set by which it counts as forgotten. The step search looks
    /// for 0; the verdict allows `composition.tolerance`.
    pub stop: Stop,
    /// `sum`, `mean`, `ties` and `dare`: whether the gains of layer norms are candidates as well. The
    /// other methods rank them for the record, and never edit them.
    pub normalisation_gains: bool,
    /// Precision of matrix multiplications in the towers.
    pub precision: Precision,
}

impl Default for MethodSection {
    fn default() -> Self {
        Self {
            batch_size: 128,
            search_evaluations: 10,
            search_tolerance: 0.0,
            stop: Stop::Fa5,
            normalisation_gains: false,
            precision: Precision::Float32,
        }
    }
}

impl From<&MethodSection> for MethodSettings {
    fn from(method: &MethodSection) -> Self {
        Self {
            batch_size: method.batch_size,
            search_evaluations: method.search_evaluations,
            search_tolerance: method.search_tolerance,
            stop: method.stop,
            normalisation_gains: method.normalisation_gains,
        }
    }
}

/// How edits are composed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CompositionMethod {
    /// Steps along D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹, with a coefficient per edit that is solved for
    /// all edits together. C and M are second moments over retained data, of a layer's inputs and
    /// of the gradients at its outputs.
    Preconditioned,
    /// One constraint per forget image: its own class must rank below others by a margin. All
    /// constraints are solved together at the least cost to retained data, without a search per
    /// concept, and measured again for some rounds.
    Margins,
    /// The states of a concept's texts are mapped to those of a mean text, by edits of the text tower
    /// that are solved for all concepts together (MEMIT, arXiv 2210.07229; EMCID, arXiv 2403.13807): at
    /// the token that CLIP reads, by edits of all layers that end an MLP; or at every token of the
    /// context, as diffusion pipelines read them, by edits of one layer.
    LeastSquares,
    /// Steps along g P, with coefficients solved together. P projects onto the directions with the
    /// smallest second moments over retained data (AlphaEdit, arXiv 2410.02355).
    NullSpace,
    /// θ_l + Σ α·λ·g over the edits of a layer: SLUG's full search per concept, summed as by its
    /// authors.
    Sum,
    /// The same edits, divided by the number of edits on each layer (model soups, arXiv
    /// 2203.05482).
    Mean,
    /// The same edits, merged by TIES (arXiv 2306.01708): trim, elect signs, average the values
    /// that agree.
    Ties,
    /// The same edits, merged by DARE (arXiv 2311.03099): drop values at random, scale up the rest,
    /// add.
    Dare,
}

impl CompositionMethod {
    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preconditioned => "preconditioned",
            Self::Margins => "margins",
            Self::LeastSquares => "least-squares",
            Self::NullSpace => "null-space",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Ties => "ties",
            Self::Dare => "dare",
        }
    }

    /// Returns whether directions are preconditioned by second moments and all edits solved
    /// together; otherwise each edit is the result of SLUG's full search.
    pub fn corrects(self) -> bool {
        matches!(self, Self::Preconditioned | Self::Margins | Self::LeastSquares | Self::NullSpace)
    }
}

/// The layers that a concept's edit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// One layer, the same for all concepts: the one that keeps most when all are removed.
    One,
    /// All layers that end an MLP.
    All,
}

impl Spread {
    /// Returns the default for edits of a tower.
    pub fn of(tower: Tower) -> Self {
        match tower {
            Tower::Text => Self::One,
            Tower::Vision => Self::All,
        }
    }
}

/// `[composition]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompositionSection {
    /// The method. By default `margins`, unless edits may change the text tower only; then
    /// `least-squares` where the text tower's MLPs have 2,048 units or more or a diffusion pipeline is
    /// among the targets, and `preconditioned` where they do not or where the manifest has a setting
    /// that only `preconditioned` knows. A field that names no method applies to `preconditioned`,
    /// `null-space` and `margins`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<CompositionMethod>,
    /// Towers that edits may change; only their layers are scored. (SLUG's full search, of `sum`,
    /// `mean`, `ties` and `dare`, always uses both.)
    pub towers: Towers,
    /// The one layer that edits change, by the name of its weight in the checkpoint. By default the
    /// run selects layers. Not with the targets of two towers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// `preconditioned` and `null-space`: most layers that the edits of a run are distributed over.
    #[schemars(range(min = 1, max = 64))]
    pub layers: u32,
    /// `margins`: whether a concept's edit is spread over all layers that end an MLP, or changes
    /// one. By default `one` for the text tower and `all` for the vision tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// `margins`: by how much of a cosine the class of a forget image must rank below the k-th best
    /// other class, where k follows from `method.stop` (`fa5`: the fifth). A larger value forgets more on images that
    /// are not in the forget set, and costs more. By default 0.02 for the text tower and 0.05 for
    /// the vision tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// `margins` with both towers: what a change of image embeddings costs, relative to the same
    /// change of text embeddings. A larger value leaves more of the removal to the text tower. By
    /// default 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vision_cost: Option<f64>,
    /// `margins`: most forget images of a concept that become constraints. `least-squares`: most
    /// texts of a concept that are mapped: its class text, and captions of its pairs.
    #[schemars(range(min = 1, max = 1024))]
    pub images: u32,
    /// Largest rank of a concept's direction at a layer. A smaller rank makes
    /// the edits in a release smaller and less efficient. By default 2 for the text tower; for the
    /// vision tower 32 with `margins`, and no limit otherwise; with `least-squares` 8, or 1 with tokens =
    /// "read".
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// `least-squares`: weight of retained texts, in concepts. A larger value keeps more and leaves
    /// more of what is removed. By default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_weight: Option<f64>,
    /// `least-squares`: which states of a removed text change. `all`: those of every token, by edits of
    /// the last layer that ends an MLP, for diffusion pipelines. `read`: that of the token which CLIP
    /// reads, by edits that are spread over all layers that end an MLP; retained classes keep more. By
    /// default `all` where a diffusion pipeline is among the targets, and `read` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TextTokens>,
    /// `preconditioned` and `margins`: ridge ρ on the second moments of inputs, as a share of their
    /// mean diagonal. A larger value shortens the steps and protects less.
    pub ridge: f64,
    /// `preconditioned` and `margins`: ridge ρ_M on the second moments of gradients at the outputs
    /// of a layer, as a share of their mean diagonal. A smaller value turns edits more towards
    /// outputs that retained data is insensitive to; 1000 and more turns this correction off.
    pub output_ridge: f64,
    /// `null-space`: largest share of the trace of the second moments in the subspace that edits
    /// may use.
    pub null_energy: f64,
    /// `ties`: share of the values of each edit that is kept.
    pub density: f64,
    /// `dare`: probability that a value of an edit is dropped.
    pub drop: f64,
    /// Weight of unlabelled data relative to the retain set in the second moments. A larger value
    /// protects unlabelled data more and the retain set less.
    pub unlabelled_weight: f64,
    /// `preconditioned`, `null-space` and `margins`: largest change of a layer, ‖Δ‖/‖θ‖, with the layer's original weights θ.
    /// Edits that change a layer more are all scaled by one factor; concepts that are not forgotten then are
    /// reported. By default there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<f64>,
    /// All methods: share of a concept's forget images that the verdict allows to be recognised by the
    /// measure `method.stop`. `preconditioned`, `null-space` and `least-squares` use it in their rounds too.
    pub tolerance: f64,
    /// Most rounds of evaluating the composed model on the forget sets and adjusting coefficients, or
    /// with `least-squares` solving the last layer again for concepts that are still recognised; 0
    /// uses them as solved. `margins` makes at least one.
    #[schemars(range(max = 100))]
    pub rounds: u32,
}

/// Width of the text tower's MLPs from which on `least-squares` is the default: narrower ones lose more
/// by it than by `preconditioned` (`docs/research/composition.md`).
const WIDE: u64 = 2048;

impl Default for CompositionSection {
    fn default() -> Self {
        Self {
            method: None,
            towers: Towers::default(),
            layer: None,
            layers: 1,
            spread: None,
            margin: None,
            vision_cost: None,
            images: 16,
            rank: None,
            retain_weight: None,
            tokens: None,
            ridge: 0.0003,
            output_ridge: 0.3,
            null_energy: 0.01,
            density: 0.2,
            drop: 0.9,
            unlabelled_weight: 0.5,
            change: None,
            tolerance: 0.0,
            rounds: 12,
        }
    }
}

impl CompositionSection {
    /// Returns the method. Where the manifest names none, it follows from the towers, because each
    /// method keeps more of the retained classes in one of them (`docs/research/margins.md`), and from
    /// settings that only `least-squares` has. [`settle`](Self::settle) sets it where it follows from
    /// the model.
    pub fn method(&self) -> CompositionMethod {
        self.method.unwrap_or(match self.towers {
            Towers::Text if self.retain_weight.is_some() || self.tokens.is_some() => {
                CompositionMethod::LeastSquares
            }
            Towers::Text => CompositionMethod::Preconditioned,
            Towers::Vision | Towers::Both => CompositionMethod::Margins,
        })
    }

    /// Sets the defaults that follow from the model and the targets, where the manifest leaves them
    /// open. `inputs` is the width of the text tower's layers that end an MLP; `draws` says whether a
    /// diffusion pipeline is among the targets, and `protects` whether texts are protected.
    pub fn settle(&mut self, inputs: u64, draws: bool, protects: bool) {
        let defaults = Self::default();
        let is_tuned = protects
            || self.layers != defaults.layers
            || self.change.is_some()
            || self.output_ridge != defaults.output_ridge;
        let is_open = self.method.is_none() && self.towers == Towers::Text;
        if is_open && !is_tuned && (inputs >= WIDE || draws) {
            self.method = Some(CompositionMethod::LeastSquares);
        }
        if self.method() == CompositionMethod::LeastSquares && self.tokens.is_none() {
            self.tokens = Some(if draws { TextTokens::All } else { TextTokens::Read });
        }
    }

    /// Returns the tokens of a text whose states `least-squares` changes.
    pub fn tokens(&self) -> TextTokens {
        self.tokens.unwrap_or_default()
    }

    /// Returns the largest rank of a concept's direction at a layer of this tower; `None` keeps
    /// directions whole.
    pub fn rank(&self, tower: Tower) -> Option<u32> {
        self.rank.or(match (tower, self.method()) {
            (_, CompositionMethod::LeastSquares) => match self.tokens() {
                TextTokens::All => Some(8),
                // A concept has one state there: more rows add little (docs/research/composition.md).
                TextTokens::Read => Some(1),
            },
            (Tower::Text, _) => Some(2),
            (Tower::Vision, CompositionMethod::Margins) => Some(32),
            // One gradient of all images has a high rank, and cutting it costs accuracy.
            (Tower::Vision, _) => None,
        })
    }
}

/// Which concepts must be removed for a run to count as complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Required {
    /// `"all"`.
    All(All),
    /// At least this share of the concepts, above 0 and at most 1.
    Share(f64),
    /// At least these concepts, by id.
    These(Vec<String>),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// Every concept.
    All,
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySection {
    /// Which concepts must be removed; when some are not, the run ends with exit code 3.
    pub required: Required,
    /// Whether concepts that the base model did not know get a receipt as well. By default they are
    /// listed without a receipt.
    // The name of a run contains a digest of this section, which a default must not change.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub receipts_for_unknown: bool,
}

impl Default for PolicySection {
    fn default() -> Self {
        Self { required: Required::All(All::All), receipts_for_unknown: false }
    }
}

/// `[execution]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutionSection {
    /// Worker threads; 0 means one per CPU core, or four with a GPU.
    #[schemars(range(max = 1024))]
    pub workers: u32,
    /// `auto` (a GPU when there is one), `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Which machines may share a run: `any`, or `same` for machines of one arithmetic class,
    /// whose results are bit-identical.
    pub arithmetic: Arithmetic,
}

impl Default for ExecutionSection {
    fn default() -> Self {
        Self { workers: 0, device: "auto".to_owned(), arithmetic: Arithmetic::Any }
    }
}

/// Which machines may share a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// All machines. The last bits of results may depend on which machine ran which job; the
    /// summary lists the arithmetic classes.
    #[default]
    Any,
    /// Machines of the same arithmetic class as the one that ran the first job. Workers of
    /// another class leave the jobs.
    Same,
}

/// `[evaluation]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSection {
    /// Built-in probes that measure the composed model. Their numbers are in the record, and gates
    /// can bound them.
    pub probes: Vec<BuiltInProbe>,
}

impl EvaluationSection {
    fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }
}

/// A probe that workers perform. (Commands of the operator are probes too.)
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltInProbe {
    /// Removed names in other words: capitals, phrases, misspellings, other orders of words.
    Words,
    /// The weights rounded to float16, bfloat16, int8 and int4.
    Rounded,
    /// The mean of the weights and those of the base model.
    Halfway,
    /// A control: a random change of the same size instead of the edits.
    Random,
    /// Fine-tuning on retained pairs, and on a few pairs of the removed concepts.
    Relearn,
    /// How far embeddings move, a classifier fitted to image embeddings, and the retained classes
    /// that are nearest to removed ones.
    Features,
}

impl BuiltInProbe {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Words, Self::Rounded, Self::Halfway, Self::Random, Self::Relearn, Self::Features];

    /// Returns its name in manifests, on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Rounded => "rounded",
            Self::Halfway => "halfway",
            Self::Random => "random",
            Self::Relearn => "relearn",
            Self::Features => "features",
        }
    }

    /// Returns the probe of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|probe| probe.name() == name)
    }
}

/// How a release names the concepts that it removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// By id, name and class, as in the manifest.
    #[default]
    Plain,
    /// By salted hashes: only the holder of the salt can identify them.
    Hashed,
}

impl Names {
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// `[release]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReleaseSection {
    /// Where artifacts and releases go; `--store` overrides it.
    pub uri: String,
    /// Other models that contain one of the model's towers, and receive its edits. Edits are then
    /// restricted to layers that these models use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<ReleaseTarget>,
    /// How the release names concepts: `plain`, or `hashed` when names are personal data.
    #[serde(skip_serializing_if = "Names::is_plain")]
    pub names: Names,
    /// With `names = "hashed"`: a secret file of 16 to 4096 bytes. It is read, but never stored or
    /// sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// Licence of the weights for the model card, as the Hub names it: `apache-2.0`, `mit`, `other`
    /// …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Name of the base model on the Hub, for the model card: `openai/clip-vit-base-patch32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
}

impl Default for ReleaseSection {
    fn default() -> Self {
        Self {
            uri: "store".to_owned(),
            target: Vec::new(),
            names: Names::Plain,
            salt: None,
            license: None,
            base_model: None,
        }
    }
}

impl Manifest {
    /// Returns the problem with a criterion under this manifest's method, if there is one.
    pub fn stop_problem(&self, stop: Stop) -> Option<String> {
        let method = self.composition.method();
        let needs_margins = matches!(stop, Stop::Rank(_)) && method != CompositionMethod::Margins;
        needs_margins.then(|| {
            format!(
                "is `{}`, which needs composition.method = \"margins\"; the method `{}` searches steps by fa1 or fa5",
                stop.name(),
                method.name()
            )
        })
    }

    /// Resolves an address in the manifest; `field` appears in messages.
    ///
    /// # Errors
    /// When the text is not an address.
    pub fn address(&self, field: &str, text: &str) -> Result<Address, Error> {
        Address::resolve(text, self.file.parent()).map_err(|error| {
            Error::new(format!("{}: {field}", self.file.display()), error.to_string())
        })
    }

    /// Returns the concepts that are listed in the manifest itself.
    pub fn inline_concepts(&self) -> Vec<(usize, concepts::Row)> {
        (1..).zip(self.concepts.list.iter().cloned()).collect()
    }

    /// Returns the JSON Schema of manifests.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

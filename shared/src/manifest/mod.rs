//! The manifest: what a run removes, from which model, judged by which data.
//!
//! TOML, or JSON with the same fields. Unknown fields are refused. Addresses are paths relative to the file they stand in
//! (wildcards allowed in the last part), or `file://`, `s3://`, `gs://`, `az://`.
//!
//! | file | what |
//! |---|---|
//! | [`read`](Manifest::read) | text to a checked manifest |
//! | [`concepts`] | concept tables and lists |
//! | [`classes`] | class lists |
//! | `gates.rs` | [`Gates`], here and in files of their own |
//! | `targets.rs` | [`ReleaseTarget`]: other models that get the edits |

pub mod classes;
pub mod concepts;
mod gates;
mod read;
mod targets;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::classes::Classes;
pub use self::concepts::Concept;
pub use self::gates::Gates;
pub use self::read::is_id;
pub use self::targets::{PassThrough, ReleaseTarget, TargetKind};
use crate::address::Address;
use crate::job::MethodSettings;
use crate::outcome::Tower;

/// What is wrong with a manifest or a file it names: what, where, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Error {
    /// File, and line or field where known.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Error {
    /// A problem at a place.
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// A manifest as it is written.
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
    /// What must stay, and what removals are judged by.
    pub data: DataSection,
    /// What to remove.
    pub concepts: ConceptsSection,
    /// How edits are found.
    #[serde(default)]
    pub method: MethodSection,
    /// How edits are put together.
    #[serde(default)]
    pub composition: CompositionSection,
    /// What a run must achieve.
    #[serde(default)]
    pub policy: PolicySection,
    /// Bounds that the release has to keep before `latest` leads to it; a run that misses one ends with exit code 4.
    #[serde(default)]
    pub gates: Gates,
    /// How a run uses this machine; without `--nats`.
    #[serde(default)]
    pub execution: ExecutionSection,
    /// Where results go.
    #[serde(default)]
    pub release: ReleaseSection,
    /// The file it was read from.
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
    /// WebDataset shards of image-text pairs that must stay.
    pub retain: Vec<String>,
    /// UTF-8 text files with one unlabelled text a line, any corpus that does not name what is removed: they widen what
    /// retain statistics have seen, and so what composing protects.
    #[serde(default)]
    pub retain_texts: Vec<String>,
    /// Shards of images that show nothing of what is removed; captions beside them are not read. What `retain_texts` is for the text
    /// tower, these are for the vision tower.
    #[serde(default)]
    pub retain_images: Vec<String>,
    /// UTF-8 text file with one name a line, put into the template, whose texts must not change: edits of the text tower then turn
    /// aside from what these texts put into the edited layer. `gates.protected` bounds by how much they may move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<String>,
    /// Shards that step search and choice may look at; captions are class names. Without any, ties between layers go to
    /// the smaller change.
    #[serde(default)]
    pub validation: Vec<String>,
    /// Shards that are reported on and never looked at before; captions are class names.
    #[serde(default)]
    pub test: Vec<String>,
    /// Zero-shot class names, one a line.
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
    /// CSV or JSONL file with the columns `id`, `name`, `class`, `forget`, `strength`, `group`, `stop`, `tolerance`.
    #[serde(default)]
    pub table: Option<String>,
    /// The same fields in the manifest itself.
    #[serde(default)]
    pub list: Vec<concepts::Row>,
    /// Strengths of groups, multiplied with each concept's own.
    #[serde(default)]
    pub groups: BTreeMap<String, f64>,
}

/// Which forget accuracy has to reach 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// Top-1 forget accuracy.
    Fa1,
    /// Top-5 forget accuracy, as the authors do.
    #[default]
    Fa5,
}

impl Stop {
    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fa1 => "fa1",
            Self::Fa5 => "fa5",
        }
    }
}

/// `[method]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MethodSection {
    /// Pairs per gradient batch.
    #[schemars(range(min = 2, max = 65536))]
    pub batch_size: u32,
    /// Step-size evaluations per front layer.
    #[schemars(range(min = 1, max = 1000))]
    pub search_evaluations: u32,
    /// The search on a layer ends when the relative width of its bracket falls under this; 0 spends all evaluations.
    pub search_tolerance: f64,
    /// A concept is forgotten when this accuracy on its forget set is 0.
    pub stop: Stop,
    /// Whether the gains of layer norms are candidate layers too.
    pub normalisation_gains: bool,
    /// How towers multiply matrices.
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

/// How a model's towers multiply matrices. Weights, activations between blocks, sums, directions and edits are float32 or better in any
/// case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In float32.
    #[default]
    Float32,
    /// Factors rounded to TF32 (ten bits of mantissa), where a GPU has it; a CPU multiplies in float32.
    Tf32,
    /// Factors and products rounded to bfloat16 (seven bits of mantissa).
    Bfloat16,
}

impl Precision {
    /// Whether nothing is rounded to less than float32.
    pub fn is_float32(&self) -> bool {
        *self == Self::Float32
    }

    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bfloat16 => "bfloat16",
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

/// How edits are put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CompositionMethod {
    /// Steps along D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹, where C and M are second moments of what must stay, of a layer's inputs and of the
    /// gradients at its outputs, with doses solved together.
    #[default]
    Preconditioned,
    /// Steps along g P, where P projects onto what the second moments of what must stay hardly reach (AlphaEdit,
    /// arXiv 2410.02355), with doses solved together.
    NullSpace,
    /// θ_l + Σ α·λ·g over a layer's edits: SLUG's full search per concept, added up as the authors do.
    Sum,
    /// The same edits, divided by their number on each layer (model soups, arXiv 2203.05482).
    Mean,
    /// The same edits, merged by TIES (arXiv 2306.01708): trim, elect signs, average what agrees.
    Ties,
    /// The same edits, merged by DARE (arXiv 2311.03099): drop values at random, scale up the rest, add.
    Dare,
}

impl CompositionMethod {
    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preconditioned => "preconditioned",
            Self::NullSpace => "null-space",
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Ties => "ties",
            Self::Dare => "dare",
        }
    }

    /// Whether directions are corrected by second moments and doses solved together; otherwise each edit is what SLUG's full
    /// search found.
    pub fn corrects(self) -> bool {
        matches!(self, Self::Preconditioned | Self::NullSpace)
    }
}

/// Which towers edits may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Towers {
    /// Texts alone: image embeddings stay as they were.
    #[default]
    Text,
    /// Images alone: text embeddings stay as they were.
    Vision,
    /// Whichever serves a concept better.
    Both,
}

impl Towers {
    /// Whether this tower is one of them.
    pub fn include(self, tower: Tower) -> bool {
        match self {
            Self::Text => tower == Tower::Text,
            Self::Vision => tower == Tower::Vision,
            Self::Both => true,
        }
    }
}

/// `[composition]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompositionSection {
    /// The method. The other fields are for `preconditioned` and `null-space`, where they name no other.
    pub method: CompositionMethod,
    /// Towers that edits may change; their layers are scored, the other tower's are not. (SLUG's full search looks at both.)
    pub towers: Towers,
    /// Layers that a run's edits are spread over at most.
    #[schemars(range(min = 1, max = 64))]
    pub layers: u32,
    /// `preconditioned`: ridge ρ on the second moments, as a share of their mean diagonal: higher keeps steps shorter and protects less.
    pub ridge: f64,
    /// `preconditioned`: ridge ρ_M on the second moments of gradients at a layer's outputs, as a share of their mean diagonal: lower
    /// turns edits more towards outputs that what must stay is insensitive to; 1000 and more leaves outputs as they are.
    pub output_ridge: f64,
    /// `null-space`: share of the second moments' trace that what edits may use holds at most.
    pub null_energy: f64,
    /// `ties`: share of each edit's values that is kept.
    pub density: f64,
    /// `dare`: probability that a value of an edit is dropped.
    pub drop: f64,
    /// Weight of unlabelled data against the retain set's in the second moments: higher protects more of what no retain
    /// pair shows, and less of what they show.
    pub unlabelled_weight: f64,
    /// Share of a concept's forget images that may still be found by the measure that `method.stop` names.
    pub tolerance: f64,
    /// Rounds of evaluating the composed model on the forget sets and adjusting doses; 0 takes doses as solved.
    #[schemars(range(max = 100))]
    pub rounds: u32,
}

impl Default for CompositionSection {
    fn default() -> Self {
        Self {
            method: CompositionMethod::default(),
            towers: Towers::default(),
            layers: 1,
            ridge: 0.0003,
            output_ridge: 0.3,
            null_energy: 0.01,
            density: 0.2,
            drop: 0.9,
            unlabelled_weight: 0.5,
            tolerance: 0.0,
            rounds: 12,
        }
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
}

impl Default for PolicySection {
    fn default() -> Self {
        Self { required: Required::All(All::All) }
    }
}

/// `[execution]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExecutionSection {
    /// Worker threads; 0 means one per CPU core, or four on a GPU.
    #[schemars(range(max = 1024))]
    pub workers: u32,
    /// `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
    pub device: String,
}

impl Default for ExecutionSection {
    fn default() -> Self {
        Self { workers: 0, device: "auto".to_owned() }
    }
}

/// How a release names the concepts that it removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// By id, name and class, as in the manifest.
    #[default]
    Plain,
    /// By salted hashes: who holds the salt can tell which is which.
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
    /// Models with one of the model's towers inside that get its edits too. Edits then go to layers that act in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub target: Vec<ReleaseTarget>,
    /// How concepts are named in the release: `plain`, or `hashed` where names are personal data.
    #[serde(skip_serializing_if = "Names::is_plain")]
    pub names: Names,
    /// With `names = "hashed"`: a file of 16 to 4096 bytes that nobody else knows. It is read, and goes nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// Licence of the weights for the model card, as the Hub names it: `apache-2.0`, `mit`, `other` …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What the base model is called on the Hub, for the model card: `openai/clip-vit-base-patch32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
}

impl Default for ReleaseSection {
    fn default() -> Self {
        Self { uri: "store".to_owned(), target: Vec::new(), names: Names::Plain, salt: None, license: None, base_model: None }
    }
}

impl Manifest {
    /// An address that stands in the manifest.
    ///
    /// # Errors
    /// When it is none.
    pub fn address(&self, field: &str, text: &str) -> Result<Address, Error> {
        Address::resolve(text, self.file.parent())
            .map_err(|error| Error::new(format!("{}: {field}", self.file.display()), error.to_string()))
    }

    /// The published JSON Schema.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

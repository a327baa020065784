//! The sections of a manifest as they are written, with their defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::composition::{CompositionMethod, CompositionSection};
use super::concepts;
use super::error::Error;
use super::gates::Gates;
use super::targets::ReleaseTarget;
use crate::address::Address;
use crate::vocabulary::{MethodSettings, Precision, Stop};

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
    /// Folder of a CLIP checkpoint as `transformers` or open_clip writes it: a path, or an address
    /// such as `hf://openai/clip-vit-base-patch32`.
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
    /// The weights rounded to float16, bfloat16, int8 (with a scale per row, or per tensor) and int4.
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
    /// How forgetting is spread over concepts, with intervals.
    Forgetting,
    /// Learned tokens in place of the names.
    SoftPrompt,
}

impl BuiltInProbe {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Words,
        Self::Rounded,
        Self::Halfway,
        Self::Random,
        Self::Relearn,
        Self::Features,
        Self::Forgetting,
        Self::SoftPrompt,
    ];

    /// Returns its name in manifests, on the command line and in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Words => "words",
            Self::Rounded => "rounded",
            Self::Halfway => "halfway",
            Self::Random => "random",
            Self::Relearn => "relearn",
            Self::Features => "features",
            Self::Forgetting => "forgetting",
            Self::SoftPrompt => "soft-prompt",
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
    /// Name of the base model on the Hub, for the model card: `openai/clip-vit-base-patch32`. A
    /// model at `hf://` has its own name.
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

//! Jobs: the units of work, complete in themselves. A job's id is the digest of everything that determines its result.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::digest::{Digest, NotADigest};
use crate::manifest::{Precision, Stop, Towers};

/// Version of the algorithm: part of every job's id, raised whenever the same job would give another result.
pub const ALGORITHM_VERSION: u32 = 8;
/// The libtorch that workers compute with: `tch` is built for this one, and its build refuses every other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// The name of a job: the digest of everything that determines its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Digest);

impl JobId {
    /// The digest behind the id.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl From<Digest> for JobId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An immutable object in the store, named by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactRef {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A data shard: what it is, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRef {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Pairs in it.
    pub pairs: u64,
    /// Where it is; no part of what determines a result.
    pub address: Address,
}

/// The model: what it is, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// Digest over the tensors' bytes in name order.
    pub weights: Digest,
    /// Digest over the configuration files that loading reads (model, image preprocessing, tokeniser).
    pub settings: Digest,
    /// How its towers multiply matrices.
    pub precision: Precision,
    /// The folder; no part of what determines a result.
    pub address: Address,
}

/// A class list with its prompt template, stored as an artifact: [`ClassTexts`] as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassTexts {
    /// Class names; a class is its position in this list.
    pub names: Vec<String>,
    /// Prompt in which `{}` (or `{name}`) stands for the name.
    pub template: String,
}

impl ClassTexts {
    /// The prompt of every class.
    pub fn prompts(&self) -> impl Iterator<Item = String> + '_ {
        self.names.iter().map(|name| {
            if self.template.contains("{name}") { self.template.replace("{name}", name) } else { self.template.replace("{}", name) }
        })
    }
}

/// The parts of `[method]` that a concept job needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSettings {
    /// Pairs per gradient batch.
    pub batch_size: u32,
    /// Step-size evaluations per front layer.
    pub search_evaluations: u32,
    /// The search ends when the bracket's relative width falls under this.
    pub search_tolerance: f64,
    /// Which forget accuracy has to reach 0.
    pub stop: Stop,
    /// Whether the gains of layer norms are candidates too.
    pub normalisation_gains: bool,
}

/// A job as it is published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The run it belongs to; no part of its id, so that runs share outcomes.
    pub run: String,
    /// [`ALGORITHM_VERSION`] of who planned it.
    pub algorithm: u32,
    /// The model.
    pub model: ModelRef,
    /// What to do.
    pub task: Task,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Sums the retain gradient over one shard's full batches, for every linear weight and gain of some towers.
    RetainGradient {
        /// Image-text pairs that must stay.
        shard: ShardRef,
        /// Pairs per batch.
        batch_size: u32,
        /// Towers whose gradient is wanted: there is no backward pass through another one.
        towers: Towers,
    },
    /// Adds the shards' sums in the order given, in float64, and divides by the number of batches.
    RetainReduce {
        /// Sums and their numbers of batches.
        parts: Vec<RetainPart>,
    },
    /// Finds one concept's edit by SLUG's full procedure: every layer on a front is searched.
    Concept(Box<ConceptTask>),
    /// Counts zero-shot hits under a change (or none).
    Evaluate {
        /// Tensors to put in place of the model's: a safetensors artifact; `None` evaluates the model as it is.
        change: Option<ArtifactRef>,
        /// What to evaluate.
        items: Vec<EvaluateItem>,
        /// The class list.
        classes: ArtifactRef,
    },
    /// Sums the second moments of layers' inputs over what must stay, weighed by how much each layer's output moves the
    /// embedding: of every layer of the source's tower that ends a block's MLP.
    Moments(MomentSource),
    /// Makes the second moments that directions are corrected by, of the sums in the order given.
    MomentsReduce(MomentsReduceTask),
    /// Scores every candidate layer of the towers that may change for one concept, and searches none.
    Survey(Box<SurveyTask>),
    /// Finds one concept's corrected direction on a layer that is already chosen, and its step alone.
    Direction(Box<DirectionTask>),
    /// Takes what texts that must not change put into some layers, and turns directions aside from it.
    Protect(ProtectTask),
    /// Works out what each concept's edit does to the forget loss of each concept, to first order.
    Interference {
        /// The concepts, by id.
        concepts: Vec<InterferencePart>,
    },
}

/// Where second moments are gathered from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentSource {
    /// The captions of a shard, through the text tower.
    Captions(ShardRef),
    /// The images of a shard, through the vision tower.
    Images(ShardRef),
    /// Texts that belong to no image, through the text tower: a JSON list of strings.
    Texts(ArtifactRef),
    /// Images that belong to no text, of a shard, through the vision tower.
    ImagesAlone(ShardRef),
}

impl MomentSource {
    fn digest(&self) -> (&'static str, Digest) {
        match self {
            Self::Captions(shard) => ("captions", shard.digest),
            Self::Images(shard) => ("images", shard.digest),
            Self::Texts(texts) => ("texts", texts.digest),
            Self::ImagesAlone(shard) => ("images-alone", shard.digest),
        }
    }
}

/// One sum of second moments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsPart {
    /// A safetensors file with four float32 matrices per layer `NAME`: `NAME.inputs.0` and `NAME.outputs.0` of one half of the
    /// items, `NAME.inputs.1` and `NAME.outputs.1` of the other.
    pub sum: ArtifactRef,
    /// Texts or images in it.
    pub items: u64,
}

/// The sums of a tower, and how they are weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MomentsReduceTask {
    /// Of the retain set.
    pub paired: Vec<MomentsPart>,
    /// Of unlabelled data.
    pub unlabelled: Vec<MomentsPart>,
    /// Weight of the unlabelled mean against the retain set's, both scaled to one trace.
    pub unlabelled_weight: f64,
    /// What is made of them.
    pub correction: Correction,
}

/// What a gradient is multiplied by, so that a step along it leaves alone what must stay. C are the second moments of a layer's inputs,
/// M those of the gradients at its outputs, both scaled to a mean diagonal of 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Correction {
    /// D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹.
    Ridge {
        /// ρ.
        inputs: f64,
        /// ρ_M.
        outputs: f64,
    },
    /// D = g P, with P the projection onto the eigenvectors of C with the smallest eigenvalues, as many as together hold at most this
    /// share of its trace (AlphaEdit, arXiv 2410.02355).
    NullSpace(f64),
}

/// One concept whose layers are to be scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SurveyTask {
    /// The concept's id in the manifest; no part of the job's id.
    pub concept: String,
    /// Its image-text pairs.
    pub forget: Vec<ShardRef>,
    /// g_r.
    pub retain_gradient: ArtifactRef,
    /// What corrects and judges directions, one file per tower that may change:
    /// [`MomentsResult::folds`](crate::outcome::MomentsResult::folds).
    pub folds: Vec<ArtifactRef>,
    /// Towers whose layers are scored.
    pub towers: Towers,
    /// Settings.
    pub method: MethodSettings,
}

/// One concept whose direction is to be found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionTask {
    /// The concept's id in the manifest; no part of the job's id.
    pub concept: String,
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<ShardRef>,
    /// What utility is measured on; captions are class names.
    pub validation: Vec<ShardRef>,
    /// What corrects directions, one file per tower that may change:
    /// [`MomentsResult::inverse`](crate::outcome::MomentsResult::inverse). A matrix takes the place of an earlier file's of the same
    /// name: [`ProtectResult::inverse`](crate::outcome::ProtectResult::inverse) comes last.
    pub inverses: Vec<ArtifactRef>,
    /// The class list.
    pub classes: ArtifactRef,
    /// The layer this concept is removed by.
    pub layer: String,
    /// Every layer that some concept of the run is removed by, in order.
    pub layers: Vec<String>,
    /// Settings.
    pub method: MethodSettings,
}

/// Texts that must not change, and the layers where they must not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectTask {
    /// The texts: a JSON list of strings.
    pub texts: ArtifactRef,
    /// Layers of the text tower.
    pub layers: Vec<String>,
    /// What corrects directions so far, see [`DirectionTask::inverses`].
    pub inverses: Vec<ArtifactRef>,
}

/// One concept in a [`Task::Interference`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterferencePart {
    /// The layer it is removed by.
    pub layer: String,
    /// Factors of its forget gradient at every layer that some concept is removed by.
    pub gradients: ArtifactRef,
    /// Factors of its direction.
    pub direction: ArtifactRef,
}

/// One shard's sum in a [`Task::RetainReduce`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainPart {
    /// Sum of batch gradients.
    pub sum: ArtifactRef,
    /// Batches in it.
    pub batches: u64,
    /// Sum of the batches' losses.
    pub loss_sum: f64,
}

/// One concept to forget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConceptTask {
    /// The concept's id in the manifest; no part of the job's id: the same data under another name is the same work.
    pub concept: String,
    /// Its class: position in the class list.
    pub class: u32,
    /// Its image-text pairs.
    pub forget: Vec<ShardRef>,
    /// What the step search may look at; captions are class names.
    pub validation: Vec<ShardRef>,
    /// g_r.
    pub retain_gradient: ArtifactRef,
    /// The class list.
    pub classes: ArtifactRef,
    /// The layers that its edit may change, in order, where not every candidate may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<String>>,
    /// Settings.
    pub method: MethodSettings,
}

/// Images to evaluate together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateItem {
    /// Key in [`EvaluateResult::items`](crate::outcome::EvaluateResult::items).
    pub name: String,
    /// The shards.
    pub shards: Vec<ShardRef>,
    /// How an image's true class is known.
    pub label: Label,
}

/// How an image's true class is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// All images are of this class.
    Class(u32),
    /// The caption is the class name.
    Caption,
}

/// What determines a job's result: the job without its run, its concept's id and any address.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Identity<'a> {
    RetainGradient {
        shard: Digest,
        batch_size: u32,
        towers: Towers,
    },
    RetainReduce {
        parts: Vec<(Digest, u64, f64)>,
    },
    Concept {
        class: u32,
        forget: Vec<Digest>,
        validation: Vec<Digest>,
        retain_gradient: Digest,
        classes: Digest,
        #[serde(skip_serializing_if = "Option::is_none")]
        layers: Option<&'a [String]>,
        method: &'a MethodSettings,
    },
    Evaluate {
        change: Option<Digest>,
        items: Vec<(&'a str, Vec<Digest>, &'a Label)>,
        classes: Digest,
    },
    Moments {
        source: (&'static str, Digest),
    },
    MomentsReduce {
        paired: Vec<(Digest, u64)>,
        unlabelled: Vec<(Digest, u64)>,
        unlabelled_weight: f64,
        correction: Correction,
    },
    Survey {
        forget: Vec<Digest>,
        retain_gradient: Digest,
        folds: Vec<Digest>,
        towers: Towers,
        batch_size: u32,
        normalisation_gains: bool,
    },
    Direction {
        class: u32,
        forget: Vec<Digest>,
        validation: Vec<Digest>,
        inverses: Vec<Digest>,
        classes: Digest,
        layer: &'a str,
        layers: &'a [String],
        method: &'a MethodSettings,
    },
    Protect {
        texts: Digest,
        layers: &'a [String],
        inverses: Vec<Digest>,
    },
    Interference {
        concepts: Vec<(&'a str, Digest, Digest)>,
    },
}

fn parts(parts: &[MomentsPart]) -> Vec<(Digest, u64)> {
    parts.iter().map(|part| (part.sum.digest, part.items)).collect()
}

fn artifacts(artifacts: &[ArtifactRef]) -> Vec<Digest> {
    artifacts.iter().map(|artifact| artifact.digest).collect()
}

fn digests(shards: &[ShardRef]) -> Vec<Digest> {
    shards.iter().map(|shard| shard.digest).collect()
}

impl Job {
    /// The job's name: the digest of algorithm version, model and everything the task says, addresses, run and concept
    /// id left out.
    pub fn id(&self) -> JobId {
        let identity = match &self.task {
            Task::RetainGradient { shard, batch_size, towers } => {
                Identity::RetainGradient { shard: shard.digest, batch_size: *batch_size, towers: *towers }
            }
            Task::RetainReduce { parts } => {
                Identity::RetainReduce { parts: parts.iter().map(|p| (p.sum.digest, p.batches, p.loss_sum)).collect() }
            }
            Task::Concept(task) => Identity::Concept {
                class: task.class,
                forget: digests(&task.forget),
                validation: digests(&task.validation),
                retain_gradient: task.retain_gradient.digest,
                classes: task.classes.digest,
                layers: task.layers.as_deref(),
                method: &task.method,
            },
            Task::Evaluate { change, items, classes } => Identity::Evaluate {
                change: change.map(|c| c.digest),
                items: items.iter().map(|i| (i.name.as_str(), digests(&i.shards), &i.label)).collect(),
                classes: classes.digest,
            },
            Task::Moments(source) => Identity::Moments { source: source.digest() },
            Task::MomentsReduce(task) => Identity::MomentsReduce {
                paired: parts(&task.paired),
                unlabelled: parts(&task.unlabelled),
                unlabelled_weight: task.unlabelled_weight,
                correction: task.correction,
            },
            Task::Survey(task) => Identity::Survey {
                forget: digests(&task.forget),
                retain_gradient: task.retain_gradient.digest,
                folds: artifacts(&task.folds),
                towers: task.towers,
                batch_size: task.method.batch_size,
                normalisation_gains: task.method.normalisation_gains,
            },
            Task::Direction(task) => Identity::Direction {
                class: task.class,
                forget: digests(&task.forget),
                validation: digests(&task.validation),
                inverses: artifacts(&task.inverses),
                classes: task.classes.digest,
                layer: &task.layer,
                layers: &task.layers,
                method: &task.method,
            },
            Task::Protect(task) => {
                Identity::Protect { texts: task.texts.digest, layers: &task.layers, inverses: artifacts(&task.inverses) }
            }
            Task::Interference { concepts } => Identity::Interference {
                concepts: concepts.iter().map(|c| (c.layer.as_str(), c.gradients.digest, c.direction.digest)).collect(),
            },
        };
        JobId(Digest::of_json(&("lethe job", self.algorithm, self.model.weights, self.model.settings, self.model.precision, identity)))
    }

    /// What kind of job it is, as a subject token and in tables.
    pub fn kind(&self) -> &'static str {
        match self.task {
            Task::RetainGradient { .. } => "retain-gradient",
            Task::RetainReduce { .. } => "retain-reduce",
            Task::Concept(_) => "concept",
            Task::Evaluate { .. } => "evaluate",
            Task::Moments(_) => "moments",
            Task::MomentsReduce(_) => "moments-reduce",
            Task::Survey(_) => "survey",
            Task::Direction(_) => "direction",
            Task::Protect(_) => "protect",
            Task::Interference { .. } => "interference",
        }
    }

    /// The concept it is about, where it is about one.
    pub fn concept(&self) -> Option<&str> {
        match &self.task {
            Task::Concept(task) => Some(&task.concept),
            Task::Survey(task) => Some(&task.concept),
            Task::Direction(task) => Some(&task.concept),
            _ => None,
        }
    }

    /// What a person calls it: the concept's id where there is one.
    pub fn label(&self) -> String {
        match &self.task {
            Task::RetainGradient { shard, .. } => format!("retain gradient of {}", shard.address),
            Task::RetainReduce { parts } => format!("mean retain gradient of {} shards", parts.len()),
            Task::Concept(task) => format!("concept {}", task.concept),
            Task::Evaluate { items, change, .. } => {
                let what = if change.is_some() { "composed" } else { "base" };
                let sets = if items.len() == 1 { "set" } else { "sets" };
                format!("evaluation of {} {sets} on the {what} model", items.len())
            }
            Task::Moments(source) => match source {
                MomentSource::Captions(shard) => format!("moments of the captions of {}", shard.address),
                MomentSource::Images(shard) => format!("moments of the images of {}", shard.address),
                MomentSource::Texts(texts) => format!("moments of texts {}", texts.digest.short()),
                MomentSource::ImagesAlone(shard) => format!("moments of the unlabelled images of {}", shard.address),
            },
            Task::MomentsReduce(task) => format!("moments of {} parts", task.paired.len() + task.unlabelled.len()),
            Task::Survey(task) => format!("survey of concept {}", task.concept),
            Task::Direction(task) => format!("direction of concept {}", task.concept),
            Task::Protect(task) => format!("protection of texts {} at {} layers", task.texts.digest.short(), task.layers.len()),
            Task::Interference { concepts } => format!("interference of {} concepts", concepts.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn artifact(text: &str) -> ArtifactRef {
        ArtifactRef { digest: Digest::of(text.as_bytes()), bytes: text.len() as u64 }
    }

    fn shard(text: &str, at: &str) -> ShardRef {
        ShardRef { digest: Digest::of(text.as_bytes()), bytes: 1, pairs: 1, address: address(at) }
    }

    fn job() -> Job {
        Job {
            run: "r1".into(),
            algorithm: ALGORITHM_VERSION,
            model: ModelRef {
                weights: Digest::of(b"w"),
                settings: Digest::of(b"s"),
                precision: Precision::Float32,
                address: address("s3://b/model"),
            },
            task: Task::Concept(Box::new(ConceptTask {
                concept: "pizza".into(),
                class: 7,
                forget: vec![shard("f", "s3://b/f.tar")],
                validation: vec![shard("v", "s3://b/v.tar")],
                retain_gradient: artifact("g"),
                classes: artifact("c"),
                layers: None,
                method: MethodSettings {
                    batch_size: 128,
                    search_evaluations: 10,
                    search_tolerance: 0.0,
                    stop: Stop::Fa5,
                    normalisation_gains: false,
                },
            })),
        }
    }

    fn changed(change: impl FnOnce(&mut Job, &mut ConceptTask)) -> JobId {
        let mut job = job();
        let Task::Concept(mut task) = job.task.clone() else { panic!("a concept job") };
        change(&mut job, &mut task);
        job.task = Task::Concept(task);
        job.id()
    }

    #[test]
    fn an_id_forgets_where_things_are_and_who_asks() {
        assert_eq!(job().id(), changed(|job, _| job.run = "r2".into()));
        assert_eq!(job().id(), changed(|job, _| job.model.address = address("s3://c/model")));
        assert_eq!(job().id(), changed(|_, task| task.forget[0].address = address("s3://c/f.tar")));
        assert_eq!(job().id(), changed(|_, task| task.concept = "c-17".into()));
    }

    #[test]
    fn an_id_knows_everything_else() {
        assert_ne!(job().id(), changed(|job, _| job.algorithm += 1));
        assert_ne!(job().id(), changed(|job, _| job.model.precision = Precision::Tf32));
        assert_ne!(job().id(), changed(|job, _| job.model.weights = Digest::of(b"other")));
        assert_ne!(job().id(), changed(|_, task| task.class = 8));
        assert_ne!(job().id(), changed(|_, task| task.forget[0].digest = Digest::of(b"other")));
        assert_ne!(job().id(), changed(|_, task| task.method.search_evaluations = 9));
        assert_ne!(job().id(), changed(|_, task| task.retain_gradient = artifact("other")));
    }

    #[test]
    fn templates_take_both_forms() {
        let mut texts = ClassTexts { names: vec!["cat".into()], template: "a {}".into() };
        assert_eq!(texts.prompts().collect::<Vec<_>>(), ["a cat"]);
        texts.template = "the {name}, drawn".into();
        assert_eq!(texts.prompts().collect::<Vec<_>>(), ["the cat, drawn"]);
    }
}

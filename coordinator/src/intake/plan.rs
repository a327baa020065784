//! A plan: a manifest with all files that it names, found and checked. This file has the data and
//! the values computed from it; `read.rs` makes a plan.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::hub::RepositoryKind;
use lethe_shared::manifest::concepts::Concept;
use lethe_shared::manifest::{Classes, Manifest, Names};
use lethe_shared::record::{DataFile, Origin};
use lethe_shared::reference::{ClassTexts, ModelRef, ShardRef};
use lethe_shared::task::{ALGORITHM_VERSION, AnyTask};
use lethe_shared::vocabulary::{MethodSettings, Stop};

use super::coverage::Named;
use super::repeated;
use crate::compose::protected::Protected;
use crate::downstream::Target;
use crate::failure::Failure;

/// A manifest with all files that it names found, hashed and checked.
#[derive(Debug)]
pub struct Plan {
    /// The manifest.
    pub manifest: Manifest,
    /// Name of the run: the manifest's name, and a digest of all inputs that determine its result.
    pub run: String,
    /// The digest in the run's name.
    pub(super) identity: Digest,
    /// Reference to the model.
    pub model: ModelRef,
    /// The model's open checkpoint.
    pub checkpoint: Checkpoint,
    /// The class list.
    pub classes: Classes,
    /// Class names and prompt.
    pub class_texts: ClassTexts,
    /// Retain shards in the manifest's order.
    pub retain: Vec<ShardRef>,
    /// Unlabelled texts in the manifest's order, each file cut into slices of at most
    /// [`SLICE`](lethe_shared::texts::SLICE).
    pub retain_texts: Vec<Vec<String>>,
    /// Shards of unlabelled images.
    pub retain_images: Vec<ShardRef>,
    /// The files of the unlabelled texts.
    pub text_files: Vec<DataFile>,
    /// Protected texts, if there are any.
    pub protected: Option<Protected>,
    /// Retained classes that a retain caption or an unlabelled text names: the classes that the
    /// retain statistics cover.
    pub covered: BTreeSet<u32>,
    /// Numbers of captions and texts that name each class.
    pub(super) named: Named,
    /// Validation shards.
    pub validation: Vec<ShardRef>,
    /// Test shards.
    pub test: Vec<ShardRef>,
    /// Concepts by id.
    pub concepts: Vec<PlannedConcept>,
    /// Digest of the concepts' aliases, if there are any; salted where names are hashed.
    pub(super) aliases: Option<Digest>,
    /// Settings of the search for edits.
    pub settings: MethodSettings,
    /// Targets: other models that get the edits too.
    pub targets: Vec<Target>,
    /// Layers that may be edited, if some candidate has no effect in some target.
    pub layers: Option<BTreeSet<String>>,
    /// Warnings, which do not stop a run.
    pub warnings: Vec<String>,
}

/// A concept with its shards found.
#[derive(Debug, Clone)]
pub struct PlannedConcept {
    /// The concept in the manifest.
    pub concept: Concept,
    /// Its forget shards.
    pub forget: Vec<ShardRef>,
    /// Its stopping criterion.
    pub stop: Stop,
    /// Largest share of its forget images that the composed model may still recognise.
    pub tolerance: f64,
}

impl PlannedConcept {
    /// Returns the number of forget pairs.
    pub fn pairs(&self) -> u64 {
        self.forget.iter().map(|shard| shard.pairs).sum()
    }
}

impl Plan {
    /// Returns warnings about data that the manifest names more than once.
    pub(super) fn repeated_data(&self) -> Vec<String> {
        let shards = |shards: &[ShardRef]| {
            shards.iter().map(|shard| (shard.digest, shard.address.to_string())).collect::<Vec<_>>()
        };
        let slices = self
            .retain_texts
            .iter()
            .enumerate()
            .map(|(number, slice)| (Digest::of_json(slice), format!("part {}", number + 1)));
        let fields = [
            ("data.retain", shards(&self.retain)),
            ("data.retain_images", shards(&self.retain_images)),
            ("data.validation", shards(&self.validation)),
            ("data.test", shards(&self.test)),
            ("data.retain_texts", slices.collect()),
        ];
        let of_fields =
            fields.into_iter().filter_map(|(field, items)| repeated::warning(field, items));
        let of_concepts = self.concepts.iter().filter_map(|c| {
            repeated::warning(&format!("concept `{}`", c.concept.id), shards(&c.forget))
        });
        of_fields.chain(of_concepts).collect()
    }

    /// Returns the digest of all inputs that determine the run's result.
    pub(super) fn identify(&self) -> Result<Digest, Failure> {
        let digests =
            |shards: &[ShardRef]| shards.iter().map(|shard| shard.digest).collect::<Vec<_>>();
        let concepts: Vec<_> = self
            .concepts
            .iter()
            .map(|c| {
                let concept = &c.concept;
                (
                    (&concept.id, &concept.name, &concept.class, &concept.group),
                    concept.strength,
                    (c.stop, c.tolerance),
                    digests(&c.forget),
                )
            })
            .collect();
        let run = Digest::of_json(&(
            AnyTask::KINDS,
            (self.model.weights, self.model.settings, self.model.precision),
            (digests(&self.retain), digests(&self.validation), digests(&self.test)),
            self.retain_texts.iter().map(Digest::of_json).collect::<Vec<_>>(),
            &self.class_texts,
            concepts,
            &self.settings,
            (&self.manifest.composition, &self.manifest.policy, &self.manifest.gates),
        ));
        let run = match self.targets.as_slice() {
            [] => run,
            targets => Digest::of_json(&(
                run,
                targets.iter().map(Target::identity).collect::<Result<Vec<_>, Failure>>()?,
            )),
        };
        let run = match self.manifest.evaluation.probes.as_slice() {
            [] => run,
            probes => Digest::of_json(&(run, "probes", probes)),
        };
        let run = match &self.aliases {
            None => run,
            Some(aliases) => Digest::of_json(&(run, "aliases", aliases)),
        };
        let run = match &self.protected {
            None => run,
            Some(protected) => Digest::of_json(&(run, &protected.prompts)),
        };
        Ok(match self.retain_images.as_slice() {
            [] => run,
            images => Digest::of_json(&(run, "retain images", digests(images))),
        })
    }

    /// Returns the inputs of the edits, for the record.
    pub fn origin(&self) -> Origin {
        let files = |shards: &[ShardRef]| shards.iter().map(DataFile::from).collect();
        Origin {
            manifest: self.identity,
            algorithm: ALGORITHM_VERSION,
            // Known once jobs have outcomes.
            arithmetic: Vec::new(),
            precision: self.model.precision,
            hashed_names: self.manifest.release.names == Names::Hashed,
            classes: self.classes.names().len() as u64,
            class_texts: Digest::of_json(&self.class_texts),
            template: self.class_texts.template.clone(),
            retain: files(&self.retain),
            retain_texts: self.text_files.clone(),
            retain_images: files(&self.retain_images),
            protect: self.protected.as_ref().map(|protected| protected.file),
            validation: files(&self.validation),
            test: files(&self.test),
            license: self.manifest.release.license.clone(),
            // A model of the hub is named by its address.
            base_model: self.manifest.release.base_model.clone().or_else(|| {
                let hub = self.model.address.as_hub()?;
                (hub.kind() == RepositoryKind::Model && hub.path().is_empty()).then(|| hub.id())
            }),
        }
    }

    /// Returns the size of all shards that the run reads, bytes.
    pub fn shard_bytes(&self) -> u64 {
        let forget = self.concepts.iter().flat_map(|concept| &concept.forget);
        self.retain
            .iter()
            .chain(&self.retain_images)
            .chain(&self.validation)
            .chain(&self.test)
            .chain(forget)
            .map(|shard| shard.bytes)
            .sum()
    }

    /// Returns the number of full retain batches.
    pub fn retain_batches(&self) -> u64 {
        self.retain.iter().map(|shard| shard.pairs / u64::from(self.settings.batch_size)).sum()
    }

    /// Returns the plan with other concepts, by id, to evaluate a model from which those were
    /// removed. The run's name stays.
    #[must_use]
    pub fn with_concepts(mut self, concepts: Vec<PlannedConcept>) -> Self {
        self.covered = self.named.covered(&classes_of(&concepts));
        self.concepts = concepts;
        self
    }

    /// Returns a function that returns whether a class is retained: no concept of the manifest
    /// names it.
    pub fn retains(&self) -> impl Fn(u32) -> bool + use<> {
        let removed = classes_of(&self.concepts);
        move |class| !removed.contains(&class)
    }
}

/// Returns the classes of concepts.
pub(super) fn classes_of(concepts: &[PlannedConcept]) -> BTreeSet<u32> {
    concepts.iter().map(|planned| planned.concept.class_index).collect()
}

/// Returns the number of concepts per group, for tables.
pub fn groups(plan: &Plan) -> BTreeMap<&str, usize> {
    let mut groups = BTreeMap::new();
    for concept in &plan.concepts {
        *groups.entry(concept.concept.group.as_deref().unwrap_or("-")).or_default() += 1;
    }
    groups
}

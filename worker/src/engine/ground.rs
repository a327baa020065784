//! What the trials of one concept look at: the class list, the validation images, and the concept's forget images.

use std::sync::Arc;

use lethe_shared::job::{ArtifactRef, ModelRef, ShardRef};
use lethe_shared::outcome::{Accuracy, Answers};
use tch::Tensor;

use super::evaluate::Classes;
use super::model::Model;
use super::{Error, Scope, Stages, data};
use crate::corpus::{self, Corpus};
use crate::handle::SharedTensor;
use crate::slug::search::{Ground, Subject};
use crate::zero_shot;

/// The validation images, and as the unedited model embeds them.
#[derive(Debug)]
pub(super) struct Validation {
    corpus: Corpus,
    embedded: SharedTensor,
    labels: Vec<u32>,
}

impl Validation {
    fn of(scope: Scope<'_>, model: &Model, reference: &ModelRef, classes: &Classes, shards: &[ShardRef]) -> Result<Arc<Self>, Error> {
        let key = (reference.weights, shards.iter().map(|shard| shard.digest).collect(), scope.micro_batch);
        scope.engine.validations.get(key, || {
            let pairs = data::load_all(scope, model, shards)?;
            let labels = data::classes_of(&pairs.captions, &classes.texts)?;
            let corpus = scope.images(&pairs.pixels)?;
            let _guard = tch::no_grad_guard();
            let weights = model.parameters.weights();
            let embedded = SharedTensor::new(corpus.embed(&model.clip, &weights, &weights, None)?);
            Ok(Self { corpus, embedded, labels })
        })
    }
}

/// What all concepts of a run are judged by, in this thread's hands.
#[derive(Debug)]
pub(super) struct Judges {
    pub(super) classes: Arc<Classes>,
    validation: Arc<Validation>,
    class_embeddings: Tensor,
    validation_images: Tensor,
}

impl Judges {
    /// The judges of the concept that has this class.
    pub(super) fn of(
        scope: Scope<'_>,
        model: &Model,
        reference: &ModelRef,
        classes: &ArtifactRef,
        class: u32,
        validation: &[ShardRef],
        stages: &mut Stages,
    ) -> Result<Self, Error> {
        let classes = stages.time("classes", || Classes::of(scope, model, reference, classes))?;
        if class as usize >= classes.texts.names.len() {
            return Err(Error::Input(format!("class {class} is not in the class list")));
        }
        let validation = stages.time("validation", || Validation::of(scope, model, reference, &classes, validation))?;
        let (class_embeddings, validation_images) = (classes.embedded.get(), validation.embedded.get());
        Ok(Self { classes, validation, class_embeddings, validation_images })
    }

    /// The same, as the search takes it.
    pub(super) fn ground<'a>(&'a self, model: &'a Model) -> Ground<'a> {
        Ground {
            clip: &model.clip,
            parameters: &model.parameters,
            class_texts: &self.classes.corpus,
            classes: &self.class_embeddings,
            validation: &self.validation.corpus,
            validation_images: &self.validation_images,
            validation_labels: &self.validation.labels,
        }
    }
}

/// A concept's forget images under the unedited model.
#[derive(Debug)]
pub(super) struct Forget {
    class: u32,
    corpus: Corpus,
    embedded: Tensor,
    /// How often the unedited model finds the class in them.
    pub(super) before: Accuracy,
    /// What it says of them.
    pub(super) answers: Answers,
}

impl Forget {
    pub(super) fn of(scope: Scope<'_>, model: &Model, judges: &Judges, class: u32, pixels: &Tensor) -> Result<Self, Error> {
        let corpus = scope.images(pixels)?;
        let weights = model.parameters.weights();
        let embedded = corpus.embed(&model.clip, &weights, &weights, None)?;
        let labels = corpus::labels(&vec![class; corpus.len()], scope.device())?;
        let before = zero_shot::accuracy(&zero_shot::ranks(&embedded, &judges.class_embeddings, &labels)?);
        let answers = zero_shot::answers(&embedded, &judges.class_embeddings, class)?;
        Ok(Self { class, corpus, embedded, before, answers })
    }

    /// The same, as the search takes it.
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { class: self.class, images: &self.corpus, embedded: &self.embedded }
    }
}

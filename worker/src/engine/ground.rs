//! What the trials of one concept look at: the class list, the validation images, and the concept's forget images.

use std::sync::Arc;

use lethe_shared::job::{ArtifactRef, ModelRef, ShardRef};
use lethe_shared::manifest::Towers;
use lethe_shared::outcome::{Accuracy, Answers, Tower};
use tch::Tensor;

use super::evaluate::Classes;
use super::model::Model;
use super::{Error, Scope, Stages, data, key};
use crate::corpus::{self, Corpus};
use crate::handle::SharedTensor;
use crate::slug::choice::hardest_first;
use crate::slug::search::{Ground, Subject};
use crate::zero_shot;

/// What all concepts of a run are judged by, in this thread's hands.
#[derive(Debug)]
pub(super) struct Judges {
    pub(super) classes: Arc<Classes>,
    class_embeddings: Tensor,
    validation: Arc<Validation>,
    validation_images: Tensor,
}

/// The validation images, those first that the unedited model is least sure of.
#[derive(Debug)]
pub(super) struct Validation {
    /// To see with changed vision towers, where one may change.
    corpus: Option<Corpus>,
    /// Under the unedited model `[n, d]`.
    embedded: SharedTensor,
    labels: Vec<u32>,
}

impl Judges {
    /// The judges of edits of these towers.
    pub(super) fn of(
        scope: Scope<'_>,
        model: &Model,
        reference: &ModelRef,
        classes_file: &ArtifactRef,
        validation: &[ShardRef],
        edited: Towers,
        stages: &mut Stages,
    ) -> Result<Self, Error> {
        let classes = stages.time("classes", || Classes::of(scope, model, reference, classes_file))?;
        let class_embeddings = classes.embedded.get();
        let seen = edited.include(Tower::Vision);
        let validation = stages.time("validation", || {
            let shards = validation.iter().map(|shard| shard.digest).collect();
            let key = (key(reference), shards, classes_file.digest, seen, scope.micro_batch);
            scope.engine.validation.get(key, || {
                let images = scope.engine.images.of(scope, model, reference, validation)?;
                let labels = data::classes_of(&images.captions, &classes.texts)?;
                let order = hardest_first(&images.embedded, &class_embeddings, &corpus::labels(&labels, scope.device())?)?;
                let rows = Tensor::f_from_slice(&order)?;
                let corpus = match seen {
                    true => Some(scope.images(model, &data::load_all(scope, model, validation)?.pixels.f_index_select(0, &rows)?)?),
                    false => None,
                };
                let embedded = SharedTensor::new(images.embedded.f_index_select(0, &rows.f_to(scope.device())?)?);
                Ok(Validation { corpus, embedded, labels: order.iter().map(|&image| labels[image as usize]).collect() })
            })
        })?;
        let validation_images = validation.embedded.get();
        Ok(Self { classes, class_embeddings, validation, validation_images })
    }

    /// The same, as the search takes it.
    pub(super) fn ground<'a>(&'a self, scope: Scope<'_>, model: &'a Model) -> Ground<'a> {
        Ground {
            clip: &model.clip,
            parameters: &model.parameters,
            class_texts: &self.classes.corpus,
            classes: &self.class_embeddings,
            validation: self.validation.corpus.as_ref(),
            validation_images: &self.validation_images,
            validation_labels: &self.validation.labels,
            spare_tokens: scope.engine.options.spare_tokens,
        }
    }
}

/// A concept's forget images under the unedited model.
#[derive(Debug)]
pub(super) struct Forget {
    class: u32,
    corpus: Option<Corpus>,
    embedded: Tensor,
    /// How often the unedited model finds the class in them.
    pub(super) before: Accuracy,
    /// What it says of them.
    pub(super) answers: Answers,
}

impl Forget {
    /// The images of these shards, to be looked at under edits of some towers.
    pub(super) fn of(
        scope: Scope<'_>,
        model: &Model,
        reference: &ModelRef,
        judges: &Judges,
        class: u32,
        shards: &[ShardRef],
        edited: Towers,
    ) -> Result<Self, Error> {
        if class as usize >= judges.classes.texts.names.len() {
            return Err(Error::Input(format!("class {class} is not in the class list")));
        }
        let pixels = || scope.images(model, &data::load_all(scope, model, shards)?.pixels);
        let corpus = if edited.include(Tower::Vision) { Some(pixels()?) } else { None };
        let images = scope.engine.images.of(scope, model, reference, shards)?;
        let embedded = images.embedded;
        let labels = corpus::labels(&vec![class; images.captions.len()], scope.device())?;
        let before = zero_shot::accuracy(&zero_shot::ranks(&embedded, &judges.class_embeddings, &labels)?);
        let answers = zero_shot::answers(&embedded, &judges.class_embeddings, class)?;
        Ok(Self { class, corpus, embedded, before, answers })
    }

    /// The same, as the search takes it.
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { class: self.class, images: self.corpus.as_ref(), embedded: &self.embedded }
    }
}

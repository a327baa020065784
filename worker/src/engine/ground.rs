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
use crate::slug::search::{Ground, Subject};
use crate::zero_shot;

/// What all concepts of a run are judged by, in this thread's hands.
#[derive(Debug)]
pub(super) struct Judges {
    pub(super) classes: Arc<Classes>,
    class_embeddings: Tensor,
    /// Validation images, to see with changed vision towers.
    validation: Option<Arc<Corpus>>,
    validation_images: Tensor,
    validation_labels: Vec<u32>,
}

impl Judges {
    /// The judges of edits of these towers.
    pub(super) fn of(
        scope: Scope<'_>,
        model: &Model,
        reference: &ModelRef,
        classes: &ArtifactRef,
        validation: &[ShardRef],
        edited: Towers,
        stages: &mut Stages,
    ) -> Result<Self, Error> {
        let classes = stages.time("classes", || Classes::of(scope, model, reference, classes))?;
        let images = stages.time("validation", || scope.engine.images.of(scope, model, reference, validation))?;
        let validation_labels = data::classes_of(&images.captions, &classes.texts)?;
        let pixels = || {
            let key = (key(reference), validation.iter().map(|shard| shard.digest).collect(), scope.micro_batch);
            scope.engine.validation_pixels.get(key, || scope.images(model, &data::load_all(scope, model, validation)?.pixels))
        };
        let validation = if edited.include(Tower::Vision) { Some(stages.time("validation", pixels)?) } else { None };
        let class_embeddings = classes.embedded.get();
        Ok(Self { classes, class_embeddings, validation, validation_images: images.embedded, validation_labels })
    }

    /// The same, as the search takes it.
    pub(super) fn ground<'a>(&'a self, scope: Scope<'_>, model: &'a Model) -> Ground<'a> {
        Ground {
            clip: &model.clip,
            parameters: &model.parameters,
            class_texts: &self.classes.corpus,
            classes: &self.class_embeddings,
            validation: self.validation.as_deref(),
            validation_images: &self.validation_images,
            validation_labels: &self.validation_labels,
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

//! The data on which the trials of a concept are evaluated: the class list, the validation images,
//! and the concept's forget images.

use std::sync::Arc;

use lethe_shared::digest::Digest;
use lethe_shared::measurement::{Accuracy, Answers};
use lethe_shared::reference::{ArtifactRef, FileSpec, ModelSpec};
use lethe_shared::vocabulary::{Tower, Towers};
use tch::Tensor;

use super::class_list::ClassList;
use super::error::Error;
use super::job_context::{JobContext, StageTimes};
use super::loaded_model::LoadedModel;
use super::shared_values::SharedValue;
use super::{data, image_embeddings};
use crate::corpus::{self, Corpus};
use crate::micro_batch::MicroBatch;
use crate::shared_tensor::SharedTensor;
use crate::slug::choice::hardest_first;
use crate::slug::trial::{EvaluationContext, ForgetSet};
use crate::zero_shot;

/// The evaluation data that all concepts of a run share. Its tensor handles belong to one thread.
#[derive(Debug)]
pub(super) struct EvaluationData {
    pub(super) classes: Arc<ClassList>,
    class_embeddings: Tensor,
    validation: Arc<ValidationSet>,
    validation_embeddings: Tensor,
}

/// The validation images, in the order of [`hardest_first`].
#[derive(Debug)]
struct ValidationSet {
    /// The images, when edits may change the vision tower.
    images: Option<Corpus>,
    /// Embeddings by the unedited model `[n, d]`.
    embeddings: SharedTensor,
    labels: Vec<u32>,
}

impl SharedValue for ValidationSet {
    /// Model, shards, class list, whether the images are included, limits of passes.
    type Key = (ModelSpec, Vec<Digest>, Digest, bool, MicroBatch);
    const HOLDS_ACTIVATIONS: bool = true;
}

impl EvaluationData {
    /// Returns the evaluation data for edits of some towers.
    pub(super) fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        class_list: &ArtifactRef,
        validation: &[FileSpec],
        edited: Towers,
        stages: &mut StageTimes,
    ) -> Result<Self, Error> {
        let classes = stages.time("classes", || ClassList::of(context, model, class_list))?;
        let class_embeddings = classes.embeddings.get();
        let validation = stages.time("validation", || {
            ValidationSet::of(context, model, &classes, validation, edited)
        })?;
        let validation_embeddings = validation.embeddings.get();
        Ok(Self { classes, class_embeddings, validation, validation_embeddings })
    }

    /// Borrows the data in the form that searches take.
    pub(super) fn evaluation_context<'a>(
        &'a self,
        context: JobContext<'_>,
        model: &'a LoadedModel,
    ) -> EvaluationContext<'a> {
        EvaluationContext {
            clip: &model.clip,
            parameters: &model.parameters,
            class_texts: &self.classes.corpus,
            class_embeddings: &self.class_embeddings,
            validation_images: self.validation.images.as_ref(),
            validation_embeddings: &self.validation_embeddings,
            validation_labels: &self.validation.labels,
            spare_tokens: context.resources.options.spare_tokens,
        }
    }
}

impl ValidationSet {
    fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        classes: &ClassList,
        shards: &[FileSpec],
        edited: Towers,
    ) -> Result<Arc<Self>, Error> {
        let needs_images = edited.include(Tower::Vision);
        let digests = shards.iter().map(|shard| shard.digest).collect();
        let key = (context.job.model, digests, classes.digest, needs_images, context.micro_batch);
        context.shared(key, || {
            let embedded = image_embeddings::of(context, model, shards)?;
            let labels = data::classes_of(&embedded.captions, &classes.texts)?;
            let label_tensor = corpus::labels(&labels, context.device())?;
            let order =
                hardest_first(&embedded.embeddings, &classes.embeddings.get(), &label_tensor)?;
            let rows = Tensor::f_from_slice(&order)?;
            let images = if needs_images {
                let pixels =
                    data::load_all(context, model, shards)?.pixels.f_index_select(0, &rows)?;
                Some(model.image_corpus(context, &pixels)?)
            } else {
                None
            };
            let embeddings = SharedTensor::new(
                embedded.embeddings.f_index_select(0, &rows.f_to(context.device())?)?,
            );
            Ok(Self {
                images,
                embeddings,
                labels: order.iter().map(|&image| labels[image as usize]).collect(),
            })
        })
    }
}

/// A concept's forget images under the unedited model.
#[derive(Debug)]
pub(super) struct ForgetImages {
    class: u32,
    /// The images, when edits may change the vision tower.
    images: Option<Corpus>,
    /// Embeddings `[n, d]`.
    embeddings: Tensor,
    /// Accuracy of the unedited model for the concept's class.
    pub(super) before: Accuracy,
    /// Top predictions of the unedited model.
    pub(super) top_predictions: Answers,
}

impl ForgetImages {
    /// Loads the images of some shards, for edits of some towers.
    pub(super) fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        data: &EvaluationData,
        class: u32,
        shards: &[FileSpec],
        edited: Towers,
    ) -> Result<Self, Error> {
        if class as usize >= data.classes.texts.names.len() {
            return Err(Error::Input(format!("class {class} is not in the class list")));
        }
        let images = if edited.include(Tower::Vision) {
            Some(model.image_corpus(context, &data::load_all(context, model, shards)?.pixels)?)
        } else {
            None
        };
        let embedded = image_embeddings::of(context, model, shards)?;
        let embeddings = embedded.embeddings;
        let labels = corpus::labels(&vec![class; embedded.captions.len()], context.device())?;
        let before =
            zero_shot::accuracy(&zero_shot::ranks(&embeddings, &data.class_embeddings, &labels)?);
        let top_predictions =
            zero_shot::top_predictions(&embeddings, &data.class_embeddings, class)?;
        Ok(Self { class, images, embeddings, before, top_predictions })
    }

    /// Borrows the images in the form that searches take.
    pub(super) fn forget_set(&self) -> ForgetSet<'_> {
        ForgetSet { class: self.class, images: self.images.as_ref(), embeddings: &self.embeddings }
    }
}

//! Zero-shot hits of the model, original or changed.

use std::sync::Arc;

use lethe_shared::digest::Digest;
use lethe_shared::reference::{ArtifactRef, ClassTexts, FileSpec, ModelSpec};
use lethe_shared::task::{Evaluate, EvaluateItem, EvaluateOutput, Label};
use lethe_shared::vocabulary::Tower;
use safetensors::SafeTensors;
use tch::Tensor;

use super::class_list::ClassList;
use super::error::Error;
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::shared_values::SharedValue;
use super::{data, image_embeddings};
use crate::corpus;
use crate::model::weights::tensor_from_bytes;
use crate::model::{self, ParameterId, Weights};
use crate::shared_tensor::SharedTensor;
use crate::zero_shot;

/// Counts the hits of every item, under a change of some tensors if there is one.
impl Perform for Evaluate {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<EvaluateOutput, Error> {
        evaluate(context, self, stages)
    }
}

fn evaluate(
    context: JobContext<'_>,
    task: &Evaluate,
    stages: &mut StageTimes,
) -> Result<EvaluateOutput, Error> {
    let change = task.change.as_ref();
    let model = stages.time("model", || LoadedModel::of(context))?;
    let classes = stages.time("classes", || ClassList::of(context, &model, &task.classes))?;
    let _guard = tch::no_grad_guard();
    let composed = stages.time("change", || {
        change.map(|change| ComposedModel::of(context, &model, &classes, change)).transpose()
    })?;
    let class_embeddings =
        composed.as_ref().map_or(&classes.embeddings, |composed| &composed.class_embeddings).get();
    let removed = match &task.removed {
        Some(artifact) => Some(Removed::of(context, artifact, classes.texts.names.len())?),
        None => None,
    };
    let mut output = EvaluateOutput::default();
    for item in &task.items {
        let (images, captions) =
            embedded_images(context, &model, composed.as_deref(), &item.shards, stages)?;
        let labels = labels(item, &captions, &classes.texts)?;
        let ranks = ranks(
            &images,
            &class_embeddings,
            &corpus::labels(&labels, context.device())?,
            &item.name,
            change,
        )?;
        if let Label::Class(class) = item.label {
            output.answers.insert(
                item.name.clone(),
                zero_shot::top_predictions(&images, &class_embeddings, class)?,
            );
            output
                .best
                .insert(item.name.clone(), ranks.iter().copied().min().unwrap_or(i64::MAX) as u64);
        }
        if let Some(removed) = &removed {
            match item.label {
                Label::Class(class) => {
                    let ranks = zero_shot::image_ranks(
                        &images,
                        &class_embeddings,
                        class,
                        &removed.retained.f_to(context.device())?,
                    )?;
                    output.ranks.insert(item.name.clone(), ranks);
                }
                Label::Caption => {
                    let classes = &removed.classes;
                    let searches =
                        zero_shot::name_searches(&images, &class_embeddings, &labels, classes)?;
                    output.searches.insert(item.name.clone(), searches);
                }
            }
        }
        output.items.insert(item.name.clone(), zero_shot::hits(&ranks, &labels));
    }
    Ok(output)
}

/// Returns the true classes of an item's images.
pub(super) fn labels(
    item: &EvaluateItem,
    captions: &[String],
    classes: &ClassTexts,
) -> Result<Vec<u32>, Error> {
    match item.label {
        Label::Class(class) if (class as usize) < classes.names.len() => {
            Ok(vec![class; captions.len()])
        }
        Label::Class(class) => Err(Error::Input(format!("class {class} is not in the class list"))),
        Label::Caption => data::classes_of(captions, classes),
    }
}

/// The classes that are removed.
pub(super) struct Removed {
    pub(super) classes: Vec<u32>,
    /// Marks the other classes: `[c]`, boolean.
    pub(super) retained: Tensor,
}

impl Removed {
    pub(super) fn of(
        context: JobContext<'_>,
        artifact: &ArtifactRef,
        class_count: usize,
    ) -> Result<Self, Error> {
        let classes: Vec<u32> = serde_json::from_slice(&context.get(artifact)?)
            .map_err(|error| Error::Input(format!("the list of classes is damaged: {error}")))?;
        let mut retained = vec![true; class_count];
        for &class in &classes {
            let Some(place) = retained.get_mut(class as usize) else {
                return Err(Error::Input(format!("class {class} is not in the class list")));
            };
            *place = false;
        }
        Ok(Self { classes, retained: Tensor::f_from_slice(&retained)? })
    }
}

/// Returns the embeddings and captions of some shards under the composed model, or under the
/// original one.
pub(super) fn embedded_images(
    context: JobContext<'_>,
    model: &LoadedModel,
    composed: Option<&ComposedModel>,
    shards: &[FileSpec],
    stages: &mut StageTimes,
) -> Result<(Tensor, Vec<String>), Error> {
    let Some(composed) = composed.filter(|composed| composed.changes_vision) else {
        // A change of the text tower leaves images unchanged, so they are embedded once per
        // process.
        let embedded = stages.time("images", || image_embeddings::of(context, model, shards))?;
        return Ok((embedded.embeddings, embedded.captions));
    };
    let pairs = stages.time("data", || data::load_all(context, model, shards))?;
    let weights = composed.weights(model);
    let corpus = model.image_corpus(context, &pairs.pixels)?;
    let embeddings = stages.time("images", || Ok(corpus.embed_uncached(&model.clip, &weights)?))?;
    Ok((embeddings, pairs.captions))
}

/// Ranks an item's images. A model that its weights or edits have driven out of range has no ranks.
/// That is an error, and no proof that anything was forgotten.
fn ranks(
    images: &Tensor,
    classes: &Tensor,
    labels: &Tensor,
    item: &str,
    change: Option<&ArtifactRef>,
) -> Result<Vec<i64>, Error> {
    zero_shot::ranks(images, classes, labels).map_err(|error| match error {
        model::Error::NotFinite(problem) => {
            let cause = match change {
                Some(_) => {
                    "lower the strength of the edited concepts, or raise composition.tolerance"
                }
                None => "check that the weights of the model are complete",
            };
            Error::Input(format!("evaluation of `{item}`: {problem}; {cause}"))
        }
        other => other.into(),
    })
}

/// The model with a change of some tensors, and the class list as this model embeds it.
#[derive(Debug)]
pub(super) struct ComposedModel {
    changed: Vec<(ParameterId, SharedTensor)>,
    pub(super) class_embeddings: SharedTensor,
    /// Whether the change affects the vision tower.
    changes_vision: bool,
}

impl SharedValue for ComposedModel {
    /// Model, class list, change.
    type Key = (ModelSpec, Digest, Digest);
}

impl ComposedModel {
    pub(super) fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        classes: &ClassList,
        change: &ArtifactRef,
    ) -> Result<Arc<Self>, Error> {
        context.shared((context.job.model, classes.digest, change.digest), || {
            let changed = changed_tensors(context, model, change)?;
            let changes = |tower| {
                changed
                    .iter()
                    .any(|(id, _)| model.clip.architecture().spec(*id).tower == Some(tower))
            };
            let (changes_text, changes_vision) = (changes(Tower::Text), changes(Tower::Vision));
            let mut composed = Self {
                changed,
                class_embeddings: SharedTensor::new(classes.embeddings.get()),
                changes_vision,
            };
            if changes_text {
                // Cached activations of the unedited model do not help here, because edits may be
                // anywhere in the tower.
                let embeddings =
                    classes.corpus.embed_uncached(&model.clip, &composed.weights(model))?;
                composed.class_embeddings = SharedTensor::new(embeddings);
            }
            Ok(composed)
        })
    }

    /// Returns the model's weights with the change.
    pub(super) fn weights(&self, model: &LoadedModel) -> Weights {
        self.changed.iter().fold(model.parameters.weights(), |weights, (id, tensor)| {
            weights.with(*id, tensor.get())
        })
    }
}

/// Reads the tensors of a change, with the parameters that they replace.
pub(super) fn changed_tensors(
    context: JobContext<'_>,
    model: &LoadedModel,
    change: &ArtifactRef,
) -> Result<Vec<(ParameterId, SharedTensor)>, Error> {
    let bytes = context.get(change)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::Input(format!("the change's artifact is damaged: {error}")))?;
    let mut changed = Vec::new();
    for (name, view) in file.tensors() {
        let architecture = model.clip.architecture();
        let unknown = || {
            Error::Input(format!(
                "the change contains tensor `{name}`, which the model does not have"
            ))
        };
        let id = architecture.find(&name).ok_or_else(unknown)?;
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &architecture.spec(id).shape)
            .map_err(|problem| Error::Input(format!("the change of tensor `{name}` {problem}")))?;
        changed.push((id, SharedTensor::new(tensor.f_to(context.device())?)));
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_that_are_not_finite_are_an_error() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 2]);
        let (sound, broken) = (rows(&[1., 0., 0., 1.]), rows(&[f32::NAN, 0., 0., 1.]));
        let labels = Tensor::from_slice(&[0i64, 1]);
        let change = ArtifactRef { digest: Digest::of(b"change"), bytes: 0 };
        assert_eq!(ranks(&sound, &sound, &labels, "forget:a", Some(&change)).unwrap(), [0, 0]);
        for (change, says) in
            [(Some(&change), "lower the strength"), (None, "check that the weights")]
        {
            let error = ranks(&sound, &broken, &labels, "forget:a", change).unwrap_err();
            assert!(
                matches!(error, Error::Input(_)),
                "the fault does not depend on the machine: {error:?}"
            );
            let text = error.to_string();
            assert!(
                text.contains("`forget:a`: zero-shot scores are not finite") && text.contains(says),
                "{text}"
            );
        }
    }
}

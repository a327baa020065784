//! Zero-shot hits of the model, changed or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_shared::digest::Digest;
use lethe_shared::job::{ArtifactRef, ClassTexts, EvaluateItem, Label, ModelRef};
use lethe_shared::outcome::{EvaluateResult, Tower};
use safetensors::SafeTensors;

use super::model::Model;
use super::{Error, Scope, Stages, data, key};
use crate::corpus::{self, Corpus};
use crate::handle::SharedTensor;
use crate::model::weights::tensor_from_bytes;
use crate::model::{self, ParameterId, Weights};
use crate::zero_shot;

/// The class list as texts to embed, and as the unedited model embeds them.
#[derive(Debug)]
pub(super) struct Classes {
    pub(super) texts: ClassTexts,
    pub(super) corpus: Corpus,
    pub(super) embedded: SharedTensor,
    digest: Digest,
}

impl Classes {
    pub(super) fn of(scope: Scope<'_>, model: &Model, reference: &ModelRef, classes: &ArtifactRef) -> Result<Arc<Self>, Error> {
        scope.engine.classes.get((key(reference), classes.digest, scope.micro_batch), || {
            let texts: ClassTexts = serde_json::from_slice(&scope.get(classes)?)
                .map_err(|error| Error::Input(format!("the class list is damaged: {error}")))?;
            let prompts: Vec<String> = texts.prompts().collect();
            let corpus = scope.texts(model, &prompts)?;
            let _guard = tch::no_grad_guard();
            let weights = model.parameters.weights();
            let embedded = SharedTensor::new(corpus.embed(&model.clip, &weights, &weights, None)?);
            Ok(Self { texts, corpus, embedded, digest: classes.digest })
        })
    }
}

/// Counts hits of every item under a change of some tensors (or none).
pub(super) fn evaluate(
    scope: Scope<'_>,
    reference: &ModelRef,
    change: Option<&ArtifactRef>,
    items: &[EvaluateItem],
    classes: &ArtifactRef,
    stages: &mut Stages,
) -> Result<EvaluateResult, Error> {
    let model = stages.time("model", || Model::of(scope, reference))?;
    let classes = stages.time("classes", || Classes::of(scope, &model, reference, classes))?;
    let _guard = tch::no_grad_guard();
    let composed = stages.time("change", || change.map(|change| Composed::of(scope, &model, reference, &classes, change)).transpose())?;
    let embedded = composed.as_ref().map_or(&classes.embedded, |composed| &composed.classes).get();
    let (mut found, mut best, mut answers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for item in items {
        let (images, captions) = match &composed {
            Some(composed) if composed.sees_otherwise => {
                let pairs = stages.time("data", || data::load_all(scope, &model, &item.shards))?;
                let weights = composed.weights(&model);
                let corpus = scope.images(&model, &pairs.pixels)?;
                (stages.time("images", || Ok(corpus.embed_changed(&model.clip, &weights)?))?, pairs.captions)
            }
            // What changes texts alone leaves images as they were: they are embedded once per process.
            _ => {
                let images = stages.time("images", || scope.engine.images.of(scope, &model, reference, &item.shards))?;
                (images.embedded, images.captions)
            }
        };
        let labels = match item.label {
            Label::Class(class) if (class as usize) < classes.texts.names.len() => vec![class; captions.len()],
            Label::Class(class) => return Err(Error::Input(format!("class {class} is not in the class list"))),
            Label::Caption => data::classes_of(&captions, &classes.texts)?,
        };
        let ranks = match zero_shot::ranks(&images, &embedded, &corpus::labels(&labels, scope.device())?) {
            Ok(ranks) => ranks,
            // A model that edits have driven out of range knows nothing: every image is a miss.
            Err(model::Error::Tensor { .. }) => vec![i64::MAX; labels.len()],
            Err(other) => return Err(other.into()),
        };
        if let Label::Class(class) = item.label {
            match zero_shot::answers(&images, &embedded, class) {
                Ok(said) => _ = answers.insert(item.name.clone(), said),
                Err(model::Error::Tensor { .. }) => {}
                Err(other) => return Err(other.into()),
            }
            best.insert(item.name.clone(), ranks.iter().copied().min().unwrap_or(i64::MAX) as u64);
        }
        found.insert(item.name.clone(), zero_shot::hits(&ranks, &labels));
    }
    Ok(EvaluateResult { items: found, best, answers })
}

/// A change of the model, and the class list as the changed model embeds it.
#[derive(Debug)]
pub(super) struct Composed {
    changed: Vec<(ParameterId, SharedTensor)>,
    classes: SharedTensor,
    /// Whether anything of the vision tower is changed.
    sees_otherwise: bool,
}

impl Composed {
    fn of(scope: Scope<'_>, model: &Model, reference: &ModelRef, classes: &Classes, change: &ArtifactRef) -> Result<Arc<Self>, Error> {
        scope.engine.composed.get((key(reference), classes.digest, change.digest), || {
            let changed = changed(scope, model, change)?;
            let touches = |tower| changed.iter().any(|(id, _)| model.clip.architecture().spec(*id).tower == Some(tower));
            let (reads_otherwise, sees_otherwise) = (touches(Tower::Text), touches(Tower::Vision));
            let mut composed = Self { changed, classes: SharedTensor::new(classes.embedded.get()), sees_otherwise };
            if reads_otherwise {
                // No prefix of the unedited model is of use here: edits may be all over the tower.
                composed.classes = SharedTensor::new(classes.corpus.embed_changed(&model.clip, &composed.weights(model))?);
            }
            Ok(composed)
        })
    }

    fn weights(&self, model: &Model) -> Weights {
        self.changed.iter().fold(model.parameters.weights(), |weights, (id, tensor)| weights.with(*id, tensor.get()))
    }
}

/// The tensors of a safetensors artifact, by the parameters they take the place of.
fn changed(scope: Scope<'_>, model: &Model, change: &ArtifactRef) -> Result<Vec<(ParameterId, SharedTensor)>, Error> {
    let bytes = scope.get(change)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| Error::Input(format!("the change's artifact is damaged: {error}")))?;
    let mut changed = Vec::new();
    for (name, view) in file.tensors() {
        let architecture = model.clip.architecture();
        let id = architecture.find(&name).ok_or_else(|| Error::Input(format!("the change names `{name}`, which the model lacks")))?;
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &architecture.spec(id).shape)
            .map_err(|problem| Error::Input(format!("the change of `{name}` {problem}")))?;
        changed.push((id, SharedTensor::new(tensor.f_to(scope.device())?)));
    }
    Ok(changed)
}

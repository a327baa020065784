//! Zero-shot hits of the model, changed or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_shared::job::{ArtifactRef, ClassTexts, EvaluateItem, Label, ModelRef};
use lethe_shared::outcome::{EvaluateResult, Hits};
use safetensors::SafeTensors;
use tch::Tensor;

use super::model::Model;
use super::{Error, Scope, Stages, data};
use crate::corpus::{self, Corpus};
use crate::handle::SharedTensor;
use crate::model::weights::tensor_from_bytes;
use crate::model::{self, Weights};
use crate::zero_shot;

/// The class list as texts to embed, and as the unedited model embeds them.
#[derive(Debug)]
pub(super) struct Classes {
    pub(super) texts: ClassTexts,
    pub(super) corpus: Corpus,
    pub(super) embedded: SharedTensor,
}

impl Classes {
    pub(super) fn of(scope: Scope<'_>, model: &Model, reference: &ModelRef, classes: &ArtifactRef) -> Result<Arc<Self>, Error> {
        scope.engine.classes.get((reference.weights, classes.digest), || {
            let texts: ClassTexts = serde_json::from_slice(&scope.get(classes)?)
                .map_err(|error| Error::Input(format!("the class list is damaged: {error}")))?;
            let prompts: Vec<String> = texts.prompts().collect();
            let corpus = Corpus::texts(&model.clip, &model.encode(&prompts)?, scope.device(), scope.budget())?;
            let _guard = tch::no_grad_guard();
            let weights = model.parameters.weights();
            let embedded = SharedTensor::new(corpus.embed(&model.clip, &weights, &weights, None)?);
            Ok(Self { texts, corpus, embedded })
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
    let (weights, embedded) = match change {
        None => (model.parameters.weights(), classes.embedded.get()),
        Some(change) => {
            let weights = stages.time("change", || changed(scope, &model, change))?;
            // No prefix of the unedited model is of use here: edits are all over both towers.
            let embedded = stages.time("classes", || Ok(classes.corpus.embed_changed(&model.clip, &weights)?))?;
            (weights, embedded)
        }
    };
    let mut found = BTreeMap::new();
    for item in items {
        let pairs = stages.time("data", || data::load_all(scope, &model, &item.shards))?;
        let labels = match item.label {
            Label::Class(class) if (class as usize) < classes.texts.names.len() => vec![class; pairs.captions.len()],
            Label::Class(class) => return Err(Error::Input(format!("class {class} is not in the class list"))),
            Label::Caption => data::classes_of(&pairs.captions, &classes.texts)?,
        };
        let hits = stages.time("images", || Ok(count(scope, &model, &weights, &embedded, &pairs.pixels, &labels)?))?;
        found.insert(item.name.clone(), hits);
    }
    Ok(EvaluateResult { items: found })
}

fn count(
    scope: Scope<'_>,
    model: &Model,
    weights: &Weights,
    classes: &Tensor,
    pixels: &Tensor,
    labels: &[u32],
) -> Result<Hits, model::Error> {
    let images = Corpus::images(pixels, scope.budget())?.embed_changed(&model.clip, weights)?;
    let indices = corpus::labels(labels, scope.device())?;
    match zero_shot::ranks(&images, classes, &indices) {
        Ok(ranks) => Ok(zero_shot::hits(&ranks, labels)),
        // A model that edits have driven out of range knows nothing: every image is a miss.
        Err(model::Error::Tensor { .. }) => Ok(zero_shot::hits(&vec![i64::MAX; labels.len()], labels)),
        Err(other) => Err(other),
    }
}

/// The model with the tensors of a safetensors artifact in the place of its own.
fn changed(scope: Scope<'_>, model: &Model, change: &ArtifactRef) -> Result<Weights, Error> {
    let bytes = scope.get(change)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| Error::Input(format!("the change's artifact is damaged: {error}")))?;
    let mut weights = model.parameters.weights();
    for (name, view) in file.tensors() {
        let architecture = model.clip.architecture();
        let id = architecture.find(&name).ok_or_else(|| Error::Input(format!("the change names `{name}`, which the model lacks")))?;
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &architecture.spec(id).shape)
            .map_err(|problem| Error::Input(format!("the change of `{name}` {problem}")))?;
        weights = weights.with(id, tensor.f_to(scope.device())?);
    }
    Ok(weights)
}

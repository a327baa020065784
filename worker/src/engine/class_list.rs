//! The class texts of a run, and their embeddings by the unedited model.

use std::sync::Arc;

use lethe_shared::digest::Digest;
use lethe_shared::reference::{ArtifactRef, ClassTexts, ModelSpec};

use super::error::Error;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use super::shared_values::SharedValue;
use crate::corpus::Corpus;
use crate::micro_batch::MicroBatch;
use crate::shared_tensor::SharedTensor;

/// The class list: its texts as a corpus, and their embeddings by the unedited model.
#[derive(Debug)]
pub(super) struct ClassList {
    pub(super) texts: ClassTexts,
    pub(super) corpus: Corpus,
    /// `[classes, d]`.
    pub(super) embeddings: SharedTensor,
    pub(super) digest: Digest,
}

impl SharedValue for ClassList {
    /// Model, class list, limits of passes.
    type Key = (ModelSpec, Digest, MicroBatch);
    const HOLDS_ACTIVATIONS: bool = true;
}

impl ClassList {
    pub(super) fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        classes: &ArtifactRef,
    ) -> Result<Arc<Self>, Error> {
        context.shared((context.job.model, classes.digest, context.micro_batch), || {
            let texts: ClassTexts = serde_json::from_slice(&context.get(classes)?)
                .map_err(|error| Error::Input(format!("the class list is damaged: {error}")))?;
            let prompts: Vec<String> = texts.prompts().collect();
            let corpus = model.text_corpus(context, &prompts)?;
            let _guard = tch::no_grad_guard();
            let weights = model.parameters.weights();
            let embeddings =
                SharedTensor::new(corpus.embed(&model.clip, &weights, &weights, None)?);
            Ok(Self { texts, corpus, embeddings, digest: classes.digest })
        })
    }
}

//! A model with its tokenizer and preprocessing, checked against the digests that a job names.

use std::path::PathBuf;
use std::sync::Arc;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::reference::ModelSpec;
use lethe_shared::vocabulary::Towers;
use lethe_store as store;
use tch::Tensor;

use super::error::Error;
use super::job_context::JobContext;
use super::shared_values::SharedValue;
use crate::corpus::Corpus;
use crate::input::{Preprocessor, Tokenizer};
use crate::model::{Clip, ParameterId, Parameters, TokenBatch};
use crate::model_folder::{self, ModelFolder};

/// A model that is ready to compute.
#[derive(Debug)]
pub(super) struct LoadedModel {
    pub(super) clip: Clip,
    pub(super) parameters: Parameters,
    pub(super) tokenizer: Tokenizer,
    pub(super) preprocessor: Preprocessor,
}

impl SharedValue for LoadedModel {
    type Key = ModelSpec;
}

impl LoadedModel {
    /// Returns the job's model, which is loaded unless it is in memory.
    pub(super) fn of(context: JobContext<'_>) -> Result<Arc<Self>, Error> {
        let model = &context.job.model;
        context.shared(*model, || Self::open(context, model))
    }

    fn open(context: JobContext<'_>, model: &ModelSpec) -> Result<Self, Error> {
        let address = &context.job.locations.model;
        let (folder, checkpoint) = match planned_model(context, model) {
            Ok(found) => found,
            // A damaged copy of a remote model is downloaded again, once.
            Err(Error::Fault(fault)) if fault.is_environment() && remove_copy(context)? => {
                tracing::warn!(error = %fault, "the cached copy of the model is damaged; downloading it again");
                planned_model(context, model)?
            }
            Err(error) => return Err(error),
        };
        let ModelFolder { config, tokenizer, preprocessor } =
            ModelFolder::open(&folder, &checkpoint).map_err(|error| match error {
                model_folder::Error::Unusable(_) => Error::Input(format!("{address}: {error}")),
                model_folder::Error::Unreadable(problem) => Error::environment(problem),
            })?;
        let clip = Clip::new(config);
        let parameters = Parameters::read(clip.architecture(), &checkpoint, context.device())?
            .in_precision(model.precision)?;
        Ok(Self { clip, parameters, tokenizer, preprocessor })
    }

    /// Returns the candidate layers of some towers, with the gains of layer norms if `gains` is
    /// set.
    pub(super) fn candidates(&self, towers: Towers, gains: bool) -> Vec<ParameterId> {
        let architecture = self.clip.architecture();
        let mut layers = architecture.candidates(gains);
        layers.retain(|&id| architecture.spec(id).tower.is_some_and(|tower| towers.include(tower)));
        layers
    }

    /// Returns the layer of this name.
    pub(super) fn layer(&self, name: &str) -> Result<ParameterId, Error> {
        self.clip
            .architecture()
            .find(name)
            .ok_or_else(|| Error::Input(format!("the model has no layer `{name}`")))
    }

    /// Tokenizes some texts.
    pub(super) fn encode<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, Error> {
        texts
            .iter()
            .map(|text| {
                self.tokenizer
                    .encode(text.as_ref())
                    .map_err(|error| Error::Input(error.to_string()))
            })
            .collect()
    }

    /// Creates a corpus of preprocessed images.
    pub(super) fn image_corpus(
        &self,
        context: JobContext<'_>,
        pixels: &Tensor,
    ) -> Result<Corpus, Error> {
        Ok(Corpus::images(
            &self.clip,
            pixels,
            context.device(),
            &context.resources.budget,
            context.micro_batch,
        )?)
    }

    /// Creates a corpus of texts.
    pub(super) fn text_corpus(
        &self,
        context: JobContext<'_>,
        texts: &[String],
    ) -> Result<Corpus, Error> {
        Ok(Corpus::texts(
            &self.clip,
            &self.encode(texts)?,
            context.device(),
            &context.resources.budget,
            context.micro_batch,
        )?)
    }

    /// Tokenizes texts into one batch.
    pub(super) fn batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<TokenBatch, Error> {
        Ok(self.clip.token_batch(&self.encode(texts)?, self.parameters.device())?)
    }
}

/// Returns the model's folder on this machine, provided that it has the planned digests.
fn planned_model(
    context: JobContext<'_>,
    model: &ModelSpec,
) -> Result<(PathBuf, Checkpoint), Error> {
    let address = &context.job.locations.model;
    let folder = context
        .resources
        .runtime
        .block_on(store::fetch_folder(address, &context.resources.options.cache))?;
    let failed = |error: lethe_shared::checkpoint::Error| {
        Error::environment(format!("cannot read the model in {address}: {error}"))
    };
    let checkpoint = Checkpoint::open(&folder).map_err(failed)?;
    let is_planned = checkpoint.digest().map_err(failed)? == model.weights
        && checkpoint.settings_digest().map_err(failed)? == model.settings;
    if is_planned {
        return Ok((folder, checkpoint));
    }
    Err(Error::environment(format!(
        "the model in {address} is not the planned one; restore the planned model, or run the manifest again for the new one"
    )))
}

/// Removes this machine's copy of a remote model. Returns whether there was a copy.
fn remove_copy(context: JobContext<'_>) -> Result<bool, Error> {
    let (address, cache) = (&context.job.locations.model, &context.resources.options.cache);
    Ok(context.resources.runtime.block_on(store::forget_folder(address, cache))?)
}

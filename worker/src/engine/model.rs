//! A model with its tokeniser and preprocessing, checked against the digests that a job names.

use std::path::Path;
use std::sync::Arc;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::job::ModelRef;
use lethe_shared::manifest::Towers;

use super::{Error, Scope, key};
use crate::input::{Preprocessor, Tokenizer};
use crate::model::{Clip, ClipConfig, ParameterId, Parameters, TokenBatch};

/// A model, ready to compute.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) clip: Clip,
    pub(super) parameters: Parameters,
    pub(super) tokenizer: Tokenizer,
    pub(super) preprocessor: Preprocessor,
}

/// Largest configuration file, bytes.
const MAX_CONFIG: u64 = 16 << 20;

impl Model {
    pub(super) fn of(scope: Scope<'_>, model: &ModelRef) -> Result<Arc<Self>, Error> {
        scope.engine.models.get(key(model), || Self::open(scope, model))
    }

    fn open(scope: Scope<'_>, model: &ModelRef) -> Result<Self, Error> {
        let folder = folder(scope, &model.address)?;
        let bad = |error: &dyn std::fmt::Display| Error::Input(error.to_string());
        let checkpoint = Checkpoint::open(&folder).map_err(|e| bad(&e))?;
        if checkpoint.digest().map_err(|e| bad(&e))? != model.weights
            || checkpoint.settings_digest().map_err(|e| bad(&e))? != model.settings
        {
            return Err(Error::Input(format!("the model in {} is not the one that was planned for; plan the run again", model.address)));
        }
        let config = read_config(&folder)?;
        let clip = Clip::new(config);
        let parameters = Parameters::read(clip.architecture(), &checkpoint, scope.device())?.in_precision(model.precision)?;
        let (context, vocabulary) = (clip.config().context_length as usize, clip.config().vocabulary as usize);
        let tokenizer = Tokenizer::from_model_dir(&folder, context, vocabulary)?;
        let preprocessor = Preprocessor::from_model_dir(&folder)?;
        if preprocessor.side() as i64 != clip.config().image_size {
            return Err(Error::Input(format!(
                "{}: preprocessing gives images of {} pixels, the model takes {}",
                model.address,
                preprocessor.side(),
                clip.config().image_size
            )));
        }
        Ok(Self { clip, parameters, tokenizer, preprocessor })
    }

    /// Candidate layers of these towers.
    pub(super) fn candidates(&self, towers: Towers, gains: bool) -> Vec<ParameterId> {
        let architecture = self.clip.architecture();
        let mut layers = architecture.candidates(gains);
        layers.retain(|&id| architecture.spec(id).tower.is_some_and(|tower| towers.include(tower)));
        layers
    }

    /// Token ids of some texts.
    pub(super) fn encode<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, Error> {
        texts.iter().map(|text| Ok(self.tokenizer.encode(text.as_ref())?)).collect()
    }

    /// Texts as one batch.
    pub(super) fn batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<TokenBatch, Error> {
        Ok(self.clip.token_batch(&self.encode(texts)?, self.parameters.device())?)
    }
}

fn folder(scope: Scope<'_>, address: &Address) -> Result<std::path::PathBuf, Error> {
    let cache = &scope.engine.options.cache;
    Ok(scope.engine.runtime.block_on(lethe_shared::store::fetch_folder(address, cache))?)
}

/// Reads `config.json` or `open_clip_config.json`.
pub(crate) fn read_config(folder: &Path) -> Result<ClipConfig, Error> {
    for name in ["open_clip_config.json", "config.json"] {
        let path = folder.join(name);
        let bytes = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_CONFIG => return Err(Error::Input(format!("{}: larger than 16 MiB", path.display()))),
            Ok(_) => std::fs::read(&path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::Input(format!("{}: {error}", path.display()))),
        };
        let json = serde_json::from_slice(&bytes).map_err(|error| Error::Input(format!("{}: {error}", path.display())))?;
        return Ok(ClipConfig::from_json(&path.display().to_string(), &json)?);
    }
    Err(Error::Input(format!("{}: neither config.json nor open_clip_config.json is there", folder.display())))
}

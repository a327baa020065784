//! Opens and checks the model that a manifest names.

use std::path::{Path, PathBuf};

use lethe_shared::checkpoint::{self, Checkpoint};
use lethe_shared::digest::Digest;
use lethe_shared::manifest::{Error, Manifest};
use lethe_shared::reference::ModelRef;
use lethe_store as store;

use super::files::missing;
use crate::failure::Failure;

/// The model of a plan.
pub(super) struct OpenModel {
    pub(super) reference: ModelRef,
    pub(super) checkpoint: Checkpoint,
    /// Warnings, which do not stop a run.
    pub(super) warnings: Vec<String>,
}

/// What is read from a model's folder.
struct Read {
    checkpoint: Checkpoint,
    /// Tensors with values that are not finite.
    broken: Vec<String>,
    weights: Digest,
    settings: Digest,
    /// What a worker would refuse.
    problems: Vec<String>,
    left_behind: Vec<String>,
}

/// Opens the model of a manifest, and checks its files as a worker does.
///
/// # Errors
/// [`Failure::BadInput`] with all problems of the model; [`Failure::Infrastructure`] when a store
/// cannot be read.
pub(super) async fn open_model(manifest: &Manifest, cache: &Path) -> Result<OpenModel, Failure> {
    let place = format!("{}: model.uri", manifest.file.display());
    let address = manifest.address("model.uri", &manifest.model.uri)?;
    let folder =
        store::fetch_folder(&address, cache).await.map_err(|error| missing(&place, error))?;
    let wrong = |problem: String| Error::new(place.clone(), problem).to_string();
    let read = tokio::task::spawn_blocking(move || read(folder))
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|error| Failure::BadInput(vec![wrong(error.to_string())]))?;
    let mut problems: Vec<String> = read.problems.into_iter().map(&wrong).collect();
    if let Some(first) = read.broken.first() {
        let others = if read.broken.len() > 1 {
            format!(" and {} other tensors hold", read.broken.len() - 1)
        } else {
            " holds".to_owned()
        };
        problems.push(wrong(format!(
            "{address}: `{first}`{others} NaN or infinite values; this checkpoint cannot be edited"
        )));
    }
    if !problems.is_empty() {
        return Err(Failure::BadInput(problems));
    }
    let mut warnings = Vec::new();
    if let Some(variant) = read.checkpoint.variant() {
        warnings.push(format!(
            "the model's weights are the variant `{variant}` ({}), and so are the release's",
            read.checkpoint.file_names().collect::<Vec<_>>().join(", ")
        ));
    }
    if !read.left_behind.is_empty() {
        warnings.push(format!(
            "{} {} neither read nor copied into the release: {} read",
            read.left_behind.join(", "),
            if read.left_behind.len() == 1 { "is" } else { "are" },
            used(&read.checkpoint)
        ));
    }
    let reference = ModelRef {
        weights: read.weights,
        settings: read.settings,
        precision: manifest.method.precision,
        address,
    };
    Ok(OpenModel { reference, checkpoint: read.checkpoint, warnings })
}

/// Returns the weights that are read and their configuration, with the verb.
fn used(checkpoint: &Checkpoint) -> String {
    let names: Vec<&str> = checkpoint.file_names().collect();
    let weights = match names.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("the {} shards of the index", several.len()),
    };
    match checkpoint.layout() {
        Some(layout) => format!("{weights} and {} are", layout.config()),
        None => format!("{weights} {}", if names.len() == 1 { "is" } else { "are" }),
    }
}

fn read(folder: PathBuf) -> Result<Read, checkpoint::Error> {
    let checkpoint = Checkpoint::open(&folder)?;
    Ok(Read {
        broken: checkpoint.non_finite()?,
        weights: checkpoint.digest()?,
        settings: checkpoint.settings_digest()?,
        problems: problems(&folder, &checkpoint),
        left_behind: checkpoint.left_behind()?,
        checkpoint,
    })
}

/// Returns what a worker would refuse: configuration, shapes, tokenizer, preprocessing.
#[cfg(feature = "embedded")]
fn problems(folder: &Path, checkpoint: &Checkpoint) -> Vec<String> {
    use lethe_worker::model_folder::{Error, ModelFolder};

    match ModelFolder::open(folder, checkpoint) {
        Ok(_) => Vec::new(),
        Err(Error::Unusable(problems)) => problems,
        Err(Error::Unreadable(problem)) => vec![problem],
    }
}

/// Without the worker's library, only workers can check this.
#[cfg(not(feature = "embedded"))]
fn problems(_folder: &Path, _checkpoint: &Checkpoint) -> Vec<String> {
    Vec::new()
}

//! Opens and checks the model that a manifest names.

use std::path::Path;

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

/// A model's folder, read and checked as a worker does.
pub struct Examined {
    /// Its open checkpoint.
    pub checkpoint: Checkpoint,
    /// Digest of the weights.
    pub weights: Digest,
    settings: Digest,
    /// What a worker would refuse, a sentence each.
    pub problems: Vec<String>,
    /// What is odd, and does not stop a run.
    pub warnings: Vec<String>,
    /// How configuration, texts and images are read, by name; empty when a worker would refuse the
    /// model, and in a program without workers.
    pub description: Vec<(&'static str, String)>,
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
    let shown = address.to_string();
    let read = tokio::task::spawn_blocking(move || examine(&folder, &shown))
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|error| Failure::BadInput(vec![wrong(error.to_string())]))?;
    if !read.problems.is_empty() {
        return Err(Failure::BadInput(read.problems.into_iter().map(&wrong).collect()));
    }
    let reference = ModelRef {
        weights: read.weights,
        settings: read.settings,
        precision: manifest.method.precision,
        address,
    };
    Ok(OpenModel { reference, checkpoint: read.checkpoint, warnings: read.warnings })
}

/// Reads a model's folder as a worker does, and all of its weights. `shown` names it in messages.
///
/// # Errors
/// When the weights cannot be opened or read.
pub fn examine(folder: &Path, shown: &str) -> Result<Examined, checkpoint::Error> {
    let checkpoint = Checkpoint::open(folder)?;
    let (mut problems, description) = match described(folder, &checkpoint) {
        Ok(description) => (Vec::new(), description),
        Err(problems) => (problems, Vec::new()),
    };
    let broken = checkpoint.non_finite()?;
    if let Some(first) = broken.first() {
        let others = if broken.len() > 1 {
            format!(" and {} other tensors hold", broken.len() - 1)
        } else {
            " holds".to_owned()
        };
        problems.push(format!(
            "{shown}: `{first}`{others} NaN or infinite values; this checkpoint cannot be edited"
        ));
    }
    Ok(Examined {
        weights: checkpoint.digest()?,
        settings: checkpoint.settings_digest()?,
        problems,
        warnings: warnings(&checkpoint)?,
        description,
        checkpoint,
    })
}

/// Returns what is odd about a model's files.
fn warnings(checkpoint: &Checkpoint) -> Result<Vec<String>, checkpoint::Error> {
    let mut warnings = Vec::new();
    if let Some(variant) = checkpoint.variant() {
        warnings.push(format!(
            "the model's weights are the variant `{variant}` ({}), and so are the release's",
            checkpoint.file_names().collect::<Vec<_>>().join(", ")
        ));
    }
    let left_behind = checkpoint.left_behind()?;
    if !left_behind.is_empty() {
        warnings.push(format!(
            "{} {} neither read nor copied into the release: {} read",
            left_behind.join(", "),
            if left_behind.len() == 1 { "is" } else { "are" },
            used(checkpoint)
        ));
    }
    Ok(warnings)
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

/// Returns how configuration, texts and images are read, or what a worker would refuse.
#[cfg(feature = "embedded")]
fn described(
    folder: &Path,
    checkpoint: &Checkpoint,
) -> Result<Vec<(&'static str, String)>, Vec<String>> {
    use lethe_worker::model_folder::{Error, ModelFolder};

    ModelFolder::open(folder, checkpoint).map(|model| model.description()).map_err(|error| {
        match error {
            Error::Unusable(problems) => problems,
            Error::Unreadable(problem) => vec![problem],
        }
    })
}

/// Without the worker's library, only workers can check this.
#[cfg(not(feature = "embedded"))]
fn described(_: &Path, _: &Checkpoint) -> Result<Vec<(&'static str, String)>, Vec<String>> {
    Ok(Vec::new())
}

//! The trait of all kinds of task, and helpers that several kinds share.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::reference::{ArtifactRef, FileSpec, Locations};

/// A kind of task, by its spec.
pub trait Task:
    Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Name of the kind: a token of subjects, a label of metrics, a part of every id.
    const KIND: &'static str;
    /// Version; raised when the same spec would give another output, or when the struct changes.
    const VERSION: u32;
    /// The output, determined by spec and model alone. It contains numbers, and names tensors as
    /// artifacts.
    type Output: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + 'static;

    /// Returns its display name. `concept` is the id of the concept that the job belongs to,
    /// `locations` contains the addresses of inputs.
    fn label(&self, concept: Option<&str>, locations: &Locations) -> String;

    /// Returns the files outside the store that it reads, except for the model.
    fn files(&self) -> Vec<FileSpec>;

    /// Returns the artifacts that an output names.
    fn artifacts(output: &Self::Output) -> Vec<ArtifactRef>;

    /// Checks a spec that was received in a message: numbers are in range, and sums of counts do
    /// not overflow.
    ///
    /// # Errors
    /// The problem.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Checks that a count can be summed over all parts of a message without overflow.
pub(super) fn check_count(value: u64) -> Result<(), String> {
    if value <= 1 << 48 { Ok(()) } else { Err(format!("a count of {value} is out of range")) }
}

pub(super) fn check_at_least_one(value: u32, what: &str) -> Result<(), String> {
    if value == 0 { Err(format!("{what} is 0")) } else { Ok(()) }
}

/// Most steps of a training.
const MAX_STEPS: u32 = 100_000;

/// Checks the learning rate of a training, and the numbers of steps after which it is evaluated.
pub(super) fn check_training(rate: f64, steps: &[u32]) -> Result<(), String> {
    let ascends = steps.windows(2).all(|pair| pair[0] < pair[1]);
    if steps.is_empty() || steps[0] == 0 || !ascends {
        return Err("steps are no ascending numbers from 1".to_owned());
    }
    if steps.iter().any(|&steps| steps > MAX_STEPS) {
        return Err(format!("there are more than {MAX_STEPS} steps"));
    }
    if !(rate.is_finite() && rate > 0.0) {
        return Err(format!("a learning rate of {rate} is out of range"));
    }
    Ok(())
}

/// Describes files for messages: the address of the first one, and how many more there are.
pub(super) fn places(files: &[FileSpec], locations: &Locations) -> String {
    match files {
        [] => "no file".to_owned(),
        [one] => locations.name(one),
        [first, rest @ ..] => format!("{} and {} more", locations.name(first), rest.len()),
    }
}

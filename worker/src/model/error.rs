//! Errors of models.

/// An error of a model: its configuration, its tensors, or a computation with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be read, or requires something that this crate does not implement.
    #[error("{file}: {problem}")]
    Config {
        /// Path of the configuration file.
        file: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor is missing, or its shape or type differs from what the configuration requires.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Name in the checkpoint.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A model computes values that are not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The device's memory is too small for a pass over this many items. A smaller pass may fit.
    #[error("libtorch: {problem}")]
    Memory {
        /// Number of items in the pass.
        items: i64,
        /// The message of libtorch.
        problem: String,
    },
    /// libtorch returned an error, for example because shapes do not match.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Values that a model computes are NaN or infinite: its weights, an edit of them, or its input
/// drive it out of range.
///
/// This is an error type of its own so that callers can tell an edit that goes too far from a fault
/// such as a wrong shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} are not finite; weights or inputs drive the model out of range")]
pub struct NotFinite {
    /// Which values, in the plural.
    pub what: String,
}

impl NotFinite {
    /// The error for these values, named in the plural.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

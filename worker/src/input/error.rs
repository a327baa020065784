//! Errors of input files.

/// A problem with an input file: where it is, what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Error {
    /// The file, and its member if it is an archive.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Error {
    /// The error of a file.
    pub(crate) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

//! Errors of input files.

use lethe_shared::printable::printable_excerpt;

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
    /// The error of a file. What is quoted of it is escaped, and cut where it is long.
    pub(crate) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            place: printable_excerpt(&place.into()),
            problem: printable_excerpt(&problem.into()),
        }
    }
}

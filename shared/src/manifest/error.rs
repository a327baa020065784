//! The error of everything that is read for a manifest.

use crate::printable::printable_excerpt;

/// What is wrong with a manifest or a file it names: what, where, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Error {
    /// File, and line or field where known.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Error {
    /// A problem at a place. What is quoted of a file is escaped, and cut where it is long.
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            place: printable_excerpt(&place.into()),
            problem: printable_excerpt(&problem.into()),
        }
    }
}

/// A problem on a line of a file, where the line is known.
pub(super) fn at_line(file: &str, line: Option<usize>, problem: &str) -> Error {
    let place = line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"));
    Error::new(place, problem)
}

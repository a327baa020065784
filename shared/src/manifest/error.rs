//! The error of everything that is read for a manifest.

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
    /// A problem at a place.
    pub fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// A problem on a line of a file, where the line is known.
pub(super) fn at_line(file: &str, line: Option<usize>, problem: &str) -> Error {
    let place = line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"));
    Error::new(place, problem)
}

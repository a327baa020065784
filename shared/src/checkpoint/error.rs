//! What can be wrong with a checkpoint.

use std::path::{Path, PathBuf};

use crate::printable::printable_excerpt;

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no weights that can be read.
    #[error("{folder}: {problem}")]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was found, and what to do.
        problem: String,
    },
    /// A file is damaged or contradicts another one.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file was changed after the checkpoint was opened.
    #[error("{file}: {problem}; restore the file and run again")]
    Changed {
        /// The file.
        file: PathBuf,
        /// What is different.
        problem: String,
    },
    /// There is no tensor of this name, or it has another size.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A tower cannot be made out.
    #[error("the {tower} tower {problem}")]
    Tower {
        /// Which one.
        tower: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// A file is damaged or contradicts another one. What is quoted of it is escaped, and cut where
    /// it is long.
    pub(super) fn malformed(file: &Path, problem: &str) -> Self {
        Self::Malformed { file: file.to_owned(), problem: printable_excerpt(problem) }
    }
}

//! Failures of commands, by exit code.

use std::io::ErrorKind;
use std::path::Path;

use lethe_queue as queue;
use lethe_shared::retry::Cancelled;
use lethe_shared::{checkpoint, edit, exit, manifest};
use lethe_store as store;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The manifest, or a file that it names, is invalid.
    #[error("{}", .0.join("\nerror: "))]
    BadInput(Vec<String>),
    /// A queue, store, disk or network call failed past the retry policy.
    #[error("{0}")]
    Infrastructure(String),
    /// The command was cancelled.
    #[error("cancelled; finished jobs stay in the store, and the same command resumes from there")]
    Cancelled,
}

impl Failure {
    /// Returns a failure with one problem of the input.
    pub fn input(problem: impl ToString) -> Self {
        Self::BadInput(vec![problem.to_string()])
    }

    /// Returns a failure for a file or folder of this machine that cannot be read or written.
    pub fn local(path: &Path, error: std::io::Error) -> Self {
        Self::Infrastructure(format!("{}: {error}", path.display()))
    }

    /// Returns the documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => exit::BAD_INPUT,
            Self::Infrastructure(_) => exit::INFRASTRUCTURE,
            Self::Cancelled => exit::CANCELLED,
        }
    }
}

impl From<Cancelled> for Failure {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<manifest::Error> for Failure {
    fn from(error: manifest::Error) -> Self {
        Self::input(error)
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Self {
        match &error {
            // The disk for the release is full; the model is not at fault.
            checkpoint::Error::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                Self::Infrastructure(format!(
                    "{error}; free some space and run again, finished jobs stay"
                ))
            }
            _ => Self::input(error),
        }
    }
}

impl From<edit::Error> for Failure {
    fn from(error: edit::Error) -> Self {
        Self::input(error)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Invalid { .. } => Self::input(error),
            other => Self::Infrastructure(other.to_string()),
        }
    }
}

impl From<queue::Error> for Failure {
    fn from(error: queue::Error) -> Self {
        match error {
            queue::Error::Refused(_) => Self::input(error),
            other => Self::Infrastructure(other.to_string()),
        }
    }
}

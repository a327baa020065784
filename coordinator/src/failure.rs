//! Why a command ends before its end, sorted by exit code.

use lethe_shared::{checkpoint, edit, exit, manifest, queue, store};

/// Why a command ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The manifest, or something it names, is bad.
    #[error("{}", .0.join("\nerror: "))]
    BadInput(Vec<String>),
    /// Queue, store or network gave up.
    #[error("{0}")]
    Infrastructure(String),
    /// Someone asked to stop.
    #[error("cancelled; what is finished stays in the store, the same command goes on from there")]
    Cancelled,
}

impl Failure {
    /// One problem with the input.
    pub fn input(problem: impl ToString) -> Self {
        Self::BadInput(vec![problem.to_string()])
    }

    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadInput(_) => exit::BAD_INPUT,
            Self::Infrastructure(_) => exit::INFRASTRUCTURE,
            Self::Cancelled => exit::CANCELLED,
        }
    }
}

impl From<manifest::Error> for Failure {
    fn from(error: manifest::Error) -> Self {
        Self::input(error)
    }
}

impl From<checkpoint::Error> for Failure {
    fn from(error: checkpoint::Error) -> Self {
        Self::input(error)
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

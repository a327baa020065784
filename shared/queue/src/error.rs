//! What can go wrong with a queue.

use lethe_shared::retry::Transient;

/// What can go wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue stays unreachable, or does not answer in time.
    #[error("queue: {0}")]
    Unavailable(String),
    /// The queue refuses a required operation: wrong credentials, missing permissions, or a stream
    /// with incompatible settings.
    #[error("queue: {0}")]
    Refused(String),
    /// The server or account has less storage than the streams need; a retry does not help.
    #[error("queue: {0}")]
    NoRoom(String),
    /// A message cannot be written or read.
    #[error(transparent)]
    Codec(#[from] lethe_shared::codec::Error),
}

impl Transient for Error {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

impl Error {
    /// Returns the problem without the prefix `queue:`.
    pub fn problem(&self) -> String {
        match self {
            Self::Unavailable(problem) | Self::Refused(problem) | Self::NoRoom(problem) => {
                problem.clone()
            }
            Self::Codec(error) => error.to_string(),
        }
    }
}

//! Why bytes are not a message of this program.

use crate::task::DecodeError;

/// Why bytes are not a message that this program reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes do not start like a Lethe message.
    #[error("not a Lethe message")]
    NotOurs,
    /// The message is of another kind than the expected one.
    #[error("a message of kind {found}, expected kind {expected}")]
    OtherKind {
        /// Its kind.
        found: u16,
        /// The expected kind.
        expected: u16,
    },
    /// Another version of Lethe wrote the message.
    #[error(
        "message version {found}, this program reads version {expected}; run the same release of lethe and lethe-worker"
    )]
    UnknownVersion {
        /// Its version.
        found: u16,
        /// The version that this program reads.
        expected: u16,
    },
    /// The task of the job cannot be decoded.
    #[error(transparent)]
    Task(#[from] DecodeError),
    /// The message uses a feature that this version does not have.
    #[error("message flags {0:#x} are unknown to this program")]
    UnknownFlags(u16),
    /// The message is too large.
    #[error("a message of {0} bytes, at most 1 MiB is allowed")]
    TooLarge(usize),
    /// The body has another length than the header says.
    #[error("the message has {found} bytes of body, its header says {expected}")]
    Length {
        /// Actual length in bytes.
        found: usize,
        /// Expected length in bytes.
        expected: usize,
    },
    /// The body does not match its checksum.
    #[error("the message does not match its checksum")]
    Checksum,
    /// The body cannot be decoded as its version.
    #[error("the message's body is invalid: {0}")]
    Invalid(String),
}

impl Error {
    /// Returns whether another version of Lethe may be able to read the message.
    pub fn is_foreign(&self) -> bool {
        matches!(
            self,
            Self::OtherKind { .. }
                | Self::UnknownVersion { .. }
                | Self::UnknownFlags(_)
                | Self::Task(DecodeError::Foreign { .. })
        )
    }
}

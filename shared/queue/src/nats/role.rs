//! Roles of processes, and the permissions that follow from them.

/// The role of a process; permissions and the inbox prefix follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Creates streams, publishes jobs, and manages dead letters.
    Coordinator,
    /// Pulls jobs.
    Worker,
    /// Sends requests to coordinators, and manages dead letters.
    Client,
}

impl Role {
    /// Returns the inbox prefix for replies, below `_INBOX`. Accounts that were set up for earlier
    /// versions allow `lethe-person` to clients.
    pub(super) fn inbox(self) -> &'static str {
        match self {
            Self::Coordinator => "lethe-coordinator",
            Self::Worker => "lethe-worker",
            Self::Client => "lethe-person",
        }
    }
}

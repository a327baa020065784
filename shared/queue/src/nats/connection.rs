//! The state that all parts of a queue on one connection share.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use lethe_shared::fault::Limits;
use tokio::task::JoinHandle;

use super::connect::Connections;
use super::role::Role;

/// A connection, and the state that all parts of a queue share.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) name: String,
    pub(super) limits: Limits,
    pub(super) connections: Connections,
    /// The consumer's ack wait, and the connection on which it was read.
    pub(super) ack_wait: Mutex<Option<(u64, Duration)>>,
    pub(super) replicas: usize,
    pub(super) role: Role,
    pub(super) maintenance: Option<JoinHandle<()>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamQueue")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(maintenance) = &self.maintenance {
            maintenance.abort();
        }
    }
}

//! The queue on NATS JetStream (server 2.9.10 or newer).
//!
//! | file | what |
//! |---|---|
//! | `connect.rs` | options, credentials, the connection |
//! | `names.rs` | subjects and streams |
//! | `setup.rs` | streams and the consumer: creation and settings |
//! | `storage.rs` | whether the server has storage for the streams |
//! | `publish.rs` | publishing with confirmation |
//! | `pull.rs`, `receipt.rs` | pulling one job, and answering it |
//! | `delivery_history.rs` | what counts against a job |
//! | `dead_letter.rs` | dead letters |
//! | `maintenance.rs` | what a coordinator does in the background |
//! | `consumer_repair.rs` | jobs that the consumer would never deliver |
//! | `lease.rs` | one coordinator per run |
//! | `examine.rs` | whether server and account are fit for a role |
//! | `control.rs` | requests to a long-lived coordinator |
//!
//! All jobs are in one work-queue stream with one pull consumer. The server ensures that a job is
//! there once: it stores a message only when its subject, which names run and job, has none. The
//! dispatcher ensures fairness between runs: it publishes no more jobs of a run than workers can
//! take soon.
//!
//! A worker needs few permissions and no administration; `docs/security.md` lists them.

mod connect;
mod connection;
mod consumer_repair;
mod control;
mod dead_letter;
mod delivery_history;
mod examine;
mod lease;
mod maintenance;
mod names;
mod publish;
mod pull;
mod queue;
mod receipt;
mod role;
mod setup;
mod storage;

pub use connect::{Options, without_secrets};
pub use control::{Asked, Requests};
pub use dead_letter::StoredDeadLetter;
pub use examine::examine;
pub use lease::Lease;
pub use queue::JetStreamQueue;
pub use role::Role;

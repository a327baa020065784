//! What a process tells about itself: logs, traces, metrics, and the HTTP port that shows them.
//!
//! | file | what |
//! |---|---|
//! | [`log`] | lines for people or JSON for machines, on stderr |
//! | [`trace`] | W3C trace contexts: one trace per run, across processes |
//! | [`mod@metrics`] | every counter, gauge and histogram, in one place |
//! | [`health`] | whether this process can do its work right now |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//!
//! Nothing here changes what is computed, and nothing that is given to it may hold a secret: an [`Address`](crate::address::Address)
//! has none, and the queue's address is shown without its credentials.

pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod trace;

pub use health::Health;
pub use metrics::metrics;

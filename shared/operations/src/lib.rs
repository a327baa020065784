//! What operators see of a Lethe process: logs, traces, metrics, the HTTP port that serves them,
//! and checks of the machine.
//!
//! | module | contents |
//! |---|---|
//! | [`log`] | log lines on stderr, as text or JSON |
//! | [`trace`] | W3C trace contexts: one trace per run, across processes |
//! | [`mod@metrics`] | every counter, gauge and histogram |
//! | [`health`] | whether this process can do its work right now |
//! | [`http`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`process`] | names of the machine and the process; the signals that stop it |
//! | [`doctor`] | checks of disk, memory and secret files |
//!
//! Nothing in this crate affects results. Nothing that is passed to it may contain a secret: an
//! [`Address`](lethe_shared::address::Address) has none, and the address of the queue is shown
//! without its credentials.
//!
//! ```
//! use lethe_operations::{Health, metrics};
//!
//! let health = Health::waiting_for(&["queue"]);
//! assert!(!health.report().0);
//! health.met("queue");
//! assert_eq!(health.report(), (true, "queue: ok\n".to_owned()));
//!
//! metrics().store_answered("get", "ok");
//! assert!(metrics().encode().contains("lethe_store_operations_total"));
//! ```

pub mod doctor;
pub mod health;
pub mod http;
pub mod log;
pub mod metrics;
pub mod process;
pub mod trace;

pub use health::Health;
pub use metrics::metrics;

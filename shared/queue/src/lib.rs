//! The queue between coordinator and workers.
//!
//! A queue delivers jobs and notices; lasting data is in the object store. Delivery is at least
//! once: a job whose delivery is neither answered nor extended by heartbeats is delivered again, so
//! a job may be executed twice. That is harmless: the first outcome under the job's id is kept, and
//! the second one is the same.
//!
//! [`fault::decide`](lethe_shared::fault::decide) decides what happens after a failed attempt; a
//! queue carries the decision out.
//!
//! | implementation | for |
//! |---|---|
//! | [`MemoryQueue`] | one process |
//! | [`nats::JetStreamQueue`] | many processes, on NATS JetStream |
//!
//! The suite `conformance` (feature `conformance`) checks every implementation.
//!
//! # Example
//! ```
//! use std::collections::BTreeMap;
//! use std::time::Duration;
//!
//! use lethe_queue::{Limits, MemoryQueue, Queue};
//! use lethe_shared::address::Address;
//! use lethe_shared::digest::Digest;
//! use lethe_shared::job::TypedJob;
//! use lethe_shared::reference::{Locations, ModelSpec};
//! use lethe_shared::task::Effects;
//! use lethe_shared::vocabulary::Precision;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelSpec { weights: Digest::of(b"weights"), settings: Digest::of(b"settings"), precision: Precision::Float32 };
//! let locations = Locations { model: Address::parse("/models/clip")?, files: BTreeMap::new() };
//! let job = TypedJob::new("my-run", None, model, Effects { layers: Vec::new(), concepts: Vec::new() }, locations);
//!
//! let queue = MemoryQueue::new(Limits::default());
//! queue.publish(job.job()).await?;
//!
//! let delivery = queue.pull(Duration::from_secs(1)).await?.expect("one job is waiting");
//! assert_eq!((&delivery.job, delivery.attempt), (job.job(), 1));
//! // The worker writes the outcome to the store, and acknowledges the job only then.
//! delivery.done().await?;
//! assert_eq!(queue.backlog().await?.in_hand, 0);
//! # Ok(())
//! # }
//! ```

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod memory;
pub mod nats;
mod queue;
mod trace;

pub use error::Error;
pub use lethe_shared::fault::Limits;
pub use lethe_shared::message::{Backlog, DeadLetter, Event, Notice};
pub use memory::MemoryQueue;
pub use queue::{Delivery, Notices, Queue, Receipt};
pub use trace::traceparent;

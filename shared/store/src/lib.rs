//! The object store: immutable artifacts named by their digest, and outcomes that are written once
//! under the id of their job.
//!
//! [`Store`] works on memory, a local folder, S3, Google Cloud Storage and Azure. Repositories of a
//! model hub (`hf://`) and files of web servers (`https://`) can be read only. Errors are sorted
//! by what a caller can do about them ([`Error`]); the suite `conformance` (feature `conformance`)
//! checks every kind of store.
//!
//! | key | what |
//! |---|---|
//! | `artifacts/<xx>/<sha256>` | bytes, named by their digest |
//! | `outcomes/<xx>/<job id>.json` | a job's outcome, created once |
//! | `runs/<run>/…` | data of a run besides its release |
//! | `runs/<run>/claims/<n>.json` | claims of coordinators, the latest last |
//! | `probe/…` | objects of the store probe |
//! | `staging/…` | in a local folder only: files before they are moved to their key |
//! | `damaged/…` | the quarantine: corrupt objects under their old keys |
//! | `releases/<name>/<digest>/…` | a release; `composition.json` is written last |
//! | `releases/<name>/<number>.json` | the number of a release, created when the release is complete |
//! | `releases/<name>/channels/<channel>/<n>.json` | the history of a channel, the latest entry last |
//!
//! Only this crate builds these keys, except for those of releases and runs. No published object is
//! overwritten with other bytes, except for `runs/<run>/summary.json` and
//! `runs/<run>/manifest.json`, which each invocation of a run replaces.
//!
//! # Example
//! ```
//! use bytes::Bytes;
//! use lethe_store::{Error, Store};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Error> {
//! let store = Store::in_memory();
//!
//! // An artifact is named by its digest, and checked against it when it is read.
//! let artifact = store.put_artifact(Bytes::from_static(b"weights")).await?;
//! assert_eq!(store.get_artifact(&artifact).await?, "weights");
//!
//! // `create` is the commit of everything that is published: it never replaces other bytes.
//! assert!(store.create("releases/demo/1.json", Bytes::from_static(b"{}")).await?);
//! let second = store.create("releases/demo/1.json", Bytes::from_static(b"[]")).await;
//! assert!(matches!(second, Err(Error::Conflict { .. })));
//! # Ok(())
//! # }
//! ```

mod answers;
mod braces;
mod claim;
mod client;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod credentials;
pub mod doctor;
mod error;
mod fetch;
mod foreign;
mod hub;
mod local;
mod measured;
mod open;
mod probe;
mod quarantine;
mod staging;
mod store;
mod stream;
mod web;

pub use claim::Claim;
pub use error::Error;
pub use fetch::{expand, fetch_file, fetch_folder, forget_folder, literally};
pub use hub::Pins;
pub use quarantine::Checked;
pub use staging::Staging;
pub use store::{Object, Store, artifact_key, document_number};
pub use stream::{Source, Stream};

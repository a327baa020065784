//! Repositories on a model hub, read only: the files of models and data sets at `hf://` addresses.
//!
//! A revision is resolved to a commit once; everything else is asked for by commit, which names the
//! same bytes for ever. Files are downloaded into the cache that `huggingface_hub` uses, in its
//! layout, so that either uses what the other has downloaded. Each file is checked against the
//! digest in the hub's listing before it gets its name.
//!
//! | file | content |
//! |---|---|
//! | `settings.rs` | endpoint, token, cache and offline mode, from the environment |
//! | `client.rs` | requests to the hub's API |
//! | `answer.rs` | what a failed response means |
//! | `listing.rs` | the hub's lists of files, checked |
//! | `cache.rs` | the layout of the cache |
//! | `download.rs` | downloads of single files, resumed and checked |
//! | `repository.rs` | a repository at an address: its commit, files and local copies |
//! | `reader.rs` | a repository as a read-only object store |
//! | `pins.rs` | addresses with their branches and tags resolved to commits |

mod answer;
mod cache;
mod client;
mod download;
mod listing;
mod pins;
mod reader;
mod repository;
mod settings;

pub use pins::Pins;
pub(crate) use reader::Reader;
pub(crate) use repository::Repository;
pub(crate) use settings::is_loopback;

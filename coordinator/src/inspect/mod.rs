//! `lethe inspect`: what a folder or file is, how Lethe reads it, and what is odd about it.
//!
//! It uses the readers that plans use, so what it accepts, a plan accepts.
//!
//! | file | content |
//! |---|---|
//! | `inspection.rs` | what is found: how it is read, what is odd, why it is refused |
//! | `kind.rs` | what something is, by its name and its first bytes |
//! | `folder.rs` | models, releases, and folders of shards |
//! | `target.rs` | pipelines and vision-language models |
//! | `file.rs` | weight files, images, tables, lists of names, manifests |
//! | `shard.rs` | shards |

mod file;
mod folder;
mod inspection;
mod kind;
mod shard;
mod target;

use lethe_shared::address::Address;

pub use self::inspection::{Inspection, Options};
use self::kind::Kind;
use crate::failure::Failure;

/// Inspects what is at an address.
///
/// # Errors
/// [`Failure::BadInput`] when nothing is there; [`Failure::Infrastructure`] when it cannot be
/// reached. What Lethe refuses is no error, but in [`Inspection::problems`].
pub async fn inspect(address: &Address, options: Options<'_>) -> Result<Inspection, Failure> {
    match kind::find(address, options.cache).await? {
        Kind::Model => folder::model(address, "a model", options.cache).await,
        Kind::Release => folder::release(address, options.cache).await,
        Kind::Shards(shards) => folder::shards(address, &shards, options).await,
        Kind::Target(kind) => target::inspect(address, kind, options).await,
        Kind::Shard => shard::inspect(address, options).await,
        Kind::Weights => file::weights(address, options.cache).await,
        Kind::Image => file::image(address, options.cache).await,
        Kind::Table => file::table(address, options).await,
        Kind::Names => file::names(address, options.cache).await,
        Kind::Manifest => file::manifest(address, options.cache).await,
        Kind::Refused { is, problem } => {
            Ok(Inspection { problems: vec![problem], ..Inspection::of(address, is) })
        }
    }
}

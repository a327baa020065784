//! The harnesses, one file per group of formats.

mod image;
mod manifest;
mod message;
mod model;
mod record;
mod shard;
mod signature;
mod table;
mod text;
mod weights;

use crate::harness::Harness;

/// Returns all harnesses.
pub fn all() -> Vec<Harness> {
    [
        weights::harnesses(),
        shard::harnesses(),
        image::harnesses(),
        text::harnesses(),
        manifest::harnesses(),
        table::harnesses(),
        model::harnesses(),
        message::harnesses(),
        record::harnesses(),
        signature::harnesses(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

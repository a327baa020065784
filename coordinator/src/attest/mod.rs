//! Statements of a release that others can check, and signatures on it. `docs/proof.md` describes
//! the formats.
//!
//! | file of a release | content | written by |
//! |---|---|---|
//! | `provenance.json` | SLSA provenance: base, data, manifest, versions | `provenance.rs` |
//! | `receipts.jsonl` | one statement per concept, one per line: a removal receipt, or that it is not removed or not measured | `receipts.rs` |
//! | `attestations.intoto.jsonl` | the same statements, each signed alone (`dsse.rs`) | the holder of a key |
//! | `model.sig` | a signature over every file (`model_signing.rs`) | the holder of a key |
//!
//! The record lists the first two files. The last two are created once, after the record, and name
//! only files that do not change.

pub mod dsse;
pub mod key;
pub mod model_signing;
pub mod names;
pub mod provenance;
pub mod receipts;
mod statement;

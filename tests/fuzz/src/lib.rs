//! Fuzzing of everything that comes from outside: weights, shards, images, texts, manifests,
//! configurations, messages, records, signatures.
//!
//! One [`Harness`] per format generates almost valid inputs and checks what the product makes of
//! them: no panic, bounded memory, no input with two meanings, errors that can be shown.
//! `docs/reliability.md` states what is promised for each format.
//!
//! | file | contents |
//! |---|---|
//! | [`harness`] | what a harness is, and what all of them check |
//! | `formats/` | the harnesses, one file per group of formats; [`all`] |
//! | [`engine`] | runs a harness on generated inputs, by proptest |
//! | `bytes.rs` | mutation of bytes, and the reduction of an input that fails |
//! | `draw.rs` | random choices |
//! | `json.rs` | JSON documents that are almost valid |
//! | `memory.rs` | the allocator that counts |
//! | [`corpus`] | the committed inputs |
//! | [`command`] | the command line of `fuzz`; runs each harness in a process of its own |
//!
//! The engine is proptest: it runs on the stable compiler, without any tool beside it.

mod bytes;
pub mod command;
pub mod corpus;
mod draw;
pub mod engine;
mod formats;
pub mod harness;
mod json;
mod memory;
mod scratch;
mod supervisor;

pub use formats::all;
pub use harness::{Harness, Outcome};

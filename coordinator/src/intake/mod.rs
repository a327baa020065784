//! Intake: from a manifest, and all files that it names, to a plan.
//!
//! | file | content |
//! |---|---|
//! | [`plan`] | the plan: data, and values computed from it |
//! | `read.rs` | makes the plan of a manifest |
//! | `concepts.rs`, `data.rs`, `files.rs`, `model.rs` | concepts, data, files and the model that a manifest names |
//! | [`pin`] | `hf://` addresses with their branches resolved to commits |
//! | [`repeated`] | data that a manifest names more than once |
//! | [`coverage`] | the classes that retain statistics cover |
//! | `same_tokens.rs` | classes that the model cannot tell apart |
//! | [`run_manifest`] | the manifest that a run stores, and reads back |

pub mod concepts;
pub mod coverage;
mod data;
pub mod files;
pub mod model;
pub mod pin;
pub mod plan;
mod read;
pub mod repeated;
pub mod run_manifest;
mod same_tokens;

pub use self::read::quick_check;

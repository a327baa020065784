//! The manifest: which concepts a run removes from which model, and which data it is evaluated on.
//!
//! A manifest is TOML, or JSON with the same fields. Unknown fields are errors. Addresses are paths
//! relative to the file they stand in (wildcards allowed in the last part), or `file://`, `s3://`,
//! `gs://`, `az://`, `hf://`, `https://`.
//!
//! | file | what |
//! |---|---|
//! | `sections.rs` | [`Manifest`] and its sections, with defaults |
//! | `composition.rs` | the section `[composition]` |
//! | `addresses.rs` | the addresses in it |
//! | `read.rs` | [reading](Manifest::read) |
//! | `check.rs` | the checks of values |
//! | `lines.rs` | the lines of fields, for messages |
//! | [`table`] | the reader of concept tables |
//! | [`concepts`] | the checks of concepts |
//! | [`classes`] | class lists |
//! | `gates.rs` | [`Gates`], in the manifest and in gate files |
//! | `targets.rs` | [`ReleaseTarget`]: other models that receive the edits |

mod addresses;
mod check;
pub mod classes;
mod composition;
pub mod concepts;
mod error;
mod gates;
mod id;
mod lines;
mod read;
mod sections;
pub mod table;
mod targets;

pub use self::classes::Classes;
pub use self::composition::{CompositionMethod, CompositionSection, Settling, Spread};
pub use self::concepts::Concept;
pub use self::error::Error;
pub use self::gates::{Gates, ProbeBound};
pub use self::id::is_id;
pub use self::sections::*;
pub use self::targets::{PassThrough, ReleaseTarget, TargetKind};

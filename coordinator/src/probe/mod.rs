//! Probes: commands of the operator that measure a release by means of their own.
//!
//! | file | content |
//! |---|---|
//! | `file.rs` | the probe file: a name, a command and a time limit |
//! | `input.rs` | what the command is told about the release |
//! | `command.rs` | the command as a process: limits, output, end |
//! | `result.rs` | what it wrote: numbers and pictures, within bounds |
//!
//! A manifest cannot name a probe: whoever submits work does not decide which programs run on the
//! operator's machine. `docs/probes.md` describes the formats.

mod command;
mod file;
mod input;
mod result;

pub use self::command::run;
pub use self::file::Probe;
pub use self::input::{Input, InputConcept, InputTarget};
pub(crate) use self::result::media_type;
pub use self::result::{Picture, ProbeResult};

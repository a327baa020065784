//! Checkpoints: folders with safetensors weights as `transformers` and open_clip write them. They
//! are read by position, and written with single tensors changed.
//!
//! | file | what |
//! |---|---|
//! | [`open`](Checkpoint::open) | finds the layout, checks headers and index |
//! | [`Layout`] | chooses among several weights, with the configuration that belongs to them |
//! | `file` | one weight file: its header, its bytes by position, and whether it is still the same |
//! | [`tensor_names`] | the names of the tensors in a file that is not opened |
//! | [`pieces`](Checkpoint::digest) | reads weights a piece at a time: digests, values that are not finite |
//! | [`release`](Checkpoint::write_changed) | copies files byte for byte and replaces the changed tensors' bytes in place |
//! | [`Names`] | the names of CLIP's parameters in both layouts |
//! | [`tower`] | the role of each tensor in its tower, in any layout |
//!
//! Only safetensors is read: opening a pickle executes code.

mod choice;
mod error;
mod file;
#[cfg(test)]
mod fixture;
mod header;
mod names;
mod open;
mod pieces;
mod reader;
mod release;
pub mod tower;

pub use safetensors::Dtype;

pub use self::choice::{Layout, OTHER_WEIGHTS, is_index, is_safetensors_index};
pub use self::error::Error;
pub use self::file::TensorInfo;
pub use self::header::{HEADER_START, header_length, read_tensors, tensor_names};
pub use self::names::{Map, Names, Naming, PoolNames};
pub use self::open::read_index;
pub use self::reader::Checkpoint;

//! CLIP on libtorch: two towers of any ViT size, read from Hugging Face and open_clip checkpoints.
//!
//! A model is a list of parameters under the checkpoint's own names ([`Parameters`]) and an [`Architecture`] that says
//! which of them does what. The forward pass ([`Clip`]) is a pure function of [`Weights`], a cheap view of the
//! parameters in which single tensors can be replaced: a trial edit is a view with one other tensor, never a write
//! into shared memory, so that threads can share one copy of the model.
//!
//! | file | what |
//! |---|---|
//! | [`config`] | sizes and switches from `config.json` or `open_clip_config.json` |
//! | [`architecture`] | names, shapes and roles of every parameter in both layouts |
//! | [`weights`] | parameters on a device, and views of them |
//! | [`clip`] | the forward pass, whole or from any stage on |
//! | `block.rs` | one block of a tower, part by part |
//! | [`tree`] | texts with every common beginning once |

pub mod architecture;
mod block;
pub mod clip;
pub mod config;
pub mod tree;
pub mod weights;

pub use architecture::{Architecture, ParameterId, Part, Role, Stage};
pub use clip::{Batch, Clip, TokenBatch, TowerState};
pub use config::ClipConfig;
pub use weights::{Parameters, Tapped, Weights};

/// What can be wrong with a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration asks for something this code does not compute, or is not readable.
    #[error("{file}: {problem}")]
    Config {
        /// The file that was read.
        file: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A tensor is missing, or has another shape or type than the configuration says.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Name in the checkpoint.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The device's memory does not hold a pass over this many items; one over fewer may fit.
    #[error("libtorch: {problem}")]
    Memory {
        /// Items of the pass.
        items: i64,
        /// libtorch's words.
        problem: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

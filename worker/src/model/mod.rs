//! CLIP and SigLIP on libtorch: two towers of any ViT size, read from Hugging Face and open_clip
//! checkpoints.
//!
//! A model is a list of parameters under the checkpoint's own names ([`Parameters`]) and an
//! [`Architecture`] that says what each of them does. The forward pass ([`Clip`]) is a pure
//! function of [`Weights`], a cheap view of the parameters in which individual tensors can be
//! replaced. A trial edit is a view with one tensor replaced, never a write into shared memory, so
//! threads can share one copy of the model.
//!
//! | file | contents |
//! |---|---|
//! | `error.rs` | errors of models |
//! | [`config`] | sizes and options of a model |
//! | `config_read.rs`, `config_open_clip.rs`, `config_siglip.rs` | reads them from `config.json` or `open_clip_config.json` |
//! | `config_fields.rs` | the sections of towers there |
//! | `config_keys.rs` | the keys that are understood there |
//! | [`architecture`] | names, shapes and roles of every parameter in every layout |
//! | [`weights`] | parameters on a device, and views of them |
//! | [`batch`] | the inputs of a tower: images, padded token ids, prefix trees |
//! | `state.rs` | activations between two stages of a forward pass |
//! | `block.rs` | one transformer block, part by part |
//! | [`clip`] | the forward pass, from the input or from any stage |
//! | [`prefix_tree`] | texts that share the computation of their common prefixes |

pub mod architecture;
pub mod batch;
mod block;
pub mod clip;
pub mod config;
mod config_fields;
mod config_keys;
mod config_open_clip;
mod config_read;
mod config_siglip;
mod error;
pub mod prefix_tree;
mod state;
pub mod weights;

pub use architecture::{Architecture, ParameterId, Part, Role, Stage};
pub use batch::{Batch, Input, TokenBatch};
pub use clip::{BlockStates, Clip};
pub use config::ClipConfig;
pub use error::{Error, NotFinite};
pub use prefix_tree::PrefixTree;
pub use state::TowerState;
pub use weights::{Parameters, Tapped, Weights};

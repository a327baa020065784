//! Reading input: shards, images, texts.
//!
//! | file | contents |
//! |---|---|
//! | [`webdataset`] | an iterator over the pairs of a shard |
//! | [`picture`] | PNG, JPEG and WebP decoded to RGB, like Pillow's `convert("RGB")` |
//! | [`resize`] | Pillow's resampling, bit for bit |
//! | [`preprocess`] | the model's image preprocessing, from its configuration |
//! | [`tokenizer`] | the model's tokenizer |
//! | `cleaning.rs` | what is done to a text before it is tokenized |
//! | `orientation.rs` | how an image is to be turned, from its metadata |
//! | `shard.rs` | a whole shard in memory |
//! | `json_file.rs` | small JSON files |
//! | `error.rs` | errors of input files |

mod cleaning;
mod error;
mod json_file;
mod orientation;
pub mod picture;
pub mod preprocess;
pub mod resize;
mod shard;
pub mod tokenizer;
pub mod webdataset;

pub use cleaning::Cleaning;
pub use error::Error;
pub use preprocess::Preprocessor;
pub use shard::{LoadedShard, load_captions, load_images, load_shard};
pub use tokenizer::Tokenizer;
pub use webdataset::{Sample, Samples};

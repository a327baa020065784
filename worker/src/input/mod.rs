//! From files to numbers: shards, images, texts.
//!
//! | file | what |
//! |---|---|
//! | [`webdataset`] | pairs out of a shard, one after another |
//! | [`picture`] | PNG, JPEG and WebP to RGB, as Pillow's `convert("RGB")` gives it |
//! | [`resize`] | Pillow's resampling, bit for bit |
//! | [`preprocess`] | the model's own preprocessing, from its configuration |
//! | [`tokenizer`] | the model's own tokeniser |

pub mod picture;
pub mod preprocess;
pub mod resize;
pub mod tokenizer;
pub mod webdataset;

use std::path::Path;

pub use preprocess::Preprocessor;
use rayon::prelude::*;
pub use tokenizer::Tokenizer;
pub use webdataset::{Sample, Samples};

/// What is wrong with an input: file, member, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct Error {
    /// File, and member where there is one.
    pub place: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Error {
    pub(crate) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// A shard in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedShard {
    /// Keys of the samples, in shard order.
    pub keys: Vec<String>,
    /// Their captions; empty where captions were not read.
    pub captions: Vec<String>,
    /// Their images, preprocessed: `[samples, 3, side, side]`, row-major.
    pub pixels: Vec<f32>,
}

/// Reads the captions of a shard and decodes no image.
///
/// # Errors
/// [`Error`] with the shard, and the key of the sample that is broken.
pub fn load_captions(path: &Path) -> Result<Vec<String>, Error> {
    let shard = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Error::new(shard.clone(), format!("cannot be read: {error}")))?;
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(1 << 20, file));
    Samples::read(&mut archive, &shard)?.map(|sample| Ok(sample?.caption)).collect()
}

/// Reads and preprocesses every pair of a shard.
///
/// # Errors
/// [`Error`] with the shard, and the key of the sample that is broken.
pub fn load_shard(path: &Path, preprocessor: &Preprocessor) -> Result<LoadedShard, Error> {
    load(path, preprocessor, true)
}

/// Reads and preprocesses every image of a shard; what lies beside them is not read, captions are empty.
///
/// # Errors
/// [`Error`] with the shard, and the key of the sample that is broken.
pub fn load_images(path: &Path, preprocessor: &Preprocessor) -> Result<LoadedShard, Error> {
    load(path, preprocessor, false)
}

/// Images that are decoded at one time, at most.
const DECODED_TOGETHER: usize = 64;
/// What they take encoded, about.
const BYTES_TOGETHER: usize = 64 << 20;

fn load(path: &Path, preprocessor: &Preprocessor, captioned: bool) -> Result<LoadedShard, Error> {
    let shard = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Error::new(shard.clone(), format!("cannot be read: {error}")))?;
    let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(1 << 20, file));
    let mut loaded = LoadedShard { keys: Vec::new(), captions: Vec::new(), pixels: Vec::new() };
    let samples = Samples::read(&mut archive, &shard)?;
    let mut samples = if captioned { samples } else { samples.without_captions() };
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < DECODED_TOGETHER && bytes < BYTES_TOGETHER {
            let Some(sample) = samples.next().transpose()? else { break };
            bytes += sample.image.len();
            chunk.push(sample);
        }
        if chunk.is_empty() {
            return Ok(loaded);
        }
        let decode = |sample: &Sample| {
            let wrong = |problem| Error::new(shard.clone(), format!("the image of sample `{}` {problem}", sample.key));
            preprocessor.pixels(&sample.image).map_err(wrong)
        };
        // On every core: a device waits for its input, and so do the workers beside this one.
        let decoded: Vec<_> = chunk.par_iter().map(decode).collect();
        for (pixels, sample) in decoded.into_iter().zip(chunk) {
            loaded.pixels.extend_from_slice(&pixels?);
            loaded.keys.push(sample.key);
            loaded.captions.push(sample.caption);
        }
    }
}

//! Shards in memory: captions and preprocessed images.

use std::path::Path;

use lethe_shared::printable::printable;
use lethe_shared::webdataset::Archive;
use rayon::prelude::*;

use super::error::Error;
use super::preprocess::Preprocessor;
use super::webdataset::{Sample, Samples};

/// A shard in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedShard {
    /// Keys of the samples, in shard order.
    pub keys: Vec<String>,
    /// Captions of the samples; empty strings when captions were not read.
    pub captions: Vec<String>,
    /// Preprocessed images of the samples: `[samples, 3, side, side]`, row-major.
    pub pixels: Vec<f32>,
}

/// Reads the captions of a shard without decoding images.
///
/// # Errors
/// An [`Error`] that names the shard and the key of the broken sample.
pub fn load_captions(path: &Path) -> Result<Vec<String>, Error> {
    let shard = path.display().to_string();
    let file = std::fs::File::open(path)
        .map_err(|error| Error::new(shard.clone(), format!("cannot be read: {error}")))?;
    let mut archive = Archive::new(std::io::BufReader::with_capacity(1 << 20, file));
    Samples::read(&mut archive, &shard, true)?.map(|sample| Ok(sample?.caption)).collect()
}

/// Reads and preprocesses every pair of a shard.
///
/// # Errors
/// An [`Error`] that names the shard and the key of the broken sample.
pub fn load_shard(path: &Path, preprocessor: &Preprocessor) -> Result<LoadedShard, Error> {
    load(path, preprocessor, true)
}

/// Reads and preprocesses every image of a shard. Other members are ignored, and captions are
/// empty.
///
/// # Errors
/// An [`Error`] that names the shard and the key of the broken sample.
pub fn load_images(path: &Path, preprocessor: &Preprocessor) -> Result<LoadedShard, Error> {
    load(path, preprocessor, false)
}

/// The most images to decode at a time.
const MAX_CHUNK_IMAGES: usize = 64;
/// The approximate limit on the encoded size of images that are decoded at a time.
const MAX_CHUNK_BYTES: usize = 64 << 20;

fn load(path: &Path, preprocessor: &Preprocessor, captioned: bool) -> Result<LoadedShard, Error> {
    let shard = path.display().to_string();
    let file = std::fs::File::open(path)
        .map_err(|error| Error::new(shard.clone(), format!("cannot be read: {error}")))?;
    let mut archive = Archive::new(std::io::BufReader::with_capacity(1 << 20, file));
    let mut loaded = LoadedShard { keys: Vec::new(), captions: Vec::new(), pixels: Vec::new() };
    let mut samples = Samples::read(&mut archive, &shard, captioned)?;
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < MAX_CHUNK_IMAGES && bytes < MAX_CHUNK_BYTES {
            let Some(sample) = samples.next().transpose()? else { break };
            bytes += sample.image.len();
            chunk.push(sample);
        }
        if chunk.is_empty() {
            return Ok(loaded);
        }
        let decode = |sample: &Sample| {
            let wrong = |problem: String| {
                let key = printable(&sample.key);
                Error::new(shard.clone(), format!("the image of sample `{key}` {problem}"))
            };
            preprocessor.pixels(&sample.image).map_err(wrong)
        };
        // On all cores, because the device and other threads of the worker wait for input.
        let decoded: Vec<_> = chunk.par_iter().map(decode).collect();
        for (pixels, sample) in decoded.into_iter().zip(chunk) {
            loaded.pixels.extend_from_slice(&pixels?);
            loaded.keys.push(sample.key);
            loaded.captions.push(sample.caption);
        }
    }
}

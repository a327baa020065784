//! Shards as tensors.

use std::collections::HashMap;

use lethe_shared::job::{ClassTexts, ShardRef};
use tch::{Device, Kind, Tensor};

use super::model::Model;
use super::{Error, Scope};
use crate::input;

/// The pairs of one shard.
#[derive(Debug)]
pub(super) struct Pairs {
    /// Preprocessed images `[n, 3, s, s]`, float32, on the host.
    pub(super) pixels: Tensor,
    /// Their texts.
    pub(super) captions: Vec<String>,
}

/// Loads a shard, checked against its digest.
pub(super) fn load(scope: Scope<'_>, model: &Model, shard: &ShardRef) -> Result<Pairs, Error> {
    scope.check()?;
    let path = scope.fetch(&shard.address, shard.digest, shard.bytes)?;
    let loaded = input::load_shard(&path, &model.preprocessor)?;
    Ok(Pairs { pixels: pixels_of(&loaded, model, shard)?, captions: loaded.captions })
}

/// Loads the images of a shard whatever lies beside them: pixels as in [`Pairs`], and the keys of the samples.
pub(super) fn load_images(scope: Scope<'_>, model: &Model, shard: &ShardRef) -> Result<(Tensor, Vec<String>), Error> {
    scope.check()?;
    let path = scope.fetch(&shard.address, shard.digest, shard.bytes)?;
    let loaded = input::load_images(&path, &model.preprocessor)?;
    Ok((pixels_of(&loaded, model, shard)?, loaded.keys))
}

fn pixels_of(loaded: &input::LoadedShard, model: &Model, shard: &ShardRef) -> Result<Tensor, Error> {
    let (n, side) = (loaded.keys.len() as i64, model.preprocessor.side() as i64);
    if n == 0 {
        return Err(Error::Input(format!("{}: holds no image", shard.address)));
    }
    Ok(Tensor::f_from_slice(&loaded.pixels)?.f_view([n, 3, side, side])?)
}

/// Loads several shards as one.
pub(super) fn load_all(scope: Scope<'_>, model: &Model, shards: &[ShardRef]) -> Result<Pairs, Error> {
    let mut pixels = Vec::with_capacity(shards.len());
    let mut captions = Vec::new();
    for shard in shards {
        let pairs = load(scope, model, shard)?;
        pixels.push(pairs.pixels);
        captions.extend(pairs.captions);
    }
    let side = model.preprocessor.side() as i64;
    let pixels = match pixels.len() {
        0 => Tensor::f_zeros([0, 3, side, side], (Kind::Float, Device::Cpu))?,
        _ => Tensor::f_cat(&pixels, 0)?,
    };
    Ok(Pairs { pixels, captions })
}

/// Classes of captions that are class names.
pub(super) fn classes_of(captions: &[String], texts: &ClassTexts) -> Result<Vec<u32>, Error> {
    let index: HashMap<&str, u32> = texts.names.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect();
    let class = |caption: &String| {
        index.get(caption.trim()).copied().ok_or_else(|| Error::Input(format!("caption `{caption}` is not in the class list")))
    };
    captions.iter().map(class).collect()
}

//! Shards as tensors.

use std::collections::HashMap;

use lethe_shared::printable::printable;
use lethe_shared::reference::{ClassTexts, FileSpec};
use lethe_shared::words::normal_name;
use tch::{Device, Kind, Tensor};

use super::error::Error;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use crate::input;

/// The pairs of one shard.
#[derive(Debug)]
pub(super) struct Pairs {
    /// Preprocessed images `[n, 3, s, s]`, float32, on the host.
    pub(super) pixels: Tensor,
    /// The captions, in the same order.
    pub(super) captions: Vec<String>,
}

/// Loads a shard and checks it against its digest.
pub(super) fn load(
    context: JobContext<'_>,
    model: &LoadedModel,
    shard: &FileSpec,
) -> Result<Pairs, Error> {
    context.check_cancelled()?;
    let path = context.fetch(shard)?;
    let loaded = input::load_shard(&path, &model.preprocessor)
        .map_err(|problem| context.unusable(shard, &path, &problem))?;
    Ok(Pairs { pixels: pixels_of(context, &loaded, model, shard)?, captions: loaded.captions })
}

/// Loads the captions of a shard without their images.
pub(super) fn captions(context: JobContext<'_>, shard: &FileSpec) -> Result<Vec<String>, Error> {
    context.check_cancelled()?;
    let path = context.fetch(shard)?;
    input::load_captions(&path).map_err(|problem| context.unusable(shard, &path, &problem))
}

/// Loads the images of a shard without their captions. Returns pixels as in [`Pairs`], and the keys
/// of the samples.
pub(super) fn load_images(
    context: JobContext<'_>,
    model: &LoadedModel,
    shard: &FileSpec,
) -> Result<(Tensor, Vec<String>), Error> {
    context.check_cancelled()?;
    let path = context.fetch(shard)?;
    let loaded = input::load_images(&path, &model.preprocessor)
        .map_err(|problem| context.unusable(shard, &path, &problem))?;
    Ok((pixels_of(context, &loaded, model, shard)?, loaded.keys))
}

fn pixels_of(
    context: JobContext<'_>,
    loaded: &input::LoadedShard,
    model: &LoadedModel,
    shard: &FileSpec,
) -> Result<Tensor, Error> {
    let (n, side) = (loaded.keys.len() as i64, model.preprocessor.side() as i64);
    if n == 0 {
        return Err(Error::Input(format!("{}: the shard contains no image", context.name(shard))));
    }
    Ok(Tensor::f_from_slice(&loaded.pixels)?.f_view([n, 3, side, side])?)
}

/// Loads several shards and concatenates them.
pub(super) fn load_all(
    context: JobContext<'_>,
    model: &LoadedModel,
    shards: &[FileSpec],
) -> Result<Pairs, Error> {
    let mut pixels = Vec::with_capacity(shards.len());
    let mut captions = Vec::new();
    for shard in shards {
        let pairs = load(context, model, shard)?;
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

/// Returns the classes of captions that are class names.
pub(super) fn classes_of(captions: &[String], texts: &ClassTexts) -> Result<Vec<u32>, Error> {
    let index: HashMap<_, u32> =
        texts.names.iter().zip(0..).map(|(name, class)| (normal_name(name), class)).collect();
    let class = |caption: &String| {
        index.get(&*normal_name(caption)).copied().ok_or_else(|| {
            Error::Input(format!("caption `{}` is not in the class list", printable(caption)))
        })
    };
    captions.iter().map(class).collect()
}

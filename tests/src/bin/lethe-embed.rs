//! Writes a shard's pixels, tokens and embeddings as Lethe computes them, for comparison with other
//! software.
//!
//! `lethe-embed MODEL SHARD OUT.safetensors`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lethe_shared::checkpoint::Checkpoint;
use lethe_worker::input::load_shard;
use lethe_worker::model::{Clip, Input, Parameters};
use lethe_worker::model_folder::ModelFolder;
use tch::{Device, Kind, Tensor};

/// Number of pairs embedded at once.
const BATCH: usize = 128;

fn main() -> Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, shard, out] = &paths[..] else {
        bail!("usage: lethe-embed MODEL SHARD OUT.safetensors")
    };
    lethe_worker::memory::keep_freed_memory();
    tch::set_num_threads(1);
    embed(model, shard, out)
}

fn embed(folder: &Path, shard: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(folder)?;
    let ModelFolder { config, tokenizer, preprocessor } = ModelFolder::open(folder, &checkpoint)?;
    let clip = Clip::new(config);
    let weights = Parameters::read(clip.architecture(), &checkpoint, Device::Cpu)?.weights();
    let loaded = load_shard(shard, &preprocessor)?;

    let _guard = tch::no_grad_guard();
    let side = preprocessor.side() as i64;
    let pixels = Tensor::f_from_slice(&loaded.pixels)?.f_view([-1, 3, side, side])?;
    let ids = loaded
        .captions
        .iter()
        .map(|caption| Ok(tokenizer.encode(caption)?))
        .collect::<Result<Vec<_>>>()?;
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for (number, chunk) in ids.chunks(BATCH).enumerate() {
        let batch = pixels.f_narrow(0, (number * BATCH) as i64, chunk.len() as i64)?;
        images.push(clip.embed(&weights, Input::Images(&batch))?);
        texts.push(clip.embed(&weights, Input::Texts(&clip.token_batch(chunk, Device::Cpu)?))?);
    }
    let longest = ids.iter().map(Vec::len).max().context("the shard is empty")?;
    let padded: Vec<i64> = ids
        .iter()
        .flat_map(|ids| (0..longest).map(|i| ids.get(i).map_or(0, |&id| i64::from(id))))
        .collect();
    let lengths: Vec<i64> = ids.iter().map(|ids| ids.len() as i64).collect();
    Tensor::write_safetensors(
        &[
            ("pixel_values", pixels),
            ("image_embeds", Tensor::f_cat(&images, 0)?),
            ("text_embeds", Tensor::f_cat(&texts, 0)?),
            (
                "input_ids",
                Tensor::f_from_slice(&padded)?
                    .f_view([-1, longest as i64])?
                    .f_to_kind(Kind::Int64)?,
            ),
            ("lengths", Tensor::f_from_slice(&lengths)?),
        ],
        out,
    )?;
    Ok(())
}

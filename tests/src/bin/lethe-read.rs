//! Prints what Lethe reads from files, one JSON object a line, for comparison with other software.
//!
//! The paths of the files come from standard input, one a line. A file that is refused gives
//! `{"path", "refusal"}`.
//!
//! `lethe-read images OUT`: `width` and `height` of each image; `OUT/<line>.rgb` has its pixels.
//!
//! `lethe-read shards`: the `samples` of each shard (`key`, `caption`, SHA-256 of the `image`), and
//! the number of `strays`.
//!
//! `lethe-read models SHARD`: the embeddings of the shard's `images` and `texts` by each model, and
//! the `length` of each text in tokens.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::webdataset::Archive;
use lethe_worker::input::{load_shard, picture};
use lethe_worker::model::{Clip, Input, Parameters};
use lethe_worker::model_folder::ModelFolder;
use serde_json::{Value, json};
use tch::{Device, Tensor};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    lethe_worker::memory::keep_freed_memory();
    tch::set_num_threads(1);
    for (number, path) in std::io::stdin().lock().lines().enumerate() {
        let path = path?;
        let file = Path::new(&path);
        let read = || match arguments[..] {
            ["images", out] => image(file, &Path::new(out).join(format!("{number}.rgb"))),
            ["shards"] => shard(file),
            ["models", shard] => model(file, Path::new(shard)),
            _ => bail!("usage: lethe-read images OUT | shards | models SHARD"),
        };
        let mut found = match catch_unwind(AssertUnwindSafe(read)) {
            Ok(Ok(found)) => found,
            Ok(Err(refusal)) => json!({ "refusal": format!("{refusal:#}") }),
            Err(_) => json!({ "panic": true }),
        };
        found["path"] = path.into();
        println!("{found}");
    }
    Ok(())
}

fn image(file: &Path, out: &Path) -> Result<Value> {
    let pixels = picture::decode(&std::fs::read(file)?).map_err(anyhow::Error::msg)?;
    std::fs::write(out, pixels.as_raw())?;
    Ok(json!({ "width": pixels.width(), "height": pixels.height() }))
}

/// Reads a shard to its end; the first sample that is no pair refuses it, as in a plan.
fn shard(file: &Path) -> Result<Value> {
    let mut archive = Archive::new(BufReader::new(File::open(file)?));
    let mut reader = archive.samples(true)?;
    let mut samples = Vec::new();
    while let Some(sample) = reader.advance()? {
        let pair = sample.pair()?;
        let image = Digest::of(pair.image).to_string();
        samples.push(json!({ "key": pair.key, "caption": pair.caption, "image": image }));
    }
    Ok(json!({ "samples": samples, "strays": reader.strays().members }))
}

fn model(folder: &Path, shard: &Path) -> Result<Value> {
    let checkpoint = Checkpoint::open(folder)?;
    let ModelFolder { config, tokenizer, preprocessor } = ModelFolder::open(folder, &checkpoint)?;
    let clip = Clip::new(config);
    let weights = Parameters::read(clip.architecture(), &checkpoint, Device::Cpu)?.weights();
    let pairs = load_shard(shard, &preprocessor)?;
    let texts = pairs
        .captions
        .iter()
        .map(|caption| Ok(tokenizer.encode(caption)?))
        .collect::<Result<Vec<_>>>()?;
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();

    let _guard = tch::no_grad_guard();
    let side = preprocessor.side() as i64;
    let pixels = Tensor::f_from_slice(&pairs.pixels)?.f_view([-1, 3, side, side])?;
    let images = clip.embed(&weights, Input::Images(&pixels))?;
    let texts = clip.embed(&weights, Input::Texts(&clip.token_batch(&texts, Device::Cpu)?))?;
    Ok(json!({ "images": rows(&images)?, "texts": rows(&texts)?, "lengths": lengths }))
}

/// Returns the rows of a matrix.
fn rows(matrix: &Tensor) -> Result<Vec<Vec<f32>>> {
    ensure!(matrix.dim() == 2, "an embedding is not a row of a matrix");
    let width = matrix.size()[1] as usize;
    let values = Vec::<f32>::try_from(matrix.f_contiguous()?.f_view([-1])?)?;
    Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

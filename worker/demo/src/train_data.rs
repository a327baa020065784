//! Training and held-out drawings in memory.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

/// Drawings with their class.
pub(crate) struct Drawings {
    /// `[n, 3, side, side]`, uint8.
    pub(crate) pixels: Tensor,
    /// Index into the class list, per drawing.
    pub(crate) classes: Vec<usize>,
    /// Caption forms per drawing; the class name alone where the shard has no more.
    pub(crate) captions: Vec<Vec<String>>,
}

#[derive(serde::Deserialize)]
struct Sidecar {
    captions: Vec<String>,
}

#[derive(Default)]
struct Sample {
    image: Option<Vec<u8>>,
    name: Option<String>,
    captions: Option<Vec<String>>,
}

/// Reads one shard; `side` is the model's input size, which the drawings already have.
pub(crate) fn read(
    path: &Path,
    class_index: &HashMap<String, usize>,
    side: i64,
) -> Result<Drawings> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("open {} (run emoji-data first)", path.display()))?;
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let Some((key, extension)) = name.split_once('.') else {
            bail!("{}: member {name} has no extension", path.display())
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let sample = samples.entry(key.to_owned()).or_default();
        match extension {
            "png" | "webp" => sample.image = Some(bytes),
            "txt" => sample.name = Some(String::from_utf8(bytes)?.trim().to_owned()),
            "json" => sample.captions = Some(serde_json::from_slice::<Sidecar>(&bytes)?.captions),
            _ => {}
        }
    }
    let (mut pixels, mut classes, mut captions) = (Vec::new(), Vec::new(), Vec::new());
    for (key, sample) in samples {
        let (Some(image), Some(name)) = (sample.image, sample.name) else {
            bail!("{}: {key} is incomplete", path.display())
        };
        let image =
            image::load_from_memory(&image).with_context(|| format!("decode {key}"))?.to_rgb8();
        ensure!(
            i64::from(image.width()) == side && i64::from(image.height()) == side,
            "{key} is not {side} pixels square"
        );
        let class = *class_index
            .get(&name)
            .with_context(|| format!("{key}: `{name}` is not in classes.txt"))?;
        pixels.extend_from_slice(image.as_raw());
        classes.push(class);
        captions.push(sample.captions.unwrap_or_else(|| vec![name]));
    }
    ensure!(!classes.is_empty(), "{} has no drawings", path.display());
    let pixels =
        Tensor::f_from_data_size(&pixels, &[classes.len() as i64, side, side, 3], Kind::Uint8)?;
    Ok(Drawings { pixels: pixels.f_permute([0, 3, 1, 2])?.f_contiguous()?, classes, captions })
}

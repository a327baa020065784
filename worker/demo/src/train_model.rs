//! The demo model: its configuration, its first weights, and how it is written.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use lethe_shared::checkpoint::Checkpoint;
use lethe_worker::model::{Architecture, ClipConfig, Parameters, Role, Stage};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Side of the input image, pixels.
pub(crate) const SIDE: i64 = 48;
const PATCH: i64 = 8;
const WIDTH: i64 = 192;
const HEADS: i64 = 6;
const VISION_LAYERS: i64 = 5;
const TEXT_LAYERS: i64 = 4;
const CONTEXT: i64 = 16;

/// How wide the MLPs of the two towers are, and in what the weights are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// Hidden units of each MLP of the text tower.
    pub(crate) text_hidden: i64,
    /// Hidden units of each MLP of the vision tower.
    pub(crate) vision_hidden: i64,
    /// Float16 instead of float32.
    pub(crate) half: bool,
}

/// `config.json` as `transformers` writes it.
pub(crate) fn config(vocabulary: usize, form: Form) -> Value {
    let tower = |kind: &str, layers: i64, hidden: i64| {
        json!({
            "model_type": kind, "hidden_size": WIDTH, "intermediate_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": HEADS, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
            "projection_dim": WIDTH, "initializer_factor": 1.0, "initializer_range": 0.02,
        })
    };
    let mut text = tower("clip_text_model", TEXT_LAYERS, form.text_hidden);
    for (key, value) in [
        ("vocab_size", json!(vocabulary)),
        ("max_position_embeddings", json!(CONTEXT)),
        ("pad_token_id", json!(0)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(3)),
    ] {
        text[key] = value;
    }
    let mut vision = tower("clip_vision_model", VISION_LAYERS, form.vision_hidden);
    for (key, value) in
        [("image_size", json!(SIDE)), ("patch_size", json!(PATCH)), ("num_channels", json!(3))]
    {
        vision[key] = value;
    }
    json!({
        "architectures": ["CLIPModel"], "model_type": "clip", "dtype": if form.half { "float16" } else { "float32" }, "projection_dim": WIDTH,
        "logit_scale_init_value": 2.6592, "initializer_factor": 1.0, "text_config": text, "vision_config": vision,
    })
}

/// First values, spread as OpenAI's CLIP spreads them.
pub(crate) fn initialise(architecture: &Architecture, config: &ClipConfig) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for spec in architecture.parameters() {
        let kind = (Kind::Float, Device::Cpu);
        let depth = match spec.tower {
            Some(lethe_shared::vocabulary::Tower::Vision) => config.vision.layers,
            _ => config.text.layers,
        } as f64;
        let fan_in = spec.shape.iter().skip(1).product::<i64>() as f64;
        let residual = (2.0 * depth).powf(-0.5);
        let spread = match spec.role {
            Role::Scale => {
                tensors.push(Tensor::f_full(&spec.shape, (1.0f64 / 0.07).ln(), kind)?);
                continue;
            }
            Role::Gain => {
                tensors.push(Tensor::f_ones(&spec.shape, kind)?);
                continue;
            }
            Role::Bias => {
                tensors.push(Tensor::f_zeros(&spec.shape, kind)?);
                continue;
            }
            Role::Embedding if spec.name.contains("patch") => fan_in.powf(-0.5),
            Role::Embedding => 0.02,
            // The two maps that add to the residual stream start small.
            Role::Linear if spec.name.contains("out_proj") || spec.name.contains("fc2") => {
                fan_in.powf(-0.5) * residual
            }
            Role::Linear if spec.stage == Stage::Project => fan_in.powf(-0.5),
            Role::Linear => fan_in.powf(-0.5) * 0.7,
        };
        tensors.push(Tensor::f_randn(&spec.shape, kind)? * spread);
    }
    Ok(tensors)
}

/// The weights of a model that an earlier stage wrote, widened where its MLPs are narrower.
///
/// New hidden units have random inputs and no output yet, so the widened model computes what the
/// narrow one does, and training can use every unit from its first step.
pub(crate) fn read_weights(
    folder: &Path,
    architecture: &Architecture,
    config: &ClipConfig,
) -> Result<Vec<Tensor>> {
    let path = folder.join("config.json");
    let file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let earlier = serde_json::from_reader(file)?;
    let earlier = Architecture::new(&ClipConfig::from_json(&path.to_string_lossy(), &earlier)?);
    let read = Parameters::read(&earlier, &Checkpoint::open(folder)?, Device::Cpu)?;
    let mut tensors = initialise(architecture, config)?;
    for (spec, tensor) in architecture.parameters().iter().zip(&mut tensors) {
        let id = earlier.find(&spec.name).with_context(|| format!("{} is new", spec.name))?;
        let read = read.get(id);
        if read.size() == spec.shape {
            *tensor = read;
            continue;
        }
        if spec.name.contains("fc2") {
            *tensor = tensor.f_zeros_like()?;
        }
        let mut place = tensor.shallow_clone();
        for (axis, &length) in read.size().iter().enumerate() {
            place = place.f_narrow(axis as i64, 0, length).with_context(|| spec.name.clone())?;
        }
        place.copy_(&read);
    }
    Ok(tensors)
}

/// Writes `config.json` and `model.safetensors`; each appears whole or not at all.
pub(crate) fn write(
    folder: &Path,
    config: &Value,
    architecture: &Architecture,
    tensors: &[Tensor],
    half: bool,
) -> Result<()> {
    let (dtype, kind) = if half { (Dtype::F16, Kind::Half) } else { (Dtype::F32, Kind::Float) };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| {
            let raw = tensor.f_to_kind(kind)?.f_contiguous()?.f_reshape([-1])?;
            Ok(Vec::try_from(raw.f_view_dtype(Kind::Uint8)?)?)
        })
        .collect::<Result<_>>()
        .context("read the weights")?;
    let mut views = HashMap::new();
    for (spec, bytes) in architecture.parameters().iter().zip(&bytes) {
        let shape = spec.shape.iter().map(|&n| n as usize).collect();
        views.insert(spec.name.clone(), TensorView::new(dtype, shape, bytes)?);
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = safetensors::serialize(views, Some(metadata))?;
    replace(&folder.join("model.safetensors"), &weights)?;
    replace(&folder.join("config.json"), format!("{config:#}\n").as_bytes())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let staged = path.with_extension("new");
    std::fs::write(&staged, bytes).with_context(|| format!("write {}", staged.display()))?;
    std::fs::rename(&staged, path)
        .with_context(|| format!("rename {} to {}", staged.display(), path.display()))
}

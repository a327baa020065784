//! Targets for tests: models with a tower of a CLIP model's own files, and small synthetic files
//! around it.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A tensor: type, shape, bytes.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);
/// Tensors by name.
pub type Tensors = BTreeMap<String, Stored>;

/// Returns the tensors of a safetensors file.
pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("a weight file");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

/// Writes tensors as a safetensors file.
pub fn write(path: &Path, tensors: &Tensors) {
    let views: BTreeMap<&String, TensorView<'_>> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes fit the shape"))
        })
        .collect();
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, safetensors::serialize(views, None).expect("tensors are written"))
        .expect("write a weight file");
}

/// Returns the tensors whose names begin with `from`, with `to` in its place.
pub fn renamed(tensors: &Tensors, from: &str, to: &str) -> Tensors {
    tensors
        .iter()
        .filter_map(|(name, stored)| {
            Some((format!("{to}{}", name.strip_prefix(from)?), stored.clone()))
        })
        .collect()
}

/// Returns float32 tensors with `change` applied to every value.
pub fn mapped(tensors: &Tensors, change: impl Fn(f32) -> f32) -> Tensors {
    let value = |word: &[u8]| {
        change(f32::from_le_bytes(word.try_into().expect("four bytes"))).to_le_bytes()
    };
    let one = |(dtype, shape, bytes): &Stored| {
        (*dtype, shape.clone(), bytes.chunks_exact(4).flat_map(value).collect())
    };
    tensors.iter().map(|(name, stored)| (name.clone(), one(stored))).collect()
}

/// Returns float32 tensors as float16.
pub fn halved(tensors: &Tensors) -> Tensors {
    let value = |word: &[u8]| {
        half::f16::from_f32(f32::from_le_bytes(word.try_into().expect("four bytes"))).to_le_bytes()
    };
    let one = |(_, shape, bytes): &Stored| {
        (Dtype::F16, shape.clone(), bytes.chunks_exact(4).flat_map(value).collect())
    };
    tensors.iter().map(|(name, stored)| (name.clone(), one(stored))).collect()
}

/// Returns the text tower of a CLIP under transformers' names, with this many blocks and without
/// its projection.
pub fn text_tower(clip: &Path, blocks: usize) -> Tensors {
    let mut tensors = renamed(&read(clip), "text_model.", "text_model.");
    tensors.retain(|name, _| {
        let block = name
            .strip_prefix("text_model.encoder.layers.")
            .and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        block.is_none_or(|block| block < blocks)
    });
    tensors
}

fn json(path: &Path, value: &serde_json::Value) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, serde_json::to_vec_pretty(value).expect("JSON"))
        .expect("write a configuration");
}

/// Writes a Stable Diffusion pipeline with this text encoder; other components have synthetic
/// bytes.
pub fn stable_diffusion(folder: &Path, text: &Tensors, blocks: usize) {
    let index = serde_json::json!({
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    json(&folder.join("model_index.json"), &index);
    json(
        &folder.join("text_encoder/config.json"),
        &serde_json::json!({"model_type": "clip_text_model", "num_hidden_layers": blocks}),
    );
    write(&folder.join("text_encoder/model.safetensors"), text);
    std::fs::create_dir_all(folder.join("unet")).expect("a folder");
    let made_up: Vec<u8> =
        (0..40_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    std::fs::write(folder.join("unet/diffusion_pytorch_model.bin"), made_up).expect("write a file");
    std::fs::write(folder.join("README.md"), "a pipeline\n").expect("write a file");
}

/// Writes a Stable Diffusion XL pipeline with these two text encoders, the second of which has a
/// projection.
pub fn pipeline_xl(folder: &Path, encoders: [(&str, Tensors); 2]) {
    for (name, tensors) in encoders {
        json(
            &folder.join(name).join("config.json"),
            &serde_json::json!({"model_type": "clip_text_model"}),
        );
        write(&folder.join(name).join("model.safetensors"), &tensors);
    }
    let index = serde_json::json!({
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    json(&folder.join("model_index.json"), &index);
}

/// Writes a LLaVA checkpoint with the vision tower of a CLIP in transformers' layout under
/// `prefix`, in two shards with an index. The shard of the language model has synthetic bytes.
pub fn llava(folder: &Path, clip: &Path, prefix: &str, config: &serde_json::Value) {
    let vision = renamed(&read(clip), "vision_model.", prefix);
    let language: Tensors = [(
        "language_model.model.embed_tokens.weight".to_owned(),
        (Dtype::F32, vec![64, 8], vec![7u8; 4 * 64 * 8]),
    )]
    .into();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write(&folder.join(first), &vision);
    write(&folder.join(second), &language);
    let of = |tensors: &Tensors, file: &str| {
        tensors
            .keys()
            .map(|name| (name.clone(), file.into()))
            .collect::<Vec<(String, serde_json::Value)>>()
    };
    let map: serde_json::Map<String, serde_json::Value> =
        of(&vision, first).into_iter().chain(of(&language, second)).collect();
    json(
        &folder.join("model.safetensors.index.json"),
        &serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}),
    );
    json(&folder.join("config.json"), config);
}

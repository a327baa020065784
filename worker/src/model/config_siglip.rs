//! Reads what a SigLIP's configuration has of its own: that of transformers, and the vision towers of
//! timm that open_clip names.

use lethe_shared::checkpoint::{Names, Naming};
use lethe_shared::vocabulary::Tower;
use serde_json::{Map, Value, json};

use super::config::{Activation, ClipConfig, Contrast, TextPooling, TowerConfig, bad};
use super::config_fields::{HfTower, section};
use super::config_keys;
use super::error::Error;
use crate::input::Cleaning;

/// Defaults of transformers, of both towers.
fn defaults() -> Map<String, Value> {
    let defaults = json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        "image_size": 224, "patch_size": 16, "vocab_size": 32_000, "max_position_embeddings": 64,
    });
    match defaults {
        Value::Object(defaults) => defaults,
        _ => Map::new(),
    }
}

/// Reads a parsed `config.json` whose `model_type` is `siglip`: SigLIP, and SigLIP 2 of a fixed
/// resolution.
pub(super) fn transformers(file: &str, json: &Value) -> Result<ClipConfig, Error> {
    config_keys::check_siglip(json).map_err(|problem| bad(file, problem))?;
    let vision = section(file, json, "vision_config", true, defaults())?;
    let text = section(file, json, "text_config", false, defaults())?;
    if !vision.vision_use_head {
        return Err(bad(
            file,
            "vision_config.vision_use_head is false: without its attention-pooling head the vision tower gives no embedding of an image",
        ));
    }
    let embedding = text.projection_size.unwrap_or(text.hidden_size);
    if embedding != vision.hidden_size {
        return Err(bad(
            file,
            format!(
                "texts are embedded in {embedding} dimensions (text_config.projection_size), and images in {} (vision_config.hidden_size)",
                vision.hidden_size
            ),
        ));
    }
    let tower = |of: &HfTower, tower| of.tower(file, Names::of(Naming::Siglip, tower), false);
    Ok(ClipConfig {
        vision: tower(&vision, Tower::Vision)?,
        text: tower(&text, Tower::Text)?,
        image_size: vision.image_size,
        patch_size: vision.patch_size,
        context_length: text.max_position_embeddings,
        vocabulary: text.vocab_size,
        embedding,
        pooling: TextPooling::Last,
        cleaning: Cleaning::None,
        contrast: Contrast::Sigmoid,
    })
}

/// Returns a SigLIP's vision tower of timm and the side of its patches, by the name of its model:
/// `vit_base_patch16_siglip_224`.
pub(super) fn timm(name: &str) -> Result<(TowerConfig, i64), String> {
    let unknown = || {
        format!(
            "model_cfg.vision_cfg.timm_model_name is `{}`; of timm's vision towers, Lethe edits those of SigLIP that pool by attention: \
             vit_base, vit_large, vit_so400m and vit_giantopt, as in `vit_base_patch16_siglip_224`",
            name.escape_debug()
        )
    };
    let (size, rest) = name.split_once("_patch").ok_or_else(unknown)?;
    let (patch, side) = rest.split_once("_siglip_").ok_or_else(unknown)?;
    let patch: i64 = patch.parse().map_err(|_| unknown())?;
    // Towers that pool by averaging are called `…_siglip_gap_224`.
    let side: u32 = side.parse().map_err(|_| unknown())?;
    // Entries that came with SigLIP 2 alone have the approximation, those that both share do not.
    let (width, layers, heads, mlp_width, is_tanh) = match size {
        "vit_base" => (768, 12, 12, 3072, patch == 32),
        "vit_large" => (1024, 24, 16, 4096, side == 512),
        "vit_so400m" => (1152, 27, 16, 4304, patch == 16),
        "vit_giantopt" => (1536, 40, 16, 6144, true),
        _ => return Err(unknown()),
    };
    let activation = if is_tanh { Activation::GeluTanh } else { Activation::Gelu };
    let tower = TowerConfig {
        names: Names::of(Naming::CustomTextTimm, Tower::Vision),
        width,
        mlp_width,
        layers,
        heads,
        activation,
        norm_epsilon: 1e-6,
        is_causal: false,
    };
    Ok((tower, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Value) -> Result<ClipConfig, String> {
        ClipConfig::from_json("config.json", json).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let base = read(&json!({ "model_type": "siglip", "initializer_factor": 1.0,
            "text_config": { "model_type": "siglip_text_model" },
            "vision_config": { "model_type": "siglip_vision_model" } }))
        .unwrap();
        assert_eq!((base.image_size, base.patch_size, base.image_tokens()), (224, 16, 196));
        assert_eq!((base.context_length, base.vocabulary, base.embedding), (64, 32_000, 768));
        assert_eq!(base.pooling, TextPooling::Last);
        assert_eq!(base.contrast, Contrast::Sigmoid);
        for tower in [base.text, base.vision] {
            assert_eq!((tower.width, tower.mlp_width, tower.layers), (768, 3072, 12));
            assert_eq!((tower.activation, tower.norm_epsilon), (Activation::GeluTanh, 1e-6));
            assert!(!tower.is_causal);
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (json, named) in [
            (json!({ "model_type": "siglip2" }), "siglip2"),
            (
                json!({ "model_type": "siglip", "vision_config": { "vision_use_head": false } }),
                "vision_use_head",
            ),
            (
                json!({ "model_type": "siglip", "text_config": { "projection_size": 512 } }),
                "projection_size",
            ),
            (
                json!({ "model_type": "siglip", "vision_config": { "num_patches": 256 } }),
                "vision_config.num_patches",
            ),
            (
                json!({ "model_type": "siglip", "vision_config": { "hidden_size": null } }),
                "vision_config.hidden_size",
            ),
            (
                json!({ "model_type": "siglip", "text_config": { "model_type": "clip_text_model" } }),
                "text_config.model_type",
            ),
        ] {
            let problem = read(&json).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
    }

    #[test]
    fn towers_of_timm_are_found_by_name() {
        let (tower, patch) = timm("vit_so400m_patch14_siglip_384").unwrap();
        assert_eq!((tower.width, tower.layers, tower.heads, patch), (1152, 27, 16, 14));
        // As timm 1.0.31 registers them.
        for (name, is_tanh) in [
            ("vit_base_patch16_siglip_224", false),
            ("vit_base_patch32_siglip_256", true),
            ("vit_large_patch16_siglip_384", false),
            ("vit_large_patch16_siglip_512", true),
            ("vit_so400m_patch14_siglip_378", false),
            ("vit_so400m_patch16_siglip_256", true),
            ("vit_giantopt_patch16_siglip_384", true),
        ] {
            let (tower, _) = timm(name).unwrap();
            assert_eq!(tower.activation == Activation::GeluTanh, is_tanh, "{name}");
        }
        for name in [
            "vit_base_patch16_siglip_gap_224",
            "vit_base_patch16_clip_224",
            "vit_small_patch16_siglip_224",
            "vit_base_patchx_siglip_224",
            "eva02_base_patch16_clip_224",
        ] {
            assert!(timm(name).unwrap_err().contains(name));
        }
    }
}

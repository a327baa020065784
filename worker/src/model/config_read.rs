//! Reads the sizes and options of a model from its configuration file, and those of a CLIP from that
//! of transformers.

use lethe_shared::checkpoint::{Names, Naming};
use lethe_shared::vocabulary::Tower;
use serde_json::{Map, Value};

use super::config::{ClipConfig, Contrast, TextPooling, bad};
use super::config_fields::{HfTower, section};
use super::error::Error;
use super::{config_keys, config_open_clip, config_siglip};
use crate::input::Cleaning;

impl ClipConfig {
    /// Reads a parsed `config.json` (`transformers`) or `open_clip_config.json`, distinguished by
    /// their keys.
    ///
    /// # Errors
    /// [`Error::Config`] when a field is malformed, the model is neither a ViT CLIP nor a SigLIP, or a
    /// size is out of range.
    pub fn from_json(file: &str, json: &Value) -> Result<Self, Error> {
        let kind = json.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        let config = match kind {
            _ if json.get("model_cfg").is_some() => config_open_clip::open_clip(file, json)?,
            "clip" => hugging_face(file, json)?,
            "siglip" => config_siglip::transformers(file, json)?,
            "siglip2" => {
                return Err(bad(
                    file,
                    "model_type is `siglip2`: SigLIP 2 of variable resolution (NaFlex), which Lethe does not edit; use a SigLIP 2 of a \
                     fixed resolution, whose model_type is `siglip`",
                ));
            }
            other => {
                return Err(bad(
                    file,
                    format!(
                        "model_type is `{other}`; Lethe edits CLIP and SigLIP models (`clip`, `siglip`, or an open_clip folder with \
                         open_clip_config.json)"
                    ),
                ));
            }
        };
        config.check(file)?;
        Ok(config)
    }
}

fn hugging_face(file: &str, json: &Value) -> Result<ClipConfig, Error> {
    config_keys::check_transformers(json).map_err(|problem| bad(file, problem))?;
    let section = |name: &str, vision: bool| -> Result<HfTower, Error> {
        let mut defaults = Map::new();
        if vision {
            // Defaults of the vision tower that differ from the text tower's.
            defaults.insert("hidden_size".into(), 768.into());
            defaults.insert("intermediate_size".into(), 3072.into());
            defaults.insert("num_attention_heads".into(), 12.into());
        }
        // As in transformers, `text_config_dict` of older files replaces `text_config`, also where
        // it leaves a field at its default.
        let older = format!("{name}_dict");
        let name = if json.get(&older).is_some_and(|v| !v.is_null()) { &older } else { name };
        section(file, json, name, vision, defaults)
    };
    let vision = section("vision_config", true)?;
    let text = section("text_config", false)?;
    let embedding = match json.get("projection_dim") {
        None => 512,
        Some(width) => width.as_i64().ok_or_else(|| {
            bad(file, format!("projection_dim is {width}, expected a whole number"))
        })?,
    };
    let names = |tower| Names::of(Naming::Transformers, tower);
    Ok(ClipConfig {
        vision: vision.tower(file, names(Tower::Vision), false)?,
        text: text.tower(file, names(Tower::Text), true)?,
        image_size: vision.image_size,
        patch_size: vision.patch_size,
        context_length: text.max_position_embeddings,
        vocabulary: text.vocab_size,
        embedding,
        // Older checkpoints contain a wrong eos_token_id of 2. `transformers` then pools at the
        // largest id, like OpenAI's code.
        pooling: if text.eos_token_id == 2 {
            TextPooling::LargestId
        } else {
            TextPooling::FirstOf(text.eos_token_id)
        },
        cleaning: Cleaning::None,
        contrast: Contrast::Softmax,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::config::Activation;
    use super::super::config_open_clip::tests::open_clip_with;
    use super::*;

    fn read(json: &Value) -> Result<ClipConfig, String> {
        ClipConfig::from_json("file.json", json).map_err(|error| error.to_string())
    }

    #[test]
    fn options_of_transformers_that_are_not_understood_are_refused() {
        for (json, key) in [
            (
                json!({ "model_type": "clip", "quantization_config": { "bits": 4 } }),
                "quantization_config",
            ),
            (
                json!({ "model_type": "clip", "vision_config": { "qk_norm": true } }),
                "vision_config.qk_norm",
            ),
            (
                json!({ "model_type": "clip", "text_config": { "is_decoder": true } }),
                "text_config.is_decoder",
            ),
            (
                json!({ "model_type": "clip", "text_config": { "model_type": "bert" } }),
                "text_config.model_type",
            ),
            (
                json!({ "model_type": "clip", "text_config": { "pruned_heads": { "0": [1] } } }),
                "text_config.pruned_heads",
            ),
            (json!({ "model_type": "clip", "projection_dim": "64" }), "projection_dim"),
            (json!({ "model_type": "blip" }), "blip"),
        ] {
            assert!(read(&json).unwrap_err().contains(key), "{json}");
        }
        let old = json!({ "model_type": "clip", "return_dict": true, "top_k": 50, "pruned_heads": {},
            "text_config": { "is_decoder": false, "bad_words_ids": null, "model_type": "clip_text_model" } });
        read(&old).unwrap();
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_its_key() {
        let hugging_face = |section: &str, key: &str, value: Value| {
            read(&json!({ "model_type": "clip", section: { key: value } })).unwrap_err()
        };
        let mut open_clip = open_clip_with("text_cfg", "heads", json!("8"));
        open_clip["model_cfg"].as_object_mut().unwrap().remove("embed_dim");
        for (problem, expected) in [
            (
                hugging_face("text_config", "eos_token_id", json!([3])),
                "text_config.eos_token_id: invalid type: sequence, expected a whole number",
            ),
            (
                hugging_face("vision_config_dict", "patch_size", json!([8, 8])),
                "vision_config_dict.patch_size: ",
            ),
            (
                hugging_face("vision_config", "layer_norm_eps", json!("small")),
                "vision_config.layer_norm_eps: ",
            ),
            (
                hugging_face("text_config", "layer_norm_eps", json!(-1e-5)),
                "the text tower's layer_norm_eps is -0.00001",
            ),
            (
                hugging_face("text_config", "num_hidden_layers", json!(-1)),
                "text_config.num_hidden_layers: ",
            ),
            (
                read(&open_clip_with("vision_cfg", "width", json!([768]))).unwrap_err(),
                "model_cfg.vision_cfg.width: ",
            ),
            (read(&open_clip_with("", "text_cfg", json!([]))).unwrap_err(), "model_cfg.text_cfg"),
            (read(&open_clip).unwrap_err(), "model_cfg.text_cfg.heads: "),
        ] {
            assert!(problem.contains(expected), "{problem}");
        }
    }

    /// transformers fails with these, and has a default where one is missing.
    #[test]
    fn a_null_is_refused_where_transformers_needs_a_value() {
        for (section, key) in [
            ("text_config", "eos_token_id"),
            ("text_config", "hidden_size"),
            ("text_config_dict", "eos_token_id"),
            ("vision_config", "patch_size"),
            ("vision_config", "hidden_act"),
        ] {
            let problem =
                read(&json!({ "model_type": "clip", section: { key: null } })).unwrap_err();
            let expected = format!("{section}.{key} in config.json is null");
            assert!(problem.contains(&expected), "{problem}");
        }
        let projection = json!({ "model_type": "clip", "projection_dim": null });
        assert!(read(&projection).unwrap_err().contains("projection_dim is null"));
        // OpenAI's files have these. A section that an older one replaces is not read.
        let unused = json!({ "model_type": "clip", "eos_token_id": null,
            "vision_config": { "eos_token_id": null, "vocab_size": null },
            "text_config": { "eos_token_id": null, "bos_token_id": null }, "text_config_dict": {} });
        assert_eq!(read(&unused).unwrap().pooling, TextPooling::FirstOf(49_407));
    }

    /// Like `CLIPConfig` of transformers: the older sections are the complete configuration.
    #[test]
    fn the_older_sections_replace_the_newer_ones() {
        let json = |older: Value| {
            json!({ "model_type": "clip", "text_config": { "hidden_act": "gelu", "eos_token_id": 2, "num_hidden_layers": 3 },
                "text_config_dict": older })
        };
        let of = |older: Value| read(&json(older)).unwrap();
        assert_eq!(of(Value::Null).text.activation, Activation::Gelu);
        let replaced = of(json!({ "hidden_act": "quick_gelu", "num_hidden_layers": 5 }));
        assert_eq!(
            (replaced.text.activation, replaced.text.layers, replaced.pooling),
            (Activation::QuickGelu, 5, TextPooling::FirstOf(49_407))
        );
        assert_eq!(of(json!({})).text.layers, 12);
        let vision =
            read(&json!({ "model_type": "clip", "vision_config": { "hidden_act": "gelu" },
            "vision_config_dict": { "layer_norm_eps": 0.5 } }))
            .unwrap()
            .vision;
        assert_eq!((vision.activation, vision.norm_epsilon), (Activation::QuickGelu, 0.5));
        assert!(read(&json(json!("x"))).unwrap_err().contains("text_config_dict"));
    }
}

//! Reads the sizes and options of a CLIP model from the configuration file of either checkpoint
//! layout.

use lethe_shared::checkpoint::Layout;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config::{Activation, ClipConfig, TextPooling, TowerConfig, bad};
use super::config_keys;
use super::error::Error;

impl ClipConfig {
    /// Reads a parsed `config.json` (`transformers`) or `open_clip_config.json`, distinguished by
    /// their keys.
    ///
    /// # Errors
    /// [`Error::Config`] when a field is malformed, the model is not a ViT CLIP, or a size is out
    /// of range.
    pub fn from_json(file: &str, json: &Value) -> Result<Self, Error> {
        let config = if json.get("model_cfg").is_some() {
            open_clip(file, json)?
        } else {
            hugging_face(file, json)?
        };
        config.check(file)?;
        Ok(config)
    }
}

/// Reads a section; a problem begins with the key that has it.
fn read<T: DeserializeOwned>(name: &str, section: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(section).map_err(|error| {
        let key = match error.path().to_string().as_str() {
            "." => name.to_owned(),
            key => format!("{name}.{key}"),
        };
        let problem = error
            .inner()
            .to_string()
            .replace("expected i64", "expected a whole number")
            .replace("expected usize", "expected a whole number")
            .replace("expected f64", "expected a number");
        format!("{key}: {problem}")
    })
}

fn activation(file: &str, name: &str) -> Result<Activation, Error> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        other => Err(bad(
            file,
            format!("unknown activation `{other}`; expected quick_gelu, gelu or gelu_pytorch_tanh"),
        )),
    }
}

/// Fields as `transformers` writes them; missing fields take its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct HfTower {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    hidden_act: String,
    layer_norm_eps: f64,
    image_size: i64,
    patch_size: i64,
    num_channels: i64,
    max_position_embeddings: i64,
    vocab_size: i64,
    eos_token_id: i64,
}

impl Default for HfTower {
    fn default() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            max_position_embeddings: 77,
            vocab_size: 49_408,
            eos_token_id: 49_407,
        }
    }
}

fn hugging_face(file: &str, json: &Value) -> Result<ClipConfig, Error> {
    let kind = json.get("model_type").and_then(Value::as_str).unwrap_or("missing");
    if kind != "clip" {
        return Err(bad(
            file,
            format!(
                "model_type is `{kind}`; Lethe edits CLIP models (`clip`, or an open_clip folder with open_clip_config.json)"
            ),
        ));
    }
    config_keys::check_transformers(json).map_err(|problem| bad(file, problem))?;
    let section = |name: &str, vision: bool| -> Result<HfTower, Error> {
        let mut merged = serde_json::Map::new();
        if vision {
            // Defaults of the vision tower that differ from the text tower's.
            merged.insert("hidden_size".into(), 768.into());
            merged.insert("intermediate_size".into(), 3072.into());
            merged.insert("num_attention_heads".into(), 12.into());
        }
        // As in transformers, `text_config_dict` of older files replaces `text_config`, also where
        // it leaves a field at its default.
        let older = format!("{name}_dict");
        let name = if json.get(&older).is_some_and(|v| !v.is_null()) { &older } else { name };
        match json.get(name) {
            Some(Value::Object(given)) => {
                config_keys::check_not_null(name, given, vision).map_err(|p| bad(file, p))?;
                merged.extend(
                    given.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())),
                );
            }
            None | Some(Value::Null) => {}
            Some(_) => return Err(bad(file, format!("`{name}` is not an object"))),
        }
        read(name, Value::Object(merged)).map_err(|problem| bad(file, problem))
    };
    let vision = section("vision_config", true)?;
    let text = section("text_config", false)?;
    if vision.num_channels != 3 {
        return Err(bad(
            file,
            format!(
                "vision_config.num_channels is {}; only RGB models are supported",
                vision.num_channels
            ),
        ));
    }
    let embedding = match json.get("projection_dim") {
        None => 512,
        Some(width) => width.as_i64().ok_or_else(|| {
            bad(file, format!("projection_dim is {width}, expected a whole number"))
        })?,
    };
    let tower = |t: &HfTower| -> Result<TowerConfig, Error> {
        Ok(TowerConfig {
            width: t.hidden_size,
            mlp_width: t.intermediate_size,
            layers: t.num_hidden_layers,
            heads: t.num_attention_heads,
            activation: activation(file, &t.hidden_act)?,
            norm_epsilon: t.layer_norm_eps,
        })
    };
    Ok(ClipConfig {
        layout: Layout::Transformers,
        vision: tower(&vision)?,
        text: tower(&text)?,
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
    })
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OpenClip {
    embed_dim: i64,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OpenClipVision {
    image_size: Value,
    layers: Value,
    #[serde(default = "width_768")]
    width: i64,
    #[serde(default = "width_64")]
    head_width: i64,
    #[serde(default)]
    patch_size: Option<i64>,
    #[serde(default = "ratio_4")]
    mlp_ratio: f64,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OpenClipText {
    #[serde(default = "context_77")]
    context_length: i64,
    #[serde(default = "vocabulary")]
    vocab_size: i64,
    #[serde(default = "width_512")]
    width: i64,
    #[serde(default = "heads_8")]
    heads: i64,
    #[serde(default = "layers_12")]
    layers: usize,
    #[serde(default = "ratio_4")]
    mlp_ratio: f64,
}

fn width_768() -> i64 {
    768
}
fn width_512() -> i64 {
    512
}
fn width_64() -> i64 {
    64
}
fn ratio_4() -> f64 {
    4.0
}
fn context_77() -> i64 {
    77
}
fn vocabulary() -> i64 {
    49_408
}
fn heads_8() -> i64 {
    8
}
fn layers_12() -> usize {
    12
}

fn open_clip(file: &str, json: &Value) -> Result<ClipConfig, Error> {
    let model = &json["model_cfg"];
    // A list would be read as the fields of a section in their order.
    for (name, section) in [
        ("model_cfg", model),
        ("model_cfg.vision_cfg", &model["vision_cfg"]),
        ("model_cfg.text_cfg", &model["text_cfg"]),
    ] {
        if !section.is_object() && !section.is_null() {
            return Err(bad(file, format!("`{name}` is not an object")));
        }
    }
    config_keys::check_open_clip(model).map_err(|problem| bad(file, problem))?;
    let parsed: OpenClip =
        read("model_cfg", model.clone()).map_err(|problem| bad(file, problem))?;
    let (vision, text) = (&parsed.vision_cfg, &parsed.text_cfg);
    let (Some(layers), Some(patch_size)) = (vision.layers.as_u64(), vision.patch_size) else {
        return Err(bad(
            file,
            "model_cfg.vision_cfg does not describe a ViT: layers must be a number, and patch_size is required",
        ));
    };
    let Some(image_size) = vision.image_size.as_i64() else {
        return Err(bad(
            file,
            "model_cfg.vision_cfg.image_size must be one number (square images)",
        ));
    };
    if vision.head_width < 1 || vision.width % vision.head_width != 0 {
        return Err(bad(
            file,
            format!(
                "model_cfg.vision_cfg: width {} does not divide into heads of {}",
                vision.width, vision.head_width
            ),
        ));
    }
    let activation = if parsed.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
    let tower = |width: i64, layers: usize, heads: i64, ratio: f64| TowerConfig {
        width,
        mlp_width: (width as f64 * ratio) as i64,
        layers,
        heads,
        activation,
        norm_epsilon: 1e-5,
    };
    Ok(ClipConfig {
        layout: Layout::OpenClip,
        vision: tower(
            vision.width,
            layers.min(4096) as usize,
            vision.width / vision.head_width,
            vision.mlp_ratio,
        ),
        text: tower(text.width, text.layers, text.heads, text.mlp_ratio),
        image_size,
        patch_size,
        context_length: text.context_length,
        vocabulary: text.vocab_size,
        embedding: parsed.embed_dim,
        pooling: TextPooling::LargestId,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Value) -> Result<ClipConfig, String> {
        ClipConfig::from_json("file.json", json).map_err(|error| error.to_string())
    }

    fn open_clip_with(section: &str, key: &str, value: Value) -> Value {
        let mut json = json!({ "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": { "image_size": 224, "layers": 12, "patch_size": 32 },
            "text_cfg": { "layers": 12 },
        } });
        let at = if section.is_empty() {
            &mut json["model_cfg"]
        } else {
            &mut json["model_cfg"][section]
        };
        at[key] = value;
        json
    }

    #[test]
    fn options_of_open_clip_that_are_not_understood_are_refused() {
        for (section, key, value) in [
            ("vision_cfg", "qk_norm", json!(true)),
            ("text_cfg", "qk_norm", json!(true)),
            ("vision_cfg", "scale_heads", json!(true)),
            ("vision_cfg", "block_type", json!("custom")),
            ("vision_cfg", "ls_init_value", json!(1e-5)),
            ("vision_cfg", "pool_type", json!("avg")),
            ("vision_cfg", "an_option_of_tomorrow", json!(1)),
            ("text_cfg", "an_option_of_tomorrow", json!(false)),
            ("text_cfg", "proj_type", json!("none")),
            ("text_cfg", "tokenizer_kwargs", json!({ "strip_sep_token": true })),
            ("text_cfg", "tokenizer_mode", json!("clips")),
            ("", "custom_text", json!(true)),
            ("", "an_option_of_tomorrow", json!("x")),
        ] {
            let problem = read(&open_clip_with(section, key, value)).unwrap_err();
            assert!(problem.contains(key) && problem.contains("model_cfg."), "{problem}");
        }
        for (section, key, value) in [
            ("vision_cfg", "qk_norm", json!(false)),
            ("vision_cfg", "an_option_of_tomorrow", json!(null)),
            ("vision_cfg", "pool_type", json!("tok")),
            ("vision_cfg", "patch_dropout", json!(0.5)),
            ("text_cfg", "hf_tokenizer_name", json!("a/b")),
            ("text_cfg", "norm_kwargs", json!({})),
            ("", "init_logit_bias", json!(-10)),
        ] {
            read(&open_clip_with(section, key, value)).unwrap();
        }
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
            (json!({ "model_type": "siglip" }), "siglip"),
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

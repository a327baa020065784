//! Reads the sizes and options of a model from an `open_clip_config.json`.

use lethe_shared::checkpoint::{Names, Naming};
use lethe_shared::vocabulary::Tower;
use serde::Deserialize;
use serde_json::Value;

use super::config::{Activation, ClipConfig, Contrast, TextPooling, TowerConfig, bad};
use super::config_fields::read;
use super::error::Error;
use super::{config_keys, config_siglip};
use crate::input::Cleaning;

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OpenClip {
    embed_dim: i64,
    #[serde(default)]
    quick_gelu: bool,
    #[serde(default)]
    custom_text: bool,
    #[serde(default)]
    force_custom_text: bool,
    #[serde(default)]
    init_logit_bias: Option<f64>,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OpenClipVision {
    image_size: Value,
    #[serde(default)]
    layers: Value,
    #[serde(default = "width_768")]
    width: i64,
    #[serde(default = "width_64")]
    head_width: i64,
    #[serde(default)]
    patch_size: Option<i64>,
    #[serde(default = "ratio_4")]
    mlp_ratio: f64,
    #[serde(default)]
    timm_model_name: Option<String>,
    #[serde(default)]
    timm_pool: Option<String>,
    #[serde(default)]
    timm_proj: Option<String>,
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
    #[serde(default)]
    no_causal_mask: bool,
    #[serde(default)]
    pool_type: Option<String>,
    #[serde(default)]
    proj_type: Option<String>,
    #[serde(default)]
    proj_bias: bool,
    #[serde(default)]
    norm_kwargs: NormSettings,
    #[serde(default)]
    act_kwargs: ActivationSettings,
    #[serde(default)]
    tokenizer_kwargs: TokenizerSettings,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "an object", deny_unknown_fields)]
struct NormSettings {
    eps: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "an object", deny_unknown_fields)]
struct ActivationSettings {
    approximate: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(expecting = "an object", deny_unknown_fields)]
struct TokenizerSettings {
    clean: Option<String>,
    #[serde(default)]
    strip_sep_token: bool,
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

/// Reads a parsed `open_clip_config.json`.
pub(super) fn open_clip(file: &str, json: &Value) -> Result<ClipConfig, Error> {
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
    let Some(image_size) = vision.image_size.as_i64() else {
        return Err(bad(
            file,
            "model_cfg.vision_cfg.image_size must be one number (square images)",
        ));
    };
    let is_custom = parsed.custom_text || parsed.force_custom_text;
    let activation = if parsed.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
    let (vision, patch_size) = match &vision.timm_model_name {
        Some(name) if is_custom => {
            let (pool, projection) = (vision.timm_pool.as_deref(), vision.timm_proj.as_deref());
            if (pool, projection) != (Some("map"), Some("none")) {
                return Err(bad(
                    file,
                    "model_cfg.vision_cfg: of timm's vision towers, Lethe edits those of SigLIP, with timm_pool = \"map\" and timm_proj = \"none\"",
                ));
            }
            config_siglip::timm(name).map_err(|problem| bad(file, problem))?
        }
        Some(_) => {
            return Err(bad(
                file,
                "model_cfg.vision_cfg.timm_model_name is read with custom_text = true only, as in open_clip's SigLIPs",
            ));
        }
        None => {
            let names = if is_custom { Naming::CustomText } else { Naming::OpenClip };
            vision.tower(file, Names::of(names, Tower::Vision), activation)?
        }
    };
    let naming = text.naming(is_custom).map_err(|problem| bad(file, problem))?;
    let text_activation = match text.act_kwargs.approximate.as_deref() {
        None | Some("none") => activation,
        Some("tanh") if !parsed.quick_gelu => Activation::GeluTanh,
        Some(_) => {
            return Err(bad(
                file,
                "model_cfg.text_cfg.act_kwargs.approximate must be `none` or `tanh`, without quick_gelu",
            ));
        }
    };
    let (pooling, cleaning) = text.reading().map_err(|problem| bad(file, problem))?;
    Ok(ClipConfig {
        vision,
        text: TowerConfig {
            names: Names::of(naming, Tower::Text),
            width: text.width,
            mlp_width: (text.width as f64 * text.mlp_ratio) as i64,
            layers: text.layers,
            heads: text.heads,
            activation: text_activation,
            norm_epsilon: text.norm_kwargs.eps.unwrap_or(OPEN_CLIP_EPSILON),
            is_causal: !text.no_causal_mask,
        },
        image_size,
        patch_size,
        context_length: text.context_length,
        vocabulary: text.vocab_size,
        embedding: parsed.embed_dim,
        pooling,
        cleaning,
        // A model with a bias of logits was trained with the sigmoid loss.
        contrast: match parsed.init_logit_bias {
            Some(_) => Contrast::Sigmoid,
            None => Contrast::Softmax,
        },
    })
}

/// ε of open_clip's layer norms, where none is given.
const OPEN_CLIP_EPSILON: f64 = 1e-5;

impl OpenClipVision {
    /// Returns open_clip's own ViT, and the side of its patches.
    fn tower(
        &self,
        file: &str,
        names: &'static Names,
        activation: Activation,
    ) -> Result<(TowerConfig, i64), Error> {
        let (Some(layers), Some(patch_size)) = (self.layers.as_u64(), self.patch_size) else {
            return Err(bad(
                file,
                "model_cfg.vision_cfg does not describe a ViT: layers must be a number, and patch_size is required",
            ));
        };
        if self.head_width < 1 || self.width % self.head_width != 0 {
            return Err(bad(
                file,
                format!(
                    "model_cfg.vision_cfg: width {} does not divide into heads of {}",
                    self.width, self.head_width
                ),
            ));
        }
        let tower = TowerConfig {
            names,
            width: self.width,
            mlp_width: (self.width as f64 * self.mlp_ratio) as i64,
            layers: layers.min(4096) as usize,
            heads: self.width / self.head_width,
            activation,
            norm_epsilon: OPEN_CLIP_EPSILON,
            is_causal: false,
        };
        Ok((tower, patch_size))
    }
}

impl OpenClipText {
    /// Returns how its parameters are named.
    fn naming(&self, is_custom: bool) -> Result<Naming, String> {
        match (is_custom, self.proj_type.as_deref().unwrap_or("linear"), self.proj_bias) {
            (false, "linear", false) => Ok(Naming::OpenClip),
            (true, "linear", false) => Ok(Naming::CustomText),
            (true, "linear", true) => Ok(Naming::CustomTextTimm),
            (true, "none", _) => Ok(Naming::CustomTextAlone),
            (_, kind, _) => Err(format!(
                "model_cfg.text_cfg: proj_type = `{}` with proj_bias = {} and custom_text = {is_custom} is not supported",
                kind.escape_debug(),
                self.proj_bias
            )),
        }
    }

    /// Returns at which token texts are read, and how they are cleaned before.
    fn reading(&self) -> Result<(TextPooling, Cleaning), String> {
        let pooling = match (self.pool_type.as_deref().unwrap_or("argmax"), self.no_causal_mask) {
            ("argmax", false) => TextPooling::LargestId,
            ("last", true) => TextPooling::Last,
            (kind, no_mask) => {
                return Err(format!(
                    "model_cfg.text_cfg: pool_type = `{}` with no_causal_mask = {no_mask} is not supported; Lethe reads `argmax` with a causal \
                     mask, and `last` without one",
                    kind.escape_debug()
                ));
            }
        };
        if self.tokenizer_kwargs.strip_sep_token {
            return Err(
                "model_cfg.text_cfg.tokenizer_kwargs.strip_sep_token is not supported".into()
            );
        }
        let cleaning = match self.tokenizer_kwargs.clean.as_deref() {
            None => Cleaning::None,
            Some("canonicalize") => Cleaning::Canonical,
            Some(other) => {
                return Err(format!(
                    "model_cfg.text_cfg.tokenizer_kwargs.clean = `{}` is not supported; Lethe knows `canonicalize`",
                    other.escape_debug()
                ));
            }
        };
        Ok((pooling, cleaning))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Value) -> Result<ClipConfig, String> {
        ClipConfig::from_json("file.json", json).map_err(|error| error.to_string())
    }

    pub(in crate::model) fn open_clip_with(section: &str, key: &str, value: Value) -> Value {
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
            ("text_cfg", "tokenizer_kwargs", json!({ "clean": "lower" })),
            ("text_cfg", "tokenizer_mode", json!("clips")),
            ("text_cfg", "proj_bias", json!(true)),
            ("text_cfg", "pool_type", json!("last")),
            ("text_cfg", "no_causal_mask", json!(true)),
            ("text_cfg", "norm_kwargs", json!({ "bias": false })),
            ("text_cfg", "act_kwargs", json!({ "approximate": "erf" })),
            ("vision_cfg", "timm_model_name", json!("vit_base_patch16_siglip_224")),
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
            ("text_cfg", "norm_kwargs", json!({ "eps": 1e-6 })),
            ("text_cfg", "tokenizer_kwargs", json!({ "clean": "canonicalize" })),
            ("", "init_logit_bias", json!(-10)),
            ("", "custom_text", json!(true)),
        ] {
            read(&open_clip_with(section, key, value)).unwrap();
        }
    }

    /// As open_clip's model_configs/ViT-SO400M-16-SigLIP-i18n-256.json and others have them.
    #[test]
    fn siglips_of_open_clip_are_read() {
        let siglip = |changed: &[(&str, Value)]| {
            let mut text = json!({ "context_length": 64, "vocab_size": 32_000,
                "tokenizer_kwargs": { "clean": "canonicalize" }, "width": 768, "heads": 12, "layers": 12,
                "no_causal_mask": true, "proj_bias": true, "pool_type": "last", "norm_kwargs": { "eps": 1e-6 } });
            for (key, value) in changed {
                text[key] = value.clone();
            }
            json!({ "model_cfg": { "embed_dim": 768, "init_logit_bias": -10, "custom_text": true,
                "vision_cfg": { "image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256",
                    "timm_model_pretrained": false, "timm_pool": "map", "timm_proj": "none" },
                "text_cfg": text } })
        };
        let base = read(&siglip(&[])).unwrap();
        assert_eq!((base.image_tokens(), base.patch_size, base.vision.heads), (64, 32, 12));
        assert_eq!((base.pooling, base.contrast), (TextPooling::Last, Contrast::Sigmoid));
        assert_eq!((base.text.activation, base.text.norm_epsilon), (Activation::Gelu, 1e-6));
        assert_eq!(base.cleaning, Cleaning::Canonical);
        assert!(!base.text.is_causal && base.vision.names.pool.is_some());
        let projected = |config: &ClipConfig| config.text.names.projection("text.");
        assert!(projected(&base).is_some_and(|projection| projection.bias.is_some()));
        let second = read(&siglip(&[("act_kwargs", json!({ "approximate": "tanh" }))])).unwrap();
        assert_eq!(second.text.activation, Activation::GeluTanh);
        let multilingual = siglip(&[("proj_type", json!("none")), ("proj_bias", json!(false))]);
        assert_eq!(projected(&read(&multilingual).unwrap()), None);
        let mut by_averaging = siglip(&[]);
        by_averaging["model_cfg"]["vision_cfg"]["timm_pool"] = json!("avg");
        assert!(read(&by_averaging).unwrap_err().contains("timm_pool"));
    }
}

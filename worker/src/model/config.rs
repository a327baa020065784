//! Sizes and options of a CLIP model, from the configuration file of either checkpoint layout.

use serde::Deserialize;
use serde_json::Value;

use super::error::Error;

/// The checkpoint layout: how the same weights are named and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `transformers`: split attention projections, every weight `[out, in]`.
    HuggingFace,
    /// open_clip: fused `in_proj_weight`, the two projections stored `[in, out]`.
    OpenClip,
}

/// Activation of the MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)`, as in OpenAI's models.
    QuickGelu,
    /// The exact GELU, by the error function.
    Gelu,
    /// The tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// The pooled token of a text: the one whose hidden state becomes the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPooling {
    /// The first token with this id.
    FirstOf(i64),
    /// The token with the largest id (open_clip, and `transformers` where `eos_token_id` is 2).
    LargestId,
}

/// Sizes of one transformer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TowerConfig {
    /// Width of the residual stream.
    pub width: i64,
    /// Width of the MLP's inner layer.
    pub mlp_width: i64,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads; divides `width`.
    pub heads: i64,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// ε of the layer norms.
    pub norm_epsilon: f64,
}

/// Everything the forward pass needs besides the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Naming and storage of the weights.
    pub layout: Layout,
    /// The image tower.
    pub vision: TowerConfig,
    /// The text tower.
    pub text: TowerConfig,
    /// Side of the square input image, pixels.
    pub image_size: i64,
    /// Side of a patch, pixels.
    pub patch_size: i64,
    /// Largest number of tokens of a text, including start and end.
    pub context_length: i64,
    /// Number of token ids in the vocabulary.
    pub vocabulary: i64,
    /// Width of the shared embedding space.
    pub embedding: i64,
    /// How the pooled token of a text is found.
    pub pooling: TextPooling,
}

impl ClipConfig {
    /// Returns the number of tokens of an image: one class token and the patches.
    pub fn image_tokens(&self) -> i64 {
        1 + (self.image_size / self.patch_size).pow(2)
    }

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

    fn check(&self, file: &str) -> Result<(), Error> {
        let sizes = [
            ("image_size", self.image_size, 4096),
            ("patch_size", self.patch_size, 4096),
            ("context_length", self.context_length, 65_536),
            ("vocab_size", self.vocabulary, 10_000_000),
            ("projection width", self.embedding, 65_536),
            ("vision width", self.vision.width, 65_536),
            ("vision MLP width", self.vision.mlp_width, 1 << 20),
            ("vision layers", self.vision.layers as i64, 1024),
            ("text width", self.text.width, 65_536),
            ("text MLP width", self.text.mlp_width, 1 << 20),
            ("text layers", self.text.layers as i64, 1024),
        ];
        for (what, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return Err(bad(file, format!("{what} is {value}, expected 1 to {most}")));
            }
        }
        for (what, tower) in [("vision", &self.vision), ("text", &self.text)] {
            if tower.heads < 1 || tower.width % tower.heads != 0 {
                return Err(bad(
                    file,
                    format!(
                        "the {what} tower's width {} does not divide into {} heads",
                        tower.width, tower.heads
                    ),
                ));
            }
        }
        if self.patch_size > self.image_size {
            return Err(bad(
                file,
                format!(
                    "a patch of {} pixels is larger than the image of {}",
                    self.patch_size, self.image_size
                ),
            ));
        }
        Ok(())
    }
}

fn bad(file: &str, problem: impl Into<String>) -> Error {
    Error::Config { file: file.to_owned(), problem: problem.into() }
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
    let section = |name: &str, vision: bool| -> Result<HfTower, Error> {
        let mut merged = serde_json::Map::new();
        if vision {
            // Defaults of the vision tower that differ from the text tower's.
            merged.insert("hidden_size".into(), 768.into());
            merged.insert("intermediate_size".into(), 3072.into());
            merged.insert("num_attention_heads".into(), 12.into());
        }
        match json.get(name) {
            Some(Value::Object(given)) => merged.extend(
                given.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())),
            ),
            None | Some(Value::Null) => {}
            Some(_) => return Err(bad(file, format!("`{name}` is not an object"))),
        }
        serde_json::from_value(Value::Object(merged))
            .map_err(|e| bad(file, format!("`{name}`: {e}")))
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
        layout: Layout::HuggingFace,
        vision: tower(&vision)?,
        text: tower(&text)?,
        image_size: vision.image_size,
        patch_size: vision.patch_size,
        context_length: text.max_position_embeddings,
        vocabulary: text.vocab_size,
        embedding: json.get("projection_dim").and_then(Value::as_i64).unwrap_or(512),
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
struct OpenClip {
    embed_dim: i64,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: OpenClipVision,
    text_cfg: OpenClipText,
}

#[derive(Deserialize)]
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

/// Options of open_clip that change the forward pass in ways this crate does not support.
const OPEN_CLIP_UNSUPPORTED: &[(&str, &[&str])] = &[
    (
        "vision_cfg",
        &[
            "timm_model_name",
            "attentional_pool",
            "ls_init_value",
            "no_ln_pre",
            "pos_embed_type",
            "pool_type",
            "final_ln_after_pool",
            "act_kwargs",
            "norm_kwargs",
        ],
    ),
    (
        "text_cfg",
        &[
            "hf_model_name",
            "embed_cls",
            "no_causal_mask",
            "pool_type",
            "proj_bias",
            "ls_init_value",
            "act_kwargs",
            "norm_kwargs",
            "final_ln_after_pool",
        ],
    ),
];

/// Returns whether an option's value is equivalent to leaving the option out.
fn is_default(key: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => matches!(
            (key, s.as_str()),
            ("pool_type", "tok" | "argmax") | ("pos_embed_type", "learnable")
        ),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

fn open_clip(file: &str, json: &Value) -> Result<ClipConfig, Error> {
    let model = &json["model_cfg"];
    for (section, keys) in OPEN_CLIP_UNSUPPORTED {
        for key in *keys {
            if let Some(value) = model[*section].get(*key)
                && !is_default(key, value)
            {
                return Err(bad(
                    file,
                    format!(
                        "model_cfg.{section}.{key} = {value} is not supported; Lethe edits plain ViT CLIPs"
                    ),
                ));
            }
        }
    }
    for key in ["custom_text", "multimodal_cfg"] {
        if model.get(key).is_some_and(|v| !is_default(key, v)) {
            return Err(bad(
                file,
                format!("model_cfg.{key} is not supported; Lethe edits plain ViT CLIPs"),
            ));
        }
    }
    let parsed: OpenClip =
        serde_json::from_value(model.clone()).map_err(|e| bad(file, format!("model_cfg: {e}")))?;
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

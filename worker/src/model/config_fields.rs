//! Fields of configuration files: the sections of towers as transformers writes them, and errors that
//! name the field.

use lethe_shared::checkpoint::Names;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::config::{Activation, TowerConfig, bad};
use super::config_keys;
use super::error::Error;

/// Reads a section; a problem begins with the key that has it.
pub(super) fn read<T: DeserializeOwned>(name: &str, section: Value) -> Result<T, String> {
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
pub(super) struct HfTower {
    pub(super) hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    hidden_act: String,
    layer_norm_eps: f64,
    pub(super) image_size: i64,
    pub(super) patch_size: i64,
    num_channels: i64,
    pub(super) max_position_embeddings: i64,
    pub(super) vocab_size: i64,
    pub(super) eos_token_id: i64,
    /// Of a SigLIP.
    pub(super) projection_size: Option<i64>,
    pub(super) vision_use_head: bool,
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
            projection_size: None,
            vision_use_head: true,
        }
    }
}

impl HfTower {
    pub(super) fn tower(
        &self,
        file: &str,
        names: &'static Names,
        is_causal: bool,
    ) -> Result<TowerConfig, Error> {
        Ok(TowerConfig {
            names,
            width: self.hidden_size,
            mlp_width: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: activation(file, &self.hidden_act)?,
            norm_epsilon: self.layer_norm_eps,
            is_causal,
        })
    }
}

/// Reads the section of a tower in a `config.json`; missing fields take these defaults.
pub(super) fn section(
    file: &str,
    json: &Value,
    name: &str,
    vision: bool,
    defaults: Map<String, Value>,
) -> Result<HfTower, Error> {
    let mut merged = defaults;
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
    let found: HfTower = read(name, Value::Object(merged)).map_err(|problem| bad(file, problem))?;
    if vision && found.num_channels != 3 {
        return Err(bad(
            file,
            format!("{name}.num_channels is {}; only RGB models are supported", found.num_channels),
        ));
    }
    Ok(found)
}

//! Settings of a tower that decide what its weights compute: equal weights with other settings are
//! another model.

use std::fmt::Display;

use lethe_shared::checkpoint::{Checkpoint, Layout};
use lethe_shared::json;
use lethe_shared::vocabulary::Tower;
use serde_json::Value;

/// What a configuration says of the number of heads, the activation and ε of the norms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    heads: Option<u64>,
    activation: Option<String>,
    epsilon: Option<f64>,
}

impl Settings {
    /// Reads a tower's configuration as transformers writes it.
    pub(super) fn of_transformers(config: &Value, tower: Tower) -> Self {
        // A tower can be stored with the configuration of the whole model.
        let section = if tower == Tower::Text { "text_config" } else { "vision_config" };
        let config = config.get(section).unwrap_or(config);
        let text = |name: &str| config.get(name).and_then(Value::as_str).map(str::to_owned);
        Self {
            heads: config.get("num_attention_heads").and_then(Value::as_u64),
            activation: text("hidden_act"),
            epsilon: config.get("layer_norm_eps").and_then(Value::as_f64),
        }
    }

    /// Adds the defaults of transformers.
    fn or_default(self, tower: Tower, is_siglip: bool) -> Self {
        let (heads, activation, epsilon) = match (is_siglip, tower) {
            (true, _) => (12, "gelu_pytorch_tanh", 1e-6),
            (false, Tower::Text) => (8, "quick_gelu", 1e-5),
            (false, Tower::Vision) => (12, "quick_gelu", 1e-5),
        };
        Self {
            heads: self.heads.or(Some(heads)),
            activation: self.activation.or(Some(activation.to_owned())),
            epsilon: self.epsilon.or(Some(epsilon)),
        }
    }

    fn of_open_clip(model: &Value, tower: Tower) -> Self {
        let number = |section: &str, field: &str| model[section].get(field).and_then(Value::as_u64);
        let text = &model["text_cfg"];
        let is_timm = model["vision_cfg"].get("timm_model_name").is_some_and(Value::is_string);
        if is_timm && tower == Tower::Vision {
            // The name of timm's model says the others.
            return Self { heads: None, activation: None, epsilon: Some(1e-6) };
        }
        let (heads, is_tanh, epsilon) = match tower {
            Tower::Text => (
                Some(number("text_cfg", "heads").unwrap_or(8)),
                text["act_kwargs"]["approximate"] == "tanh",
                text["norm_kwargs"]["eps"].as_f64(),
            ),
            Tower::Vision => {
                let width = number("vision_cfg", "width").unwrap_or(768);
                (width.checked_div(number("vision_cfg", "head_width").unwrap_or(64)), false, None)
            }
        };
        let activation = match model.get("quick_gelu") == Some(&Value::Bool(true)) {
            true => "quick_gelu",
            false if is_tanh => "gelu_pytorch_tanh",
            false => "gelu",
        };
        Self { heads, activation: Some(activation.to_owned()), epsilon: epsilon.or(Some(1e-5)) }
    }

    /// Reads the settings of a model's tower; `None` where its configuration is not there.
    pub(super) fn of_model(model: &Checkpoint, tower: Tower) -> Option<Self> {
        let (layout, config) = configuration(model)?;
        let section = match tower {
            Tower::Text => "text_config",
            Tower::Vision => "vision_config",
        };
        match layout {
            Layout::OpenClip => Some(Self::of_open_clip(config.get("model_cfg")?, tower)),
            // As in transformers, the older section replaces the newer one.
            Layout::Transformers => {
                let older = config.get(format!("{section}_dict")).filter(|older| older.is_object());
                let section = older.or_else(|| config.get(section)).cloned().unwrap_or_default();
                let is_siglip = config.get("model_type").is_some_and(|kind| kind == "siglip");
                Some(Self::of_transformers(&section, tower).or_default(tower, is_siglip))
            }
        }
    }

    /// Returns how a tower with these settings differs from the model's, where both say something.
    pub(super) fn difference(&self, model: &Self) -> Option<String> {
        fn differ<T>(
            here: Option<T>,
            there: Option<T>,
            same: impl Fn(&T, &T) -> bool,
        ) -> Option<(T, T)> {
            here.zip(there).filter(|(here, there)| !same(here, there))
        }
        let sentence = |what: &str, here: &dyn Display, there: &dyn Display| {
            format!(
                "its configuration says {what} {here}, the model's {there}: the same weights compute something else, and what an edit does \
                 there was not measured; correct the configuration that is wrong"
            )
        };
        let heads = differ(self.heads, model.heads, |here, there| here == there);
        let activation =
            differ(self.activation.as_deref(), model.activation.as_deref(), |here, there| {
                tanh(here) == tanh(there)
            });
        // Stored with more or fewer digits, it is the same number.
        let epsilon = differ(self.epsilon, model.epsilon, |here, there| {
            (here - there).abs() <= 0.01 * there.abs()
        });
        heads
            .map(|(here, there)| sentence("num_attention_heads", &here, &there))
            .or_else(|| activation.map(|(here, there)| sentence("hidden_act", &here, &there)))
            .or_else(|| epsilon.map(|(here, there)| sentence("layer_norm_eps", &here, &there)))
    }
}

/// Reads the configuration of a model; `None` where it is not there.
fn configuration(model: &Checkpoint) -> Option<(Layout, Value)> {
    let layout = model.layout()?;
    let config = std::fs::read(model.folder().join(layout.config())).ok()?;
    Some((layout, json::parse(&config).ok()?))
}

/// Returns whether a token of a text attends only to itself and to earlier ones, as in every CLIP and
/// no SigLIP.
pub fn has_causal_text(model: &Checkpoint) -> bool {
    configuration(model).is_none_or(|(layout, config)| match layout {
        Layout::Transformers => config["model_type"] != "siglip",
        Layout::OpenClip => config["model_cfg"]["text_cfg"]["no_causal_mask"] != true,
    })
}

/// Returns one name for the names of the tanh approximation.
fn tanh(activation: &str) -> &str {
    match activation {
        "gelu_new" | "gelu_fast" => "gelu_pytorch_tanh",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_settings_are_another_tower() {
        let model =
            Settings::of_transformers(&json!({}), Tower::Vision).or_default(Tower::Vision, false);
        let of = |config: Value| Settings::of_transformers(&config, Tower::Vision);
        assert_eq!(
            of(json!({"num_attention_heads": 12, "hidden_act": "quick_gelu"})).difference(&model),
            None
        );
        assert_eq!(of(json!({"layer_norm_eps": 0.0000100001})).difference(&model), None);
        for (config, named) in [
            (json!({"num_attention_heads": 16}), "num_attention_heads 16, the model's 12"),
            (json!({"hidden_act": "gelu"}), "hidden_act gelu, the model's quick_gelu"),
            (json!({"layer_norm_eps": 1e-6}), "layer_norm_eps"),
        ] {
            assert!(of(config).difference(&model).unwrap().contains(named));
        }
        let open_clip =
            json!({"quick_gelu": true, "vision_cfg": {"width": 1024, "head_width": 64}});
        let open_clip = Settings::of_open_clip(&open_clip, Tower::Vision);
        assert_eq!(of(json!({"num_attention_heads": 16})).difference(&open_clip), None);
    }
}

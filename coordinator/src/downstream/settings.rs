//! Settings of a tower that decide what its weights compute: equal weights with other settings are
//! another model.

use lethe_shared::checkpoint::{Checkpoint, Layout};
use lethe_shared::json;
use lethe_shared::vocabulary::Tower;
use serde_json::Value;

/// Number of heads, activation and ε of the norms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    heads: Option<u64>,
    activation: String,
    epsilon: f64,
}

impl Settings {
    /// Reads a tower's configuration as transformers writes it, with its defaults.
    pub(super) fn of_transformers(config: &Value, tower: Tower) -> Self {
        let heads = if tower == Tower::Text { 8 } else { 12 };
        // A tower can be stored with the configuration of the whole model.
        let section = if tower == Tower::Text { "text_config" } else { "vision_config" };
        let config = config.get(section).unwrap_or(config);
        let field = |name: &str| config.get(name).filter(|value| !value.is_null());
        Self {
            heads: field("num_attention_heads").map_or(Some(heads), Value::as_u64),
            activation: field("hidden_act")
                .and_then(Value::as_str)
                .unwrap_or("quick_gelu")
                .to_owned(),
            epsilon: field("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-5),
        }
    }

    fn of_open_clip(model: &Value, tower: Tower) -> Self {
        let number = |section: &str, field: &str| model[section].get(field).and_then(Value::as_u64);
        let heads = match tower {
            Tower::Text => Some(number("text_cfg", "heads").unwrap_or(8)),
            Tower::Vision => number("vision_cfg", "width")
                .unwrap_or(768)
                .checked_div(number("vision_cfg", "head_width").unwrap_or(64)),
        };
        let is_quick = model.get("quick_gelu") == Some(&Value::Bool(true));
        let activation = if is_quick { "quick_gelu" } else { "gelu" };
        Self { heads, activation: activation.to_owned(), epsilon: 1e-5 }
    }

    /// Reads the settings of a model's tower; `None` where its configuration is not there.
    pub(super) fn of_model(model: &Checkpoint, tower: Tower) -> Option<Self> {
        let layout = model.layout()?;
        let config = std::fs::read(model.folder().join(layout.config())).ok()?;
        let config: Value = json::parse(&config).ok()?;
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
                Some(Self::of_transformers(&section, tower))
            }
        }
    }

    /// Returns how a tower with these settings differs from the model's.
    pub(super) fn difference(&self, model: &Self) -> Option<String> {
        let differs = |what: &str, here: String, there: String| {
            Some(format!(
                "its configuration says {what} {here}, the model's {there}: the same weights compute something else, and what an edit does \
                 there was not measured; correct the configuration that is wrong"
            ))
        };
        if let (Some(here), Some(there)) = (self.heads, model.heads)
            && here != there
        {
            return differs("num_attention_heads", here.to_string(), there.to_string());
        }
        if tanh(&self.activation) != tanh(&model.activation) {
            return differs("hidden_act", self.activation.clone(), model.activation.clone());
        }
        // Stored with more or fewer digits, it is the same number.
        if (self.epsilon - model.epsilon).abs() > 0.01 * model.epsilon.abs() {
            return differs("layer_norm_eps", self.epsilon.to_string(), model.epsilon.to_string());
        }
        None
    }
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
        let model = Settings::of_transformers(&json!({}), Tower::Vision);
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

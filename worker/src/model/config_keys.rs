//! The keys of a model's configuration that this crate understands.
//!
//! A key that is not listed here may change the forward pass, so a configuration that sets one is
//! refused. A key whose value is `null` counts as absent, unless `transformers` needs its value.

use serde_json::{Map, Value};

/// What a key may be set to.
#[derive(Clone, Copy)]
enum Allowed {
    /// Anything: the forward pass reads the key elsewhere, or does not depend on it.
    Any,
    /// `false`, an empty list or object: the option is off.
    Off,
    /// One of these strings.
    OneOf(&'static [&'static str]),
}
use Allowed::{Any, Off, OneOf};

type Keys = &'static [(&'static str, Allowed)];

/// Keys that every configuration of transformers may have. Those for training, for generating text
/// and for the form of outputs have no effect on embeddings.
const COMMON: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "projection_dim",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers_weights",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "xla_device",
];

const CLIP: Keys = &[
    ("model_type", Any),
    ("text_config", Any),
    ("text_config_dict", Any),
    ("vision_config", Any),
    ("vision_config_dict", Any),
    ("add_cross_attention", Off),
    ("is_decoder", Off),
    ("pruned_heads", Off),
    ("transformers.js_config", Any),
];

const TOWER: Keys = &[
    ("hidden_act", Any),
    ("hidden_size", Any),
    ("image_size", Any),
    ("intermediate_size", Any),
    ("layer_norm_eps", Any),
    ("max_position_embeddings", Any),
    ("model_type", OneOf(&["clip", "clip_text_model", "clip_vision_model"])),
    ("num_attention_heads", Any),
    ("num_channels", Any),
    ("num_hidden_layers", Any),
    ("patch_size", Any),
    ("vocab_size", Any),
    ("add_cross_attention", Off),
    ("is_decoder", Off),
    ("pruned_heads", Off),
];

/// Keys of a SigLIP's towers that have another meaning in a CLIP's, or none.
const SIGLIP_TOWER: Keys = &[
    ("model_type", OneOf(&["siglip_text_model", "siglip_vision_model"])),
    ("projection_size", Any),
    ("vision_use_head", Any),
];

const MODEL: Keys = &[
    ("embed_dim", Any),
    ("quick_gelu", Any),
    ("vision_cfg", Any),
    ("text_cfg", Any),
    // The type of the computation, and how parameters start: neither is the checkpoint's.
    ("cast_dtype", Any),
    ("init_logit_scale", Any),
    ("init_logit_bias", Any),
    ("output_dict", Any),
    ("custom_text", Any),
    ("force_custom_text", Any),
    ("multimodal_cfg", Off),
    ("nonscalar_logit_scale", Off),
];

const VISION: Keys = &[
    ("image_size", Any),
    ("layers", Any),
    ("width", Any),
    ("head_width", Any),
    ("patch_size", Any),
    ("mlp_ratio", Any),
    // For training, or for an option that is off.
    ("patch_dropout", Any),
    ("input_patchnorm", Off),
    ("global_average_pool", Off),
    ("output_tokens", Off),
    ("attn_pooler_queries", Any),
    ("attn_pooler_heads", Any),
    ("attentional_pool", Off),
    ("timm_model_name", Any),
    ("timm_model_pretrained", Any),
    ("timm_pool", Any),
    ("timm_proj", Any),
    ("timm_proj_bias", Any),
    ("timm_drop", Any),
    ("timm_drop_path", Any),
    ("ls_init_value", Off),
    ("block_type", OneOf(&["default"])),
    ("qk_norm", Off),
    ("scaled_cosine_attn", Off),
    ("scale_heads", Off),
    ("scale_attn_inner", Off),
    ("scale_attn", Off),
    ("scale_fc", Off),
    ("no_ln_pre", Off),
    ("pos_embed_type", OneOf(&["learnable"])),
    ("pool_type", OneOf(&["tok"])),
    ("final_ln_after_pool", Off),
    ("act_kwargs", Off),
    ("norm_kwargs", Off),
];

const TEXT: Keys = &[
    ("context_length", Any),
    ("vocab_size", Any),
    ("width", Any),
    ("heads", Any),
    ("layers", Any),
    ("mlp_ratio", Any),
    // The tokenizer is read from tokenizer.json.
    ("hf_tokenizer_name", Any),
    ("tokenizer_mode", OneOf(&[""])),
    ("tokenizer_kwargs", Any),
    ("pad_id", Any),
    ("eos_id", Any),
    ("output_tokens", Off),
    ("hf_model_name", Off),
    ("hf_model_config", Off),
    ("hf_model_pretrained", Any),
    ("hf_proj_type", Any),
    ("hf_pooler_type", Any),
    ("proj", Off),
    ("pooler_type", Off),
    ("proj_type", Any),
    ("proj_bias", Any),
    ("ls_init_value", Off),
    ("block_type", OneOf(&["default"])),
    ("qk_norm", Off),
    ("scaled_cosine_attn", Off),
    ("scale_heads", Off),
    ("scale_attn_inner", Off),
    ("scale_attn", Off),
    ("scale_fc", Off),
    ("embed_cls", Off),
    ("no_causal_mask", Any),
    ("pool_type", Any),
    ("final_ln_after_pool", Off),
    ("act_kwargs", Any),
    ("norm_kwargs", Any),
];

/// Keys of both towers that transformers needs: it fails where one is `null`, and has a default
/// where one is missing.
const NOT_NULL: &[&str] = &[
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
];
/// The same, of the text tower alone.
const NOT_NULL_TEXT: &[&str] = &["eos_token_id", "max_position_embeddings", "vocab_size"];
/// The same, of the vision tower alone.
const NOT_NULL_VISION: &[&str] = &["image_size", "num_channels", "patch_size"];

/// Checks that no key is `null` that the tower of this section needs.
pub(super) fn check_not_null(
    section: &str,
    given: &Map<String, Value>,
    vision: bool,
) -> Result<(), String> {
    let own = if vision { NOT_NULL_VISION } else { NOT_NULL_TEXT };
    let is_null = |key: &&&str| given.get(**key).is_some_and(Value::is_null);
    match NOT_NULL.iter().chain(own).find(is_null) {
        Some(key) => Err(format!(
            "{section}.{key} in config.json is null, with which transformers fails; give it the model's value, or remove it if that is the \
             default of transformers"
        )),
        None => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// Checks one object; `at` is its path in the file, with a dot at its end unless it is empty. Of two
/// tables of keys that have one, the first says what it may be.
fn check(at: &str, object: &Value, keys: &[Keys], common: &[&str]) -> Result<(), String> {
    let Some(object) = object.as_object() else { return Ok(()) };
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let key_of_at = format!("{at}{}", key.escape_debug());
        let shown = || {
            let mut text = value.to_string();
            if text.chars().count() > 60 {
                text = text.chars().take(60).collect::<String>() + "…";
            }
            text
        };
        let allowed = keys
            .iter()
            .copied()
            .flatten()
            .find(|(name, _)| name == key)
            .map(|(_, allowed)| *allowed)
            .or_else(|| common.contains(&key.as_str()).then_some(Any));
        let is_fine = match allowed {
            Some(Any) => true,
            Some(Off) => is_off(value),
            Some(OneOf(values)) => value.as_str().is_some_and(|value| values.contains(&value)),
            None => {
                return Err(format!(
                    "{key_of_at} = {} is not an option that Lethe knows, and may change what the model computes; remove it if the weights \
                     do not depend on it",
                    shown()
                ));
            }
        };
        if !is_fine {
            return Err(format!(
                "{key_of_at} = {} is not supported; Lethe edits ViT CLIPs and SigLIPs",
                shown()
            ));
        }
    }
    Ok(())
}

/// Checks the keys of a `config.json` of transformers.
pub(super) fn check_transformers(json: &Value) -> Result<(), String> {
    check("", json, &[CLIP], COMMON)?;
    for section in ["text_config", "vision_config", "text_config_dict", "vision_config_dict"] {
        check(&format!("{section}."), &json[section], &[TOWER], COMMON)?;
    }
    Ok(())
}

/// Checks the keys of a SigLIP's `config.json` of transformers.
pub(super) fn check_siglip(json: &Value) -> Result<(), String> {
    check("", json, &[CLIP], COMMON)?;
    for section in ["text_config", "vision_config"] {
        check(&format!("{section}."), &json[section], &[SIGLIP_TOWER, TOWER], COMMON)?;
    }
    Ok(())
}

/// Checks the keys of `model_cfg` of an `open_clip_config.json`.
pub(super) fn check_open_clip(model: &Value) -> Result<(), String> {
    check("model_cfg.", model, &[MODEL], &[])?;
    check("model_cfg.vision_cfg.", &model["vision_cfg"], &[VISION], &[])?;
    check("model_cfg.text_cfg.", &model["text_cfg"], &[TEXT], &[])
}

//! What a model's folder holds beside the weights: configuration, preprocessing, tokenizer.

use lethe_shared::json;
use lethe_worker::input::{Preprocessor, Tokenizer};
use lethe_worker::model::{Architecture, ClipConfig};
use serde_json::Value;

use super::image::tiny_png;
use crate::harness::{Harness, Outcome, as_shown, hold, refused, same};
use crate::json::{almost, documents};
use crate::scratch;

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "model-config",
            // The names of all parameters of two towers with 1024 blocks each.
            memory: |input| (64 << 20) + 64 * input.len(),
            seeds: || CONFIGS.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: |draw| {
                almost(&documents(CONFIGS), CONFIG_KEYS, draw).write(Some(draw)).into_bytes()
            },
            check: check_config,
        },
        Harness {
            name: "preprocessor",
            // An image that is resized to the largest side, in two steps.
            memory: |input| (128 << 20) + 64 * input.len(),
            seeds: || PROCESSORS.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: |draw| {
                almost(&documents(PROCESSORS), PROCESSOR_KEYS, draw).write(Some(draw)).into_bytes()
            },
            check: check_preprocessor,
        },
        Harness {
            name: "tokenizer",
            memory: |input| (32 << 20) + 512 * input.len(),
            seeds: || TOKENIZERS.iter().map(|text| text.as_bytes().to_vec()).collect(),
            generate: |draw| {
                almost(&documents(TOKENIZERS), TOKENIZER_KEYS, draw).write(Some(draw)).into_bytes()
            },
            check: check_tokenizer,
        },
    ]
}

const CONFIGS: [&str; 3] = [
    r#"{"model_type":"clip","projection_dim":4,"logit_scale_init_value":2.6592,
      "text_config":{"model_type":"clip_text_model","hidden_size":4,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"hidden_act":"gelu","layer_norm_eps":1e-5,"vocab_size":5,"max_position_embeddings":16,"eos_token_id":3},
      "vision_config":{"hidden_size":4,"intermediate_size":8,"num_hidden_layers":2,"num_attention_heads":1,"image_size":8,"patch_size":4,"num_channels":3}}"#,
    r#"{"model_type":"clip","text_config":{"eos_token_id":2},"text_config_dict":{"num_hidden_layers":3},"vision_config":null}"#,
    r#"{"model_cfg":{"embed_dim":4,"quick_gelu":true,
      "vision_cfg":{"image_size":8,"layers":2,"width":4,"head_width":2,"patch_size":4,"mlp_ratio":2.0},
      "text_cfg":{"context_length":16,"vocab_size":5,"width":4,"heads":1,"layers":1,"mlp_ratio":4.0}},"preprocess_cfg":{"size":8}}"#,
];
const CONFIG_KEYS: &[&str] = &[
    "model_type",
    "model_cfg",
    "text_config",
    "vision_config",
    "text_config_dict",
    "vision_config_dict",
    "projection_dim",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "image_size",
    "patch_size",
    "vocab_size",
    "eos_token_id",
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "width",
    "heads",
    "head_width",
    "layers",
    "mlp_ratio",
    "context_length",
    "quick_gelu",
    "custom_text",
    "qk_norm",
];
const PROCESSORS: [&str; 4] = [
    r#"{"image_processor_type":"CLIPImageProcessor","do_resize":true,"size":{"shortest_edge":8},"resample":3,"do_center_crop":true,"crop_size":{"height":8,"width":8},"do_rescale":true,"rescale_factor":0.00392156862745098,"do_normalize":true,"image_mean":[0.5,0.25,0.5],"image_std":[0.5,0.25,0.5]}"#,
    r#"{"size":8,"crop_size":6,"do_rescale":false}"#,
    r#"{"model_cfg":{"vision_cfg":{"image_size":8}},"preprocess_cfg":{"size":8,"mode":"RGB","mean":[0.5,0.5,0.5],"std":[0.5,0.5,0.5],"interpolation":"bicubic","resize_mode":"shortest"}}"#,
    r#"{"preprocess_cfg":{"size":[8,8],"resize_mode":"squash","interpolation":"bilinear"}}"#,
];
const PROCESSOR_KEYS: &[&str] = &[
    "image_processor_type",
    "do_resize",
    "size",
    "shortest_edge",
    "height",
    "width",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "preprocess_cfg",
    "mode",
    "mean",
    "std",
    "interpolation",
    "resize_mode",
    "fill_color",
];
const TOKENIZERS: [&str; 2] = [
    r#"{"version":"1.0","truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
      "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"<pad>"},
      "added_tokens":[{"id":1,"content":"<bos>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
      {"id":3,"content":"<eos>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
      "normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"Whitespace"},
      "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<bos>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<eos>","type_id":0}}],
      "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
      "special_tokens":{"<bos>":{"id":"<bos>","ids":[1],"tokens":["<bos>"]},"<eos>":{"id":"<eos>","ids":[3],"tokens":["<eos>"]}}},
      "decoder":null,"model":{"type":"WordLevel","vocab":{"<pad>":0,"<bos>":1,"<unk>":2,"<eos>":3,"a":4,"cat":5,"rare":9},"unk_token":"<unk>"}}"#,
    r#"{"version":"1.0","truncation":null,"padding":null,
      "added_tokens":[{"id":5,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":true,"special":true}],
      "normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Replace","pattern":{"Regex":"\\s+"},"content":" "},{"type":"Lowercase"}]},
      "pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"'s|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},"behavior":"Removed","invert":true},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]},
      "post_processor":{"type":"RobertaProcessing","sep":["<|endoftext|>",5],"cls":["a</w>",3],"trim_offsets":false,"add_prefix_space":false},
      "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
      "model":{"type":"BPE","dropout":null,"unk_token":"<|endoftext|>","continuing_subword_prefix":"","end_of_word_suffix":"</w>","fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"c":1,"t":2,"a</w>":3,"t</w>":4,"<|endoftext|>":5,"ca":6,"cat</w>":7},"merges":[["c","a"],["ca","t</w>"]]}}"#,
];
const TOKENIZER_KEYS: &[&str] = &[
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "type",
    "vocab",
    "merges",
    "unk_token",
    "id",
    "content",
    "pattern",
    "Regex",
    "String",
    "normalizers",
    "pretokenizers",
    "behavior",
    "special_tokens",
    "ids",
    "tokens",
    "single",
    "pair",
    "dropout",
    "max_input_chars_per_word",
    "continuing_subword_prefix",
    "byte_fallback",
    "precompiled_charsmap",
];

fn check_config(bytes: &[u8]) -> Result<Outcome, String> {
    let json: Value = match json::parse(bytes) {
        Ok(json) => json,
        Err(error) => return refused(as_shown(error)),
    };
    let config = match ClipConfig::from_json("config.json", &json) {
        Ok(config) => config,
        Err(error) => return refused(error),
    };
    let mut turned = json.clone();
    reverse(&mut turned);
    let again = ClipConfig::from_json("config.json", &turned).map_err(|error| {
        format!("was accepted, but not with its keys in another order: {error}")
    })?;
    same("configurations with keys in two orders", &config, &again)?;
    hold(config.image_tokens() >= 2, || format!("{} tokens of an image", config.image_tokens()))?;
    if config.text.layers + config.vision.layers < 40 {
        let architecture = Architecture::new(&config);
        for parameter in architecture.parameters() {
            hold(parameter.shape.iter().all(|&side| side > 0), || format!("{parameter:?}"))?;
        }
    }
    Ok(Outcome::Accepted)
}

/// Reverses the keys of every object.
fn reverse(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            fields.values_mut().for_each(reverse);
            *fields = std::mem::take(fields).into_iter().rev().collect();
        }
        Value::Array(values) => values.iter_mut().for_each(reverse),
        _ => {}
    }
}

/// Largest side of an image that a preprocessor is asked for: larger ones cost time only.
const LARGEST_SIDE: usize = 64;

fn check_preprocessor(bytes: &[u8]) -> Result<Outcome, String> {
    let mut outcome = Outcome::Refused;
    for name in ["preprocessor_config.json", "open_clip_config.json"] {
        let read = scratch::with(|folder| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).expect("the temporary folder can be written to");
            let read = if name == "open_clip_config.json" {
                Preprocessor::of_open_clip(folder)
            } else {
                Preprocessor::of_transformers(folder)
            };
            std::fs::remove_file(path).expect("the file was written");
            read
        });
        let preprocessor = match read {
            Ok(preprocessor) => preprocessor,
            Err(error) => {
                refused(error)?;
                continue;
            }
        };
        outcome = Outcome::Accepted;
        let side = preprocessor.side();
        if side > LARGEST_SIDE {
            continue;
        }
        match preprocessor.pixels(&tiny_png()) {
            Ok(pixels) => {
                same("values of an image", &pixels.len(), &(3 * side * side))?;
                hold(pixels.iter().all(|value| value.is_finite()), || {
                    format!("an image becomes values that are not finite: {preprocessor:?}")
                })?;
            }
            Err(problem) => drop(refused(problem)?),
        }
    }
    Ok(outcome)
}

/// The context and the vocabulary of the model that a tokenizer is read for.
const CONTEXT: usize = 8;
const VOCABULARY: usize = 8;

fn check_tokenizer(bytes: &[u8]) -> Result<Outcome, String> {
    let read = scratch::with_file("tokenizer.json", bytes, |folder, _| {
        Tokenizer::from_model_dir(folder, CONTEXT, VOCABULARY)
    });
    let tokenizer = match read {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused(error),
    };
    for text in [
        "a photo of a cat",
        "",
        "CAT's 12 é寿司\u{301} <eos> <|endoftext|>",
        "a cat a cat a cat a cat a cat",
    ] {
        match tokenizer.encode(text) {
            Ok(ids) => {
                hold(!ids.is_empty() && ids.len() <= CONTEXT, || format!("{} tokens", ids.len()))?;
                hold(ids.iter().all(|&id| (id as usize) < VOCABULARY), || {
                    format!("tokens {ids:?}")
                })?;
                same("tokens of one text", &tokenizer.encode(text), &Ok(ids))?;
            }
            Err(error) => drop(refused(error)?),
        }
    }
    Ok(Outcome::Accepted)
}

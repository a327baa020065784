//! The model's tokenizer and preprocessing files, in Hugging Face's formats.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use crate::data_captions::tokens;
use crate::data_render::SIDE;

/// The first ids, in this order.
const SPECIALS: [&str; 4] = ["<pad>", "<bos>", "<unk>", "<eos>"];

/// Positions of the text model, start and end mark included.
pub(crate) const POSITIONS: usize = 16;

/// The words of the captions, most frequent first.
///
/// `captions` are (concept, form) pairs of the drawings to train on. A word of a single form of a
/// single concept teaches nothing but that form and is left to `<unk>`, unless a class name needs
/// it.
pub(crate) fn words(classes: &[String], captions: &[(usize, String)]) -> Vec<String> {
    let distinct: HashSet<&(usize, String)> = captions.iter().collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, caption) in distinct {
        let of_caption: HashSet<String> = tokens(caption).into_iter().collect();
        for word in of_caption {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut in_names: HashMap<String, usize> = HashMap::new();
    for word in classes.iter().flat_map(|class| tokens(class)) {
        *in_names.entry(word).or_default() += 1;
    }
    for word in in_names.keys() {
        counts.entry(word.clone()).or_default();
    }
    counts.retain(|word, count| *count > 1 || in_names.contains_key(word));
    let mut words: Vec<(String, usize)> = counts.into_iter().collect();
    // Stable, and the map is alphabetical.
    words.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    words.into_iter().map(|(word, _)| word).collect()
}

/// `tokenizer.json`: lower case, split into words and marks, one id per word, `<bos> … <eos>`.
pub(crate) fn tokenizer(words: &[String]) -> Result<Value> {
    ensure!(
        words.iter().all(|word| !SPECIALS.contains(&word.as_str())),
        "a caption holds a special token"
    );
    let mut vocabulary = Map::new();
    for (id, word) in SPECIALS.iter().copied().chain(words.iter().map(String::as_str)).enumerate() {
        vocabulary.insert(word.to_owned(), json!(id));
    }
    let mark = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let added = SPECIALS.iter().enumerate().map(|(id, content)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
    });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark("<bos>"), text("A"), mark("<eos>")],
            "pair": [mark("<bos>"), text("A"), mark("<eos>"), text("B"), mark("<eos>")],
            "special_tokens": {
                "<bos>": { "id": "<bos>", "ids": [1], "tokens": ["<bos>"] },
                "<eos>": { "id": "<eos>", "ids": [3], "tokens": ["<eos>"] },
            },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    }))
}

/// `special_tokens_map.json`.
pub(crate) fn special_tokens() -> Value {
    json!({ "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>" })
}

/// `tokenizer_config.json`.
pub(crate) fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS,
        "padding_side": "right",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    })
}

/// `preprocessor_config.json`: CLIP's own, at the size of the drawings.
pub(crate) fn preprocessor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": { "shortest_edge": SIDE },
        "resample": 3,
        "do_center_crop": true,
        "crop_size": { "height": SIDE, "width": SIDE },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_by_frequency_and_rare_ones_go() {
        let classes = ["pizza".to_owned(), "red heart".to_owned()];
        let captions = [
            (0, "pizza"),
            (0, "pizza, food"),
            (0, "pizza, oven"),
            (0, "pizza, food"),
            (1, "red heart"),
            (1, "red heart, love, food"),
        ];
        let captions: Vec<(usize, String)> =
            captions.iter().map(|(concept, form)| (*concept, (*form).to_owned())).collect();
        // `love` and `oven` are of one form each; the repeated form counts once.
        assert_eq!(words(&classes, &captions), [",", "pizza", "food", "heart", "red"]);
    }

    #[test]
    fn ids_follow_the_specials() {
        let tokenizer = tokenizer(&["pizza".to_owned()]).unwrap();
        assert_eq!(tokenizer["model"]["vocab"]["<eos>"], 3);
        assert_eq!(tokenizer["model"]["vocab"]["pizza"], 4);
        assert!(super::tokenizer(&["<pad>".to_owned()]).is_err());
    }
}

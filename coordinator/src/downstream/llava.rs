//! A LLaVA checkpoint: the block at which it reads its vision tower.
//!
//! There are two layouts: that of transformers (`vision_tower.vision_model.…`, with or without the
//! prefix `model.`; `vision_feature_layer`), and that of LLaVA's own code
//! (`model.vision_tower.vision_tower.vision_model.…`; `mm_vision_select_layer`). Both read hidden
//! states, counted from the one before the first block. Neither uses the norm after the last block
//! or the projection.

use lethe_shared::vocabulary::Tower;
use serde_json::Value;

use super::encoder::{Expected, Reach};
use super::folder::Folder;
use super::settings::Settings;
use crate::failure::Failure;

pub(super) const CONFIG: &str = "config.json";
/// What a LLaVA reads and its base model does not (docs/evidence/targets.md).
const PATCHES: &str = "it reads the patches of an image, where the model itself reads one token of it: the run finds and measures edits at that \
                       token, so the language model can still name what the run reports as removed; measure it with a probe (docs/probes.md)";
/// Values of `model_type` in configurations of transformers, with the default of
/// `vision_feature_layer`.
const KINDS: [(&str, i64); 4] =
    [("llava", -2), ("llava_next", -2), ("vipllava", -2), ("llava_onevision", -1)];
/// Values of `model_type` of vision towers: CLIP's and SigLIP's.
const TOWERS: [&str; 2] = ["clip_vision_model", "siglip_vision_model"];

/// Returns whether a configuration is one of LLaVA's, also of a kind that is refused.
pub(super) fn is_config(config: &Value) -> bool {
    let kind = config.get("model_type").and_then(Value::as_str);
    config.get("mm_vision_tower").is_some() || kind.is_some_and(|kind| kind.contains("llava"))
}

/// Returns the vision tower of a checkpoint.
pub(super) async fn expected(
    folder: &Folder,
    warnings: &mut Vec<String>,
) -> Result<Vec<Expected>, Failure> {
    if !folder.has(CONFIG) {
        return Err(Failure::input(format!("has no {CONFIG}: it is no checkpoint of LLaVA")));
    }
    let config = folder.json(CONFIG).await?;
    let read = read(&config, warnings)
        .map_err(|problem| Failure::input(format!("{CONFIG}: {problem}")))?;
    let reads_class_token = !read.is_siglip
        && (config.get("vision_feature_select_strategy").and_then(Value::as_str) == Some("full")
            || config.get("mm_vision_select_feature").and_then(Value::as_str) == Some("cls_patch"));
    if !reads_class_token {
        warnings.push(PATCHES.to_owned());
    }
    let blocks = read.blocks;
    let settings =
        config.get("vision_config").map(|vision| Settings::of_transformers(vision, Tower::Vision));
    let reach = move |blocks| {
        let used = read
            .states
            .iter()
            .map(|&state| used(state, blocks))
            .collect::<Result<Vec<usize>, String>>()?;
        Ok(Reach {
            blocks: used.into_iter().max().unwrap_or_default(),
            last_norm: false,
            projection: false,
        })
    };
    Ok(vec![Expected {
        folder: String::new(),
        reach: Box::new(reach),
        blocks,
        elsewhere: read.elsewhere,
        settings,
    }])
}

/// The relevant values of a configuration.
#[derive(Debug, PartialEq)]
struct Read {
    /// The hidden states that are read; negative values count from the end.
    states: Vec<i64>,
    /// Number of blocks of the vision tower.
    blocks: Option<usize>,
    /// Whether the vision tower is a SigLIP's, which has no class token.
    is_siglip: bool,
    /// Source of the vision tower if the checkpoint need not contain it, and advice.
    elsewhere: Option<String>,
}

fn read(config: &Value, warnings: &mut Vec<String>) -> Result<Read, String> {
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("missing");
    if let Some(vision) = config.get("vision_config") {
        let Some((_, default)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            let known = KINDS.map(|(known, _)| known).join(", ");
            return Err(format!(
                "model_type is `{kind}`: how it uses its vision tower is not known; expected one of {known}"
            ));
        };
        let tower = vision.get("model_type").and_then(Value::as_str).unwrap_or(TOWERS[0]);
        if !TOWERS.contains(&tower) {
            return Err(format!("its vision tower is a `{tower}`, neither CLIP's nor SigLIP's"));
        }
        let layer = ["vision_feature_layers", "vision_feature_layer"]
            .into_iter()
            .find_map(|field| config.get(field));
        let blocks =
            vision.get("num_hidden_layers").and_then(Value::as_u64).map(|blocks| blocks as usize);
        return Ok(Read {
            states: layer.map_or_else(|| Ok(vec![*default]), states)?,
            blocks,
            is_siglip: tower == TOWERS[1],
            elsewhere: None,
        });
    }
    let Some(tower) = config.get("mm_vision_tower").and_then(Value::as_str) else {
        return Err(
            "has neither vision_config nor mm_vision_tower: it is no configuration of LLaVA"
                .to_owned(),
        );
    };
    let Some(layer) = config.get("mm_vision_select_layer") else {
        return Err(
            "has no mm_vision_select_layer: at which block the vision tower is read is not known"
                .to_owned(),
        );
    };
    let elsewhere = format!(
        "LLaVA's own code takes it from mm_vision_tower (`{tower}`). Leave the target out, and let mm_vision_tower in {CONFIG} lead to the \
         release itself, which is a CLIP with the same edits; or name a checkpoint that has the tower inside, as transformers' do"
    );
    if config.get("unfreeze_mm_vision_tower") != Some(&Value::Bool(true)) {
        warnings.push(format!(
            "LLaVA's own code takes the vision tower from mm_vision_tower (`{tower}`) and not from this checkpoint, unless \
             unfreeze_mm_vision_tower is set in {CONFIG}: set it, or let mm_vision_tower lead to the release itself"
        ));
    }
    Ok(Read {
        states: states(layer)?,
        blocks: None,
        is_siglip: tower.to_ascii_lowercase().contains("siglip"),
        elsewhere: Some(elsewhere),
    })
}

fn states(layer: &Value) -> Result<Vec<i64>, String> {
    let one = |value: &Value| {
        value.as_i64().ok_or_else(|| format!("`{value}` is no number of a vision layer"))
    };
    match layer {
        Value::Array(several) if !several.is_empty() => several.iter().map(one).collect(),
        single => Ok(vec![one(single)?]),
    }
}

/// Returns the number of blocks before a hidden state; there is one more state than blocks.
fn used(state: i64, blocks: usize) -> Result<usize, String> {
    let number = if state < 0 { blocks as i64 + 1 + state } else { state };
    usize::try_from(number)
        .ok()
        .filter(|&used| used <= blocks)
        .ok_or_else(|| format!("vision layer {state} is none of {blocks} blocks"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_are_counted_from_before_the_first_block() {
        assert_eq!(
            [(-2, 24), (-1, 24), (24, 24), (0, 24), (-25, 24)]
                .map(|(state, blocks)| used(state, blocks)),
            [Ok(23), Ok(24), Ok(24), Ok(0), Ok(0)]
        );
        assert!(used(25, 24).is_err() && used(-26, 24).is_err());
    }

    #[test]
    fn both_configurations_are_read() {
        let mut warnings = Vec::new();
        let hf = json!({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 24}, "vision_feature_layer": -2});
        assert_eq!(
            read(&hf, &mut warnings),
            Ok(Read { states: vec![-2], blocks: Some(24), is_siglip: false, elsewhere: None })
        );
        let siglip = json!({"model_type": "llava_onevision", "vision_config": {"model_type": "siglip_vision_model"}});
        let siglip = read(&siglip, &mut warnings).unwrap();
        assert_eq!((siglip.states, siglip.is_siglip), (vec![-1], true));
        let several = json!({"model_type": "vipllava", "vision_config": {}, "vision_feature_layers": [-2, -5, 6]});
        assert_eq!(read(&several, &mut warnings).unwrap().states, [-2, -5, 6]);
        assert_eq!(
            read(&json!({"model_type": "llava", "vision_config": {}}), &mut warnings)
                .unwrap()
                .states,
            [-2]
        );
        assert_eq!(warnings.len(), 0);
        let own = json!({"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2});
        let own = read(&own, &mut warnings).unwrap();
        assert_eq!((own.states, own.blocks), (vec![-2], None));
        assert!(
            own.elsewhere.is_some_and(|text| text.contains("openai/clip-vit-large-patch14-336"))
        );
        assert!(
            warnings.len() == 1 && warnings[0].contains("unfreeze_mm_vision_tower"),
            "{warnings:?}"
        );
        for other in [
            json!({"model_type": "llava", "vision_config": {"model_type": "dinov2"}}),
            json!({"model_type": "qwen2_vl", "vision_config": {}}),
            json!({"model_type": "llava_llama", "mm_vision_tower": "x"}),
            json!({"model_type": "llava", "vision_config": {}, "vision_feature_layer": "full"}),
            json!({}),
        ] {
            assert!(read(&other, &mut Vec::new()).is_err(), "{other}");
        }
    }
}

//! A vision-language model: what it reads of its vision tower.
//!
//! As transformers writes it, `model_type` says whether it reads hidden states that its configuration
//! names, or the last one after its norm ([`KINDS`]). LLaVA's own code names its tensors
//! `model.vision_tower.vision_tower.vision_model.…` and the hidden state `mm_vision_select_layer`.
//! Hidden states are counted from the one before the first block. No model uses CLIP's projection
//! or SigLIP's attention-pooling head.

use lethe_shared::printable::printable;
use lethe_shared::vocabulary::Tower;
use serde_json::Value;

use super::encoder::{Expected, Found, Reach};
use super::folder::Folder;
use super::settings::Settings;
use crate::failure::Failure;

pub(super) const CONFIG: &str = "config.json";
/// What such a model reads and its base does not (docs/evidence/targets.md).
const PATCHES: &str = "it reads the patches of an image, where the model itself reads one embedding of all of it: the run finds and measures \
                       edits at that embedding, so the language model can still name what the run reports as removed; measure it with a \
                       probe (docs/probes.md)";

/// A kind of vision-language model of transformers.
#[derive(Debug, Clone, Copy)]
struct ModelKind {
    /// `model_type` of its configuration.
    name: &'static str,
    /// Its vision tower, where the configuration does not name one.
    tower: VisionKind,
    reads: DefaultReads,
}

/// What a kind of model reads where its configuration does not say.
#[derive(Debug, Clone, Copy)]
enum DefaultReads {
    /// These hidden states, unless `vision_feature_layer` or `vision_feature_layers` names others.
    States(&'static [i64]),
    /// The last hidden state after its norm, whatever the configuration says.
    Normed,
}

/// The vision tower of a kind of model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VisionKind {
    Clip,
    Siglip,
    /// A SigLIP for images of any shape, whose configuration bears the name of the whole model.
    Own,
}

const fn kind(name: &'static str, tower: VisionKind, reads: DefaultReads) -> ModelKind {
    ModelKind { name, tower, reads }
}

/// All kinds.
const KINDS: [ModelKind; 13] = [
    kind("llava", VisionKind::Clip, DefaultReads::States(&[-2])),
    kind("llava_next", VisionKind::Clip, DefaultReads::States(&[-2])),
    kind("llava_next_video", VisionKind::Clip, DefaultReads::States(&[-2])),
    kind("vipllava", VisionKind::Clip, DefaultReads::States(&[-2, -5, -8, -11, 6])),
    kind("llava_onevision", VisionKind::Siglip, DefaultReads::States(&[-1])),
    kind("aya_vision", VisionKind::Siglip, DefaultReads::States(&[-1])),
    kind("cohere2_vision", VisionKind::Siglip, DefaultReads::Normed),
    kind("paligemma", VisionKind::Siglip, DefaultReads::Normed),
    kind("gemma3", VisionKind::Siglip, DefaultReads::Normed),
    kind("shieldgemma2", VisionKind::Siglip, DefaultReads::Normed),
    kind("idefics2", VisionKind::Own, DefaultReads::Normed),
    kind("idefics3", VisionKind::Own, DefaultReads::Normed),
    kind("smolvlm", VisionKind::Own, DefaultReads::Normed),
];

impl ModelKind {
    fn of(config: &Value) -> Option<&'static Self> {
        let name = config.get("model_type").and_then(Value::as_str)?;
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Returns the kind of the vision tower in a configuration.
    fn tower(&self, vision: &Value) -> Result<VisionKind, String> {
        match vision.get("model_type").and_then(Value::as_str) {
            None => Ok(self.tower),
            Some("clip_vision_model") => Ok(VisionKind::Clip),
            Some("siglip_vision_model") => Ok(VisionKind::Siglip),
            Some(name)
                if self.tower == VisionKind::Own
                    && name.strip_suffix("_vision").unwrap_or(name) == self.name =>
            {
                Ok(VisionKind::Own)
            }
            Some(other) => {
                Err(format!("its vision tower is a `{other}`, neither CLIP's nor SigLIP's"))
            }
        }
    }
}

/// Returns whether a configuration is that of a vision-language model, also of a kind that is
/// refused.
pub(super) fn is_config(config: &Value) -> bool {
    let config = inner(config);
    let kind = config.get("model_type").and_then(Value::as_str);
    config.get("mm_vision_tower").is_some()
        || ModelKind::of(config).is_some()
        || kind.is_some_and(|kind| kind.contains("llava"))
}

/// Returns the configuration that a retriever such as ColPali is built around, or the whole one.
fn inner(config: &Value) -> &Value {
    config.get("vlm_config").filter(|inner| inner.is_object()).unwrap_or(config)
}

/// Returns the vision tower of a checkpoint.
pub(super) async fn expected(
    folder: &Folder,
    warnings: &mut Vec<String>,
) -> Result<Found, Failure> {
    if !folder.has(CONFIG) {
        return Err(Failure::input(format!("has no {CONFIG}: it is no vision-language model")));
    }
    let config = folder.json(CONFIG).await?;
    let architecture =
        config.get("model_type").and_then(Value::as_str).map(printable).unwrap_or_default();
    let read = read(&config, warnings)
        .map_err(|problem| Failure::input(format!("{CONFIG}: {problem}")))?;
    if !read.has_class_token {
        warnings.push(PATCHES.to_owned());
    }
    let (blocks, reads) = (read.blocks, read.describe());
    let reach = move |blocks| {
        let used = match &read.states {
            None => blocks,
            Some(states) => states
                .iter()
                .map(|&state| used(state, blocks))
                .try_fold(0, |most, used| used.map(|used| most.max(used)))?,
        };
        let last_norm = read.states.is_none();
        Ok(Reach { blocks: used, last_norm, projection: false, is_pooled: false })
    };
    let settings = inner(&config)
        .get("vision_config")
        .map(|vision| Settings::of_transformers(vision, Tower::Vision));
    let expected = Expected {
        folder: String::new(),
        class: architecture.clone(),
        reach: Box::new(reach),
        reads,
        blocks,
        elsewhere: read.elsewhere,
        settings,
    };
    Ok(Found { architecture, expected: vec![expected], unedited: Vec::new() })
}

/// The relevant values of a configuration.
#[derive(Debug, PartialEq)]
struct Read {
    /// The hidden states that are read; negative values count from the end. `None` for the last one
    /// after its norm.
    states: Option<Vec<i64>>,
    /// Number of blocks of the vision tower.
    blocks: Option<usize>,
    /// Whether the class token is among what is read.
    has_class_token: bool,
    /// Source of the vision tower if the checkpoint need not contain it, and advice.
    elsewhere: Option<String>,
}

impl Read {
    fn describe(&self) -> String {
        let tokens = if self.has_class_token { "all tokens" } else { "the patches" };
        match self.states.as_deref() {
            None => format!("{tokens} of the last hidden state, after its norm"),
            Some([state]) => format!("{tokens} of hidden state {state}"),
            Some(states) => {
                let states: Vec<String> = states.iter().map(i64::to_string).collect();
                format!("{tokens} of hidden states {}", states.join(", "))
            }
        }
    }
}

fn read(config: &Value, warnings: &mut Vec<String>) -> Result<Read, String> {
    let config = inner(config);
    if let Some(tower) = config.get("mm_vision_tower").and_then(Value::as_str)
        && config.get("vision_config").is_none()
    {
        return read_own_layout(config, tower, warnings);
    }
    let Some(kind) = ModelKind::of(config) else {
        let name = config.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        return Err(format!(
            "model_type is `{}`: how it uses its vision tower is not known; expected one of {}, or a configuration with mm_vision_tower",
            printable(name),
            known.join(", ")
        ));
    };
    let vision = config.get("vision_config").cloned().unwrap_or_default();
    let tower = kind.tower(&vision)?;
    let named = ["vision_feature_layers", "vision_feature_layer"]
        .into_iter()
        .find_map(|field| config.get(field));
    let is_full =
        config.get("vision_feature_select_strategy").and_then(Value::as_str) == Some("full");
    Ok(Read {
        states: match (kind.reads, named) {
            (DefaultReads::Normed, _) => None,
            (DefaultReads::States(_), Some(layer)) => Some(states(layer)?),
            (DefaultReads::States(default), None) => Some(default.to_vec()),
        },
        blocks: vision
            .get("num_hidden_layers")
            .and_then(Value::as_u64)
            .map(|blocks| blocks as usize),
        has_class_token: tower == VisionKind::Clip && is_full,
        elsewhere: None,
    })
}

/// Reads a configuration in the layout of LLaVA's own code.
fn read_own_layout(
    config: &Value,
    tower: &str,
    warnings: &mut Vec<String>,
) -> Result<Read, String> {
    let tower = printable(tower);
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
    let is_siglip = tower.to_ascii_lowercase().contains("siglip");
    let selected = config.get("mm_vision_select_feature").and_then(Value::as_str);
    Ok(Read {
        states: Some(states(layer)?),
        blocks: None,
        has_class_token: !is_siglip && selected == Some("cls_patch"),
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
    fn configurations_of_every_kind_say_what_is_read() {
        let mut warnings = Vec::new();
        for (config, expected, class) in [
            (
                json!({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}, "vision_feature_layer": -3}),
                Some(vec![-3]),
                false,
            ),
            (json!({"model_type": "llava", "vision_config": {}}), Some(vec![-2]), false),
            (
                json!({"model_type": "llava_next", "vision_config": {}, "vision_feature_select_strategy": "full"}),
                Some(vec![-2]),
                true,
            ),
            (
                json!({"model_type": "vipllava", "vision_config": {}, "vision_feature_layers": [-2, 6]}),
                Some(vec![-2, 6]),
                false,
            ),
            (
                json!({"model_type": "llava_onevision", "vision_config": {"model_type": "siglip_vision_model"}, "vision_feature_select_strategy": "full"}),
                Some(vec![-1]),
                false,
            ),
            // The rest read the last state after its norm, also where a field of others is there.
            (json!({"model_type": "paligemma", "vision_feature_layer": -2}), None, false),
            (
                json!({"model_type": "gemma3", "vision_config": {"model_type": "siglip_vision_model"}}),
                None,
                false,
            ),
            (
                json!({"model_type": "idefics3", "vision_config": {"model_type": "idefics3"}}),
                None,
                false,
            ),
            (
                json!({"model_type": "smolvlm", "vision_config": {"model_type": "smolvlm_vision"}}),
                None,
                false,
            ),
            (
                json!({"model_type": "colpali", "vlm_config": {"model_type": "paligemma", "vision_config": {}}}),
                None,
                false,
            ),
        ] {
            let found = read(&config, &mut warnings).unwrap();
            assert_eq!((found.states, found.has_class_token), (expected, class), "{config}");
            assert!(is_config(&config), "{config}");
        }
        assert_eq!(warnings.len(), 0);
        let blocks = json!({"model_type": "paligemma", "vision_config": {"num_hidden_layers": 27}});
        assert_eq!(read(&blocks, &mut warnings).unwrap().blocks, Some(27));
    }

    #[test]
    fn the_layout_of_llava_s_own_code_is_read() {
        let mut warnings = Vec::new();
        let own = json!({"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2});
        let found = read(&own, &mut warnings).unwrap();
        assert_eq!((found.states, found.blocks), (Some(vec![-2]), None));
        assert!(
            found.elsewhere.is_some_and(|text| text.contains("openai/clip-vit-large-patch14-336"))
        );
        assert!(
            warnings.len() == 1 && warnings[0].contains("unfreeze_mm_vision_tower"),
            "{warnings:?}"
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (config, named) in [
            (json!({"model_type": "llava", "vision_config": {"model_type": "dinov2"}}), "dinov2"),
            (
                json!({"model_type": "gemma3", "vision_config": {"model_type": "idefics3"}}),
                "idefics3",
            ),
            (json!({"model_type": "qwen2_vl", "vision_config": {}}), "qwen2_vl"),
            (
                json!({"model_type": "llava_llama", "mm_vision_tower": "x"}),
                "mm_vision_select_layer",
            ),
            (
                json!({"model_type": "llava", "vision_config": {}, "vision_feature_layer": "full"}),
                "full",
            ),
            (json!({}), "missing"),
        ] {
            let problem = read(&config, &mut Vec::new()).unwrap_err();
            assert!(problem.contains(named), "{config}: {problem}");
        }
    }
}

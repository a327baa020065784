//! A diffusers pipeline: its text encoders that are CLIP text towers, and the outputs of them that
//! it reads.
//!
//! | pipeline | outputs read |
//! |---|---|
//! | Stable Diffusion 1.x, 2.x | `text_encoder`: its last hidden state, after the last norm. 2.x stores one block less than its CLIP has |
//! | Stable Diffusion XL | `text_encoder`: the hidden state before the last block. `text_encoder_2`: that one, and the projected text |
//! | Stable Diffusion 3 | both: the hidden state before the last block, and the projected text |

use lethe_shared::vocabulary::Tower;
use serde_json::Value;

use super::encoder::{Expected, Reach};
use super::folder::Folder;
use super::kinds::Component;
use super::settings::Settings;
use crate::failure::Failure;

pub(super) const INDEX: &str = "model_index.json";
const FOLDERS: [&str; 3] = ["text_encoder", "text_encoder_2", "text_encoder_3"];

/// Returns the text encoders of a pipeline that are CLIP's. The other components are added to
/// `components`.
pub(super) async fn expected(
    folder: &Folder,
    components: &mut Vec<Component>,
) -> Result<Vec<Expected>, Failure> {
    if !folder.has(INDEX) {
        return Err(Failure::input(format!(
            "has no {INDEX}: it is no pipeline folder of diffusers"
        )));
    }
    let index = folder.json(INDEX).await?;
    let mut expected = Vec::new();
    for (name, reach) in
        encoders(&index).map_err(|problem| Failure::input(format!("{INDEX}: {problem}")))?
    {
        let config = folder.json(&format!("{name}/config.json")).await?;
        let blocks =
            config.get("num_hidden_layers").and_then(Value::as_u64).map(|blocks| blocks as usize);
        expected.push(Expected {
            folder: name.to_owned(),
            reach: Box::new(move |blocks| Ok(reach.of(blocks))),
            blocks,
            elsewhere: None,
            settings: Some(Settings::of_transformers(&config, Tower::Text)),
        });
    }
    let is_encoder = |name: &str| expected.iter().any(|encoder| encoder.folder == name);
    components.extend(others(&index).into_iter().filter(|other| !is_encoder(&other.folder)));
    Ok(expected)
}

/// Returns the components of a pipeline that have weights, but for those that may hold a text tower
/// of CLIP's: the index names the class of each.
fn others(index: &Value) -> Vec<Component> {
    let fields = index.as_object().into_iter().flatten();
    let components = fields.filter_map(|(name, pair)| {
        // Hidden settings begin with an underscore; a component is a pair of library and class.
        let library = pair.get(0).and_then(Value::as_str)?;
        let class = pair.get(1).and_then(Value::as_str)?;
        if class.starts_with("CLIPText") || class == "CLIPModel" {
            return None;
        }
        let stem = if library == "diffusers" { "diffusion_pytorch_model" } else { "pytorch_model" };
        Some(Component { folder: name.clone(), stem })
    });
    components.collect()
}

/// The output of an encoder that a pipeline reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// The last hidden state.
    Last,
    /// The hidden state before the last block.
    Penultimate,
    /// The projected text, which depends on all weights.
    Projected,
}

impl Reads {
    fn of(self, blocks: usize) -> Reach {
        Reach {
            blocks: if self == Self::Penultimate { blocks.saturating_sub(1) } else { blocks },
            last_norm: self != Self::Penultimate,
            projection: self == Self::Projected,
        }
    }
}

fn encoders(index: &Value) -> Result<Vec<(&'static str, Reads)>, String> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("missing");
    if !class.starts_with("StableDiffusion") {
        return Err(format!(
            "_class_name is `{class}`: what this pipeline reads of its text encoder is not known; expected StableDiffusion…"
        ));
    }
    let mut found = Vec::new();
    for name in FOLDERS {
        // A pair of library and class; both are null if the component is absent.
        let Some(kind) = index.get(name).and_then(|pair| pair.get(1)).and_then(Value::as_str)
        else {
            continue;
        };
        let reads = match kind {
            "CLIPTextModelWithProjection" => Reads::Projected,
            "CLIPTextModel" if class.starts_with("StableDiffusionXL") => Reads::Penultimate,
            "CLIPTextModel" => Reads::Last,
            // Not a CLIP encoder: T5 in Stable Diffusion 3.
            _ => continue,
        };
        found.push((name, reads));
    }
    if found.is_empty() { Err("names no text encoder of CLIP's".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_component_with_a_text_tower_is_not_passed_by_its_name() {
        let index = json!({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
            "prompt_encoder": ["transformers", "CLIPTextModel"], "clip_model": ["transformers", "CLIPModel"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"], "feature_extractor": [null, null]});
        let mut found: Vec<String> = others(&index).into_iter().map(|of| of.folder).collect();
        found.sort_unstable();
        assert_eq!(found, ["image_encoder", "unet"]);
    }

    #[test]
    fn pipelines_read_what_they_read() {
        let (plain, projected) = (
            json!(["transformers", "CLIPTextModel"]),
            json!(["transformers", "CLIPTextModelWithProjection"]),
        );
        let sd = json!({"_class_name": "StableDiffusionPipeline", "text_encoder": plain, "unet": ["diffusers", "UNet2DConditionModel"]});
        assert_eq!(encoders(&sd), Ok(vec![("text_encoder", Reads::Last)]));
        let xl = json!({"_class_name": "StableDiffusionXLPipeline", "text_encoder": plain, "text_encoder_2": projected});
        assert_eq!(
            encoders(&xl),
            Ok(vec![("text_encoder", Reads::Penultimate), ("text_encoder_2", Reads::Projected)])
        );
        let refiner = json!({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [null, null], "text_encoder_2": projected});
        assert_eq!(encoders(&refiner), Ok(vec![("text_encoder_2", Reads::Projected)]));
        let three = json!({"_class_name": "StableDiffusion3Pipeline", "text_encoder": projected, "text_encoder_2": projected,
            "text_encoder_3": ["transformers", "T5EncoderModel"]});
        assert_eq!(encoders(&three).unwrap().len(), 2);
        for other in [
            json!({"_class_name": "WhatPipeline", "text_encoder": plain}),
            json!({}),
            json!({"_class_name": "StableDiffusionPipeline"}),
        ] {
            assert!(encoders(&other).is_err());
        }
        assert_eq!(Reads::Last.of(23), Reach { blocks: 23, last_norm: true, projection: false });
        assert_eq!(
            Reads::Penultimate.of(12),
            Reach { blocks: 11, last_norm: false, projection: false }
        );
    }
}

//! A diffusers pipeline: its text encoders that are CLIP text towers, and the outputs of them that
//! it reads.
//!
//! What is read follows from the denoiser and from the encoder's class:
//!
//! | denoiser | encoder | outputs read |
//! |---|---|---|
//! | a U-Net ([Stable Diffusion 1.x, 2.x](https://arxiv.org/abs/2112.10752)) | `CLIPTextModel` | its last hidden state, after the last norm. 2.x stores one block less than its CLIP has |
//! | a U-Net, of a pipeline with a `text_encoder_2` (XL) | `CLIPTextModel` | the hidden state before the last block |
//! | a U-Net, Stable Diffusion 3's transformer | `CLIPTextModelWithProjection` | that one, and the projected text |
//! | FLUX.1's and HunyuanVideo's transformers | `CLIPTextModel` | the end of the text, after the last norm |
//! | HiDream's transformer | `CLIPTextModelWithProjection` | the projected text |
//!
//! Other text encoders (T5, language models) read every prompt too. They are not edited.

use lethe_shared::printable::printable;
use lethe_shared::record::targets::UneditedEncoder;
use lethe_shared::vocabulary::Tower;
use serde_json::Value;

use super::encoder::{Expected, Found, Reach};
use super::folder::Folder;
use super::kinds::Component;
use super::settings::Settings;
use crate::failure::Failure;

pub(super) const INDEX: &str = "model_index.json";
/// Beginning of the names of text encoders.
const ENCODER: &str = "text_encoder";

/// The part of a pipeline that draws, by what it takes from CLIP's text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denoiser {
    /// States of all tokens, by cross-attention, in a U-Net.
    UNet,
    /// States of all tokens, in a transformer or a prior.
    Transformer,
    /// One vector for a text.
    Pooled,
}

/// Classes of denoisers in diffusers.
const DENOISERS: [(&str, Denoiser); 13] = [
    ("UNet2DConditionModel", Denoiser::UNet),
    ("UNet3DConditionModel", Denoiser::UNet),
    ("UNetMotionModel", Denoiser::UNet),
    ("I2VGenXLUNet", Denoiser::UNet),
    ("SD3Transformer2DModel", Denoiser::Transformer),
    ("StableCascadeUNet", Denoiser::Transformer),
    ("PriorTransformer", Denoiser::Transformer),
    ("UVit2DModel", Denoiser::Transformer),
    ("UniDiffuserModel", Denoiser::Transformer),
    ("FluxTransformer2DModel", Denoiser::Pooled),
    ("HunyuanVideoTransformer3DModel", Denoiser::Pooled),
    ("HunyuanVideoFramepackTransformer3DModel", Denoiser::Pooled),
    ("HiDreamImageTransformer2DModel", Denoiser::Pooled),
];

/// Returns the text encoders of a pipeline. The other components are added to `components`.
pub(super) async fn expected(
    folder: &Folder,
    components: &mut Vec<Component>,
) -> Result<Found, Failure> {
    if !folder.has(INDEX) {
        return Err(Failure::input(format!(
            "has no {INDEX}: it is no pipeline folder of diffusers"
        )));
    }
    let index = folder.json(INDEX).await?;
    let Encoders { of_clip, others: unedited } =
        encoders(&index).map_err(|problem| Failure::input(format!("{INDEX}: {problem}")))?;
    let mut expected = Vec::new();
    for ClipEncoder { name, class, reads } in of_clip {
        let config = folder.json(&format!("{name}/config.json")).await?;
        let blocks =
            config.get("num_hidden_layers").and_then(Value::as_u64).map(|blocks| blocks as usize);
        expected.push(Expected {
            folder: name.to_owned(),
            class: class.to_owned(),
            reach: Box::new(move |blocks| Ok(reads.of(blocks))),
            reads: reads.describe().to_owned(),
            blocks,
            elsewhere: None,
            settings: Some(Settings::of_transformers(&config, Tower::Text)),
        });
    }
    let is_encoder = |name: &str| expected.iter().any(|encoder| encoder.folder == name);
    components.extend(others(&index).into_iter().filter(|other| !is_encoder(&other.folder)));
    Ok(Found { architecture: printable(class_of(&index)), expected, unedited })
}

/// Returns the warning about text encoders that read every prompt and are not edited.
pub(super) fn unedited_warning(unedited: &[UneditedEncoder], reads_states: bool) -> Option<String> {
    let named: Vec<String> = unedited
        .iter()
        .map(|encoder| format!("`{}` ({})", encoder.folder, encoder.class))
        .collect();
    if named.is_empty() {
        return None;
    }
    let rest = if reads_states {
        "removed concepts can still be drawn from its embeddings"
    } else {
        "of CLIP, this pipeline takes one vector for a prompt, and the words themselves only from there: expect that removed concepts are \
         still drawn"
    };
    let verb =
        if named.len() == 1 { "reads prompts too and is" } else { "read prompts too and are" };
    Some(format!(
        "{} {verb} not edited: {rest}; measure it with a probe (docs/probes.md)",
        named.join(" and ")
    ))
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
    /// A hidden state, and the projected text, which depends on all weights.
    Projected,
    /// The state at the end of the text, after the last norm.
    End,
    /// The projected text alone.
    ProjectedEnd,
}

impl Reads {
    fn of(self, blocks: usize) -> Reach {
        Reach {
            blocks: if self == Self::Penultimate { blocks.saturating_sub(1) } else { blocks },
            last_norm: self != Self::Penultimate,
            projection: matches!(self, Self::Projected | Self::ProjectedEnd),
            is_pooled: matches!(self, Self::End | Self::ProjectedEnd),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Last => "all tokens of the last hidden state, after its norm",
            Self::Penultimate => "all tokens of the hidden state before the last block",
            Self::Projected => "all tokens of a hidden state, and the projected text",
            Self::End => "the state at the end of a text, after the last norm",
            Self::ProjectedEnd => "the projected text",
        }
    }
}

/// The text encoders of a pipeline.
#[derive(Debug)]
struct Encoders<'a> {
    of_clip: Vec<ClipEncoder<'a>>,
    others: Vec<UneditedEncoder>,
}

/// A text encoder that is CLIP's.
#[derive(Debug)]
struct ClipEncoder<'a> {
    name: &'a str,
    class: &'a str,
    reads: Reads,
}

fn class_of(index: &Value) -> &str {
    index.get("_class_name").and_then(Value::as_str).unwrap_or("missing")
}

/// Returns what draws in a pipeline; `None` when it is not known.
fn denoiser(index: &Value) -> Option<Denoiser> {
    let classes = index.as_object()?.values().filter_map(|pair| pair.get(1)?.as_str());
    let mut known = classes
        .filter_map(|class| DENOISERS.iter().find(|(known, _)| *known == class))
        .map(|(_, denoiser)| *denoiser);
    // Pipelines of people's own denoisers have diffusers' classes.
    let by_name = class_of(index).starts_with("StableDiffusion").then_some(Denoiser::UNet);
    known.next().or(by_name)
}

fn encoders(index: &Value) -> Result<Encoders<'_>, String> {
    let Some(denoiser) = denoiser(index) else {
        let known: Vec<&str> = DENOISERS.iter().map(|(class, _)| *class).collect();
        return Err(format!(
            "what this pipeline (`{}`) reads of its text encoders is not known: it has none of {}",
            printable(class_of(index)),
            known.join(", ")
        ));
    };
    let is_pair = index.get("text_encoder_2").is_some();
    let (mut of_clip, mut others) = (Vec::new(), Vec::new());
    for (name, pair) in index.as_object().into_iter().flatten() {
        // A pair of library and class; both are null if the component is absent.
        let Some(class) = pair.get(1).and_then(Value::as_str) else { continue };
        if !name.starts_with(ENCODER) {
            continue;
        }
        let reads = match (class, denoiser) {
            ("CLIPTextModelWithProjection", Denoiser::Pooled) => Reads::ProjectedEnd,
            ("CLIPTextModelWithProjection", _) => Reads::Projected,
            ("CLIPTextModel", Denoiser::Pooled) => Reads::End,
            ("CLIPTextModel", Denoiser::UNet) if is_pair => Reads::Penultimate,
            ("CLIPTextModel", _) => Reads::Last,
            _ => {
                let class = printable(class);
                others.push(UneditedEncoder { folder: name.clone(), class });
                continue;
            }
        };
        of_clip.push(ClipEncoder { name, class, reads });
    }
    if of_clip.is_empty() {
        return Err("names no text encoder of CLIP's".to_owned());
    }
    Ok(Encoders { of_clip, others })
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

    /// Returns what is read of each encoder of a pipeline with these components.
    fn reads(index: &Value) -> Vec<(&str, Reads)> {
        let found = encoders(index).unwrap().of_clip;
        found.iter().map(|encoder| (encoder.name, encoder.reads)).collect()
    }

    fn of(class: &str) -> Value {
        json!(["transformers", class])
    }

    #[test]
    fn pipelines_read_what_they_read() {
        let (plain, projected) = (of("CLIPTextModel"), of("CLIPTextModelWithProjection"));
        let unet = json!(["diffusers", "UNet2DConditionModel"]);
        let sd =
            json!({"_class_name": "StableDiffusionPipeline", "text_encoder": plain, "unet": unet});
        assert_eq!(reads(&sd), [("text_encoder", Reads::Last)]);
        let own = json!({"_class_name": "StableDiffusionPipeline", "text_encoder": plain, "unet": ["mine", "MyUNet"]});
        assert_eq!(reads(&own), reads(&sd));
        let xl = json!({"_class_name": "StableDiffusionXLPipeline", "text_encoder": plain, "text_encoder_2": projected, "unet": unet});
        assert_eq!(
            reads(&xl),
            [("text_encoder", Reads::Penultimate), ("text_encoder_2", Reads::Projected)]
        );
        let refiner = json!({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [null, null], "text_encoder_2": projected,
            "unet": unet});
        assert_eq!(reads(&refiner), [("text_encoder_2", Reads::Projected)]);
        let three = json!({"_class_name": "StableDiffusion3Pipeline", "text_encoder": projected, "text_encoder_2": projected,
            "text_encoder_3": of("T5EncoderModel"), "transformer": ["diffusers", "SD3Transformer2DModel"]});
        assert_eq!(
            reads(&three),
            [("text_encoder", Reads::Projected), ("text_encoder_2", Reads::Projected)]
        );
        let t5 = |folder: &str| UneditedEncoder {
            folder: folder.to_owned(),
            class: "T5EncoderModel".to_owned(),
        };
        assert_eq!(encoders(&three).unwrap().others, [t5("text_encoder_3")]);
        for class in ["FluxPipeline", "FluxFillPipeline"] {
            let flux = json!({"_class_name": class, "text_encoder": plain, "text_encoder_2": of("T5EncoderModel"),
                "transformer": ["diffusers", "FluxTransformer2DModel"]});
            assert_eq!(reads(&flux), [("text_encoder", Reads::End)]);
            assert_eq!(encoders(&flux).unwrap().others, [t5("text_encoder_2")]);
        }
        let video = json!({"_class_name": "HunyuanVideoPipeline", "text_encoder": of("LlamaModel"), "text_encoder_2": plain,
            "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"]});
        assert_eq!(reads(&video), [("text_encoder_2", Reads::End)]);
    }

    #[test]
    fn pipelines_without_clip_or_of_unknown_denoisers_are_refused() {
        for (index, named) in [
            (
                json!({"_class_name": "WhatPipeline", "text_encoder": of("CLIPTextModel")}),
                "WhatPipeline",
            ),
            (json!({}), "missing"),
            (json!({"_class_name": "StableDiffusionPipeline"}), "no text encoder"),
            (
                json!({"_class_name": "KolorsPipeline", "text_encoder": of("ChatGLMModel"), "unet": ["diffusers", "UNet2DConditionModel"]}),
                "no text encoder",
            ),
        ] {
            assert!(encoders(&index).unwrap_err().contains(named), "{index}");
        }
    }

    #[test]
    fn what_is_read_says_which_layers_act() {
        let reach = |blocks, last_norm, projection, is_pooled| Reach {
            blocks,
            last_norm,
            projection,
            is_pooled,
        };
        assert_eq!(Reads::Last.of(23), reach(23, true, false, false));
        assert_eq!(Reads::Penultimate.of(12), reach(11, false, false, false));
        assert_eq!(Reads::Projected.of(12), reach(12, true, true, false));
        assert_eq!(Reads::End.of(12), reach(12, true, false, true));
        assert_eq!(Reads::ProjectedEnd.of(12), reach(12, true, true, true));
    }

    #[test]
    fn other_text_encoders_are_named() {
        let t5 =
            UneditedEncoder { folder: "text_encoder_2".into(), class: "T5EncoderModel".into() };
        assert_eq!(unedited_warning(&[], true), None);
        let pooled = unedited_warning(std::slice::from_ref(&t5), false).unwrap();
        assert!(
            pooled.contains("`text_encoder_2` (T5EncoderModel)") && pooled.contains("one vector")
        );
        assert!(!unedited_warning(&[t5], true).unwrap().contains("one vector"));
    }
}

//! A model's folder: configuration, tensors, tokenizer and image preprocessing, checked together
//! before anything is computed. Coordinators check a model when they plan, workers when they load.

use std::path::Path;

use lethe_shared::checkpoint::{Checkpoint, Layout};
use lethe_shared::json;

use crate::input::{self, Preprocessor, Tokenizer};
use crate::model::config::TextPooling;
use crate::model::{Architecture, ClipConfig};

/// Largest configuration file, bytes.
const MAX_CONFIG: u64 = 16 << 20;
/// Most problems of tensors that are named.
const NAMED: usize = 5;
/// A text that is embedded shape-wise.
const SAMPLE: &str = "a photo of a cat";

/// Everything in a model's folder besides the weights.
#[derive(Debug)]
pub struct ModelFolder {
    /// Sizes and options.
    pub config: ClipConfig,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The preprocessing of images.
    pub preprocessor: Preprocessor,
}

/// Why a model's folder cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model is unusable: a sentence for each problem.
    #[error("{}", .0.join("; "))]
    Unusable(Vec<String>),
    /// A file cannot be read on this machine.
    #[error("{0}")]
    Unreadable(String),
}

impl ModelFolder {
    /// Reads and checks the folder of an open checkpoint.
    ///
    /// # Errors
    /// [`Error::Unusable`] with every problem of the model.
    pub fn open(folder: &Path, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let config = match read_config(folder, checkpoint) {
            Ok(config) => Some(config),
            Err(Error::Unusable(more)) => {
                problems.extend(more);
                None
            }
            Err(other) => return Err(other),
        };
        // The other files are checked even if the sizes are not known.
        let tokenizer = match &config {
            Some(config) => read_tokenizer(folder, config),
            None => Tokenizer::from_model_dir(folder, usize::MAX, usize::MAX),
        };
        let preprocessor = match checkpoint.layout() {
            Some(Layout::OpenClip) => Preprocessor::of_open_clip(folder),
            Some(Layout::Transformers) => Preprocessor::of_transformers(folder),
            None => Preprocessor::from_model_dir(folder),
        };
        if let Some(config) = &config {
            problems.extend(tensor_problems(config, checkpoint));
            if let Ok(tokenizer) = &tokenizer {
                problems.extend(text_problem(folder, config, tokenizer));
            }
            if let Ok(preprocessor) = &preprocessor
                && preprocessor.side() as i64 != config.image_size
            {
                problems.push(format!(
                    "{}: preprocessing produces images of {} pixels, but the model takes {}",
                    folder.display(),
                    preprocessor.side(),
                    config.image_size
                ));
            }
        }
        problems.extend(tokenizer.as_ref().err().map(ToString::to_string));
        problems.extend(preprocessor.as_ref().err().map(ToString::to_string));
        match (config, tokenizer, preprocessor) {
            (Some(config), Ok(tokenizer), Ok(preprocessor)) if problems.is_empty() => {
                Ok(Self { config, tokenizer, preprocessor })
            }
            _ => Err(Error::Unusable(problems)),
        }
    }

    /// Returns how the model is read, by name, for a person.
    pub fn description(&self) -> Vec<(&'static str, String)> {
        let config = &self.config;
        vec![
            ("family", config.contrast.to_string()),
            ("text tower", config.text.to_string()),
            (
                "texts",
                format!(
                    "up to {} tokens of {}, pooled at {}",
                    config.context_length, config.vocabulary, config.pooling
                ),
            ),
            ("vision tower", config.vision.to_string()),
            (
                "images",
                format!(
                    "{0} × {0} pixels in patches of {1} × {1}; {2}",
                    config.image_size, config.patch_size, self.preprocessor
                ),
            ),
            ("embedding", format!("{} values", config.embedding)),
        ]
    }
}

/// Reads the tokenizer of a model.
fn read_tokenizer(folder: &Path, config: &ClipConfig) -> Result<Tokenizer, input::Error> {
    let (context, vocabulary) = (config.context_length as usize, config.vocabulary as usize);
    let tokenizer =
        Tokenizer::from_model_dir(folder, context, vocabulary)?.with_cleaning(config.cleaning);
    match config.pooling {
        TextPooling::Last => tokenizer.with_padding_of(folder),
        TextPooling::FirstOf(_) | TextPooling::LargestId => Ok(tokenizer),
    }
}

/// Reads the configuration that belongs to the layout of the weights.
fn read_config(folder: &Path, checkpoint: &Checkpoint) -> Result<ClipConfig, Error> {
    let unusable = |problem: String| Error::Unusable(vec![problem]);
    let layout = checkpoint.layout();
    let mut others = Vec::new();
    for name in ["open_clip_config.json", "config.json"] {
        let path = folder.join(name);
        let shown = path.display().to_string();
        let bytes = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_CONFIG => {
                return Err(unusable(format!("{shown}: the file is larger than 16 MiB")));
            }
            Ok(_) => std::fs::read(&path)
                .map_err(|error| Error::Unreadable(format!("{shown}: {error}")))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::Unreadable(format!("{shown}: {error}"))),
        };
        let json: serde_json::Value =
            json::parse(&bytes).map_err(|error| unusable(format!("{shown}: {error}")))?;
        let of = match json.get("model_cfg") {
            Some(_) => Layout::OpenClip,
            None => Layout::Transformers,
        };
        if layout.is_some_and(|layout| layout != of) {
            others.push(name);
            continue;
        }
        return ClipConfig::from_json(&shown, &json).map_err(|error| unusable(error.to_string()));
    }
    Err(unusable(match (layout, others.first()) {
        (Some(layout), Some(other)) => format!(
            "{}: the weights are in the layout of {}, and {} is missing ({other} is for the other layout)",
            folder.display(),
            layout.library(),
            layout.config()
        ),
        _ => format!(
            "{}: the folder contains neither config.json nor open_clip_config.json",
            folder.display()
        ),
    }))
}

/// Compares the tensors with those that the configuration asks for.
fn tensor_problems(config: &ClipConfig, checkpoint: &Checkpoint) -> Vec<String> {
    let mut problems = Architecture::new(config).problems(checkpoint.tensors());
    if problems.len() > NAMED {
        let more = problems.len() - NAMED;
        problems.truncate(NAMED);
        problems.push(format!("{more} more tensors are missing, unknown or of another shape"));
    }
    problems
}

/// Tokenizes a text and looks for the token at which it is pooled.
fn text_problem(folder: &Path, config: &ClipConfig, tokenizer: &Tokenizer) -> Option<String> {
    let found = tokenizer.encode(SAMPLE).map_err(|error| error.to_string()).and_then(|ids| {
        let pooled = config.pooling.check(&ids);
        pooled.map_err(|problem| format!("{}: {problem}", folder.display()))
    });
    found.err()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lethe_shared::checkpoint::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::*;

    const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},
        "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<bos>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<eos>","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
        "special_tokens":{"<bos>":{"id":"<bos>","ids":[0],"tokens":["<bos>"]},"<eos>":{"id":"<eos>","ids":[3],"tokens":["<eos>"]}}},
        "decoder":null,"model":{"type":"WordLevel","vocab":{"<bos>":0,"<unk>":1,"cat":2,"<eos>":3},"unk_token":"<unk>"}}"#;

    /// A folder with a model of either layout, as small as can be.
    struct Folder(tempfile::TempDir);

    impl Folder {
        fn config(layout: Layout) -> serde_json::Value {
            match layout {
                Layout::Transformers => {
                    let tower = json!({ "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
                        "num_attention_heads": 1, "image_size": 4, "patch_size": 4,
                        "max_position_embeddings": 16, "vocab_size": 4, "eos_token_id": 3 });
                    json!({ "model_type": "clip", "projection_dim": 4, "text_config": tower, "vision_config": tower })
                }
                Layout::OpenClip => json!({
                    "model_cfg": { "embed_dim": 4,
                        "vision_cfg": { "image_size": 4, "layers": 1, "width": 4, "head_width": 4, "patch_size": 4, "mlp_ratio": 1.0 },
                        "text_cfg": { "context_length": 16, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1, "mlp_ratio": 1.0 } },
                    "preprocess_cfg": { "size": 4 },
                }),
            }
        }

        fn new(layout: Layout) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.json(layout.config(), &Self::config(layout));
            if layout == Layout::Transformers {
                folder.json("preprocessor_config.json", &json!({ "size": 4, "crop_size": 4 }));
            }
            std::fs::write(folder.0.path().join("tokenizer.json"), TOKENIZER).unwrap();
            folder.weights(layout, &[]);
            folder
        }

        fn json(&self, name: &str, json: &serde_json::Value) {
            std::fs::write(self.0.path().join(name), json.to_string()).unwrap();
        }

        /// Writes the tensors that the configuration asks for, and more.
        fn weights(&self, layout: Layout, more: &[&str]) {
            let config = ClipConfig::from_json("x", &Self::config(layout)).unwrap();
            let architecture = Architecture::new(&config);
            let own = architecture.parameters().iter().map(|of| (of.name.as_str(), &of.shape[..]));
            let tensors: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = own
                .chain(more.iter().map(|name| (*name, &[1i64][..])))
                .map(|(name, shape)| {
                    let shape: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
                    let bytes = vec![0; 4 * shape.iter().product::<usize>()];
                    (name, (shape, bytes))
                })
                .collect();
            let views = tensors.iter().map(|(name, (shape, bytes))| {
                (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
            });
            let name = match layout {
                Layout::Transformers => "model.safetensors",
                Layout::OpenClip => "open_clip_model.safetensors",
            };
            let file = safetensors::serialize(views, None).unwrap();
            std::fs::write(self.0.path().join(name), file).unwrap();
        }

        fn open(&self) -> Result<ModelFolder, Error> {
            ModelFolder::open(self.0.path(), &Checkpoint::open(self.0.path()).unwrap())
        }

        fn problems(&self) -> Vec<String> {
            match self.open().unwrap_err() {
                Error::Unusable(problems) => problems,
                Error::Unreadable(problem) => panic!("{problem}"),
            }
        }
    }

    #[test]
    fn every_problem_is_said_once() {
        let folder = Folder::new(Layout::Transformers);
        folder.open().unwrap();
        std::fs::remove_file(folder.0.path().join("tokenizer.json")).unwrap();
        std::fs::remove_file(folder.0.path().join("preprocessor_config.json")).unwrap();
        folder.json("config.json", &json!({ "model_type": "blip" }));
        let problems = folder.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, part) in
            problems.iter().zip(["blip", "save_pretrained", "preprocessor_config.json"])
        {
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn shapes_are_compared_with_the_configuration() {
        let folder = Folder::new(Layout::Transformers);
        for (section, key, value, says) in [
            ("text_config", "hidden_size", json!(8), "has shape"),
            ("text_config", "num_hidden_layers", json!(2), "is missing"),
            ("vision_config", "patch_size", json!(2), "vision_model.embeddings.patch_embedding"),
            ("vision_config", "image_size", json!(8), "images of 4 pixels, but the model takes 8"),
            ("text_config", "vocab_size", json!(3), "token 3"),
        ] {
            let mut config = Folder::config(Layout::Transformers);
            config[section][key] = value;
            folder.json("config.json", &config);
            let problems = folder.problems();
            assert!(problems.iter().any(|problem| problem.contains(says)), "{problems:?}");
            assert!(problems.len() <= NAMED + 3, "{problems:?}");
        }
    }

    #[test]
    fn tensors_that_are_not_understood_are_refused() {
        for (layout, buffers, unknown) in [
            (
                Layout::Transformers,
                &["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"][..],
                "text_model.encoder.layers.0.self_attn.q_norm.weight",
            ),
            (
                Layout::OpenClip,
                &["attn_mask", "logit_bias"],
                "visual.transformer.resblocks.0.attn.ln_q.weight",
            ),
            (Layout::OpenClip, &[], "transformer.resblocks.1.ln_1.weight"),
            (Layout::Transformers, &[], "ema.text_model.final_layer_norm.weight"),
        ] {
            let folder = Folder::new(layout);
            folder.weights(layout, buffers);
            folder.open().unwrap();
            folder.weights(layout, &[unknown]);
            let problems = folder.problems();
            assert!(
                problems.len() == 1
                    && problems[0].contains(unknown)
                    && problems[0].contains("no part"),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_wrong_end_of_text_is_named() {
        let folder = Folder::new(Layout::Transformers);
        for end in [json!(null), json!(0), json!(1)] {
            let mut config = Folder::config(Layout::Transformers);
            config["text_config"]["eos_token_id"] = end;
            folder.json("config.json", &config);
            let problems = folder.problems();
            assert!(
                problems[0].contains("text_config.eos_token_id in config.json"),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn each_layout_reads_its_own_configuration() {
        let folder = Folder::new(Layout::OpenClip);
        folder.weights(Layout::Transformers, &[]);
        folder.json("preprocessor_config.json", &json!({ "size": 6, "crop_size": 6 }));
        assert_eq!(folder.open().unwrap().preprocessor.side(), 4);
        let mut config = Folder::config(Layout::Transformers);
        config["vision_config"]["image_size"] = json!(6);
        folder.json("config.json", &config);
        let opened = folder.open().unwrap();
        assert_eq!((opened.config.image_size, opened.preprocessor.side()), (6, 6));
        std::fs::remove_file(folder.0.path().join("open_clip_model.safetensors")).unwrap();
        std::fs::remove_file(folder.0.path().join("config.json")).unwrap();
        let problems = folder.problems();
        assert!(problems[0].contains("config.json is missing"), "{problems:?}");
    }
}

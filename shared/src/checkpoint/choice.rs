//! The choice among several weights in one folder: by layout, with the configuration that belongs
//! to it, and by variant.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use super::error::Error;
use super::reader::Checkpoint;

/// What the weights of either library are called.
const STEMS: &[&str] = &["model", "open_clip_model"];
/// Extensions of weights in formats other than safetensors, which are not read.
pub const OTHER_WEIGHTS: &[&str] = &[
    "bin",
    "ckpt",
    "engine",
    "gguf",
    "ggml",
    "h5",
    "keras",
    "mlmodel",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "onnx_data",
    "ot",
    "pb",
    "pickle",
    "pkl",
    "plan",
    "pt",
    "pt2",
    "pte",
    "pth",
    "safetensor",
    "tflite",
];
/// The configuration of an adapter, which libraries apply to the weights beside it.
pub(super) const ADAPTER: &str = "adapter_config.json";
const CONFIG: &str = "config.json";
const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";
/// Longest name of a variant.
const MAX_VARIANT: usize = 32;

/// How weights are named and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As transformers does.
    Transformers,
    /// As open_clip does.
    OpenClip,
}

impl Layout {
    /// Returns the file that configures a model of this layout.
    pub fn config(self) -> &'static str {
        match self {
            Self::Transformers => CONFIG,
            Self::OpenClip => OPEN_CLIP_CONFIG,
        }
    }

    /// Returns the name of the library.
    pub fn library(self) -> &'static str {
        match self {
            Self::Transformers => "transformers",
            Self::OpenClip => "open_clip",
        }
    }
}

/// Returns whether a file lists the weight files of each tensor, in any format and variant.
pub fn is_index(name: &str) -> bool {
    is_safetensors_index(name) || name.ends_with(".index.json")
}

/// Returns whether a file is an index of safetensors, of any variant:
/// `model.safetensors.index.json`, or as diffusers and transformers have written them at some time,
/// `model.safetensors.index.fp16.json` and `model.safetensors.fp16.index.json`.
pub fn is_safetensors_index(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        [stem @ .., "safetensors", "index", "json"] => stem.iter().any(|part| !part.is_empty()),
        [stem @ .., "safetensors", "index", variant, "json"]
        | [stem @ .., "safetensors", variant, "index", "json"] => {
            stem.iter().any(|part| !part.is_empty()) && is_variant(variant)
        }
        _ => false,
    }
}

fn is_variant(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=MAX_VARIANT).contains(&name.len()) && name.chars().all(plain) && !is_shard(name)
}

/// Returns whether a name has the number of a shard: `model-00001-of-00002`.
fn is_shard(name: &str) -> bool {
    name.contains("-of-")
}

/// Returns the variant in the name of a weight file or index: `fp16` in `model.fp16.safetensors`.
pub(super) fn variant_of(name: &str) -> Option<&str> {
    let rest = STEMS.iter().find_map(|stem| name.strip_prefix(stem)?.strip_prefix('.'))?;
    let end: &[&str] = if is_safetensors_index(name) {
        &["safetensors", "index", "json"]
    } else if rest.ends_with(".safetensors") {
        &["safetensors"]
    } else {
        return None;
    };
    let mut others = rest.split('.').filter(|part| !end.contains(part));
    match (others.next(), others.next()) {
        (Some(variant), None) => is_variant(variant).then_some(variant),
        _ => None,
    }
}

/// Returns the names of the files in a folder, sorted; none when it does not exist.
pub(super) fn names(folder: &Path) -> Result<BTreeSet<String>, Error> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry.map_err(io)?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(io(error)),
    }
}

/// Returns the weights of the only variant in a folder, a single file before an index; the names of
/// all variants if there are several.
pub(super) fn only_variant(names: &BTreeSet<String>) -> Result<Option<&str>, Vec<&str>> {
    let variants: BTreeSet<&str> = names.iter().filter_map(|name| variant_of(name)).collect();
    if variants.len() > 1 {
        return Err(variants.into_iter().collect());
    }
    let mut of_variant: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| variant_of(name).is_some()).collect();
    of_variant.sort_by_key(|name| is_safetensors_index(name));
    Ok(of_variant.first().copied())
}

impl Checkpoint {
    /// Returns the layout of the weights by the names of their tensors; `None` when they are not a
    /// CLIP's.
    pub fn layout(&self) -> Option<Layout> {
        let has = |prefix: &str| {
            self.tensors
                .range(prefix.to_owned()..)
                .next()
                .is_some_and(|(n, _)| n.starts_with(prefix))
        };
        if has("text_model.") || has("vision_model.") {
            Some(Layout::Transformers)
        } else if has("visual.") || has("transformer.resblocks.") {
            Some(Layout::OpenClip)
        } else {
            None
        }
    }

    /// Returns the variant of the weights (`fp16` in `model.fp16.safetensors`), if they are one.
    pub fn variant(&self) -> Option<&str> {
        match (&self.index, self.files.as_slice()) {
            (Some(index), _) => variant_of(index),
            (None, [file]) => variant_of(&file.name),
            _ => None,
        }
    }

    /// Returns the names of its weight files.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// Returns whether a file configures weights of the other layout, and those are not read.
    pub(super) fn is_other_config(&self, name: &str) -> bool {
        self.layout() == Some(Layout::Transformers) && name == OPEN_CLIP_CONFIG
    }

    /// Returns the files of the folder that hold or describe the model in another form, which is
    /// neither read nor copied: weights of the other layout, another variant or another format, and
    /// adapters.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be listed.
    pub fn left_behind(&self) -> Result<Vec<String>, Error> {
        let own: BTreeSet<&str> = self.file_names().chain(self.index.as_deref()).collect();
        let is_weights = |name: &str| {
            let end = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            let known = end == "safetensors"
                || is_index(name)
                || OTHER_WEIGHTS.contains(&end.as_str())
                || name == ADAPTER;
            known && !is_shard(name)
        };
        let mut names = names(&self.folder)?;
        names.retain(|name| {
            !own.contains(name.as_str()) && (is_weights(name) || self.is_other_config(name))
        });
        Ok(names.into_iter().collect())
    }
}

/// Returns whether weights are a CLIP's, and the folder has the configuration that belongs to them.
pub(super) fn has_config(folder: &Path, checkpoint: &Checkpoint) -> bool {
    checkpoint.layout().is_some_and(|layout| folder.join(layout.config()).is_file())
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const TRANSFORMERS: &str = "text_model.final_layer_norm.weight";
    const OPEN: &str = "visual.ln_post.weight";

    #[test]
    fn weights_and_configuration_are_chosen_as_a_pair() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "{}").unwrap();
        fixture::write(&folder.path().join("model.safetensors"), &[(TRANSFORMERS, &[1.0])]);
        fixture::write(&folder.path().join("open_clip_model.safetensors"), &[(OPEN, &[1.0])]);
        let read = || {
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            (checkpoint.layout().unwrap(), checkpoint.left_behind().unwrap())
        };
        // Without any configuration, the error about it names the first one.
        assert_eq!(read().0, Layout::Transformers);
        write("open_clip_config.json");
        assert_eq!(read(), (Layout::OpenClip, vec!["model.safetensors".to_owned()]));
        write("config.json");
        write("open_clip_pytorch_model.bin");
        let (layout, left) = read();
        assert_eq!(layout, Layout::Transformers);
        assert_eq!(
            left,
            ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        );
        assert_eq!(Checkpoint::open(folder.path()).unwrap().companions().unwrap(), ["config.json"]);
    }

    #[test]
    fn weights_of_no_clip_do_not_hide_a_whole_pair() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "{}").unwrap();
        fixture::write(&folder.path().join("model.safetensors"), &[("blocks.0.weight", &[1.0])]);
        write("config.json");
        let layout = || Checkpoint::open(folder.path()).unwrap().layout();
        assert_eq!(layout(), None, "without another choice, the error is about these");
        fixture::write(&folder.path().join("open_clip_model.safetensors"), &[(OPEN, &[1.0])]);
        write("open_clip_config.json");
        assert_eq!(layout(), Some(Layout::OpenClip));
    }

    #[test]
    fn adapters_and_weights_in_other_formats_are_named_and_not_copied() {
        let folder = tempfile::tempdir().unwrap();
        fixture::write(&folder.path().join("model.safetensors"), &[(TRANSFORMERS, &[1.0])]);
        let others = [
            "ViT-B-32.pt",
            "adapter_config.json",
            "adapter_model.safetensors",
            "clip.GGUF",
            "rust_model.ot",
        ];
        for name in others.into_iter().chain(["config.json", "notes.txt"]) {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.left_behind().unwrap(), others);
        assert_eq!(checkpoint.companions().unwrap(), ["config.json", "notes.txt"]);
    }

    #[test]
    fn a_single_variant_is_read_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fixture::write(&at("model.fp16-00001-of-00002.safetensors"), &[("a", &[1.0])]);
        fixture::write(&at("model.fp16-00002-of-00002.safetensors"), &[("b", &[2.0])]);
        assert!(Checkpoint::open(folder.path()).is_err());
        let index = r#"{"weight_map":{"a":"model.fp16-00001-of-00002.safetensors","b":"model.fp16-00002-of-00002.safetensors"}}"#;
        std::fs::write(at("model.safetensors.index.fp16.json"), index).unwrap();
        let open = || Checkpoint::open(folder.path()).unwrap();
        assert_eq!((open().variant(), open().tensors().len()), (Some("fp16"), 2));
        assert!(open().companions().unwrap().is_empty());
        fixture::write(&at("model.fp16.safetensors"), &[("c", &[1.0])]);
        assert_eq!((open().variant(), open().tensors().len()), (Some("fp16"), 1));
        fixture::write(&at("model.non_ema.safetensors"), &[("c", &[1.0])]);
        let problem = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(problem.contains("fp16, non_ema"), "{problem}");
        fixture::write(&at("model.safetensors"), &[("d", &[1.0])]);
        assert_eq!(open().variant(), None);
        assert_eq!(open().left_behind().unwrap().len(), 3);
    }

    #[test]
    fn names_of_indexes_and_variants() {
        for (name, safetensors, any) in [
            ("model.safetensors.index.json", true, true),
            ("model.safetensors.index.fp16.json", true, true),
            ("model.safetensors.fp16.index.json", true, true),
            ("model.fp16.safetensors.index.json", true, true),
            ("v1.5.safetensors.index.json", true, true),
            (".safetensors.index.json", false, true),
            ("model.safetensors.index..json", false, false),
            ("pytorch_model.bin.index.json", false, true),
            ("config.json", false, false),
        ] {
            assert_eq!((is_safetensors_index(name), is_index(name)), (safetensors, any), "{name}");
        }
        for name in [
            "open_clip_model.bf16.safetensors",
            "model.safetensors.index.bf16.json",
            "model.safetensors.bf16.index.json",
            "model.bf16.safetensors.index.json",
        ] {
            assert_eq!(variant_of(name), Some("bf16"), "{name}");
        }
        for none in ["model.safetensors", "model.safetensors.index.json", "model.a b.safetensors"] {
            assert_eq!(variant_of(none), None, "{none}");
        }
    }
}

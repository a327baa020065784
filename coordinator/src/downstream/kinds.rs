//! What a target's file is, by its name and its first bytes: an allow-list decides what may be
//! copied into a release.

use lethe_shared::checkpoint::OTHER_WEIGHTS;

/// Kinds of files of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Configuration, texts, pictures: no weights.
    Plain,
    /// Weights in safetensors, which are looked into.
    Safetensors,
    /// Weights in another format: they are not edited, and may contain the removed concepts.
    OtherWeights,
    /// Anything else.
    Unknown,
}

/// Largest file of configuration or text that is copied, bytes.
const MAX_PLAIN: u64 = 256 << 20;

/// Extensions of configuration, texts, vocabularies, code and pictures.
const PLAIN: &[&str] = &[
    "bib", "bpe", "cfg", "cff", "css", "csv", "gif", "html", "ini", "ipynb", "jinja", "jpeg",
    "jpg", "js", "json", "jsonl", "md", "mp4", "pdf", "png", "py", "rst", "sh", "svg", "tiktoken",
    "toml", "tsv", "txt", "vocab", "webp", "yaml", "yml",
];
/// Names without an extension, or with any, that begin like this: licences and notes.
const NOTES: &[&str] =
    &["AUTHORS", "CHANGELOG", "CITATION", "COPYING", "LICEN", "NOTICE", "README"];
/// Models of SentencePiece, which are vocabularies.
const VOCABULARIES: &[&str] = &["model"];
/// Pickles that hold no part of a tower, in the folder of a checkpoint of LLaVA.
const NO_TOWER: &[&str] = &["mm_projector.bin", "training_args.bin"];

/// Returns what a file is.
pub(super) fn kind(name: &str, bytes: u64) -> Kind {
    let file = name.rsplit('/').next().unwrap_or(name);
    let lower = file.to_ascii_lowercase();
    let end = lower.rsplit_once('.').map_or("", |(_, end)| end);
    if end == "safetensors" {
        Kind::Safetensors
    } else if OTHER_WEIGHTS.contains(&end) || is_other_index(file) {
        Kind::OtherWeights
    } else if bytes > MAX_PLAIN {
        Kind::Unknown
    } else if PLAIN.contains(&end) || VOCABULARIES.contains(&end) || is_note(file, end) {
        Kind::Plain
    } else {
        Kind::Unknown
    }
}

/// Returns whether a file without an ending, or with none of a known kind, is a licence or a note:
/// `LICENSE`, `LICENSE.SDXL-1.0`, but not `LICENSE.zip`.
fn is_note(file: &str, end: &str) -> bool {
    const ARCHIVES: &[&str] =
        &["7z", "bz2", "gz", "lz4", "part", "rar", "tar", "tgz", "whl", "xz", "zip", "zst"];
    NOTES.iter().any(|start| file.starts_with(start)) && !ARCHIVES.contains(&end)
}

/// Returns whether a file begins like an archive, a compressed file or a pickle, whatever its name
/// says.
pub(super) fn is_packed(start: &[u8]) -> bool {
    const STARTS: &[&[u8]] = &[
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x1f\x8b",
        b"BZh",
        b"\xfd7zXZ",
        b"\x28\xb5\x2f\xfd",
        b"7z\xbc\xaf\x27\x1c",
        b"\x04\x22\x4d\x18",
        b"Rar!",
        b"\x89HDF",
        b"\x93NUMPY",
        b"GGUF",
    ];
    let is_pickle = matches!(start, [0x80, 2..=5, ..]);
    is_pickle || STARTS.iter().any(|known| start.starts_with(known))
}

/// Returns whether a file is an index of weights in a format other than safetensors.
fn is_other_index(file: &str) -> bool {
    use lethe_shared::checkpoint::{is_index, is_safetensors_index};
    let of_variant = file.ends_with(".json") && file.contains(".bin.index.");
    (is_index(file) && !is_safetensors_index(file)) || of_variant
}

/// Returns whether weights in another format are known to hold no part of a tower by their name, in
/// the folder of a checkpoint of LLaVA.
pub(super) fn is_without_tower(name: &str) -> bool {
    NO_TOWER.contains(&name)
}

/// Returns whether these are the pickled weights of a pipeline's component, under the name that its
/// library gives them.
pub(super) fn is_component(name: &str, components: &[Component]) -> bool {
    let Some((folder, file)) = name.rsplit_once('/') else { return false };
    let pickled = file.ends_with(".bin") || file.contains(".bin.index.");
    pickled
        && components.iter().any(|component| {
            component.folder == folder
                && file
                    .strip_prefix(component.stem)
                    .is_some_and(|rest| rest.starts_with(['.', '-']))
        })
}

/// A component of a pipeline that contains no tower of CLIP's text encoders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Component {
    /// Its folder in the target.
    pub(super) folder: String,
    /// The beginning of the names of its weight files.
    pub(super) stem: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_kinds_are_plain() {
        for name in [
            "model_index.json",
            "a/merges.txt",
            "LICENSE",
            "LICENSE-MODEL.md",
            "tokenizer/spiece.model",
            "README",
            "pictures/A.PNG",
            "model.safetensors.index.fp16.json",
        ] {
            assert_eq!(kind(name, 1), Kind::Plain, "{name}");
        }
        for name in [
            "unet/model.engine",
            "weights.npz",
            "a/b/pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "pytorch_model.bin.index.fp16.json",
            "MODEL.CKPT",
            "model.onnx_data",
        ] {
            assert_eq!(kind(name, 1), Kind::OtherWeights, "{name}");
        }
        for name in [
            "all.zip",
            "model.safetensors.part",
            "weights",
            "x.tar.gz",
            "x.xyz",
            "LICENSE.zip",
            "README.tar.gz",
        ] {
            assert_eq!(kind(name, 1), Kind::Unknown, "{name}");
        }
        assert_eq!(kind("x/y.safetensors", u64::MAX), Kind::Safetensors);
        assert_eq!(kind("large.txt", MAX_PLAIN + 1), Kind::Unknown);
    }

    #[test]
    fn archives_and_pickles_are_known_by_their_first_bytes() {
        for start in
            [b"PK\x03\x04....".as_slice(), b"\x80\x02}q\x00.", b"\x80\x04", b"\x1f\x8b\x08"]
        {
            assert!(is_packed(start), "{start:?}");
        }
        // JSON, SentencePiece, PNG, JPEG, text, nothing.
        for start in [
            b"{\"a\"".as_slice(),
            b"\x0a\x0e\x0a\x05",
            b"\x89PNG\r\n",
            b"\xff\xd8\xff",
            b"Apache",
            b"",
        ] {
            assert!(!is_packed(start), "{start:?}");
        }
    }

    #[test]
    fn components_have_their_own_names() {
        let components = [Component { folder: "unet".to_owned(), stem: "diffusion_pytorch_model" }];
        for name in [
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.bin",
            "unet/diffusion_pytorch_model-00001-of-00002.bin",
            "unet/diffusion_pytorch_model.bin.index.json",
        ] {
            assert!(is_component(name, &components), "{name}");
        }
        for name in [
            "unet/pytorch_model.bin",
            "unet/old/diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.pt",
            "unet/diffusion_pytorch_models.bin",
        ] {
            assert!(!is_component(name, &components), "{name}");
        }
    }
}

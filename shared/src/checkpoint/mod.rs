//! Checkpoints: folders with safetensors weights as `transformers` and open_clip write them, read in place and written
//! back with single tensors changed.
//!
//! | file | what |
//! |---|---|
//! | [`open`](Checkpoint::open) | finds the layout, checks headers and index, maps the weights into memory |
//! | [`release`](Checkpoint::write_changed) | copies files byte for byte and replaces the changed tensors' bytes in place |
//! | [`tower`] | which tensor does what in which tower, in any layout |
//!
//! Only safetensors is read: a pickle runs code when it is opened.

mod open;
mod release;
pub mod tower;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
pub use safetensors::Dtype;

pub use self::open::read_index;

use crate::digest::{Digest, Hasher};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no weights that can be read.
    #[error("{folder}: {problem}")]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was found, and what to do.
        problem: String,
    },
    /// A file is damaged or contradicts another one.
    #[error("{file}: {problem}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// There is no tensor of this name, or it has another size.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A tower cannot be made out.
    #[error("the {tower} tower {problem}")]
    Tower {
        /// Which one.
        tower: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    file: usize,
    range: Range<usize>,
}

#[derive(Debug)]
struct WeightFile {
    name: String,
    map: Mmap,
}

/// A checkpoint folder, its weights mapped into memory.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<WeightFile>,
    index: Option<String>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Files beside the weights that decide what a model computes.
const SETTINGS: &[&str] = &["config.json", "open_clip_config.json", "preprocessor_config.json", "tokenizer.json"];

impl Checkpoint {
    /// The folder it was opened from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.range.len() as u64).sum()
    }

    /// A tensor's type and shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.tensors.get(name).ok_or_else(|| Error::Tensor { tensor: name.to_owned(), problem: "is not in the checkpoint".to_owned() })
    }

    /// A tensor's bytes as stored, little-endian.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none of this name.
    pub fn bytes(&self, tensor: &str) -> Result<&[u8], Error> {
        let info = self.tensor(tensor)?;
        Ok(&self.files[info.file].map[info.range.clone()])
    }

    /// SHA-256 over all tensors' bytes in name order: what `composition.json` calls `digest`.
    pub fn digest(&self) -> Digest {
        self.digest_with(&BTreeMap::new())
    }

    /// The [digest](Self::digest) it will have with these tensors changed.
    pub fn digest_with(&self, changed: &BTreeMap<String, Vec<u8>>) -> Digest {
        let mut hasher = Hasher::new();
        for (name, info) in &self.tensors {
            match changed.get(name) {
                Some(bytes) => hasher.update(bytes),
                None => hasher.update(&self.files[info.file].map[info.range.clone()]),
            }
        }
        hasher.finish()
    }

    /// Digest over the files beside the weights that decide what the model computes: configuration, image
    /// preprocessing, tokeniser.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn settings_digest(&self) -> Result<Digest, Error> {
        let mut found: Vec<(&str, Digest)> = Vec::new();
        for name in SETTINGS {
            let path = self.folder.join(name);
            match std::fs::read(&path) {
                Ok(bytes) => found.push((name, Digest::of(&bytes))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::Io { path, source }),
            }
        }
        Ok(Digest::of_json(&found))
    }

    /// Names of floating-point tensors that hold NaN or an infinity.
    pub fn non_finite(&self) -> Vec<String> {
        let holds = |(name, info): (&String, &TensorInfo)| {
            let bytes = &self.files[info.file].map[info.range.clone()];
            (!all_finite(bytes, info.dtype)).then(|| name.clone())
        };
        self.tensors.iter().filter_map(holds).collect()
    }
}

/// Whether a tensor's values are all finite; types without infinities always are.
fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    // A float is not finite when all its exponent bits are set.
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes.chunks_exact(N).map(|chunk| chunk.try_into().expect("chunks_exact gives N bytes"))
    }
    match dtype {
        Dtype::F32 => words::<4>(bytes).all(|w| u32::from_le_bytes(w) & 0x7f80_0000 != 0x7f80_0000),
        Dtype::F16 => words::<2>(bytes).all(|w| u16::from_le_bytes(w) & 0x7c00 != 0x7c00),
        Dtype::BF16 => words::<2>(bytes).all(|w| u16::from_le_bytes(w) & 0x7f80 != 0x7f80),
        Dtype::F64 => words::<8>(bytes).all(|w| f64::from_le_bytes(w).is_finite()),
        _ => true,
    }
}

/// Checkpoints for tests.
#[cfg(test)]
pub(crate) mod fixture {
    use std::collections::HashMap;
    use std::path::Path;

    use safetensors::tensor::{Dtype, TensorView};

    /// Writes a safetensors file with these float32 vectors.
    pub(crate) fn write(path: &Path, tensors: &[(&str, &[f32])]) {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views: HashMap<&str, TensorView<'_>> = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, values), bytes)| (*name, TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap()))
            .collect();
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(tensors: &[(&str, &[f32])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fixture::write(&folder.path().join("model.safetensors"), tensors);
        folder
    }

    #[test]
    fn the_digest_is_over_tensor_bytes_in_name_order() {
        let folder = folder(&[("b", &[2.0]), ("a", &[1.0])]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let bytes: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(checkpoint.digest(), Digest::of(&bytes));
        let changed = BTreeMap::from([("a".to_owned(), 3f32.to_le_bytes().to_vec())]);
        let bytes: Vec<u8> = [3f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(checkpoint.digest_with(&changed), Digest::of(&bytes));
    }

    #[test]
    fn finds_what_is_not_finite() {
        let folder = folder(&[("good", &[1.0, -3.0e38]), ("nan", &[0.0, f32::NAN]), ("infinite", &[f32::NEG_INFINITY])]);
        assert_eq!(Checkpoint::open(folder.path()).unwrap().non_finite(), ["infinite", "nan"]);
        let half = |x: f32| half::f16::from_f32(x).to_le_bytes();
        assert!(all_finite(&half(65504.0), Dtype::F16) && !all_finite(&half(f32::INFINITY), Dtype::F16));
        let brain = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        assert!(all_finite(&brain(3e38), Dtype::BF16) && !all_finite(&brain(f32::NAN), Dtype::BF16));
        assert!(all_finite(&f64::MAX.to_le_bytes(), Dtype::F64) && !all_finite(&f64::NAN.to_le_bytes(), Dtype::F64));
        assert!(all_finite(&[0xff; 8], Dtype::I64));
    }

    #[test]
    fn settings_follow_the_files_that_matter() {
        let folder = folder(&[("a", &[1.0])]);
        let digest = || Checkpoint::open(folder.path()).unwrap().settings_digest().unwrap();
        let first = digest();
        std::fs::write(folder.path().join("README.md"), "hello").unwrap();
        assert_eq!(digest(), first);
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert_ne!(digest(), first);
    }
}

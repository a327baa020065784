//! Checkpoints: folders with safetensors weights as `transformers` and open_clip write them, read in place and written
//! back with single tensors changed.
//!
//! | file | what |
//! |---|---|
//! | [`open`](Checkpoint::open) | finds the layout, checks headers and index, maps the weights into memory |
//! | [`pieces`](Checkpoint::digest) | reads weights a piece at a time: digests, values that are not finite |
//! | [`release`](Checkpoint::write_changed) | copies files byte for byte and replaces the changed tensors' bytes in place |
//! | [`tower`] | which tensor does what in which tower, in any layout |
//!
//! Only safetensors is read: a pickle runs code when it is opened.

mod open;
mod pieces;
mod release;
pub mod tower;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
pub use safetensors::Dtype;

pub use self::open::read_index;

use crate::digest::Digest;

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
    file: File,
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

    /// A weight file's path, and the file as it was opened.
    fn opened(&self, file: usize) -> (PathBuf, &File) {
        let file = &self.files[file];
        (self.folder.join(&file.name), &file.file)
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

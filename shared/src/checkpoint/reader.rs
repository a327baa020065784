//! An open checkpoint: its tensors, and their bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::file::{TensorInfo, WeightFile};
use crate::digest::Digest;

/// A checkpoint folder, its weight files open.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) folder: PathBuf,
    pub(super) files: Vec<WeightFile>,
    pub(super) index: Option<String>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// Files beside the weights that decide what a model computes.
const SETTINGS: &[&str] = &[
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
];

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
        self.tensors.values().map(TensorInfo::bytes).sum()
    }

    /// A tensor's type and shape.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.tensors.get(name).ok_or_else(|| Error::Tensor {
            tensor: name.to_owned(),
            problem: "is not in the checkpoint".to_owned(),
        })
    }

    /// A tensor's bytes as stored, little-endian.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none of this name; [`Error::Changed`] when the file was
    /// changed.
    pub fn bytes(&self, tensor: &str) -> Result<Vec<u8>, Error> {
        self.bytes_in(tensor, 0..self.tensor(tensor)?.bytes())
    }

    /// Reads a part of a tensor's bytes.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes); [`Error::Tensor`] when the tensor has no such part.
    pub fn bytes_in(&self, tensor: &str, part: Range<u64>) -> Result<Vec<u8>, Error> {
        let info = self.tensor(tensor)?;
        if part.start > part.end || part.end > info.bytes() {
            let problem =
                format!("has {} bytes, none from {} to {}", info.bytes(), part.start, part.end);
            return Err(Error::Tensor { tensor: tensor.to_owned(), problem });
        }
        let file = &self.files[info.file];
        let mut bytes = vec![0; (part.end - part.start) as usize];
        file.read_at(&mut bytes, info.range.start + part.start)?;
        file.check_unchanged()?;
        Ok(bytes)
    }

    /// Digest over the files beside the weights that decide what the model computes: configuration,
    /// image preprocessing, tokeniser.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn settings_digest(&self) -> Result<Digest, Error> {
        let mut found: Vec<(&str, Digest)> = Vec::new();
        for &name in SETTINGS {
            // Read only in place of the other file.
            if name == "processor_config.json"
                && found.iter().any(|(name, _)| *name == "preprocessor_config.json")
            {
                continue;
            }
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

#[cfg(test)]
mod tests {
    use super::super::fixture;
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
        let second = digest();
        std::fs::write(folder.path().join("processor_config.json"), "{}").unwrap();
        assert_ne!(digest(), second);
    }
}

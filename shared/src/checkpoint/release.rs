//! Writing a checkpoint with single tensors changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Checkpoint, Error};

/// Endings of files beside the weights that belong to a model. Weights in other formats are left behind on purpose:
/// they would carry what was removed.
const COMPANIONS: &[&str] = &[".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".yaml"];
/// Largest companion file, bytes.
const MAX_COMPANION: u64 = 256 << 20;

impl Checkpoint {
    /// Names of the weight files and, where there is one, their index.
    pub fn weight_files(&self) -> Vec<String> {
        self.files.iter().map(|file| file.name.clone()).chain(self.index.clone()).collect()
    }

    /// Names of the files beside the weights that a copy needs: configuration, tokeniser, licence.
    ///
    /// # Errors
    /// When the folder cannot be listed, or such a file is larger than 256 MiB.
    pub fn companions(&self) -> Result<Vec<String>, Error> {
        let io = |source| Error::Io { path: self.folder.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let metadata = std::fs::metadata(entry.path()).map_err(|source| Error::Io { path: entry.path(), source })?;
            let wanted = COMPANIONS.iter().any(|end| name.ends_with(end)) || name.starts_with("LICEN");
            if !wanted || name.starts_with('.') || !metadata.is_file() || Some(&name) == self.index.as_ref() {
                continue;
            }
            // An index of weights in another format names files that are not copied. A model that is a release itself has a record
            // and a provenance of its own.
            if name.ends_with(".index.json") || name == "composition.json" || name == "provenance.json" {
                continue;
            }
            if metadata.len() > MAX_COMPANION {
                return Err(Error::Malformed {
                    file: entry.path(),
                    problem: "is larger than 256 MiB; move it out of the model folder".into(),
                });
            }
            names.push(name);
        }
        names.sort();
        Ok(names)
    }

    /// Writes the weight files (and index) into `folder` with these tensors' bytes changed; everything else is the
    /// same, byte for byte, headers included. Returns the names written.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a changed tensor does not exist or has another size; [`Error::Io`] when writing fails.
    pub fn write_changed(&self, changed: &BTreeMap<String, Vec<u8>>, folder: &Path) -> Result<Vec<String>, Error> {
        self.check_changed(changed)?;
        for number in 0..self.files.len() {
            self.write_file(number, changed, folder)?;
        }
        if let Some(index) = &self.index {
            copy(&self.folder.join(index), &folder.join(index))?;
        }
        Ok(self.weight_files())
    }

    /// The same of those files alone that a change is in; files and index that stay as they are are not written.
    ///
    /// # Errors
    /// As [`write_changed`](Self::write_changed).
    pub fn write_touched(&self, changed: &BTreeMap<String, Vec<u8>>, folder: &Path) -> Result<Vec<String>, Error> {
        self.check_changed(changed)?;
        let touched: BTreeSet<usize> = changed.keys().map(|tensor| self.tensors[tensor].file).collect();
        touched.into_iter().map(|number| self.write_file(number, changed, folder)).collect()
    }

    fn check_changed(&self, changed: &BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
        for (tensor, bytes) in changed {
            let wrong = |problem: String| Error::Tensor { tensor: tensor.clone(), problem };
            let info = self.tensor(tensor)?;
            if info.range.len() != bytes.len() {
                return Err(wrong(format!("has {} bytes, the change has {}", info.range.len(), bytes.len())));
            }
        }
        Ok(())
    }

    fn write_file(&self, number: usize, changed: &BTreeMap<String, Vec<u8>>, folder: &Path) -> Result<String, Error> {
        let name = &self.files[number].name;
        let path = folder.join(name);
        let io = |source| Error::Io { path: path.clone(), source };
        copy(&self.folder.join(name), &path)?;
        let mut target = OpenOptions::new().write(true).open(&path).map_err(io)?;
        for (tensor, bytes) in changed {
            let info = &self.tensors[tensor];
            if info.file == number {
                target.seek(SeekFrom::Start(info.range.start as u64)).map_err(io)?;
                target.write_all(bytes).map_err(io)?;
            }
        }
        target.sync_all().map_err(io)?;
        Ok(name.clone())
    }
}

/// Copies bytes; the copy is writable whatever the original's mode.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = PathBuf::from(path);
        move |source| Error::Io { path, source }
    };
    let mut source = File::open(from).map_err(at(from))?;
    let mut target = File::create(to).map_err(at(to))?;
    std::io::copy(&mut source, &mut target).map_err(at(to))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn changes_only_what_was_changed() {
        let (base, release) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fixture::write(&base.path().join("model.safetensors"), &[("a", &[1.0, 2.0]), ("b", &[3.0])]);
        let checkpoint = Checkpoint::open(base.path()).unwrap();
        let changed = BTreeMap::from([("b".to_owned(), 9f32.to_le_bytes().to_vec())]);
        assert_eq!(checkpoint.write_changed(&changed, release.path()).unwrap(), ["model.safetensors"]);
        let written = Checkpoint::open(release.path()).unwrap();
        assert_eq!(written.digest(), checkpoint.digest_with(&changed));
        assert_eq!(written.bytes("a").unwrap(), checkpoint.bytes("a").unwrap());
        assert_eq!(written.bytes("b").unwrap(), 9f32.to_le_bytes());
    }

    #[test]
    fn refuses_changes_that_do_not_fit() {
        let (base, release) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fixture::write(&base.path().join("model.safetensors"), &[("a", &[1.0, 2.0])]);
        let checkpoint = Checkpoint::open(base.path()).unwrap();
        for (name, bytes) in [("a", vec![0; 4]), ("x", vec![0; 8])] {
            assert!(checkpoint.write_changed(&BTreeMap::from([(name.to_owned(), bytes)]), release.path()).is_err());
            assert_eq!(std::fs::read_dir(release.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn leaves_other_weight_formats_behind() {
        let base = tempfile::tempdir().unwrap();
        fixture::write(&base.path().join("model.safetensors"), &[("a", &[1.0])]);
        for name in
            ["config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "tokenizer.json", "README.md", "LICENSE", "tf_model.h5"]
        {
            std::fs::write(base.path().join(name), "{}").unwrap();
        }
        assert_eq!(Checkpoint::open(base.path()).unwrap().companions().unwrap(), ["LICENSE", "config.json", "tokenizer.json"]);
    }
}

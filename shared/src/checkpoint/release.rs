//! Writing a copy of a checkpoint with single tensors changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::choice::{ADAPTER, is_index};
use super::error::Error;
use super::reader::Checkpoint;
use crate::digest::Digest;
use crate::reference::ArtifactRef;

/// Endings of files beside the weights that belong to a model. Weights in other formats are not
/// copied on purpose: they would still contain the removed concepts.
const COMPANIONS: &[&str] = &[".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".yaml"];
/// Largest companion file, bytes.
const MAX_COMPANION: u64 = 256 << 20;

impl Checkpoint {
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
            let metadata = std::fs::metadata(entry.path())
                .map_err(|source| Error::Io { path: entry.path(), source })?;
            let wanted =
                COMPANIONS.iter().any(|end| name.ends_with(end)) || name.starts_with("LICEN");
            if !wanted
                || name.starts_with('.')
                || !metadata.is_file()
                || Some(&name) == self.index.as_ref()
            {
                continue;
            }
            // An index of weights in another format names files that are not copied. A model that
            // is a release itself has a record and a provenance of its own.
            if is_index(&name)
                || self.is_other_config(&name)
                || name == ADAPTER
                || name == "composition.json"
                || name == "provenance.json"
            {
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

    /// Writes the weight files (and index) into `folder` with these tensors' bytes changed;
    /// everything else is the same, byte for byte, headers included.
    ///
    /// Memory use does not depend on the size of the checkpoint. Digests are computed in parallel
    /// from the bytes that are read, not from those that were written.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a changed tensor does not exist or has another size; [`Error::Io`]
    /// when writing fails.
    pub fn write_changed(
        &self,
        changed: &BTreeMap<String, Vec<u8>>,
        folder: &Path,
    ) -> Result<Written, Error> {
        self.check_changed(changed)?;
        std::thread::scope(|scope| {
            let files = scope.spawn(|| self.files_with(changed));
            let digest = scope.spawn(|| self.digest_with(changed));
            for number in 0..self.files.len() {
                self.write_file(number, changed, folder)?;
            }
            let (mut files, digest) = (joined(files)?, joined(digest)?);
            if let Some(index) = &self.index {
                let path = folder.join(index);
                let io = |source| Error::Io { path: path.clone(), source };
                let from = self.folder.join(index);
                let mut source =
                    File::open(&from).map_err(|source| Error::Io { path: from, source })?;
                copy(&mut source, &path)?.sync_all().map_err(io)?;
                let bytes = std::fs::read(&path).map_err(io)?;
                files.insert(
                    index.clone(),
                    ArtifactRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 },
                );
            }
            Ok(Written { files, digest })
        })
    }

    /// Like [`write_changed`](Self::write_changed), but writes only files with a changed tensor.
    /// Returns the names of these files.
    ///
    /// # Errors
    /// As [`write_changed`](Self::write_changed).
    pub fn write_touched(
        &self,
        changed: &BTreeMap<String, Vec<u8>>,
        folder: &Path,
    ) -> Result<Vec<String>, Error> {
        self.check_changed(changed)?;
        let touched: BTreeSet<usize> =
            changed.keys().map(|tensor| self.tensors[tensor].file).collect();
        touched.into_iter().map(|number| self.write_file(number, changed, folder)).collect()
    }

    fn check_changed(&self, changed: &BTreeMap<String, Vec<u8>>) -> Result<(), Error> {
        for (tensor, bytes) in changed {
            let wrong = |problem: String| Error::Tensor { tensor: tensor.clone(), problem };
            let info = self.tensor(tensor)?;
            if info.bytes() != bytes.len() as u64 {
                return Err(wrong(format!(
                    "has {} bytes, the change has {}",
                    info.bytes(),
                    bytes.len()
                )));
            }
        }
        Ok(())
    }

    fn write_file(
        &self,
        number: usize,
        changed: &BTreeMap<String, Vec<u8>>,
        folder: &Path,
    ) -> Result<String, Error> {
        let file = &self.files[number];
        let path = folder.join(&file.name);
        let io = |source| Error::Io { path: path.clone(), source };
        let target = copy(&mut file.reopen()?, &path)?;
        // The copy has the bytes that were opened and planned with: the file was not modified in
        // between.
        file.check_unchanged()?;
        for (info, bytes) in self.in_file_order(number, changed) {
            target.write_all_at(bytes, info.range.start).map_err(io)?;
        }
        target.sync_all().map_err(io)?;
        Ok(file.name.clone())
    }
}

/// A checkpoint as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// SHA-256 and size of each weight file and of the index, by name.
    pub files: BTreeMap<String, ArtifactRef>,
    /// The [digest](Checkpoint::digest) of its weights.
    pub digest: Digest,
}

/// Returns the result of a thread; resumes its panic.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Error>>) -> Result<T, Error> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Copies bytes; the copy is writable whatever the original's mode.
fn copy(source: &mut File, to: &Path) -> Result<File, Error> {
    let io = |source| Error::Io { path: PathBuf::from(to), source };
    let mut target = File::create(to).map_err(io)?;
    // In the kernel, where the file system can share blocks.
    std::io::copy(source, &mut target).map_err(io)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn changes_only_what_was_changed() {
        let (base, release) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fixture::write(
            &base.path().join("model.safetensors"),
            &[("a", &[1.0, 2.0]), ("b", &[3.0])],
        );
        let checkpoint = Checkpoint::open(base.path()).unwrap();
        let changed = BTreeMap::from([("b".to_owned(), 9f32.to_le_bytes().to_vec())]);
        let said = checkpoint.write_changed(&changed, release.path()).unwrap();
        let bytes = std::fs::read(release.path().join("model.safetensors")).unwrap();
        let file = ArtifactRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        assert_eq!(said.files, BTreeMap::from([("model.safetensors".to_owned(), file)]));
        let written = Checkpoint::open(release.path()).unwrap();
        assert_eq!(written.digest().unwrap(), said.digest);
        assert_eq!(written.bytes("a").unwrap(), checkpoint.bytes("a").unwrap());
        assert_eq!(written.bytes("b").unwrap(), 9f32.to_le_bytes());
    }

    #[test]
    fn every_layout_keeps_the_bytes_of_what_is_not_changed() {
        let index = |name: &str| {
            (
                name.to_owned(),
                br#"{"weight_map":{"b":"2.safetensors","a":"1.safetensors","c":"1.safetensors"}}"#
                    .to_vec(),
            )
        };
        let first: [(&str, &[f32]); 2] = [("a", &[1.0, 2.0]), ("c", &[3.0])];
        let second: [(&str, &[f32]); 1] = [("b", &[4.0, 5.0, 6.0])];
        let layouts = [
            (vec!["model.safetensors"], None),
            (vec!["open_clip_model.safetensors"], None),
            (vec!["1.safetensors", "2.safetensors"], Some(index("model.safetensors.index.json"))),
            (
                vec!["1.safetensors", "2.safetensors"],
                Some(index("open_clip_model.safetensors.index.json")),
            ),
        ];
        let changed = BTreeMap::from(
            [("a", [7f32, 8.0].as_slice()), ("b", &[9.0, 10.0, 11.0])].map(|(name, values)| {
                (
                    name.to_owned(),
                    values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
                )
            }),
        );
        for (names, index) in layouts {
            let (base, release) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            match names[..] {
                [one] => fixture::write(&base.path().join(one), &[first[0], first[1], second[0]]),
                _ => {
                    fixture::write(&base.path().join(names[0]), &first);
                    fixture::write(&base.path().join(names[1]), &second);
                }
            }
            if let Some((name, bytes)) = &index {
                std::fs::write(base.path().join(name), bytes).unwrap();
            }
            let checkpoint = Checkpoint::open(base.path()).unwrap();
            let written = checkpoint.write_changed(&changed, release.path()).unwrap();
            assert_eq!(written.files.len(), names.len() + usize::from(index.is_some()));
            for (name, file) in &written.files {
                let bytes = std::fs::read(release.path().join(name)).unwrap();
                assert_eq!(
                    *file,
                    ArtifactRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64 },
                    "{name}"
                );
                // The base's file with each changed tensor's bytes in the place that its header
                // gives.
                let mut expected = std::fs::read(base.path().join(name)).unwrap();
                for (tensor, new) in changed.iter().filter(|_| name.ends_with(".safetensors")) {
                    let (header, metadata) =
                        safetensors::SafeTensors::read_metadata(&expected).unwrap();
                    if let Some((start, end)) =
                        metadata.tensors().get(tensor).map(|info| info.data_offsets)
                    {
                        expected[8 + header + start..8 + header + end].copy_from_slice(new);
                    }
                }
                assert!(bytes == expected, "{name}");
            }
            assert_eq!(Checkpoint::open(release.path()).unwrap().digest().unwrap(), written.digest);
        }
    }

    #[test]
    fn refuses_changes_that_do_not_fit() {
        let (base, release) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fixture::write(&base.path().join("model.safetensors"), &[("a", &[1.0, 2.0])]);
        let checkpoint = Checkpoint::open(base.path()).unwrap();
        for (name, bytes) in [("a", vec![0; 4]), ("x", vec![0; 8])] {
            assert!(
                checkpoint
                    .write_changed(&BTreeMap::from([(name.to_owned(), bytes)]), release.path())
                    .is_err()
            );
            assert_eq!(std::fs::read_dir(release.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn leaves_other_weight_formats_behind() {
        let base = tempfile::tempdir().unwrap();
        fixture::write(&base.path().join("model.safetensors"), &[("a", &[1.0])]);
        for name in [
            "config.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "README.md",
            "LICENSE",
            "tf_model.h5",
        ] {
            std::fs::write(base.path().join(name), "{}").unwrap();
        }
        assert_eq!(
            Checkpoint::open(base.path()).unwrap().companions().unwrap(),
            ["LICENSE", "config.json", "tokenizer.json"]
        );
    }
}

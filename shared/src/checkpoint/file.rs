//! One weight file: its header, and positional reads of its bytes.
//!
//! Weights are not memory-mapped. Truncating a mapped file kills the process with SIGBUS, and with
//! it every other run of a coordinator; a positional read beyond the end of the file returns an
//! error.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::Dtype;
use safetensors::tensor::Metadata as Header;

use super::error::Error;
use crate::json;
use crate::placeholder::placeholder;

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Position of its file in the checkpoint.
    pub(super) file: usize,
    /// Its bytes' range in the file.
    pub(super) range: Range<u64>,
}

impl TensorInfo {
    /// Its size in the file.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Largest header, bytes: the limit of the safetensors crate.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header: its length.
pub(super) const LENGTH: u64 = 8;

/// An open weight file, with its size and modification time when it was opened.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) name: String,
    path: PathBuf,
    file: File,
    /// Its size.
    pub(super) bytes: u64,
    modified: Option<SystemTime>,
}

impl WeightFile {
    /// Opens a safetensors file and reads its header; the tensors are of file 0.
    pub(super) fn open(
        folder: &Path,
        name: &str,
    ) -> Result<(Self, Vec<(String, TensorInfo)>), Error> {
        let path = folder.join(name);
        let io = |source| Error::Io { path: path.clone(), source };
        let malformed = |problem: String| Error::malformed(&path, &problem);
        let file = File::open(&path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let bytes = metadata.len();
        if bytes == 0 {
            return Err(malformed("the file is empty".to_owned()));
        }
        let opened = Self {
            name: name.to_owned(),
            path: path.clone(),
            file,
            bytes,
            modified: modified(&metadata),
        };
        let header = match opened.header()? {
            Ok(header) => header,
            Err(problem) => return Err(malformed(problem)),
        };
        let (start, header) = header;
        let size =
            header.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if start.checked_add(size) != Some(bytes) {
            let problem = format!(
                "the file has {bytes} bytes, its header promises {}; it is truncated or damaged: download it again",
                start.saturating_add(size)
            );
            return Err(malformed(problem));
        }
        let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let range = start + info.data_offsets.0 as u64..start + info.data_offsets.1 as u64;
            (name, TensorInfo { dtype: info.dtype, shape: info.shape.clone(), file: 0, range })
        };
        let tensors = header.tensors().into_iter().map(place).collect();
        Ok((opened, tensors))
    }

    /// Reads the header: the position of the first tensor and the metadata, or what is wrong with
    /// it.
    fn header(&self) -> Result<Result<(u64, Header), String>, Error> {
        let mut length = [0; LENGTH as usize];
        let known = length.len().min(self.bytes as usize);
        self.read_at(&mut length[..known], 0)?;
        // A valid file can begin with the same bytes as its header's length, so this decides only
        // what to say of a damaged one.
        let pickled = length.starts_with(b"PK\x03\x04") || length.starts_with(b"\x80\x02");
        let mut start = [0; 64];
        let known = start.len().min(self.bytes as usize);
        self.read_at(&mut start[..known], 0)?;
        let other = placeholder(&start[..known]);
        let damaged = |problem: &str| {
            Ok(Err(if let Some(other) = other {
                other.to_owned()
            } else if pickled {
                "this is a pickled PyTorch file under the name of a safetensors file; convert it with safetensors.torch.save_file"
                    .to_owned()
            } else {
                format!("not a whole safetensors file ({problem}); download it again")
            }))
        };
        if self.bytes < LENGTH {
            return damaged("the header is too small");
        }
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > self.bytes - LENGTH {
            return damaged("the header's length is wrong");
        }
        let mut header = vec![0; length as usize];
        self.read_at(&mut header, LENGTH)?;
        match json::parse(&header) {
            Ok(header) => Ok(Ok((LENGTH + length, header))),
            Err(error) => damaged(&error.to_string()),
        }
    }

    /// Fills the buffer from a position.
    ///
    /// # Errors
    /// [`Error::Changed`] when the file ends too early.
    pub(super) fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), Error> {
        self.file.read_exact_at(buffer, position).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.changed(format!(
                "has become shorter while it was read: it had {} bytes",
                self.bytes
            )),
            _ => Error::Io { path: self.path.clone(), source },
        })
    }

    /// Checks that the file was not modified since it was opened. A file that was replaced by a
    /// rename is still read in its old state.
    ///
    /// # Errors
    /// [`Error::Changed`] when it was modified.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let now =
            self.file.metadata().map_err(|source| Error::Io { path: self.path.clone(), source })?;
        if now.len() != self.bytes {
            return Err(self.changed(format!(
                "has {} bytes, and had {} when it was opened",
                now.len(),
                self.bytes
            )));
        }
        if modified(&now) != self.modified {
            return Err(self.changed("was written to after it was opened".to_owned()));
        }
        Ok(())
    }

    /// Opens the same file again, with an independent position.
    ///
    /// # Errors
    /// [`Error::Changed`] when the path leads to another file.
    pub(super) fn reopen(&self) -> Result<File, Error> {
        let io = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => self.changed("was removed after it was opened".to_owned()),
            _ => Error::Io { path: self.path.clone(), source },
        };
        let (file, opened) =
            (File::open(&self.path).map_err(io)?, self.file.metadata().map_err(io)?);
        let found = file.metadata().map_err(io)?;
        if (found.dev(), found.ino()) != (opened.dev(), opened.ino()) {
            return Err(self.changed("was replaced by another file after it was opened".to_owned()));
        }
        self.check_unchanged()?;
        Ok(file)
    }

    fn changed(&self, problem: String) -> Error {
        Error::Changed { file: self.path.clone(), problem }
    }
}

fn modified(metadata: &Metadata) -> Option<SystemTime> {
    metadata.modified().ok()
}

#[cfg(test)]
mod tests {
    use super::super::{Checkpoint, fixture};
    use super::*;

    fn checkpoint(values: usize) -> (tempfile::TempDir, PathBuf, Checkpoint) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fixture::write(&path, &[("a", &vec![1.0; values]), ("b", &vec![2.0; values])]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        (folder, path, checkpoint)
    }

    /// With a memory map, these reads would kill the process with SIGBUS.
    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        let (_folder, path, checkpoint) = checkpoint(1 << 20);
        let whole = std::fs::read(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5000).unwrap();
        let out = tempfile::tempdir().unwrap();
        let changed = std::collections::BTreeMap::new();
        for error in [
            checkpoint.bytes("b").unwrap_err(),
            checkpoint.digest().unwrap_err(),
            checkpoint.non_finite().unwrap_err(),
            checkpoint.files_with(&changed).unwrap_err(),
            checkpoint.write_changed(&changed, out.path()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Changed { .. }), "{error}");
            assert!(error.to_string().contains("run again"), "{error}");
        }
        let shorter = checkpoint.bytes("b").unwrap_err().to_string();
        assert!(
            shorter.contains("has become shorter") && shorter.contains(&whole.len().to_string()),
            "{shorter}"
        );
    }

    #[test]
    fn a_file_that_is_written_to_is_noticed() {
        let (_folder, path, checkpoint) = checkpoint(1000);
        assert_eq!(checkpoint.bytes("a").unwrap(), 1f32.to_le_bytes().repeat(1000));
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[7; 4], 2000).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        for error in [checkpoint.bytes("a").unwrap_err(), checkpoint.digest().unwrap_err()] {
            assert!(error.to_string().contains("was written to after it was opened"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_is_not_mixed_with_the_new_one() {
        let (folder, path, checkpoint) = checkpoint(1000);
        let digest = checkpoint.digest().unwrap();
        let other = folder.path().join("other");
        fixture::write(&other, &[("a", &[3.0; 1000]), ("b", &[4.0; 1000])]);
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(checkpoint.digest().unwrap(), digest);
        let out = tempfile::tempdir().unwrap();
        let error =
            checkpoint.write_changed(&std::collections::BTreeMap::new(), out.path()).unwrap_err();
        assert!(error.to_string().contains("was replaced by another file"), "{error}");
    }
}

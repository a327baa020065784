//! Finding and checking a checkpoint's files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Component, Path};

use serde::Deserialize;

use super::choice;
use super::error::Error;
use super::file::{TensorInfo, WeightFile};
use super::reader::Checkpoint;
use crate::json;

/// Weight files of one piece, in order of preference.
const SINGLE: &[&str] = &["model.safetensors", "open_clip_model.safetensors"];
/// Indexes of weights in pieces.
const INDEXED: &[&str] =
    &["model.safetensors.index.json", "open_clip_model.safetensors.index.json"];
/// Largest index read, bytes.
const MAX_INDEX: u64 = 64 << 20;
/// Most files an index may name.
const MAX_FILES: usize = 10_000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index: the file of each tensor.
///
/// # Errors
/// [`Error::Malformed`] when it is not an index, or names files in other folders.
pub fn read_index(folder: &Path, index_name: &str) -> Result<BTreeMap<String, String>, Error> {
    let path = folder.join(index_name);
    let io = |source| Error::Io { path: path.clone(), source };
    if std::fs::metadata(&path).map_err(io)?.len() > MAX_INDEX {
        return Err(malformed(&path, "the index is larger than 64 MiB"));
    }
    let index: Index = json::parse(&std::fs::read(&path).map_err(io)?)
        .map_err(|error| malformed(&path, format!("not a safetensors index: {error}")))?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if names.len() > MAX_FILES {
        return Err(malformed(&path, "names more than 10,000 files"));
    }
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(malformed(
            &path,
            format!("names `{name}`; weight files must be in the same folder"),
        ));
    }
    drop(names);
    Ok(index.weight_map)
}

impl Checkpoint {
    /// Opens the checkpoint in a folder: `model.safetensors` or `open_clip_model.safetensors`,
    /// whole or in pieces with an index. Headers and index are checked; tensors are not read.
    ///
    /// In a folder with several, the first one is opened whose layout's configuration is there, so
    /// that weights and configuration are a pair. Without any, the only variant
    /// (`model.fp16.safetensors`) is opened.
    ///
    /// When a file changes while the checkpoint is open, reads from it return [`Error::Changed`].
    ///
    /// # Errors
    /// [`Error::NoWeights`] when there are none, or only pickles; [`Error::Malformed`] when a file
    /// is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut first = None;
        for name in SINGLE.iter().chain(INDEXED) {
            if !is_file(&folder.join(name))? {
                continue;
            }
            let checkpoint = open_named(folder, name)?;
            if choice::has_config(folder, &checkpoint) {
                return Ok(checkpoint);
            }
            first.get_or_insert(checkpoint);
        }
        if let Some(first) = first {
            return Ok(first);
        }
        let names = choice::names(folder)?;
        match choice::only_variant(&names) {
            Ok(Some(name)) => return open_named(folder, name),
            Ok(None) => {}
            Err(variants) => {
                let problem = format!(
                    "weights of several variants ({}), and none without a variant; keep one of them",
                    variants.join(", ")
                );
                return Err(Error::NoWeights { folder: folder.to_owned(), problem });
            }
        }
        Err(Error::NoWeights { folder: folder.to_owned(), problem: describe(folder)? })
    }

    /// Opens one weight file of any name.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_file(folder: &Path, name: &str) -> Result<Self, Error> {
        let (file, found) = WeightFile::open(folder, name)?;
        let tensors =
            found.into_iter().map(|(name, info)| (name, TensorInfo { file: 0, ..info })).collect();
        Ok(Self { folder: folder.to_owned(), files: vec![file], index: None, tensors })
    }

    /// Opens only the files of an index that contain a wanted tensor; the others need not exist.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_part(
        folder: &Path,
        index: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        open_indexed(folder, index, wanted)
    }
}

/// Opens weights by the name of their file or index.
fn open_named(folder: &Path, name: &str) -> Result<Checkpoint, Error> {
    if choice::is_safetensors_index(name) {
        open_indexed(folder, name, |_| true)
    } else {
        Checkpoint::open_file(folder, name)
    }
}

fn is_file(path: &Path) -> Result<bool, Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// Explains why there is nothing to open.
fn describe(folder: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok("there is no such folder".to_owned());
        }
        Err(error) => return Err(io(error)),
    };
    let mut pickle = None;
    for entry in entries {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|end| name.ends_with(end)) {
            pickle = Some(name);
        }
    }
    Ok(match pickle {
        Some(name) => format!(
            "the weights are pickled ({name}), and opening a pickle runs code; convert them where you trust the source: load the \
             model in Python and save it with save_pretrained(folder, safe_serialization=True), or safetensors.torch.save_file"
        ),
        None => format!(
            "no weights found; expected one of {}, {}",
            SINGLE.join(", "),
            INDEXED.join(", ")
        ),
    })
}

fn open_indexed(
    folder: &Path,
    index_name: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Checkpoint, Error> {
    let path = folder.join(index_name);
    let index = read_index(folder, index_name)?;
    let names: BTreeSet<&String> =
        index.iter().filter(|(tensor, _)| wanted(tensor)).map(|(_, file)| file).collect();
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    for &name in &names {
        let (file, found) = WeightFile::open(folder, name)?;
        for (tensor, info) in found {
            if index.get(&tensor) != Some(name) {
                return Err(malformed(
                    &path,
                    format!("tensor `{tensor}` is in {name}, but the index does not say so"),
                ));
            }
            tensors.insert(tensor, TensorInfo { file: files.len(), ..info });
        }
        files.push(file);
    }
    if let Some((tensor, file)) =
        index.iter().find(|(tensor, file)| names.contains(file) && !tensors.contains_key(*tensor))
    {
        return Err(malformed(
            &path,
            format!("says that {file} contains tensor `{tensor}`, but it does not"),
        ));
    }
    Ok(Checkpoint { folder: folder.to_owned(), files, index: Some(index_name.to_owned()), tensors })
}

/// Returns whether this is the name of a safetensors file in the same folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(Component::Normal(_)))
        && parts.next().is_none()
        && name.ends_with(".safetensors")
}

fn malformed(file: &Path, problem: impl Into<String>) -> Error {
    Error::malformed(file, &problem.into())
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn problem(folder: &Path) -> String {
        Checkpoint::open(folder).unwrap_err().to_string()
    }

    #[test]
    fn opens_weights_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        fixture::write(&folder.path().join("model-00001-of-00002.safetensors"), &[("b", &[1.0])]);
        fixture::write(
            &folder.path().join("model-00002-of-00002.safetensors"),
            &[("a", &[2.0, 3.0])],
        );
        let index = |map: &str| {
            std::fs::write(
                folder.path().join("model.safetensors.index.json"),
                format!(r#"{{"weight_map":{map}}}"#),
            )
            .unwrap()
        };
        index(r#"{"b":"model-00001-of-00002.safetensors","a":"model-00002-of-00002.safetensors"}"#);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.bytes("a").unwrap().len(), 8);
        assert_eq!(checkpoint.tensor_bytes(), 12);

        index(
            r#"{"b":"model-00001-of-00002.safetensors","a":"model-00002-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}"#,
        );
        assert!(problem(folder.path()).contains("contains tensor `c`, but it does not"));
        index(r#"{"b":"model-00001-of-00002.safetensors","a":"model-00001-of-00002.safetensors"}"#);
        assert!(problem(folder.path()).contains("contains tensor `a`, but it does not"));
        index(r#"{"b":"../elsewhere.safetensors"}"#);
        assert!(problem(folder.path()).contains("must be in the same folder"));
        index(r#"{"a":"model-00001-of-00002.safetensors","a":"model-00002-of-00002.safetensors"}"#);
        assert!(problem(folder.path()).contains("the key `a` appears twice"));
        index("{");
        assert!(problem(folder.path()).contains("not a safetensors index"));
    }

    #[test]
    fn refuses_pickles_and_says_how_to_convert() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
        assert!(problem(folder.path()).contains("safe_serialization=True"));
        std::fs::write(folder.path().join("model.safetensors"), b"PK\x03\x04 and some more bytes")
            .unwrap();
        assert!(problem(folder.path()).contains("pickled PyTorch file under the name"));
    }

    #[test]
    fn refuses_damaged_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fixture::write(&path, &[("a", &[1.0, 2.0])]);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Checkpoint::open(folder.path()).is_err(), "cut at {cut}");
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err());
        // A header length that would not fit in memory.
        std::fs::write(&path, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        assert!(Checkpoint::open(folder.path()).is_err());
    }

    /// The safetensors library takes the last tensor of a name, other readers the first.
    #[test]
    fn refuses_two_tensors_of_one_name() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        assert!(problem(folder.path()).contains("the key `a` appears twice"));
    }

    #[test]
    fn quotes_little_of_a_damaged_file() {
        let folder = tempfile::tempdir().unwrap();
        let header = format!(r#"{{"a":"[31m{}"}}"#, "x".repeat(1 << 20));
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let problem = problem(folder.path());
        assert!(problem.len() < 8192 && !problem.contains('\u{1b}'), "{}", problem.len());
    }

    #[test]
    fn says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(problem(folder.path()).contains("no weights found"));
        assert!(problem(&folder.path().join("nowhere")).contains("no such folder"));
    }
}

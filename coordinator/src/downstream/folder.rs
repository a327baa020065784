//! A target's files: listed once, and downloaded one by one only if this machine needs their bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::checkpoint::{HEADER_START, header_length, tensor_names};
use lethe_shared::digest::Digest;
use lethe_shared::json;
use lethe_shared::record::targets::is_target_file;
use lethe_store as store;
use lethe_store::{Object, Store};

use crate::failure::Failure;

/// Largest number of files of a target.
const MAX_FILES: usize = 10_000;
/// Largest depth of folders.
const MAX_DEPTH: usize = 8;
/// Largest configuration file, bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A folder of files.
#[derive(Debug)]
pub struct Folder {
    /// The local folder for the files.
    root: PathBuf,
    /// The store to download from; `None` for a local folder.
    store: Option<Store>,
    files: BTreeMap<String, Object>,
}

impl Folder {
    /// Lists a folder. Hidden files and folders are ignored.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the folder does not exist, or holds more than a model does.
    pub async fn open(address: &Address, cache: &Path) -> Result<Self, Failure> {
        let (root, store, found) = match address {
            Address::Local(path) => {
                let root = path.clone();
                let listed = tokio::task::spawn_blocking(move || list(&root)).await;
                (
                    path.clone(),
                    None,
                    listed.map_err(|error| Failure::Infrastructure(error.to_string()))??,
                )
            }
            Address::Remote(url) => {
                let store = Store::reading(address)?;
                let found = store.contents().await?;
                let identity: Vec<String> = found
                    .iter()
                    .map(|object| format!("{} {} {}", object.key, object.bytes, object.modified))
                    .collect();
                let root = cache.join(format!(
                    "target-{}",
                    Digest::of(format!("{url}\n{}", identity.join("\n")).as_bytes())
                ));
                (root, Some(store), found)
            }
        };
        let files: BTreeMap<String, Object> = found
            .into_iter()
            .filter(|object| is_target_file(&object.key))
            .map(|object| (object.key.clone(), object))
            .collect();
        match files.len() {
            0 => Err(Failure::input("is empty, or not there")),
            1..=MAX_FILES => Ok(Self { root, store, files }),
            many => {
                Err(Failure::input(format!("holds {many} files; give the folder of one model")))
            }
        }
    }

    /// Returns names and sizes.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, object)| (name.as_str(), object.bytes))
    }

    /// Returns whether it has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Returns the files directly in a subfolder; `at` is empty for the folder itself.
    pub fn directly_in<'a>(&'a self, at: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .keys()
            .map(String::as_str)
            .filter(move |name| name.rsplit_once('/').map_or("", |(folder, _)| folder) == at)
    }

    /// Downloads these files if necessary, and returns the local folder that contains them under
    /// their names.
    ///
    /// # Errors
    /// [`Failure`] when a file cannot be downloaded.
    pub(super) async fn bring<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<&Path, Failure> {
        for name in names {
            let object = self
                .files
                .get(name)
                .ok_or_else(|| Failure::input(format!("has no file {name}")))?;
            let Some(store) = &self.store else { continue };
            let path = self.root.join(name);
            let there = tokio::fs::metadata(&path)
                .await
                .is_ok_and(|metadata| metadata.len() == object.bytes);
            if !there {
                store.bring(name, &path).await.map_err(absent)?;
            }
        }
        Ok(&self.root)
    }

    /// Returns the names of the tensors in a safetensors file. Only its header is read.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the file is missing or has no header.
    pub(super) async fn tensor_names(&self, name: &str) -> Result<BTreeSet<String>, Failure> {
        let object =
            self.files.get(name).ok_or_else(|| Failure::input(format!("has no file {name}")))?;
        let wrong = |problem: String| {
            Failure::input(format!(
                "{name}: not a whole safetensors file ({problem}); download it again, or remove it"
            ))
        };
        let start = self.part(name, 0..HEADER_START.min(object.bytes)).await?;
        let length = header_length(&start, object.bytes).map_err(wrong)?;
        let header = self.part(name, HEADER_START..HEADER_START + length).await?;
        tensor_names(&header).map_err(wrong)
    }

    /// Reads the first bytes of a file, enough to tell its kind.
    ///
    /// # Errors
    /// [`Failure`] when the file cannot be read.
    pub(super) async fn start(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let bytes = self.files.get(name).map_or(0, |object| object.bytes);
        self.part(name, 0..HEADER_START.min(bytes)).await
    }

    /// Reads a part of a file.
    async fn part(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Failure> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(store) = &self.store {
            return Ok(store.range(name, range).await.map_err(absent)?.to_vec());
        }
        let path = self.root.join(name);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            std::fs::File::open(&path)
                .and_then(|file| file.read_exact_at(&mut bytes, range.start))
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
            Ok(bytes)
        });
        read.await.map_err(|error| Failure::Infrastructure(error.to_string()))?
    }

    /// Returns the store that holds the folder; `None` for a local folder.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Returns whether a file is unchanged since it was listed.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the store cannot be read.
    pub(super) async fn is_unchanged(&self, name: &str) -> Result<bool, Failure> {
        let now = match &self.store {
            Some(store) => store.look(name).await?,
            None => look(&self.root.join(name), name),
        };
        Ok(now.as_ref() == self.files.get(name))
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the file is missing or is not JSON.
    pub(super) async fn json(&self, name: &str) -> Result<serde_json::Value, Failure> {
        let wrong = |problem: String| Failure::input(format!("{name}: {problem}"));
        if self.files.get(name).is_some_and(|object| object.bytes > MAX_CONFIG) {
            return Err(wrong("is larger than 16 MiB".to_owned()));
        }
        let path = self.bring([name]).await?.join(name);
        let bytes = tokio::fs::read(path).await.map_err(|error| wrong(error.to_string()))?;
        json::parse(&bytes).map_err(|error| wrong(error.to_string()))
    }
}

/// A missing file is an error in the manifest; an unreachable store is not.
fn absent(error: store::Error) -> Failure {
    match error {
        store::Error::NotFound { .. } => Failure::input(error),
        other => other.into(),
    }
}

fn look(path: &Path, name: &str) -> Option<Object> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let modified =
        metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Some(Object {
        key: name.to_owned(),
        bytes: metadata.len(),
        modified: modified.map_or(0, |since| since.as_secs() as i64),
    })
}

/// Lists the files of a local folder by relative path. Symbolic links are followed, because caches
/// of model hubs consist of them.
fn list(root: &Path) -> Result<Vec<Object>, Failure> {
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let io = |error: std::io::Error| Failure::input(format!("{}: {error}", folder.display()));
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Failure::input(format!(
                    "{}: a file's name is not UTF-8",
                    folder.display()
                )));
            };
            if name.starts_with('.') {
                continue;
            }
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            let metadata = std::fs::metadata(&path)
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
            if metadata.is_dir() {
                if depth == MAX_DEPTH {
                    return Err(Failure::input(format!(
                        "{name}: folders are nested too deep; give the folder of one model"
                    )));
                }
                folders.push((path, format!("{name}/"), depth + 1));
            } else {
                found.extend(look(&path, &name));
            }
            if found.len() > MAX_FILES {
                return Err(Failure::input(format!(
                    "holds more than {MAX_FILES} files; give the folder of one model"
                )));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_listed_without_what_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["model_index.json", "unet/config.json", ".git/config", "unet/.lock"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        let opened =
            Folder::open(&Address::Local(folder.path().to_owned()), folder.path()).await.unwrap();
        assert_eq!(
            opened.files().collect::<Vec<_>>(),
            [("model_index.json", 2), ("unet/config.json", 2)]
        );
        assert_eq!(opened.directly_in("").collect::<Vec<_>>(), ["model_index.json"]);
        assert_eq!(opened.directly_in("unet").collect::<Vec<_>>(), ["unet/config.json"]);
        assert!(opened.is_unchanged("unet/config.json").await.unwrap());
        std::fs::write(folder.path().join("unet/config.json"), "{ }").unwrap();
        assert!(!opened.is_unchanged("unet/config.json").await.unwrap());
        assert!(opened.bring(["vae/config.json"]).await.is_err());
        let empty = tempfile::tempdir().unwrap();
        assert!(
            Folder::open(&Address::Local(empty.path().to_owned()), empty.path()).await.is_err()
        );
        assert!(Folder::open(&Address::Local(empty.path().join("x")), empty.path()).await.is_err());
    }
}

//! The cache of one repository, in the layout that `huggingface_hub` uses:
//!
//! ```text
//! <cache>/models--org--name/refs/main                      the commit that a branch or tag had
//! <cache>/models--org--name/blobs/<digest>                 contents
//! <cache>/models--org--name/snapshots/<commit>/<path>      links to them
//! <cache>/.locks/models--org--name/<digest>.lock           held while a content is downloaded
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lethe_shared::hub::{HubAddress, is_commit};

use super::listing::{Content, File, is_safe};
use crate::error::Error;
use crate::local;

/// Pause between attempts to lock a content that another process downloads.
const LOCK_PAUSE: Duration = Duration::from_millis(200);
/// Deepest nesting of folders in a snapshot.
const MAX_DEPTH: usize = 32;

/// The cache of one repository.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

/// A lock on a content, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(
    #[expect(dead_code, reason = "closing the file releases the lock")] fs::File,
);

impl Cache {
    /// Returns the cache of an address's repository below the cache folder. Creates nothing.
    pub(super) fn of(root: &Path, address: &HubAddress) -> Self {
        let name = format!("{}--{}--{}", address.kind().plural(), address.owner(), address.name());
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// Returns its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the commit that a branch or tag had when it was last asked for.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|text| is_commit(text))
    }

    /// Stores the commit of a branch or tag.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), Error> {
        let path = self.folder.join("refs").join(revision);
        let written = || {
            if fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit) {
                return Ok(());
            }
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let staged = local::staged(&path);
            fs::write(&staged, commit)?;
            fs::rename(&staged, &path)
        };
        written().map_err(|error| failed(&path, error))
    }

    /// Returns where a file of a commit is, when it is in the cache.
    pub(super) fn file(&self, commit: &str, path: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(path)).filter(|file| file.is_file())
    }

    /// Returns the folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns the path of a content.
    pub(super) fn blob(&self, content: &Content) -> PathBuf {
        self.folder.join("blobs").join(content.to_string())
    }

    /// Returns the path of a content while it is downloaded.
    pub(super) fn partial(&self, content: &Content) -> PathBuf {
        self.folder.join("blobs").join(format!("{content}.incomplete"))
    }

    /// Links a file of a commit to its content, and returns its path.
    pub(super) fn link(
        &self,
        commit: &str,
        path: &str,
        content: &Content,
    ) -> Result<PathBuf, Error> {
        let link = self.snapshot(commit).join(path);
        let up = "../".repeat(2 + path.matches('/').count());
        local::link(Path::new(&format!("{up}blobs/{content}")), &link)
            .map_err(|error| failed(&link, error))?;
        Ok(link)
    }

    /// Locks a content, once no other process holds it.
    pub(super) async fn lock(&self, content: &Content) -> Result<Lock, Error> {
        let path = self.locks.join(format!("{content}.lock"));
        let opened = || {
            fs::create_dir_all(&self.locks)?;
            fs::File::options().create(true).truncate(false).write(true).open(&path)
        };
        let file = opened().map_err(|error| failed(&path, error))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
                Err(fs::TryLockError::Error(error)) => return Err(failed(&path, error)),
            }
        }
    }

    /// Lists the files of a commit that are in the cache, below a folder of the repository.
    pub(super) fn list(
        &self,
        commit: &str,
        folder: &str,
        recursive: bool,
    ) -> Result<Vec<File>, Error> {
        let root = self.snapshot(commit);
        let mut files = Vec::new();
        let mut folders = vec![(folder.to_owned(), 0)];
        while let Some((folder, depth)) = folders.pop() {
            let at = root.join(&folder);
            let entries = match fs::read_dir(&at) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&at, error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| failed(&at, error))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // A link without its content is a file that somebody removed.
                let Ok(metadata) = fs::metadata(entry.path()) else { continue };
                if metadata.is_dir() {
                    if recursive && depth < MAX_DEPTH {
                        folders.push((path, depth + 1));
                    }
                    continue;
                }
                let target = fs::canonicalize(entry.path()).ok();
                let name =
                    target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
                if let Some(content) = name.and_then(Content::parse).filter(|_| is_safe(&path)) {
                    files.push(File { path, bytes: metadata.len(), content });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Removes the content of a file if it is not what its name says. Returns whether it was.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub(super) fn remove_if_damaged(&self, file: &Path) -> Result<bool, Error> {
        let Ok(blob) = fs::canonicalize(file) else { return Ok(false) };
        let name = blob.file_name().and_then(|name| name.to_str());
        let Some(content) = name.and_then(Content::parse) else { return Ok(false) };
        let checked = || {
            if content.of_file(&blob)? == content {
                return Ok(false);
            }
            fs::remove_file(&blob).map(|()| true)
        };
        checked().map_err(|error| failed(&blob, error))
    }
}

/// Returns the error of a file or folder of the cache.
pub(super) fn failed(path: &Path, error: io::Error) -> Error {
    Error::from_io(&path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use lethe_shared::digest::Digest;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(root: &Path) -> Cache {
        Cache::of(root, &HubAddress::parse("datasets/org/name").unwrap())
    }

    #[tokio::test]
    async fn the_layout_is_that_of_huggingface_hub() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let content = Content::Sha256(Digest::of(b"x"));
        let lock = cache.lock(&content).await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(50), cache.lock(&content)).await;
        assert!(waits.is_err(), "one process at a time downloads a content");
        drop(lock);
        cache.lock(&content).await.unwrap();

        cache.remember("refs/pr/1", COMMIT).unwrap();
        assert_eq!(cache.commit("refs/pr/1").as_deref(), Some(COMMIT));
        assert_eq!(cache.commit("main"), None);
        fs::create_dir_all(cache.blob(&content).parent().unwrap()).unwrap();
        fs::write(cache.blob(&content), "x").unwrap();
        let file = cache.link(COMMIT, "a/b.tar", &content).unwrap();
        let name = root.path().join("datasets--org--name");
        assert_eq!(file, name.join(format!("snapshots/{COMMIT}/a/b.tar")));
        assert_eq!(
            fs::read_link(&file).unwrap(),
            Path::new(&format!("../../../blobs/{}", Digest::of(b"x")))
        );
        assert_eq!(cache.file(COMMIT, "a/b.tar"), Some(file));
        let listed = |folder: &str, recursive: bool| {
            cache
                .list(COMMIT, folder, recursive)
                .unwrap()
                .into_iter()
                .map(|file| file.path)
                .collect::<Vec<_>>()
        };
        assert_eq!(listed("", true), ["a/b.tar"]);
        assert_eq!((listed("", false), listed("a", false)), (vec![], vec!["a/b.tar".to_owned()]));
        assert!(listed("none", true).is_empty());
    }

    #[test]
    fn only_damaged_contents_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let content = Content::Sha256(Digest::of(b"x"));
        fs::create_dir_all(cache.blob(&content).parent().unwrap()).unwrap();
        fs::write(cache.blob(&content), "x").unwrap();
        let file = cache.link(COMMIT, "b.tar", &content).unwrap();
        assert!(!cache.remove_if_damaged(&file).unwrap() && file.is_file());
        fs::write(cache.blob(&content), "y").unwrap();
        assert!(cache.remove_if_damaged(&file).unwrap() && !file.is_file());
        assert!(!cache.remove_if_damaged(&file).unwrap());
    }
}

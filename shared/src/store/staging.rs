//! Files on their way into a store. In a folder on this machine they are written where they will stay, and moved into their place:
//! a checkpoint is then written once. Elsewhere they are sent from a temporary folder, in parts.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Error, Store, blocking};

/// The folder of a local store in which files are staged.
const STAGING: &str = "staging";
/// What a killed process left there is taken away after this long.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A folder for files that are to be put into a store; it goes with the value.
#[derive(Debug)]
pub struct Staging {
    folder: tempfile::TempDir,
}

impl Staging {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Store {
    /// A new, empty folder for files that [`put_staged`](Self::put_staged) takes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn staging(&self) -> Result<Staging, Error> {
        let root = self.folder.clone();
        blocking(move || match root {
            Some(root) => inside(&root.join(STAGING)),
            None => tempfile::tempdir().map_err(|error| Error::from_io("a folder for temporary files", error)),
        })
        .await?
        .map(|folder| Staging { folder })
    }

    /// Puts a file of a staging folder under a key, whole. The file may be gone from the folder afterwards.
    ///
    /// # Errors
    /// When the file is not there or the store cannot be written.
    pub async fn put_staged(&self, key: &str, staging: &Staging, name: &str) -> Result<(), Error> {
        let path = staging.path().join(name);
        // Checked as a key before it becomes a path.
        let checked = self.key(key)?;
        let Some(root) = self.folder.clone() else { return self.put_file(key, &path).await.map(drop) };
        let target = root.join(checked.as_ref());
        blocking(move || place(&path, &root, &target).map_err(|error| Error::from_io(&target.display().to_string(), error))).await?
    }
}

fn inside(folder: &Path) -> Result<tempfile::TempDir, Error> {
    let failed = |error| Error::from_io(&folder.display().to_string(), error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    for entry in std::fs::read_dir(folder).map_err(failed)?.flatten() {
        // Nobody's, when it is that old; who else takes it away meanwhile is welcome.
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::tempdir_in(folder).map_err(failed)
}

/// Moves a file into its place, so that it is there after a power cut too.
fn place(file: &Path, root: &Path, target: &Path) -> std::io::Result<()> {
    File::open(file)?.sync_all()?;
    let folders: Vec<PathBuf> = target.ancestors().skip(1).take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect();
    if let Some(folder) = folders.first() {
        std::fs::create_dir_all(folder)?;
    }
    if let Err(error) = std::fs::rename(file, target) {
        if error.kind() != ErrorKind::CrossesDevices {
            return Err(error);
        }
        // A folder of the store may be a mount of its own; then the file is copied beside its place first.
        let beside = tempfile::NamedTempFile::new_in(target.parent().unwrap_or(root))?;
        std::fs::copy(file, beside.path())?;
        beside.as_file().sync_all()?;
        beside.persist(target).map_err(|error| error.error)?;
    }
    folders.iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::address::Address;

    async fn put(store: &Store) -> Staging {
        let staging = store.staging().await.unwrap();
        std::fs::write(staging.path().join("weights"), "some bytes").unwrap();
        store.put_staged("releases/a/b/weights", &staging, "weights").await.unwrap();
        staging
    }

    #[tokio::test]
    async fn staged_files_come_to_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        for store in [Store::in_memory(), Store::open(&Address::Local(folder.path().into())).unwrap()] {
            let left = put(&store).await.path().to_owned();
            assert_eq!(store.get("releases/a/b/weights").await.unwrap(), Some(Bytes::from_static(b"some bytes")));
            assert!(!left.try_exists().unwrap(), "{}", left.display());
            // Once more is no error.
            let staging = put(&store).await;
            assert!(matches!(store.put_staged("../weights", &staging, "weights").await, Err(Error::Invalid { .. })));
            assert!(store.put_staged("releases/a/b/other", &staging, "not there").await.is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_goes_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Address::Local(folder.path().into())).unwrap();
        let (old, new) = (folder.path().join("staging/old"), folder.path().join("staging/new"));
        for left in [&old, &new] {
            std::fs::create_dir_all(left).unwrap();
            std::fs::write(left.join("weights"), "half").unwrap();
        }
        let yesterday = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::open(&old).unwrap().set_times(yesterday).unwrap();
        store.staging().await.unwrap();
        assert_eq!((old.try_exists().unwrap(), new.try_exists().unwrap()), (false, true));
    }
}

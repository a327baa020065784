//! Staging folders for large files. For a local store, a staging folder is on the same disk, and
//! files are renamed to their key: a checkpoint is written only once. For a remote store, it is a
//! temporary folder, and files are uploaded in parts.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::local::blocking;
use crate::store::Store;

/// The folder of a local store in which files are staged.
const STAGING: &str = "staging";
/// Staging folders of killed processes are removed when nothing was written to them for this long.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A folder for files that will be put into a store. It is deleted when the value is dropped.
#[derive(Debug)]
pub struct Staging {
    folder: tempfile::TempDir,
}

impl Staging {
    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Store {
    /// Creates an empty folder for files that [`put_staged`](Self::put_staged) takes.
    ///
    /// # Cancel safety
    /// A cancelled call leaves no folder behind.
    ///
    /// # Errors
    /// When it cannot be created.
    pub async fn staging(&self) -> Result<Staging, Error> {
        let root = self.folder.clone();
        blocking(move || match root {
            Some(root) => inside(&root.join(STAGING)),
            None => tempfile::tempdir()
                .map_err(|error| Error::from_io("a folder for temporary files", error)),
        })
        .await?
        .map(|folder| Staging { folder })
    }

    /// Moves or uploads a file of a staging folder to a key. Afterwards, the folder may no longer
    /// contain the file.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the object. The object is whole or absent.
    ///
    /// # Errors
    /// When the file does not exist or the store cannot be written.
    pub async fn put_staged(&self, key: &str, staging: &Staging, name: &str) -> Result<(), Error> {
        let path = staging.path().join(name);
        // Checked as a key before it becomes a path.
        let checked = self.key(key)?;
        let Some(root) = self.folder.clone() else {
            return self.put_file(key, &path).await.map(drop);
        };
        let target = root.join(checked.as_ref());
        blocking(move || {
            place(&path, &root, &target)
                .map_err(|error| Error::from_io(&target.display().to_string(), error))
        })
        .await?
    }
}

fn inside(folder: &Path) -> Result<tempfile::TempDir, Error> {
    let failed = |error| Error::from_io(&folder.display().to_string(), error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    for entry in std::fs::read_dir(folder).map_err(failed)?.flatten() {
        // Another process may remove it at the same moment.
        if is_stale(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::tempdir_in(folder).map_err(failed)
}

/// Returns whether nothing was written to a folder or a file in it for so long that its process
/// must be dead. The time of a folder changes when a file is created in it, but a large file is
/// written for much longer.
fn is_stale(folder: &Path) -> bool {
    let is_old = |metadata: std::io::Result<std::fs::Metadata>| {
        let age = metadata
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        age.is_some_and(|age| age > STALE)
    };
    let mut files = std::fs::read_dir(folder).into_iter().flatten();
    is_old(std::fs::metadata(folder))
        && files.all(|file| is_old(file.and_then(|file| file.metadata())))
}

/// Renames a file and synchronises the folders, so that the change survives a power failure.
fn place(file: &Path, root: &Path, target: &Path) -> std::io::Result<()> {
    File::open(file)?.sync_all()?;
    let folders: Vec<PathBuf> = target
        .ancestors()
        .skip(1)
        .take_while(|folder| folder.starts_with(root))
        .map(Path::to_owned)
        .collect();
    if let Some(folder) = folders.first() {
        std::fs::create_dir_all(folder)?;
    }
    if let Err(error) = std::fs::rename(file, target) {
        if error.kind() != ErrorKind::CrossesDevices {
            return Err(error);
        }
        // A folder of the store may be another mount. Then the file is first copied to the same
        // folder as the target.
        let beside = tempfile::Builder::new()
            // Reduced by the umask, like those of every other file.
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(target.parent().unwrap_or(root))?;
        std::io::copy(&mut File::open(file)?, &mut beside.as_file())?;
        beside.as_file().sync_all()?;
        beside.persist(target).map_err(|error| error.error)?;
    }
    folders.iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lethe_shared::address::Address;

    use super::*;

    async fn put(store: &Store) -> Staging {
        let staging = store.staging().await.unwrap();
        std::fs::write(staging.path().join("weights"), "some bytes").unwrap();
        store.put_staged("releases/a/b/weights", &staging, "weights").await.unwrap();
        staging
    }

    #[tokio::test]
    async fn staged_files_come_to_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        for store in
            [Store::in_memory(), Store::open(&Address::Local(folder.path().into())).unwrap()]
        {
            let left = put(&store).await.path().to_owned();
            assert_eq!(
                store.get("releases/a/b/weights").await.unwrap(),
                Some(Bytes::from_static(b"some bytes"))
            );
            assert!(!left.try_exists().unwrap(), "{}", left.display());
            // Once more is no error.
            let staging = put(&store).await;
            assert!(matches!(
                store.put_staged("../weights", &staging, "weights").await,
                Err(Error::Invalid { .. })
            ));
            assert!(store.put_staged("releases/a/b/other", &staging, "not there").await.is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path().join(STAGING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_goes_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Address::Local(folder.path().into())).unwrap();
        let [old, busy, new] =
            ["old", "busy", "new"].map(|name| folder.path().join("staging").join(name));
        for left in [&old, &busy, &new] {
            std::fs::create_dir_all(left).unwrap();
            std::fs::write(left.join("weights"), "half").unwrap();
        }
        let long_ago = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        // A large file is still being written in a folder that was made long ago.
        for path in [&old, &old.join("weights"), &busy] {
            File::open(path).unwrap().set_times(long_ago).unwrap();
        }
        store.staging().await.unwrap();
        assert_eq!([old, busy, new].map(|left| left.try_exists().unwrap()), [false, true, true]);
    }
}

//! A folder for files that readers open by their path.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Calls a function with this thread's folder. Files of earlier inputs may be in it.
pub(crate) fn with<T>(use_it: impl FnOnce(&Path) -> T) -> T {
    let path: PathBuf = FOLDER.with_borrow_mut(|folder| {
        let folder =
            folder.get_or_insert_with(|| in_memory().expect("a temporary folder can be made"));
        folder.path().to_owned()
    });
    use_it(&path)
}

/// Makes a temporary folder in memory where the system has a place for it: a file on a disk takes
/// milliseconds.
pub(crate) fn in_memory() -> std::io::Result<TempDir> {
    match std::env::var_os("TMPDIR") {
        None if Path::new("/dev/shm").is_dir() => tempfile::tempdir_in("/dev/shm"),
        _ => tempfile::tempdir(),
    }
}

/// Writes a file into this thread's folder, and calls a function with the folder and its path.
pub(crate) fn with_file<T>(name: &str, bytes: &[u8], use_it: impl FnOnce(&Path, &Path) -> T) -> T {
    with(|folder| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("the temporary folder can be written to");
        use_it(folder, &path)
    })
}

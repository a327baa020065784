//! Work on this machine: threads for blocking work, and names for unfinished files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// Runs blocking work on a thread of its own.
///
/// # Errors
/// [`Error::Unavailable`] when the process is stopping.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let undone = |error: tokio::task::JoinError| Error::Unavailable {
        object: "this process".to_owned(),
        cause: error.to_string(),
    };
    tokio::task::spawn_blocking(work).await.map_err(undone)
}

/// Returns a path beside `path` that no other call and no other process returns, for a file that is
/// renamed when it is complete.
pub(crate) fn staged(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("part-{}-{number:x}", std::process::id()))
}

/// Creates a symbolic link, or replaces one. Its folder is created.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn link(target: &Path, path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let staged = staged(path);
    std::os::unix::fs::symlink(target, &staged)?;
    std::fs::rename(&staged, path)
}

//! Files and shards that appear whole or not at all, with the same bytes on every run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `path` with an ending that no reader of the folder picks up.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Writes a file and moves it into place; its folder is made where it is missing.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let partial = beside(path, ".partial");
    std::fs::write(&partial, bytes).with_context(|| format!("write {}", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("move {} into place", path.display()))
}

/// Replaces a folder by one that holds just `files`.
pub(crate) fn write_folder(path: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let (partial, old) = (beside(path, ".partial"), beside(path, ".old"));
    // Both may be left by a run that was stopped.
    remove_folder(&partial)?;
    remove_folder(&old)?;
    std::fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
    for (name, bytes) in files {
        let file = partial.join(name);
        std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
    }
    if path.try_exists()? {
        std::fs::rename(path, &old).with_context(|| format!("move {} away", path.display()))?;
    }
    std::fs::rename(&partial, path)
        .with_context(|| format!("move {} into place", path.display()))?;
    remove_folder(&old)
}

fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes files that an earlier run with other settings left: those of `folder` that `is_ours` but
/// not in `current`.
pub(crate) fn remove_stale(
    folder: &Path,
    current: &[String],
    is_ours: impl Fn(&str) -> bool,
) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_ours(&name) && !current.contains(&name) {
            std::fs::remove_file(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A shard being filled in memory; the demo's are a few megabytes.
pub(crate) struct Shard {
    tar: tar::Builder<Vec<u8>>,
}

impl Shard {
    pub(crate) fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }

    /// Adds a member with nothing in its header that depends on when or by whom it was written.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.tar.append_data(&mut header, name, bytes).with_context(|| format!("add {name}"))
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?)
    }
}

/// Fields joined by commas, quoted where they must be.
pub(crate) fn csv_line<S: AsRef<str>>(fields: &[S]) -> String {
    let quoted = fields.iter().map(|field| {
        let field = field.as_ref();
        if field.contains([',', '"', '\n']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("emoji-data-{name}-{}", std::process::id()));
        remove_folder(&folder).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn shards_do_not_depend_on_time_or_user() {
        let shard = || {
            let mut shard = Shard::new();
            shard.add("a.txt", b"pizza").unwrap();
            shard.finish().unwrap()
        };
        let bytes = shard();
        assert_eq!(bytes, shard());
        let mut archive = tar::Archive::new(&bytes[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header();
        assert_eq!(
            (header.mtime().unwrap(), header.uid().unwrap(), header.mode().unwrap()),
            (0, 0, 0o644)
        );
        assert_eq!(entry.path().unwrap().to_str(), Some("a.txt"));
    }

    #[test]
    fn csv_fields_are_quoted_where_needed() {
        assert_eq!(csv_line(&["a", "b, c", "say \"d\""]), "a,\"b, c\",\"say \"\"d\"\"\"\n");
    }

    #[test]
    fn a_folder_is_replaced_and_stale_files_go() {
        let folder = scratch("replace");
        let inner = folder.join("forget");
        write_folder(&inner, &[("a.tar".into(), vec![1]), ("b.tar".into(), vec![2])]).unwrap();
        write_folder(&inner, &[("b.tar".into(), vec![3])]).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["b.tar"]);
        assert_eq!(std::fs::read(inner.join("b.tar")).unwrap(), [3]);
        for name in ["retain-00000.tar", "retain-00001.tar", "notes.txt"] {
            write_file(&folder.join(name), b"").unwrap();
        }
        remove_stale(&folder, &["retain-00000.tar".into()], |name| name.starts_with("retain-"))
            .unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["forget", "notes.txt", "retain-00000.tar"]);
        remove_folder(&folder).unwrap();
    }
}

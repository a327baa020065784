//! Lays a release out as a folder that a model hub takes as a repository.
//!
//! A release's folder already has what a hub expects: the model card with its metadata as
//! `README.md`, weights, configuration and tokeniser under the names that libraries read. Added is
//! `.gitattributes`, which says what goes into large file storage. Record, receipts and signatures
//! come along, so that whoever downloads the repository can verify it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lethe_shared::digest::Digest;
use lethe_shared::reference::ArtifactRef;

use super::read::Release;
use super::verify::target_files;
use crate::failure::Failure;
use crate::layout::{BESIDE, RECORD};

/// The file that says what goes into large file storage.
const ATTRIBUTES: &str = ".gitattributes";
/// Size from which hubs take a file into large file storage only, with some room, bytes.
const LARGE: u64 = 1 << 20;

/// An exported release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Number of its files, `.gitattributes` included.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

/// Writes a release into the folder `to`, which is whole or absent. Every file is checked against
/// the record.
///
/// # Cancel safety
/// A cancelled call leaves nothing at `to`.
///
/// # Errors
/// [`Failure::BadInput`] when `to` is not empty, or a file of the release is missing or corrupt;
/// [`Failure::Infrastructure`] when the store cannot be read or the folder cannot be written.
pub async fn export(release: &Release, to: &Path) -> Result<Exported, Failure> {
    let to = std::path::absolute(to).map_err(|error| Failure::local(to, error))?;
    require_empty(&to)?;
    let (parent, name) = match (to.parent(), to.file_name()) {
        (Some(parent), Some(name)) => (parent, name.to_string_lossy()),
        _ => return Err(Failure::input(format!("--to {}: is no new folder", to.display()))),
    };
    std::fs::create_dir_all(parent).map_err(|error| Failure::local(parent, error))?;
    let staging = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        // The umask decides, as for any other folder.
        .permissions(std::fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(|error| Failure::local(parent, error))?;
    let mut sizes = BTreeMap::new();
    for (name, expected) in files(release).await? {
        let path = staging.path().join(&name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Failure::local(folder, error))?;
        }
        let copied = release.store.get_file(&release.key(&name), &path).await?;
        if expected.is_some_and(|expected| expected != copied) {
            return Err(Failure::input(format!(
                "{}/{name} is not what was released; `lethe verify` says what is wrong",
                release.address()
            )));
        }
        sizes.insert(name, copied.bytes);
    }
    let attributes = attributes(&sizes);
    let path = staging.path().join(ATTRIBUTES);
    std::fs::write(&path, &attributes).map_err(|error| Failure::local(&path, error))?;
    let exported = Exported {
        files: sizes.len() + 1,
        bytes: sizes.values().sum::<u64>() + attributes.len() as u64,
    };
    // An empty folder is replaced; one that was filled in the meantime is not.
    std::fs::rename(staging.path(), &to).map_err(|error| Failure::local(&to, error))?;
    // The folder is no longer there to be removed.
    let _: PathBuf = staging.keep();
    Ok(exported)
}

/// Returns the names of all files of a release, with what the record says of them.
async fn files(release: &Release) -> Result<BTreeMap<String, Option<ArtifactRef>>, Failure> {
    let of_record = release.record.files.iter().map(|(name, file)| (name.clone(), Some(*file)));
    let of_targets = target_files(release).into_iter().map(|(name, file)| (name, Some(file)));
    let mut files: BTreeMap<String, Option<ArtifactRef>> = of_record.chain(of_targets).collect();
    for name in BESIDE {
        if release.store.size(&release.key(name)).await?.is_some() {
            files.insert(name.to_owned(), None);
        }
    }
    let record = release.store.size(&release.key(RECORD)).await?;
    let digest: Digest = release.digest;
    files.insert(RECORD.to_owned(), record.map(|bytes| ArtifactRef { digest, bytes }));
    Ok(files)
}

/// Fails unless nothing is at a path, or an empty folder.
fn require_empty(to: &Path) -> Result<(), Failure> {
    let wrong = |problem: &str| Err(Failure::input(format!("--to {}: {problem}", to.display())));
    match std::fs::read_dir(to) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => wrong("is not empty; give a new folder, nothing is overwritten"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            wrong("is a file; give a new folder")
        }
        Err(error) => Err(Failure::local(to, error)),
    }
}

/// Returns the contents of `.gitattributes`: all weights, and every other large file by its name.
fn attributes(sizes: &BTreeMap<String, u64>) -> String {
    let is_weights = |name: &str| name.ends_with(".safetensors");
    let mut patterns = vec!["*.safetensors".to_owned()];
    patterns.extend(
        sizes
            .iter()
            .filter(|(name, bytes)| **bytes >= LARGE && !is_weights(name))
            .map(|(name, _)| format!("/{}", escaped(name))),
    );
    patterns
        .iter()
        .map(|pattern| format!("{pattern} filter=lfs diff=lfs merge=lfs -text\n"))
        .collect()
}

/// Escapes a path for `.gitattributes`, where white space ends a pattern.
fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for letter in name.chars() {
        match letter {
            ' ' => escaped.push_str("[[:space:]]"),
            '*' | '?' | '[' | '\\' => escaped.extend(['\\', letter]),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_large_files_go_into_large_file_storage() {
        let sizes = [
            ("README.md", 10),
            ("composition.json", 5 << 20),
            ("model.safetensors", 10),
            ("targets/sd/unet/a [1].bin", 2 << 20),
        ];
        let sizes = sizes.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        let rest = " filter=lfs diff=lfs merge=lfs -text\n";
        assert_eq!(
            attributes(&sizes),
            format!(
                "*.safetensors{rest}/composition.json{rest}/targets/sd/unet/a[[:space:]]\\[1].bin{rest}"
            )
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            require_empty(folder.path()).is_ok() && require_empty(&folder.path().join("x")).is_ok()
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, says) in [(folder.path(), "is not empty"), (&*file, "is a file")] {
            let error = require_empty(path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

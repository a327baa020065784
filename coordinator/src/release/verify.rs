//! Verifies that a release is unchanged: the record against its folder's name, every file against
//! the record, and the weights against the digest in the record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::record::targets::TargetRecord;
use lethe_shared::reference::ArtifactRef;
use serde::Serialize;

use super::read::Release;
use crate::failure::Failure;
use crate::layout::{BESIDE, RECORD};

/// A problem of one file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Name of the file.
    pub file: String,
    /// Description of the problem, without a subject.
    pub problem: String,
}

impl Problem {
    /// Creates a problem of a file.
    pub fn new(file: &str, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), problem: problem.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.problem)
    }
}

/// The result of a verification.
#[derive(Debug)]
pub struct Checked {
    /// The release, if its record could be read.
    pub release: Option<Release>,
    /// All problems; empty if the release is unchanged.
    pub problems: Vec<Problem>,
    /// Local folder with its files.
    folder: PathBuf,
    /// Owns the folder if the files were downloaded.
    _staging: Option<tempfile::TempDir>,
}

impl Checked {
    /// Opens the released weights.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when they cannot be read, which is possible only if there are
    /// problems.
    pub fn weights(&self) -> Result<Checkpoint, Failure> {
        Ok(Checkpoint::open(&self.folder)?)
    }
}

/// Verifies the release in a folder. If the record's digest differs from the folder's name, its
/// contents are not used and nothing else is checked.
///
/// # Errors
/// [`Failure::BadInput`] when there is no release; [`Failure::Infrastructure`] when the store
/// cannot be read.
///
/// # Example
/// ```no_run,standalone_crate
/// use lethe::release::verify::verify;
/// use lethe_shared::address::Address;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let address = Address::parse("s3://models/releases/cats/0a1b2c3d4e5f")?;
/// let checked = verify(&address).await?;
/// for problem in &checked.problems {
///     println!("{} {}", problem.file, problem.problem);
/// }
/// # Ok(())
/// # }
/// ```
pub async fn verify(address: &Address) -> Result<Checked, Failure> {
    let wrong = |problem: String| Checked {
        release: None,
        problems: vec![Problem::new(RECORD, problem)],
        folder: PathBuf::new(),
        _staging: None,
    };
    let place = Release::place(address)?;
    let digest = Digest::of(&place.record_bytes().await?);
    if let Some(named) = place.named_after().filter(|named| **named != digest.short()) {
        return Ok(wrong(format!(
            "is not what was released: its digest is {}, its folder is named after {named}",
            digest.short()
        )));
    }
    let release = match place.open().await {
        Ok(release) => release,
        Err(Failure::BadInput(problems)) => return Ok(wrong(problems.join("; "))),
        Err(other) => return Err(other),
    };
    let mut problems = Vec::new();
    let targets: BTreeMap<String, ArtifactRef> = target_files(&release);
    let files = release.record.files.keys().chain(targets.keys()).map(String::as_str);
    let expected: BTreeSet<&str> = files.chain([RECORD]).chain(BESIDE).collect();
    let there = release.names().await?;
    let is_stray = |name: &&String| !expected.contains(name.as_str()) && !is_hidden(name);
    for name in there.iter().filter(is_stray) {
        problems.push(Problem::new(name, "is no file of this release"));
    }
    let no_folder =
        |error| Failure::Infrastructure(format!("no folder for temporary files: {error}"));
    let staging =
        address.as_local().is_none().then(tempfile::tempdir).transpose().map_err(no_folder)?;
    let folder = staging
        .as_ref()
        .map(tempfile::TempDir::path)
        .or(address.as_local())
        .unwrap_or(Path::new(""))
        .to_owned();
    for (name, &file) in &release.record.files {
        let copy = staging.is_some().then_some(Remote::Kept);
        if let Some(problem) = check(&release, name, file, &folder, copy).await? {
            problems.push(Problem::new(name, problem));
        }
    }
    for (name, &file) in &targets {
        // A target may be larger than this machine's disk, so it is hashed as a stream.
        let copy = staging.is_some().then_some(Remote::Passing);
        if let Some(problem) = check(&release, name, file, &folder, copy).await? {
            problems.push(Problem::new(name, problem));
        }
    }
    if problems.is_empty() {
        let digest = release.record.digest;
        let weights = folder.clone();
        let read = move || {
            Checkpoint::open(&weights)
                .and_then(|checkpoint| checkpoint.digest())
                .map_err(|error| error.to_string())
        };
        match tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Failure::Infrastructure(error.to_string()))?
        {
            Ok(found) if found == digest => {}
            Ok(found) => problems.push(Problem::new(
                RECORD,
                format!("states digest {digest} of the weights, they have {found}"),
            )),
            Err(problem) => problems.push(Problem::new(
                RECORD,
                format!("is about weights that cannot be read: {problem}"),
            )),
        }
    }
    Ok(Checked { release: Some(release), problems, folder, _staging: staging })
}

/// Returns whether a file or one of its folders is hidden. Hubs and version control add such files
/// (`.gitattributes`, `.cache/`), and no library reads a model from them.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}

/// Returns the files of a release's targets, by their names in the release.
pub fn target_files(release: &Release) -> BTreeMap<String, ArtifactRef> {
    let of = |target: &TargetRecord| {
        let folder = target.folder();
        target.files().into_iter().map(move |(name, file)| (format!("{folder}/{name}"), file))
    };
    release.record.targets.iter().flat_map(of).collect()
}

/// Handling of a remote file's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remote {
    /// Downloaded into a folder.
    Kept,
    /// Hashed as a stream.
    Passing,
}

/// Returns the problem of one file, if there is one. A remote file with [`Remote::Kept`] is
/// downloaded into `folder`.
async fn check(
    release: &Release,
    name: &str,
    expected: ArtifactRef,
    folder: &Path,
    remote: Option<Remote>,
) -> Result<Option<String>, Failure> {
    let key = release.key(name);
    match release.store.size(&key).await? {
        None => return Ok(Some("is missing".to_owned())),
        Some(size) if size != expected.bytes => {
            return Ok(Some(format!("has {size} bytes, {} were released", expected.bytes)));
        }
        Some(_) => {}
    }
    let path = folder.join(name);
    let found = match remote {
        Some(Remote::Kept) => release.store.get_file(&key, &path).await?.digest,
        Some(Remote::Passing) => release.store.hash(&key).await?.digest,
        None => {
            let read = move || {
                std::fs::File::open(&path)
                    .and_then(Digest::of_reader)
                    .map_err(|error| format!("{}: {error}", path.display()))
            };
            let read = tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| Failure::Infrastructure(error.to_string()))?;
            read.map_err(Failure::Infrastructure)?
        }
    };
    Ok((found != expected.digest).then(|| "has other bytes than were released".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_files_belong_to_no_release() {
        for name in [".gitattributes", ".cache/huggingface/x.metadata", "targets/a/.git/config"] {
            assert!(is_hidden(name), "{name}");
        }
        for name in ["more.bin", "targets/a/x.y.z", "a./b"] {
            assert!(!is_hidden(name), "{name}");
        }
    }
}

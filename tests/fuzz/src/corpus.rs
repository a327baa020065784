//! The committed inputs: a folder per harness, a file per input.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lethe_shared::digest::Digest;

use crate::harness::Harness;

/// Returns the folder of the corpus, as it was when this program was built.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Returns the inputs of a harness with their paths, by name; none where it has no folder.
///
/// # Errors
/// When a file cannot be read.
pub fn inputs(folder: &Path, harness: &Harness) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(folder.join(harness.name)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut inputs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        inputs.push((path, bytes));
    }
    inputs.sort();
    Ok(inputs)
}

/// Writes an input into the folder of its harness, named by its digest. Returns the path.
///
/// # Errors
/// When the file cannot be written.
pub fn save(folder: &Path, harness: &Harness, input: &[u8]) -> io::Result<PathBuf> {
    let folder = folder.join(harness.name);
    fs::create_dir_all(&folder)?;
    let path = folder.join(Digest::of(input).short());
    fs::write(&path, input)?;
    Ok(path)
}

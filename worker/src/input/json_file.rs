//! Small JSON files of a model's folder.

use std::path::Path;

use lethe_shared::json;
use serde_json::Value;

/// Reads a JSON file of at most this many bytes; `None` when it does not exist.
pub(super) fn read(path: &Path, most: u64) -> Result<Option<Value>, String> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > most => {
            return Err(format!("is larger than {} MiB", most >> 20));
        }
        Ok(_) => std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    json::parse(&bytes).map(Some).map_err(|error| error.to_string())
}

//! Constants and functions that all in-toto statements about a release share.

use lethe_shared::record::Composition;
use serde_json::{Value, json};

/// The version of this program.
pub(super) const LETHE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// The type of an in-toto statement.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// Returns the files of a record for which `wanted` returns true, as in-toto subjects.
pub(super) fn subjects(record: &Composition, wanted: impl Fn(&str) -> bool) -> Vec<Value> {
    let files = record.files.iter().filter(|(name, _)| wanted(name));
    files.map(|(name, file)| json!({ "name": name, "digest": { "sha256": file.digest } })).collect()
}

//! Commands of `lethe`, and the releases that they make.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_shared::digest::Digest;
use lethe_shared::record::Composition;
use serde_json::Value;

use crate::{binary, last_line, stderr};

/// Runs a command of `lethe`.
pub fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe"))
        .env_remove("LETHE_LOG")
        .args(arguments)
        .output()
        .expect("lethe starts")
}

/// Runs a command of `lethe` with `--json`, which must succeed, and returns its last line.
pub fn succeed(arguments: &[&str]) -> Value {
    let output = lethe(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    last_line(&output)
}

/// Returns the folder of the release that a command has made.
pub fn folder(said: &Value) -> PathBuf {
    PathBuf::from(said["release"].as_str().expect("a release"))
}

/// Returns the record of a release.
pub fn record(said: &Value) -> Composition {
    let bytes = std::fs::read(folder(said).join("composition.json")).expect("a record");
    serde_json::from_slice(&bytes).expect("a valid record")
}

/// Returns the digest of a file.
pub fn digest(path: &Path) -> Digest {
    Digest::of(&std::fs::read(path).expect("a file"))
}

/// Returns the digest of a release's weight file.
pub fn model(said: &Value) -> Digest {
    digest(&folder(said).join("model.safetensors"))
}

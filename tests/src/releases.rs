//! Commands of `lethe`, and the releases that they make.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_shared::digest::Digest;
use lethe_shared::record::Composition;
use serde_json::Value;

use crate::{SmallJob, binary, files, last_line, stderr};

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
    ends(0, arguments)
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

/// Runs a command of `lethe` with `--json`, which must end with this exit code, and returns its last
/// line.
pub fn ends(code: i32, arguments: &[&str]) -> Value {
    let output = lethe(&[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"));
    last_line(&output)
}

/// Signs a release of the small job, and changes one bit in each of its files, its targets' included:
/// `lethe verify` must name the file each time. Files of these names must be there.
pub fn every_bit_counts(job: &SmallJob, said: &Value, expected: &[&str]) {
    let [private, public, store] = ["key.pem", "key.pub", "store"]
        .map(|name| job.path(name).to_str().expect("UTF-8").to_owned());
    let made = format!(
        "openssl ecparam -name prime256v1 -genkey -noout -out {private} && openssl ec -in {private} -pubout -out {public}"
    );
    let status = Command::new("sh").args(["-c", &made]).output().expect("openssl starts").status;
    assert!(status.success(), "a key pair is made");
    succeed(&["release", "sign", "small:1", "--store", &store, "--key", &private]);
    let release = folder(said);
    let check = ["verify", release.to_str().expect("UTF-8"), "--public-key", &public];
    succeed(&check);
    let whole = files(&release);
    for name in expected {
        assert!(whole.contains_key(*name), "{name} is not in {:?}", whole.keys());
    }
    for (number, (name, bytes)) in whole.iter().enumerate() {
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1 << (number % 8);
        std::fs::write(release.join(name), &flipped).expect("write a file of the release");
        let problems = ends(4, &check)["problems"].clone();
        let found = problems.as_array().expect("a list");
        assert!(found.iter().any(|problem| problem["file"] == name.as_str()), "{name}: {problems}");
        std::fs::write(release.join(name), bytes).expect("write a file of the release");
    }
    succeed(&check);
}

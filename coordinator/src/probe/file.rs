//! The probe file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lethe_shared::digest::Digest;
use lethe_shared::manifest::BuiltInProbe;
use serde::Deserialize;

use crate::failure::Failure;

/// Largest probe file, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Most words of a command, and longest word in bytes.
const MAX_WORDS: (usize, usize) = (256, 4096);
/// Longest name.
const MAX_NAME: usize = 32;
/// Longest time limit, seconds.
const MAX_SECONDS: u64 = 7 * 86_400;

/// A probe: a command, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its name, which begins the names of its numbers in gates.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The time after which it is killed.
    pub limit: Duration,
    /// The folder of the probe file, in which the command runs.
    pub folder: PathBuf,
    /// SHA-256 of the probe file.
    pub digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeFile {
    probe: Section,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    name: String,
    command: Vec<String>,
    #[serde(default = "an_hour")]
    limit_seconds: u64,
}

fn an_hour() -> u64 {
    3600
}

impl Probe {
    /// Reads a probe file: TOML with a section `[probe]` and nothing else.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it cannot be read or is invalid.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let wrong = |problem: String| Failure::input(format!("{shown}: {problem}"));
        let io = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
        if std::fs::metadata(path).map_err(io)?.len() > MAX_BYTES {
            return Err(wrong("is larger than 1 MiB; a probe file names a command".to_owned()));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not UTF-8 text".into()))?;
        let ProbeFile { probe: Section { name, command, limit_seconds } } =
            toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if !is_name(&name) {
            return Err(wrong(format!(
                "probe.name is `{name}`, expected 1 to {MAX_NAME} lower-case letters, digits and hyphens"
            )));
        }
        if BuiltInProbe::from_name(&name).is_some() {
            return Err(wrong(format!(
                "probe.name is `{name}`, which is a built-in probe; give it another name"
            )));
        }
        let (most, longest) = MAX_WORDS;
        let is_word = |word: &String| word.len() <= longest && !word.contains('\0');
        if command.is_empty() || command.len() > most || !command.iter().all(is_word) {
            return Err(wrong(format!(
                "probe.command has to be a program and its arguments, 1 to {most} words of at most {longest} bytes"
            )));
        }
        if !(1..=MAX_SECONDS).contains(&limit_seconds) {
            return Err(wrong(format!(
                "probe.limit_seconds is {limit_seconds}, expected 1 to {MAX_SECONDS}"
            )));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Ok(Self {
            name,
            command,
            limit: Duration::from_secs(limit_seconds),
            folder: folder.canonicalize().map_err(io)?,
            digest: Digest::of(&bytes),
        })
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Probe, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.toml");
        std::fs::write(&path, text).unwrap();
        Probe::read(&path).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_probe_file_holds_a_command() {
        let probe =
            read("[probe]\nname = \"sd-2\"\ncommand = [\"python3\", \"draw.py\"]\n").unwrap();
        assert_eq!((probe.name.as_str(), probe.limit), ("sd-2", Duration::from_secs(3600)));
        assert!(probe.folder.is_absolute());
        let with = |line: &str| format!("[probe]\nname = \"a\"\ncommand = [\"a\"]\n{line}\n");
        for (text, says) in [
            ("[probe]\nname = \"a\"\n".to_owned(), "missing field `command`"),
            ("[probe]\nname = \"A.b\"\ncommand = [\"a\"]\n".to_owned(), "probe.name is `A.b`"),
            ("[probe]\nname = \"a\"\ncommand = []\n".to_owned(), "probe.command has to be"),
            (with("limit_seconds = 0"), "probe.limit_seconds is 0, expected 1 to 604800"),
            (with("limit = 3"), "unknown field `limit`"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(says) && error.contains("probe.toml"), "{error}");
        }
    }
}

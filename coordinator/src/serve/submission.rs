//! A manifest as sent to a long-lived coordinator, independent of the sending machine.
//!
//! A relative address is relative to the manifest's file, so every address is made absolute before
//! sending. The release's address and the settings of a machine are left out: the coordinator has
//! its own store, and workers execute the jobs.

use std::path::Path;

use lethe_shared::digest::Digest;
use lethe_shared::json;
use lethe_shared::manifest::{ExecutionSection, Manifest, ReleaseSection};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Version of the format.
const VERSION: u32 = 1;
/// Largest submission, bytes: it has to fit into one NATS message.
pub const MAX_BYTES: usize = 1_000_000;
/// Separator between shards of one concept.
const SEPARATOR: char = ';';

/// A manifest with absolute addresses only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    version: u32,
    manifest: Manifest,
}

impl Submission {
    /// Makes every address of a manifest absolute.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when an address is invalid, or the manifest is larger than
    /// [`MAX_BYTES`].
    pub fn new(mut manifest: Manifest) -> Result<Self, Failure> {
        let original = manifest.clone();
        for (field, text) in manifest.inputs_mut() {
            *text = original.address(field, text)?.to_string();
        }
        for row in &mut manifest.concepts.list {
            let parts = row.forget.split(SEPARATOR).map(str::trim).filter(|part| !part.is_empty());
            let shards = parts
                .map(|part| Ok(original.address("concepts.list", part)?.to_string()))
                .collect::<Result<Vec<_>, Failure>>()?;
            row.forget = shards.join(";");
        }
        // Workers and device are those of one machine; which machines may share a run is not.
        let arithmetic = manifest.execution.arithmetic;
        manifest.execution = ExecutionSection { arithmetic, ..ExecutionSection::default() };
        manifest.release.uri = ReleaseSection::default().uri;
        let submission = Self { version: VERSION, manifest };
        let size = submission.to_json().len();
        if size > MAX_BYTES {
            return Err(Failure::input(format!(
                "{}: has {size} bytes with absolute addresses, a message holds {MAX_BYTES}; put the concepts into a table",
                original.file.display()
            )));
        }
        Ok(submission)
    }

    /// Returns its name: the manifest's name, and a digest of its content.
    pub fn id(&self) -> String {
        format!("{}-{}", self.manifest.name, Digest::of_json(self).short())
    }

    /// Returns the manifest.
    pub fn into_manifest(self) -> Manifest {
        self.manifest
    }

    /// Returns the JSON that is sent and stored.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a manifest without non-string keys always serialises")
    }

    /// Parses a submission from another process, and checks every value in it.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the text is not a submission of this version, or contains a
    /// relative address.
    pub fn from_json(text: &str) -> Result<Self, Failure> {
        let wrong = |problem: String| Failure::input(format!("submission: {problem}"));
        if text.len() > MAX_BYTES {
            return Err(wrong(format!("has {} bytes, at most {MAX_BYTES} are taken", text.len())));
        }
        let read: Self = json::parse(text.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        if read.version != VERSION {
            return Err(wrong(format!(
                "has version {}, this program reads version {VERSION}; run the same release of lethe",
                read.version
            )));
        }
        // Checked like a file. Its name has no folder, so a relative address is rejected.
        let shown = format!("{} (submitted)", read.manifest.name);
        let manifest =
            serde_json::to_string(&read.manifest).map_err(|error| wrong(error.to_string()))?;
        let manifest = Manifest::from_json(&manifest, Path::new(&shown))?;
        let again = Self::new(manifest.clone())?;
        if again.id() == read.id() {
            Ok(Self { version: VERSION, manifest })
        } else {
            Err(wrong("is not as `lethe submit` makes it".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::manifest::Arithmetic;

    use super::*;

    fn manifest(folder: &Path, text: &str) -> Manifest {
        let path = folder.join("m.toml");
        std::fs::write(&path, text).unwrap();
        Manifest::read(&path).unwrap()
    }

    const TEXT: &str = r#"
version = 1
name = "small"
[model]
uri = "s3://models/clip"
[data]
retain = ["r-*.tar", "s3://b/r-*.tar"]
retain_texts = ["words.txt"]
classes = "../classes.txt"
[[concepts.list]]
id = "a"
name = "a"
forget = "a.tar; b.tar"
[execution]
workers = 3
[[release.target]]
name = "sd15"
kind = "stable-diffusion"
uri = "sd"
"#;

    #[test]
    fn addresses_are_absolute_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let submission = Submission::new(manifest(folder.path(), TEXT)).unwrap();
        let here = folder.path().display().to_string();
        let made = &submission.manifest;
        assert_eq!(
            (made.model.uri.as_str(), made.data.retain[1].as_str()),
            ("s3://models/clip", "s3://b/r-*.tar")
        );
        assert_eq!(made.data.retain[0], format!("{here}/r-*.tar"));
        assert_eq!(made.data.retain_texts, [format!("{here}/words.txt")]);
        assert_eq!(
            made.data.classes,
            format!("{}/classes.txt", folder.path().parent().unwrap().display())
        );
        assert_eq!(
            (made.release.target[0].uri.clone(), made.release.uri.as_str()),
            (format!("{here}/sd"), "store")
        );
        assert_eq!(made.concepts.list[0].forget, format!("{here}/a.tar;{here}/b.tar"));
        let read = Submission::from_json(&submission.to_json()).unwrap();
        assert_eq!(read.id(), submission.id());
        let hashed = TEXT.to_owned()
            + "[release]\nuri = \"elsewhere\"\nnames = \"hashed\"\nsalt = \"names.salt\"\n";
        let release =
            Submission::new(manifest(folder.path(), &hashed)).unwrap().into_manifest().release;
        assert_eq!(
            (release.uri.as_str(), release.salt),
            ("store", Some(format!("{here}/names.salt")))
        );
        // The settings of one machine are not sent.
        let other =
            Submission::new(manifest(folder.path(), &TEXT.replace("workers = 3", "workers = 1")))
                .unwrap();
        assert_eq!(other.id(), submission.id());
        let same = TEXT.replace("workers = 3", "workers = 3\narithmetic = \"same\"");
        let same = Submission::new(manifest(folder.path(), &same)).unwrap();
        assert_ne!(same.id(), submission.id());
        assert_eq!(same.into_manifest().execution.arithmetic, Arithmetic::Same);
        let other =
            Submission::new(manifest(folder.path(), &TEXT.replace("b.tar\"", "c.tar\""))).unwrap();
        assert_ne!(other.id(), submission.id());
    }

    #[test]
    fn what_did_not_come_from_submit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let good = Submission::new(manifest(folder.path(), TEXT)).unwrap().to_json();
        let here = folder.path().display().to_string();
        for (from, to, says) in [
            ("\"version\":1,\"manifest\"", "\"version\":2,\"manifest\"", "has version 2"),
            (here.as_str(), "..", "relative path"),
            ("\"batch_size\":128", "\"batch_size\":0", "method.batch_size is 0"),
            ("\"name\":\"small\"", "\"name\":\"../x\"", "name is `../x`"),
            ("\"model\":", "\"modell\":", "unknown field"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Submission::from_json(&good.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(
            Submission::from_json(&" ".repeat(MAX_BYTES + 1))
                .unwrap_err()
                .to_string()
                .contains("at most")
        );
    }
}

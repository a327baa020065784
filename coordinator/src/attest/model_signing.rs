//! `model.sig`: a signature over every file of a release in the format of OpenSSF Model Signing
//! 1.0. Its tool (`model_signing verify key`) checks a release without Lethe, and Lethe checks
//! signatures that the tool has made.
//!
//! The file is a sigstore bundle without certificates or transparency log: one DSSE envelope whose
//! in-toto statement names every file by its SHA-256.

use std::collections::BTreeMap;

use lethe_shared::digest::Digest;
use lethe_shared::json;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::dsse::Envelope;
use super::key::{PublicKey, SigningKey};
use super::statement::STATEMENT_TYPE;
use crate::failure::Failure;
use crate::layout::SIGNATURE;

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// Files that the tool leaves out: the signature, and git's files beside a model.
const IGNORED: [&str; 5] = [".git", ".gitattributes", ".github", ".gitignore", SIGNATURE];

/// Digests of files, by name.
pub type Files = BTreeMap<String, Digest>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Material {
    public_key: KeyHint,
    tlog_entries: [(); 0],
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyHint {
    hint: String,
}

/// The fields of the statement that are read. Version 1.0 requires other fields to be ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Debug, Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Debug, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
}

#[derive(Debug, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Digest,
}

/// Signs files and returns the text of a `model.sig`. `name` is the model's name in the statement.
///
/// # Errors
/// [`Failure::Infrastructure`] when the system's random number generator fails.
pub fn sign(name: &str, files: &Files, key: &SigningKey) -> Result<String, Failure> {
    let resources: Vec<_> = files
        .iter()
        .map(|(name, digest)| json!({ "name": name, "algorithm": "sha256", "digest": digest }))
        .collect();
    let statement = json!({
        "_type": STATEMENT_TYPE,
        "subject": [{ "name": name, "digest": { "sha256": root(files.values()) } }],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": { "method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": IGNORED },
            "resources": resources,
        },
    });
    let bundle = Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Material {
            public_key: KeyHint { hint: key.public().hint().to_string() },
            tlog_entries: [],
        },
        dsse_envelope: Envelope::seal(statement.to_string().as_bytes(), key)?,
    };
    serde_json::to_string(&bundle).map_err(Failure::input)
}

/// Returns the files that a signature by `key` names.
///
/// # Errors
/// The defect of the signature, as a sentence without a subject.
pub fn open(text: &[u8], key: &PublicKey) -> Result<Files, String> {
    let bundle: Bundle = json::parse(text)
        .map_err(|error| format!("is no signature with a key by OpenSSF Model Signing: {error}"))?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(format!(
            "is of the format `{}`, expected `{MEDIA_TYPE}`",
            bundle.media_type.escape_default()
        ));
    }
    let (hint, expected) = (&bundle.verification_material.public_key.hint, key.hint().to_string());
    if *hint != expected {
        return Err(format!(
            "was made with another key: SHA-256 of its PEM text is {}, not {expected}",
            hint.escape_default()
        ));
    }
    let statement: Statement = json::parse(&bundle.dsse_envelope.open(key)?).map_err(|error| {
        format!("is no statement about a model's files that this lethe reads: {error}")
    })?;
    let unknown = |what: &str, found: &str| {
        Err(format!("has the {what} `{}`, which this lethe does not read", found.escape_default()))
    };
    if statement.kind != STATEMENT_TYPE {
        return unknown("statement type", &statement.kind);
    }
    if statement.predicate_type != PREDICATE_TYPE {
        return unknown("predicate type", &statement.predicate_type);
    }
    let Predicate { serialization, resources } = statement.predicate;
    if serialization.method != "files" {
        return unknown("serialisation method", &serialization.method);
    }
    let other = [&serialization.hash_type]
        .into_iter()
        .chain(resources.iter().map(|resource| &resource.algorithm));
    if let Some(hash) = other.into_iter().find(|hash| *hash != "sha256") {
        return unknown("hash", hash);
    }
    let root = root(resources.iter().map(|resource| &resource.digest)).to_string();
    if statement.subject.len() != 1 || statement.subject[0].digest.get("sha256") != Some(&root) {
        return Err("contradicts itself: its subject is not the digest over its files".to_owned());
    }
    let count = resources.len();
    let files: Files =
        resources.into_iter().map(|resource| (resource.name, resource.digest)).collect();
    if files.len() == count { Ok(files) } else { Err("names a file twice".to_owned()) }
}

/// Returns the digest over digests, in their order.
fn root<'a>(digests: impl Iterator<Item = &'a Digest>) -> Digest {
    Digest::of(&digests.flat_map(Digest::as_bytes).copied().collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::key::tests::key;
    use super::*;

    fn files() -> Files {
        [("a.bin", &b"a"[..]), ("b.json", b"b"), ("composition.json", b"c")]
            .map(|(name, bytes)| (name.into(), Digest::of(bytes)))
            .into()
    }

    #[test]
    fn a_signature_says_what_was_signed() {
        let key = key();
        let text = sign("n", &files(), &key).unwrap();
        assert_eq!(open(text.as_bytes(), key.public()), Ok(files()));
        let other = super::super::key::tests::key();
        assert!(open(text.as_bytes(), other.public()).unwrap_err().contains("another key"));
    }

    #[test]
    fn no_bit_of_a_signature_can_change() {
        let key = key();
        let text = sign("n", &files(), &key).unwrap().into_bytes();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(
                open(&changed, key.public()).is_err(),
                "bit {} of byte {at}: {}",
                at % 8,
                String::from_utf8_lossy(&changed)
            );
        }
        for end in 0..text.len() {
            assert!(open(&text[..end], key.public()).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn what_the_tool_has_signed_is_read() {
        // Made by `model_signing sign key` 1.1.1 over a folder with two files.
        let key = PublicKey::read(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/attest/golden/key.pub"
        )))
        .unwrap();
        let expected = [("a", &b"hi\n"[..]), ("config.json", b"{}\n")]
            .map(|(name, bytes)| (name.to_owned(), Digest::of(bytes)));
        assert_eq!(open(include_bytes!("golden/model.sig"), &key), Ok(expected.into()));
    }
}

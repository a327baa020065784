//! References to what a job reads and writes: its id, artifacts, data files, the model, and where
//! they are found.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::digest::{Digest, NotADigest};
use crate::vocabulary::Precision;

/// The id of a job: the digest of everything that determines its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Digest);

impl JobId {
    /// Returns the digest.
    pub fn digest(&self) -> Digest {
        self.0
    }
}

impl From<Digest> for JobId {
    fn from(digest: Digest) -> Self {
        Self(digest)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An immutable object in the store, named by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactRef {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A file outside the store, as the plan saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A data shard: its content and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRef {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Pairs in it.
    pub pairs: u64,
    /// Where it is; does not affect any result.
    pub address: Address,
}

impl ShardRef {
    /// Returns the file without its address.
    pub fn spec(&self) -> FileSpec {
        FileSpec { digest: self.digest, bytes: self.bytes }
    }
}

/// The model: its content and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// Digest over the tensors' bytes in name order.
    pub weights: Digest,
    /// Digest over the configuration files that loading reads (model, image preprocessing,
    /// tokeniser).
    pub settings: Digest,
    /// Precision of matrix multiplications in its towers.
    pub precision: Precision,
    /// The folder; does not affect any result.
    pub address: Address,
}

impl ModelRef {
    /// Returns the model without its address.
    pub fn spec(&self) -> ModelSpec {
        ModelSpec { weights: self.weights, settings: self.settings, precision: self.precision }
    }
}

/// A model and the precision that it computes with: a part of every job id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Digest over the tensors' bytes in name order.
    pub weights: Digest,
    /// Digest over the configuration files that loading reads (model, image preprocessing,
    /// tokeniser).
    pub settings: Digest,
    /// Precision of matrix multiplications in its towers.
    pub precision: Precision,
}

/// Where the inputs of a job are found. Not a part of the job id: the same bytes at another address
/// give the same result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locations {
    /// The model's folder.
    pub model: Address,
    /// Files by digest.
    pub files: BTreeMap<Digest, Address>,
}

impl Locations {
    /// Returns the locations of a model and of shards.
    pub fn of<'a>(model: &ModelRef, shards: impl IntoIterator<Item = &'a ShardRef>) -> Self {
        let files = shards.into_iter().map(|shard| (shard.digest, shard.address.clone())).collect();
        Self { model: model.address.clone(), files }
    }

    /// Returns the address of a file, or the first digits of its digest when no address is known.
    pub fn name(&self, file: &FileSpec) -> String {
        self.files
            .get(&file.digest)
            .map_or_else(|| format!("file {}", file.digest.short()), Address::to_string)
    }
}

/// A class list with its prompt template, stored as an artifact: [`ClassTexts`] as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassTexts {
    /// Class names; a class is its position in this list.
    pub names: Vec<String>,
    /// Prompt in which `{}` (or `{name}`) stands for the name.
    pub template: String,
}

impl ClassTexts {
    /// Returns the prompt of every class.
    pub fn prompts(&self) -> impl Iterator<Item = String> + '_ {
        self.names.iter().map(|name| {
            if self.template.contains("{name}") {
                self.template.replace("{name}", name)
            } else {
                self.template.replace("{}", name)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_take_both_forms() {
        let mut texts = ClassTexts { names: vec!["cat".into()], template: "a {}".into() };
        assert_eq!(texts.prompts().collect::<Vec<_>>(), ["a cat"]);
        texts.template = "the {name}, drawn".into();
        assert_eq!(texts.prompts().collect::<Vec<_>>(), ["the cat, drawn"]);
    }
}

//! Publication of a release: its number.
//!
//! | key | content |
//! |---|---|
//! | `releases/<name>/<digest>/…` | a release's files, in a folder named after its record |
//! | `releases/<name>/<number>.json` | [`Published`]: created last, after all files of the release |
//!
//! Nothing is overwritten. A publisher that dies at any point leaves files that no number refers
//! to; the next attempt finds them and completes the publication. [`channels`](super::channels)
//! point to numbers.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::digest::Digest;
use lethe_shared::manifest::is_id;
use lethe_shared::record::{Composition, ReleaseRef};
use lethe_store as store;
use lethe_store::Store;
use serde::{Deserialize, Serialize};

use super::read::{Place, Release};
use crate::failure::Failure;
use crate::lease::fence::Fence;

/// Attempts at a number or a channel's entry after conflicts with concurrent writers.
pub(super) const ATTEMPTS: u32 = 20;
/// A complete release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Its number among the releases of its name, from 1.
    pub number: u64,
    /// Name and record digest of the release.
    pub release: ReleaseRef,
    /// SHA-256 over the weights' bytes in name order.
    pub digest: Digest,
    /// The release it was composed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ReleaseRef>,
}

impl Published {
    /// Returns its folder in the store.
    pub fn prefix(&self) -> String {
        prefix(&self.release)
    }
}

/// Returns a name or a channel, if it is one.
pub(super) fn checked(name: &str) -> Result<&str, String> {
    if is_id(name) {
        Ok(name)
    } else {
        Err(format!("`{}` is no name: letters, digits, `.`, `_`, `-`", name.escape_default()))
    }
}

/// Returns a release's folder in a store.
pub fn prefix(release: &ReleaseRef) -> String {
    format!("releases/{}/{}", release.name, release.record.short())
}

/// Returns the names that have releases.
///
/// # Errors
/// [`Failure::Infrastructure`] when the store cannot be listed.
pub async fn names(store: &Store) -> Result<BTreeSet<String>, Failure> {
    let keys = store.list("releases").await?;
    Ok(keys
        .iter()
        .filter_map(|key| Some(key.strip_prefix("releases/")?.split_once('/')?.0.to_owned()))
        .collect())
}

/// Returns every published release of a name, by number.
///
/// # Errors
/// [`Failure`] when the store cannot be read, or a document there is invalid.
pub async fn published(store: &Store, name: &str) -> Result<BTreeMap<u64, Published>, Failure> {
    let mut found = BTreeMap::new();
    for number in numbers(store, &format!("releases/{name}")).await? {
        let one: Option<Published> = store.get_json(&number_key(name, number)).await?;
        let Some(one) = one.filter(|one| one.number == number && one.release.name == name) else {
            return Err(Failure::input(format!(
                "{}/{} is about another release",
                store.name(),
                number_key(name, number)
            )));
        };
        found.insert(number, one);
    }
    Ok(found)
}

/// Returns the numbers of the JSON documents directly in a folder.
pub(super) async fn numbers(store: &Store, folder: &str) -> Result<BTreeSet<u64>, Failure> {
    let number =
        |key: &String| store::document_number(key.strip_prefix(folder)?.strip_prefix('/')?);
    Ok(store.list(folder).await?.iter().filter_map(number).collect())
}

pub(super) fn number_key(name: &str, number: u64) -> String {
    format!("releases/{name}/{number}.json")
}

/// Gives a complete release its number. A release that has a number keeps it.
///
/// # Errors
/// [`Failure::Infrastructure`] when another coordinator has taken the run over, or the store cannot
/// be written.
pub async fn publish(
    store: &Store,
    fence: &Fence,
    record: &Composition,
    digest: Digest,
) -> Result<Published, Failure> {
    let release = ReleaseRef { name: record.name.clone(), record: digest };
    for _ in 0..ATTEMPTS {
        let there = published(store, &record.name).await?;
        if let Some(one) = there.values().find(|one| one.release == release) {
            return Ok(one.clone());
        }
        let one = Published {
            number: there.keys().next_back().map_or(1, |last| last + 1),
            release: release.clone(),
            digest: record.digest,
            parent: record.parent.as_ref().map(|parent| parent.release.clone()),
        };
        fence.check().await?;
        if created(store, &number_key(&record.name, one.number), &one).await? {
            return Ok(one);
        }
    }
    Err(Failure::Infrastructure(format!(
        "{}: others take every number of {} at the same moment",
        store.name(),
        record.name
    )))
}

/// Creates a document. Returns `false` if another document exists.
pub(super) async fn created<T: Serialize>(
    store: &Store,
    key: &str,
    value: &T,
) -> Result<bool, Failure> {
    match store.create_json(key, value).await {
        Ok(_) => Ok(true),
        Err(store::Error::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens a published release. Its record must have the published digest.
///
/// # Errors
/// [`Failure::BadInput`] when the release is missing or has another record.
pub async fn open(store: &Store, one: &Published) -> Result<Release, Failure> {
    let release = Place::stored(store.clone(), one.prefix()).open().await?;
    if release.digest == one.release.record {
        Ok(release)
    } else {
        Err(Failure::input(format!(
            "{}: its record is not the one that was published as number {}",
            release.address(),
            one.number
        )))
    }
}

pub(super) fn unknown(name: &str, number: u64) -> Failure {
    Failure::input(format!("there is no release {name}:{number}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compose::gate_rules;
    use crate::layout::RECORD;

    /// Publishes a distinct release.
    pub(in super::super) async fn released(store: &Store, what: &str) -> Published {
        let record = Composition {
            name: "n".into(),
            digest: Digest::of(what.as_bytes()),
            ..gate_rules::tests::record()
        };
        let bytes = serde_json::to_vec(&record).unwrap();
        let digest = Digest::of(&bytes);
        let folder = prefix(&ReleaseRef { name: "n".into(), record: digest });
        store.create(&format!("{folder}/{RECORD}"), bytes.into()).await.unwrap();
        publish(store, &Fence::open(), &record, digest).await.unwrap()
    }
}

//! Leftovers: objects of publications that never finished, for `lethe release gc`.

use std::collections::{BTreeMap, BTreeSet};

use lethe_store::Store;
use serde::Serialize;

use super::publish::{Published, published};
use crate::failure::Failure;
use crate::layout::RECORD;

/// Objects of a publication that never finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The folder.
    pub folder: String,
    /// Its objects.
    pub objects: Vec<String>,
    /// Their total size.
    pub bytes: u64,
}

/// Returns the folders of a name that have no number and were last written before `before`, in
/// seconds since 1970. A publisher may still be writing to a younger folder.
///
/// # Errors
/// [`Failure`] when the store cannot be read.
pub async fn leftovers(store: &Store, name: &str, before: i64) -> Result<Vec<Leftover>, Failure> {
    // Objects are listed before numbers, so that a release published in between counts as
    // published.
    let objects = store.list_objects(&format!("releases/{name}")).await?;
    let published: BTreeSet<String> =
        published(store, name).await?.values().map(Published::prefix).collect();
    let mut folders: BTreeMap<String, (i64, Leftover)> = BTreeMap::new();
    for object in objects {
        let Some((folder, _)) = object.key.rsplit_once('/') else { continue };
        // Folders of releases are directly under the name, and contain only files.
        if folder.matches('/').count() != 2 || published.contains(folder) {
            continue;
        }
        let empty =
            || (i64::MIN, Leftover { folder: folder.to_owned(), objects: Vec::new(), bytes: 0 });
        let (newest, leftover) = folders.entry(folder.to_owned()).or_insert_with(empty);
        *newest = (*newest).max(object.modified);
        leftover.bytes += object.bytes;
        leftover.objects.push(object.key);
    }
    Ok(folders
        .into_values()
        .filter(|(newest, _)| *newest < before)
        .map(|(_, leftover)| leftover)
        .collect())
}

/// Removes a leftover that [`leftovers`] has found, and returns the removed objects. The folder is
/// listed again first: nothing is removed (`None`) if a publisher has written to it since `before`,
/// or has given it a number.
///
/// The record is removed first, so that an interrupted removal leaves no release. A publisher of
/// the same release writes every file again ([`write`](super::write)).
///
/// # Errors
/// [`Failure`] when the store cannot be read or written.
pub async fn remove(
    store: &Store,
    name: &str,
    leftover: &Leftover,
    before: i64,
) -> Result<Option<Leftover>, Failure> {
    let again = leftovers(store, name, before)
        .await?
        .into_iter()
        .find(|again| again.folder == leftover.folder);
    let Some(again) = again else { return Ok(None) };
    let record = format!("{}/{RECORD}", again.folder);
    let (first, others): (Vec<&String>, Vec<&String>) =
        again.objects.iter().partition(|object| **object == record);
    for object in first.into_iter().chain(others) {
        store.remove(object).await?;
    }
    Ok(Some(again))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lethe_shared::digest::Digest;
    use lethe_shared::record::ReleaseRef;

    use super::super::publish::{names, number_key};
    use super::*;

    fn one(number: u64) -> Published {
        let release = ReleaseRef { name: "n".into(), record: Digest::of(b"record") };
        Published { number, release, digest: Digest::of(b"weights"), parent: None }
    }

    #[tokio::test]
    async fn what_was_never_finished_is_found() {
        let store = Store::in_memory();
        let published = one(1);
        store.create_json(&number_key("n", 1), &published).await.unwrap();
        for key in [
            format!("{}/a", published.prefix()),
            "releases/n/half/a".into(),
            "releases/n/half/b".into(),
            "releases/n/channels/c/1.json".into(),
        ] {
            store.put(&key, Bytes::from_static(b"xyz")).await.unwrap();
        }
        let found = leftovers(&store, "n", i64::MAX).await.unwrap();
        let objects = vec!["releases/n/half/a".to_owned(), "releases/n/half/b".to_owned()];
        assert_eq!(found, [Leftover { folder: "releases/n/half".into(), objects, bytes: 6 }]);
        assert_eq!(leftovers(&store, "n", 0).await.unwrap(), [], "someone may be at work on it");
        assert_eq!(names(&store).await.unwrap(), BTreeSet::from(["n".to_owned()]));

        // A publisher has written to it since it was found.
        assert_eq!(remove(&store, "n", &found[0], 0).await.unwrap(), None);
        assert_eq!(leftovers(&store, "n", i64::MAX).await.unwrap(), found);
        // A publisher has given it a number since it was found.
        let release = ReleaseRef { name: "n".into(), record: Digest::of(b"half") };
        let half = Published { number: 2, release, digest: Digest::of(b"weights"), parent: None };
        store.put(&format!("{}/a", half.prefix()), Bytes::from_static(b"xyz")).await.unwrap();
        let found = leftovers(&store, "n", i64::MAX).await.unwrap();
        assert_eq!(found.len(), 2);
        store.create_json(&number_key("n", 2), &half).await.unwrap();
        let mut removed = Vec::new();
        for leftover in &found {
            removed.extend(remove(&store, "n", leftover, i64::MAX).await.unwrap());
        }
        assert_eq!(removed.len(), 1);
        assert!(store.get(&format!("{}/a", half.prefix())).await.unwrap().is_some());
        assert_eq!(leftovers(&store, "n", i64::MAX).await.unwrap(), []);
    }
}

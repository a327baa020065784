//! Reading folders that Lethe did not write, such as models and targets: listing, hashing,
//! downloading, and copying within a store. (The fault class `foreign` is unrelated.)

use std::path::Path;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lethe_shared::address::Address;
use lethe_shared::digest::Hasher;
use lethe_shared::reference::ArtifactRef;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::Error;
use crate::fetch;
use crate::store::{Object, REQUESTS, Store, object};

impl Store {
    /// Lists all objects of the store, sorted by key.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn contents(&self) -> Result<Vec<Object>, Error> {
        let list = || async {
            self.inner.list(None).try_collect().await.map_err(|error| self.error("", error))
        };
        let found: Vec<object_store::ObjectMeta> = REQUESTS.run(list).await?;
        let mut objects: Vec<Object> = found.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Returns the metadata of an object; `None` when it does not exist.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn look(&self, key: &str) -> Result<Option<Object>, Error> {
        let path = foreign(key)?;
        match REQUESTS
            .run(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) })
            .await
        {
            Ok(meta) => Ok(Some(object(meta))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a part of an object.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read.
    pub async fn range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes, Error> {
        let path = foreign(key)?;
        REQUESTS
            .run(|| async {
                let read = self.inner.get_range(&path, range.clone()).await;
                read.map_err(|error| self.error(key, error))
            })
            .await
    }

    /// Hashes an object while it is streamed. Returns its digest and size.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read.
    pub async fn hash(&self, key: &str) -> Result<ArtifactRef, Error> {
        let path = foreign(key)?;
        REQUESTS
            .run(|| async {
                let failed = |error| self.error(key, error);
                let mut stream = self.inner.get(&path).await.map_err(failed)?.into_stream();
                let (mut hasher, mut bytes) = (Hasher::new(), 0);
                while let Some(piece) = stream.next().await {
                    let piece = piece.map_err(failed)?;
                    hasher.update(&piece);
                    bytes += piece.len() as u64;
                }
                Ok(ArtifactRef { digest: hasher.finish(), bytes })
            })
            .await
    }

    /// Downloads an object into a local file, which is whole or absent. A file of a model hub
    /// becomes a link into the hub's cache.
    ///
    /// # Cancel safety
    /// A cancelled call may leave a temporary file beside `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read or the file cannot be written.
    pub async fn bring(&self, key: &str, path: &Path) -> Result<(), Error> {
        if let Some(repository) = &self.repository {
            return fetch::link(&repository.fetch(key).await?, path).await;
        }
        let key = foreign(key)?;
        REQUESTS.run(|| fetch::download(self, &key, path, None)).await
    }

    /// Returns whether the store can copy objects from `folder` server-side: both must be in one
    /// bucket.
    pub fn can_copy_from(&self, folder: &Address) -> bool {
        matches!((Address::parse(&self.name), folder), (Ok(Address::Remote(own)), Address::Remote(other)) if bucket(&own).0 == bucket(other).0)
    }

    /// Copies `name` below `folder` to a key of this store, server-side. Returns `false` when that
    /// is not possible: `folder` is in another bucket, or the object is larger than the store
    /// copies in one request.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the object. The object is whole or absent.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be reached or written.
    pub async fn copy_from(&self, folder: &Address, name: &str, key: &str) -> Result<bool, Error> {
        let (Ok(Address::Remote(own)), Address::Remote(other), true) =
            (Address::parse(&self.name), folder, self.can_copy_from(folder))
        else {
            return Ok(false);
        };
        let (root, to) = bucket(&own);
        let (_, from) = bucket(other);
        let root = Store::open(&Address::Remote(root.to_owned()))?;
        let at = |prefix: &str, name: &str| {
            if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
        };
        // The key is checked like every other one that Lethe writes.
        let to = self.key(key).and_then(|key| foreign(&at(to, key.as_ref())))?;
        let from = foreign(&at(from, name))?;
        let size = root.inner.head(&from).await.map_err(|error| root.error(name, error))?.size;
        if size > LARGEST_COPY {
            return Ok(false);
        }
        REQUESTS
            .run(|| async {
                root.inner.copy(&from, &to).await.map_err(|error| root.error(name, error))
            })
            .await?;
        Ok(true)
    }
}

/// Largest object that S3 copies in one request, bytes.
const LARGEST_COPY: u64 = 5 << 30;

/// Splits a URL into the address of its bucket and the rest.
fn bucket(url: &str) -> (&str, &str) {
    let after = url.find("://").map_or(0, |at| at + 3);
    match url[after..].find('/') {
        Some(slash) => (&url[..after + slash], &url[after + slash + 1..]),
        None => (url, ""),
    }
}

/// Parses the key of an object that Lethe did not write; only keys that Lethe writes are restricted
/// to plain ASCII.
fn foreign(key: &str) -> Result<Key, Error> {
    Key::parse(key).map_err(|error| Error::Invalid {
        what: format!("key `{}`", key.escape_default()),
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lethe_shared::digest::Digest;

    use super::*;

    #[tokio::test]
    async fn what_others_wrote_is_listed_hashed_and_brought() {
        let store = Store::in_memory();
        store.put("unet/config.json", Bytes::from_static(b"{}")).await.unwrap();
        store.put("a.txt", Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(
            store
                .contents()
                .await
                .unwrap()
                .iter()
                .map(|object| object.key.as_str())
                .collect::<Vec<_>>(),
            ["a.txt", "unet/config.json"]
        );
        assert_eq!(
            store.hash("unet/config.json").await.unwrap(),
            ArtifactRef { digest: Digest::of(b"{}"), bytes: 2 }
        );
        assert!(matches!(store.hash("none").await, Err(Error::NotFound { .. })));
        assert_eq!(
            (
                store.look("a.txt").await.unwrap().map(|object| object.bytes),
                store.look("none").await.unwrap()
            ),
            (Some(1), None)
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/on/the/way.json");
        store.bring("unet/config.json", &path).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"{}");
    }

    #[test]
    fn buckets_are_told_apart() {
        assert_eq!(bucket("s3://b/x/y"), ("s3://b", "x/y"));
        assert_eq!(bucket("s3://b"), ("s3://b", ""));
        let store =
            Store::over(std::sync::Arc::new(object_store::memory::InMemory::new()), "s3://b/store");
        let copies = |folder: &str| store.can_copy_from(&Address::parse(folder).unwrap());
        assert!(copies("s3://b/models/sd") && copies("s3://b"));
        assert!(!copies("s3://bb/models/sd") && !copies("gs://b/models") && !copies("/b/models"));
    }
}

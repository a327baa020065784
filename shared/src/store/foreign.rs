//! Folders that others have filled: listed, hashed, brought here, or copied by the store they are in.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};

use super::{Error, Object, Store, fetch};
use crate::address::Address;
use crate::digest::Hasher;
use crate::job::ArtifactRef;

impl Store {
    /// Everything in it, by key.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn contents(&self) -> Result<Vec<Object>, Error> {
        let list = || async { self.inner.list(None).try_collect().await.map_err(|error| self.error("", error)) };
        let found: Vec<object_store::ObjectMeta> = super::again(list).await?;
        let mut objects: Vec<Object> = found.into_iter().map(super::object).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// An object as a listing shows it; `None` when it is not there.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn look(&self, key: &str) -> Result<Option<Object>, Error> {
        let path = foreign(key)?;
        match super::again(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) }).await {
            Ok(meta) => Ok(Some(super::object(meta))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Digest and size of an object, read piece by piece.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read.
    pub async fn hash(&self, key: &str) -> Result<ArtifactRef, Error> {
        let path = foreign(key)?;
        super::again(|| async {
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

    /// Copies an object into a file on this machine, which is whole or absent.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read or the file cannot be written.
    pub async fn bring(&self, key: &str, path: &Path) -> Result<(), Error> {
        let key = foreign(key)?;
        super::again(|| fetch::download(self, &key, path, None)).await
    }

    /// Whether the store can copy what is at `folder` by itself: both are in one bucket.
    pub fn can_copy_from(&self, folder: &Address) -> bool {
        matches!((Address::parse(&self.name), folder), (Ok(Address::Remote(own)), Address::Remote(other)) if bucket(&own).0 == bucket(other).0)
    }

    /// Lets the store copy `name` below `folder` to a key of its own, without the bytes passing through here. Returns whether it did:
    /// not when `folder` is elsewhere, or the object is larger than the store copies in one request.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be reached or written.
    pub async fn copy_from(&self, folder: &Address, name: &str, key: &str) -> Result<bool, Error> {
        let (Ok(Address::Remote(own)), Address::Remote(other), true) = (Address::parse(&self.name), folder, self.can_copy_from(folder))
        else {
            return Ok(false);
        };
        let (root, to) = bucket(&own);
        let (_, from) = bucket(other);
        let root = Store::open(&Address::Remote(root.to_owned()))?;
        let at = |prefix: &str, name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        // The key is checked as every other that is written here.
        let to = self.key(key).and_then(|key| foreign(&at(to, key.as_ref())))?;
        let from = foreign(&at(from, name))?;
        let size = root.inner.head(&from).await.map_err(|error| root.error(name, error))?.size;
        if size > LARGEST_COPY {
            return Ok(false);
        }
        super::again(|| async { root.inner.copy(&from, &to).await.map_err(|error| root.error(name, error)) }).await?;
        Ok(true)
    }
}

/// Largest object that S3 copies in one request, bytes.
const LARGEST_COPY: u64 = 5 << 30;

/// A URL's bucket as an address, and the rest.
fn bucket(url: &str) -> (&str, &str) {
    let after = url.find("://").map_or(0, |at| at + 3);
    match url[after..].find('/') {
        Some(slash) => (&url[..after + slash], &url[after + slash + 1..]),
        None => (url, ""),
    }
}

/// The key of what others wrote; only what Lethe writes keeps to plain ASCII.
fn foreign(key: &str) -> Result<Key, Error> {
    Key::parse(key).map_err(|error| Error::Invalid { what: format!("key `{}`", key.escape_default()), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::digest::Digest;

    #[tokio::test]
    async fn what_others_wrote_is_listed_hashed_and_brought() {
        let store = Store::in_memory();
        store.put("unet/config.json", Bytes::from_static(b"{}")).await.unwrap();
        store.put("a.txt", Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(
            store.contents().await.unwrap().iter().map(|object| object.key.as_str()).collect::<Vec<_>>(),
            ["a.txt", "unet/config.json"]
        );
        assert_eq!(store.hash("unet/config.json").await.unwrap(), ArtifactRef { digest: Digest::of(b"{}"), bytes: 2 });
        assert!(matches!(store.hash("none").await, Err(Error::NotFound { .. })));
        assert_eq!((store.look("a.txt").await.unwrap().map(|object| object.bytes), store.look("none").await.unwrap()), (Some(1), None));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/on/the/way.json");
        store.bring("unet/config.json", &path).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"{}");
    }

    #[test]
    fn buckets_are_told_apart() {
        assert_eq!(bucket("s3://b/x/y"), ("s3://b", "x/y"));
        assert_eq!(bucket("s3://b"), ("s3://b", ""));
        let store = Store::over(std::sync::Arc::new(object_store::memory::InMemory::new()), "s3://b/store");
        let copies = |folder: &str| store.can_copy_from(&Address::parse(folder).unwrap());
        assert!(copies("s3://b/models/sd") && copies("s3://b"));
        assert!(!copies("s3://bb/models/sd") && !copies("gs://b/models") && !copies("/b/models"));
    }
}

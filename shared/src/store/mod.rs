//! The object store: immutable artifacts under their digests, outcomes written once under their job's id.
//!
//! | key | what |
//! |---|---|
//! | `artifacts/<xx>/<sha256>` | any bytes, named by their digest |
//! | `outcomes/<xx>/<job id>.json` | a job's outcome, created once |
//! | `runs/<run>/…` | what a run leaves beside its release |
//! | `runs/<run>/claims/<n>.json` | who coordinated it, the latest last |
//! | `staging/…` | in a local folder: files that are not yet in their place |
//! | `damaged/…` | objects that were not what they should be, under their old keys |
//! | `releases/<name>/<digest>/…` | a release; `composition.json` is written last |
//! | `releases/<name>/<number>.json` | its number, created when it is whole |
//! | `releases/<name>/channels/<channel>/<n>.json` | where a channel led from then on, the latest last |
//!
//! Nothing outside this module builds such a key but the releases', and nothing here is overwritten with other bytes.

mod claim;
mod error;
mod fetch;
mod foreign;
mod measured;
mod mend;
mod open;
mod staging;
mod stream;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
pub use claim::Claim;
pub use error::Error;
pub use fetch::{expand, fetch_file, fetch_folder, literally};
use futures::{StreamExt, TryStreamExt};
pub use mend::{Damaged, Found};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;
pub use staging::Staging;
pub use stream::{Source, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::address::Address;
use crate::digest::Digest;
use crate::job::{ArtifactRef, JobId};
use crate::outcome::Outcome;

/// Objects larger than this are fetched in pieces, several at a time.
const PIECE: u64 = 32 << 20;
/// Pieces in flight.
const PIECES_AT_ONCE: usize = 4;
/// Largest JSON document read, bytes.
const MAX_JSON: u64 = 256 << 20;
/// S3 answers two creations at one moment by refusing both: neither is there yet, and one tries again.
const CREATIONS: u32 = 5;
/// Pause between such attempts.
const CREATION_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
/// Attempts at anything that may do better a moment later. (Clients of remote stores try again by themselves when a
/// request fails; not when an answer breaks off half-way.)
const ATTEMPTS: u32 = 5;
/// Pause before the second attempt; it doubles.
const ATTEMPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// Longest key, bytes (S3's limit).
const MAX_KEY: usize = 1024;

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, seconds since 1970, by the store's clock.
    pub modified: i64,
}

/// An object store; clones share one connection.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    name: String,
    /// The store's folder, where it is one on this machine.
    folder: Option<PathBuf>,
}

impl Store {
    /// Opens the store at an address; a local folder is created.
    ///
    /// Credentials and endpoints of remote stores come from the environment, by the names each cloud's own tools use
    /// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME` …).
    ///
    /// # Errors
    /// When the address makes no sense or the folder cannot be made. Remote stores are not contacted yet.
    pub fn open(address: &Address) -> Result<Self, Error> {
        let folder = address.as_local().map(Path::to_owned);
        Ok(Self { folder, ..Self::over(open::open(address)?, &address.to_string()) })
    }

    /// A store in memory.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()), "memory")
    }

    /// A store over any implementation; `name` is for messages.
    pub fn over(inner: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { inner: measured::Measured::over(inner), name: name.to_owned(), folder: None }
    }

    /// Where it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks that the store can be written and read, so that a run fails before its work and not after.
    ///
    /// # Errors
    /// Why not.
    pub async fn probe(&self) -> Result<(), Error> {
        let text = Bytes::from_static(b"lethe can write here\n");
        self.put("probe.txt", text.clone()).await?;
        match self.get("probe.txt").await? {
            Some(read) if read == text => Ok(()),
            _ => Err(Error::Corrupt { object: format!("{}/probe.txt", self.name), problem: "what was written is not what is read".into() }),
        }
    }

    /// Writes bytes under their digest; does nothing where they are already.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_artifact(&self, bytes: Bytes) -> Result<ArtifactRef, Error> {
        let hashed = bytes.clone();
        let digest = blocking(move || Digest::of(&hashed)).await?;
        let artifact = ArtifactRef { digest, bytes: bytes.len() as u64 };
        let key = artifact_key(&artifact);
        if self.size(&key).await? != Some(artifact.bytes) {
            self.put(&key, bytes).await?;
        }
        Ok(artifact)
    }

    /// Reads an artifact and checks it against its digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Corrupt`] when the bytes are not those the digest names.
    pub async fn get_artifact(&self, artifact: &ArtifactRef) -> Result<Bytes, Error> {
        let key = artifact_key(artifact);
        let corrupt = |problem: &str| Error::Corrupt { object: format!("{}/{key}", self.name), problem: problem.to_owned() };
        match self.size(&key).await? {
            None => return Err(Error::NotFound { object: format!("{}/{key}", self.name) }),
            Some(size) if size != artifact.bytes => return Err(corrupt("has another size than when it was written")),
            Some(_) => {}
        }
        let bytes = self.get_pieces(&key, artifact.bytes).await?;
        let hashed = bytes.clone();
        if blocking(move || Digest::of(&hashed)).await? == artifact.digest {
            Ok(bytes)
        } else {
            Err(corrupt("has other bytes than when it was written"))
        }
    }

    async fn get_pieces(&self, key: &str, size: u64) -> Result<Bytes, Error> {
        let path = self.key(key)?;
        if size <= PIECE {
            return self.get(key).await?.ok_or_else(|| Error::NotFound { object: format!("{}/{key}", self.name) });
        }
        let ranges: Vec<Range<u64>> = (0..size).step_by(PIECE as usize).map(|start| start..size.min(start + PIECE)).collect();
        let pieces: Vec<Bytes> = futures::stream::iter(ranges)
            .map(|range| {
                let path = &path;
                again(move || {
                    let range = range.clone();
                    async move { self.inner.get_range(path, range).await.map_err(|error| self.error(key, error)) }
                })
            })
            .buffered(PIECES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(pieces.concat().into())
    }

    /// Writes a job's outcome, once: when there is one already, that one is returned and stays.
    ///
    /// # Errors
    /// When the store cannot be written, or holds an unreadable outcome.
    pub async fn put_outcome(&self, outcome: &Outcome) -> Result<Outcome, Error> {
        let key = outcome_key(outcome.job);
        for _ in 0..CREATIONS {
            if self.create_new(&key, json(outcome)).await? {
                return Ok(outcome.clone());
            }
            if let Some(first) = self.get_outcome(outcome.job).await? {
                return Ok(first);
            }
            tokio::time::sleep(CREATION_PAUSE).await;
        }
        Err(Error::Unavailable { object: format!("{}/{key}", self.name), cause: "is neither there nor can be created".to_owned() })
    }

    /// A job's outcome, when there is one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be read or is another job's.
    pub async fn get_outcome(&self, job: JobId) -> Result<Option<Outcome>, Error> {
        let key = outcome_key(job);
        let Some(outcome) = self.get_json::<Outcome>(&key).await? else { return Ok(None) };
        if outcome.job != job {
            return Err(Error::Corrupt {
                object: format!("{}/{key}", self.name),
                problem: format!("is the outcome of job {}", outcome.job),
            });
        }
        Ok(Some(outcome))
    }

    /// Writes a JSON document; what was there is replaced whole.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_json<T: Serialize>(&self, key: &str, value: &T) -> Result<(), Error> {
        self.put(key, json(value)).await
    }

    /// Reads a JSON document.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it is not what is expected.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let corrupt = |problem: String| Error::Corrupt { object: format!("{}/{key}", self.name), problem };
        match self.size(key).await? {
            None => return Ok(None),
            Some(size) if size > MAX_JSON => return Err(corrupt(format!("has {size} bytes, no document is that large"))),
            Some(_) => {}
        }
        let Some(bytes) = self.get(key).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| corrupt(error.to_string()))
    }

    /// Writes bytes; they appear whole.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        let path = self.key(key)?;
        again(|| async { self.inner.put(&path, PutPayload::from(bytes.clone())).await.map(drop).map_err(|error| self.error(key, error)) })
            .await
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// When the store cannot be read; an object that is not there is `None`.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let path = self.key(key)?;
        let failed = |error| self.error(key, error);
        match again(|| async { self.inner.get(&path).await.map_err(failed)?.bytes().await.map_err(failed) }).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Size of an object in bytes; `None` when it is not there.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        let path = self.key(key)?;
        match again(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) }).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When an object was written, seconds since 1970, by the store's clock; `None` when it is not there.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn modified(&self, key: &str) -> Result<Option<i64>, Error> {
        let path = self.key(key)?;
        match again(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) }).await {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes bytes where nothing is: the commit of everything that is published. Returns whether it was this call
    /// that wrote; equal bytes from an earlier call are as good.
    ///
    /// # Errors
    /// [`Error::Conflict`] when other bytes are there.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        for _ in 0..CREATIONS {
            if self.create_new(key, bytes.clone()).await? {
                return Ok(true);
            }
            match self.get(key).await? {
                Some(there) if there == bytes => return Ok(false),
                Some(_) => return Err(Error::Conflict { object: format!("{}/{key}", self.name) }),
                None => tokio::time::sleep(CREATION_PAUSE).await,
            }
        }
        Err(Error::Unavailable { object: format!("{}/{key}", self.name), cause: "is neither there nor can be created".to_owned() })
    }

    /// The same for a JSON document.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something else is there.
    pub async fn create_json<T: Serialize>(&self, key: &str, value: &T) -> Result<bool, Error> {
        self.create(key, json(value)).await
    }

    async fn create_new(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        let path = self.key(key)?;
        again(|| async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.inner.put_opts(&path, PutPayload::from(bytes.clone()), options).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(self.error(key, error)),
            }
        })
        .await
    }

    /// Writes a file from this machine, large ones in parts; returns its digest and size.
    ///
    /// # Errors
    /// When the file cannot be read or the store cannot be written; nothing is left half-written.
    pub async fn put_file(&self, key: &str, path: &Path) -> Result<ArtifactRef, Error> {
        again(|| self.put_file_once(key, path)).await
    }

    async fn put_file_once(&self, key: &str, path: &Path) -> Result<ArtifactRef, Error> {
        let local = |error: std::io::Error| Error::from_io(&path.display().to_string(), error);
        let mut file = tokio::fs::File::open(path).await.map_err(local)?;
        let mut target =
            object_store::buffered::BufWriter::with_capacity(Arc::clone(&self.inner), self.key(key)?, 16 << 20).with_max_concurrency(4);
        let mut hasher = crate::digest::Hasher::new();
        let mut bytes = 0;
        let mut buffer = vec![0u8; 1 << 20];
        let remote = |error: std::io::Error| Error::from_io(&format!("{}/{key}", self.name), error);
        let copied = async {
            loop {
                let n = file.read(&mut buffer).await.map_err(local)?;
                if n == 0 {
                    return Ok(());
                }
                hasher.update(&buffer[..n]);
                bytes += n as u64;
                target.write_all(&buffer[..n]).await.map_err(remote)?;
            }
        };
        if let Err(error) = copied.await {
            // Parts that were sent cost money until they are taken back; the first error is the one to report.
            let _ = target.abort().await;
            return Err(error);
        }
        // Takes its parts back by itself when it fails.
        target.shutdown().await.map_err(remote)?;
        Ok(ArtifactRef { digest: hasher.finish(), bytes })
    }

    /// Keys under a prefix, sorted.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        Ok(self.survey(prefix).await?.into_iter().map(|object| object.key).collect())
    }

    /// Objects under a prefix, by key.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn survey(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let path = self.key(prefix)?;
        let list = || async { self.inner.list(Some(&path)).try_collect().await.map_err(|error| self.error(prefix, error)) };
        let found: Vec<object_store::ObjectMeta> = again(list).await?;
        let mut objects: Vec<Object> = found.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Takes an object away; one that is not there is no error. For what was never published.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let path = self.key(key)?;
        match again(|| async { self.inner.delete(&path).await.map_err(|error| self.error(key, error)) }).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    fn key(&self, key: &str) -> Result<Key, Error> {
        let plain = !key.is_empty()
            && key.len() <= MAX_KEY
            && key.split('/').all(|part| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part.bytes().all(|b| b.is_ascii_graphic() && !b"\\#?%*\"<>|{}^~[]`".contains(&b))
            });
        if !plain {
            return Err(Error::Invalid {
                what: format!("key `{key}`"),
                problem: "must be printable ASCII parts joined by single slashes".into(),
            });
        }
        Key::parse(key).map_err(|error| Error::Invalid { what: format!("key `{key}`"), problem: error.to_string() })
    }

    fn error(&self, key: &str, error: object_store::Error) -> Error {
        Error::from_store(&format!("{}/{key}", self.name), error)
    }
}

fn object(meta: object_store::ObjectMeta) -> Object {
    Object { key: meta.location.to_string(), bytes: meta.size, modified: meta.last_modified.timestamp() }
}

fn json<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data without non-string keys always serialises");
    bytes.push(b'\n');
    bytes.into()
}

/// The number of a document that is called `<number>.json`. What no counting reaches is none of ours: nothing that lies in a store can
/// take the last number there is.
pub fn document_number(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok().filter(|&number| number <= u64::from(u32::MAX))
}

/// The key of an artifact.
pub fn artifact_key(artifact: &ArtifactRef) -> String {
    let hex = artifact.digest.to_string();
    format!("artifacts/{}/{hex}", &hex[..2])
}

fn outcome_key(job: JobId) -> String {
    let hex = job.to_string();
    format!("outcomes/{}/{hex}.json", &hex[..2])
}

/// Does something again when its error may pass. Whoever calls may be more patient still.
async fn again<T, Act, Acting>(mut act: Act) -> Result<T, Error>
where
    Act: FnMut() -> Acting,
    Acting: Future<Output = Result<T, Error>>,
{
    let mut attempt = 1;
    loop {
        match act().await {
            Err(Error::Unavailable { .. }) if attempt < ATTEMPTS => tokio::time::sleep(ATTEMPT_PAUSE * (1 << (attempt - 1))).await,
            other => return other,
        }
        attempt += 1;
    }
}

/// Runs work that takes the CPU where it does not hold up IO.
///
/// # Errors
/// [`Error::Unavailable`] when it is not done: the process is stopping.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let undone = |error: tokio::task::JoinError| Error::Unavailable { object: "this process".to_owned(), cause: error.to_string() };
    tokio::task::spawn_blocking(work).await.map_err(undone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_conforms() {
        conformance::check(&Store::in_memory()).await;
    }

    #[tokio::test]
    async fn local_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Local(folder.path().join("made/on/the/way"));
        conformance::check(&Store::open(&address).unwrap()).await;
    }

    #[tokio::test]
    async fn damage_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&Address::Local(folder.path().into())).unwrap();
        let artifact = store.put_artifact(Bytes::from_static(b"some bytes")).await.unwrap();
        let path = folder.path().join(artifact_key(&artifact));
        for damaged in ["some byteS", "some", ""] {
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(store.get_artifact(&artifact).await, Err(Error::Corrupt { .. })), "{damaged}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(store.get_artifact(&artifact).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = Store::open(&Address::Local(file.join("store"))).unwrap_err();
        assert!(error.to_string().contains("file/store"), "{error}");
    }
}

//! The store itself: artifacts, outcomes, documents and files.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::fault::StoredObject;
use lethe_shared::outcome::Outcome;
use lethe_shared::reference::{ArtifactRef, JobId};
use lethe_shared::retry::{GiveUp, RetryPolicy};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::Error;
use crate::hub::{Reader, Repository};
use crate::local::blocking;
use crate::measured::Measured;
use crate::open;

/// Objects larger than this are fetched in several concurrent range requests, in bytes.
const PIECE: u64 = 32 << 20;
/// Concurrent range requests.
const PIECES_AT_ONCE: usize = 4;
/// Largest JSON document that is read, in bytes.
const MAX_JSON: u64 = 256 << 20;
/// Attempts at creating an object. S3 refuses both of two concurrent creations: neither object
/// exists, and both retry.
const CREATIONS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(200),
    most: Duration::from_millis(200),
    give_up: GiveUp::Attempts(5),
};
/// Attempts at all other requests. Clients of remote stores retry failed requests themselves, but
/// not responses that end early.
pub(crate) const REQUESTS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(100),
    most: Duration::from_millis(800),
    give_up: GiveUp::Attempts(5),
};
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
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) name: String,
    /// The folder of a local store.
    pub(crate) folder: Option<PathBuf>,
    /// The repository, if the store is one on a model hub.
    pub(crate) repository: Option<Arc<Repository>>,
}

impl Store {
    /// Opens the store at an address; a local folder is created.
    ///
    /// Credentials and endpoints of remote stores come from the environment, by the names each
    /// cloud's own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
    /// `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME` …).
    ///
    /// # Errors
    /// When the address is invalid or the folder cannot be created; [`Error::Invalid`] when it can
    /// only be read (`hf://`, `https://`). Remote stores are not contacted yet.
    pub fn open(address: &Address) -> Result<Self, Error> {
        Self::require_writable(address)?;
        Self::reading(address)
    }

    /// Fails for an address that can only be read.
    ///
    /// # Errors
    /// [`Error::Invalid`] for `hf://` and `https://`.
    pub fn require_writable(address: &Address) -> Result<(), Error> {
        if address.as_hub().is_none() && !address.is_web() {
            return Ok(());
        }
        Err(Error::Invalid {
            what: address.to_string(),
            problem: "can only be read; a store is a path, file://, s3://, gs:// or az:// (`lethe release export` lays a release out for a model hub)"
                .to_owned(),
        })
    }

    /// Opens a folder to read from, at any address: also a repository of a model hub, or a folder
    /// of a web server, neither of which can be written.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn reading(address: &Address) -> Result<Self, Error> {
        let name = address.to_string();
        if let Some(hub) = address.as_hub() {
            let repository = Arc::new(Repository::open(&hub)?);
            let reader = Reader::over(Arc::clone(&repository), hub.path());
            return Ok(Self {
                repository: Some(repository),
                ..Self::over(Arc::new(reader), &name)
            });
        }
        let folder = address.as_local().map(Path::to_owned);
        Ok(Self { folder, ..Self::over(open::open(address)?, &name) })
    }

    /// Creates an in-memory store.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()), "memory")
    }

    /// Wraps any implementation of [`ObjectStore`]; `name` appears in messages.
    pub fn over(inner: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { inner: Measured::over(inner), name: name.to_owned(), folder: None, repository: None }
    }

    /// Returns the address of the store, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes bytes under their digest, unless they exist already.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the artifact. An artifact is whole or absent.
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
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Corrupt`] when the bytes are not those the digest names.
    pub async fn get_artifact(&self, artifact: &ArtifactRef) -> Result<Bytes, Error> {
        let key = artifact_key(artifact);
        let stored = Some(StoredObject::Artifact(artifact.digest));
        let object = format!("{}/{key}", self.name);
        let corrupt = |problem: &str| Error::Corrupt {
            object: object.clone(),
            problem: problem.to_owned(),
            stored,
        };
        match self.size(&key).await? {
            None => return Err(Error::NotFound { object, stored }),
            Some(size) if size != artifact.bytes => {
                return Err(corrupt("has a different size than when it was written"));
            }
            Some(_) => {}
        }
        let bytes = self.get_pieces(&key, artifact.bytes).await?;
        let hashed = bytes.clone();
        if blocking(move || Digest::of(&hashed)).await? == artifact.digest {
            Ok(bytes)
        } else {
            Err(corrupt("has different bytes than when it was written"))
        }
    }

    async fn get_pieces(&self, key: &str, size: u64) -> Result<Bytes, Error> {
        let path = self.key(key)?;
        if size <= PIECE {
            return self.get(key).await?.ok_or_else(|| Error::NotFound {
                object: format!("{}/{key}", self.name),
                stored: None,
            });
        }
        let ranges: Vec<Range<u64>> =
            (0..size).step_by(PIECE as usize).map(|start| start..size.min(start + PIECE)).collect();
        let pieces: Vec<Bytes> = futures::stream::iter(ranges)
            .map(|range| {
                let path = &path;
                REQUESTS.run(move || {
                    let range = range.clone();
                    async move {
                        self.inner
                            .get_range(path, range)
                            .await
                            .map_err(|error| self.error(key, error))
                    }
                })
            })
            .buffered(PIECES_AT_ONCE)
            .try_collect()
            .await?;
        Ok(pieces.concat().into())
    }

    /// Writes the outcome of a job, unless there is one already. Returns the outcome that is in the
    /// store.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the outcome. Calling it again returns that outcome.
    ///
    /// # Errors
    /// When the store cannot be written, or holds an unreadable outcome.
    pub async fn put_outcome(&self, outcome: &Outcome) -> Result<Outcome, Error> {
        let key = outcome_key(outcome.job);
        let attempt = || async {
            if self.create_new(&key, json(outcome)).await? {
                return Ok(outcome.clone());
            }
            self.get_outcome(outcome.job).await?.ok_or_else(|| self.not_created(&key))
        };
        CREATIONS.run(attempt).await
    }

    /// Reads the outcome of a job. Returns `None` when there is none.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be read or is another job's.
    pub async fn get_outcome(&self, job: JobId) -> Result<Option<Outcome>, Error> {
        let key = outcome_key(job);
        let stored = Some(StoredObject::Outcome(job));
        let outcome = match self.get_json::<Outcome>(&key).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(None),
            Err(Error::Corrupt { object, problem, .. }) => {
                return Err(Error::Corrupt { object, problem, stored });
            }
            Err(error) => return Err(error),
        };
        if outcome.job != job {
            let problem = format!("is the outcome of job {}", outcome.job);
            return Err(Error::Corrupt { object: format!("{}/{key}", self.name), problem, stored });
        }
        Ok(Some(outcome))
    }

    /// Writes a JSON document, and replaces an earlier one.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the object. The object is whole or absent.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_json<T: Serialize>(&self, key: &str, value: &T) -> Result<(), Error> {
        self.put(key, json(value)).await
    }

    /// Reads a JSON document. Returns `None` when it does not exist.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when it cannot be parsed.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let corrupt = |problem: String| Error::Corrupt {
            object: format!("{}/{key}", self.name),
            problem,
            stored: None,
        };
        match self.size(key).await? {
            None => return Ok(None),
            Some(size) if size > MAX_JSON => {
                return Err(corrupt(format!("has {size} bytes, no document is that large")));
            }
            Some(_) => {}
        }
        let Some(bytes) = self.get(key).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| corrupt(error.to_string()))
    }

    /// Writes an object, and replaces an earlier one. Readers see it whole or not at all.
    ///
    /// # Cancel safety
    /// A cancelled call may have written the object. The object is whole or absent.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), Error> {
        let path = self.key(key)?;
        REQUESTS
            .run(|| async {
                self.inner
                    .put(&path, PutPayload::from(bytes.clone()))
                    .await
                    .map(drop)
                    .map_err(|error| self.error(key, error))
            })
            .await
    }

    /// Reads an object. Returns `None` when it does not exist.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let path = self.key(key)?;
        let failed = |error| self.error(key, error);
        match REQUESTS
            .run(|| async {
                self.inner.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)
            })
            .await
        {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the size of an object in bytes; `None` when it does not exist.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        let path = self.key(key)?;
        match REQUESTS
            .run(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) })
            .await
        {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns when an object was written, in seconds since 1970 by the store's clock; `None` when
    /// it does not exist.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn modified(&self, key: &str) -> Result<Option<i64>, Error> {
        let path = self.key(key)?;
        match REQUESTS
            .run(|| async { self.inner.head(&path).await.map_err(|error| self.error(key, error)) })
            .await
        {
            Ok(meta) => Ok(Some(meta.last_modified.timestamp())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object: the commit of everything that is published. Returns `true` when this call
    /// created it, `false` when it existed with equal bytes.
    ///
    /// # Cancel safety
    /// A cancelled call may have created the object. Calling it again with the same bytes returns
    /// `false`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it exists with other bytes.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        let attempt = || async {
            if self.create_new(key, bytes.clone()).await? {
                return Ok(true);
            }
            match self.get(key).await? {
                Some(there) if there == bytes => Ok(false),
                Some(_) => Err(Error::Conflict { object: format!("{}/{key}", self.name) }),
                None => Err(self.not_created(key)),
            }
        };
        CREATIONS.run(attempt).await
    }

    /// The error when the store refuses to create an object because it exists, but does not return
    /// it.
    fn not_created(&self, key: &str) -> Error {
        Error::Unavailable {
            object: format!("{}/{key}", self.name),
            cause: "does not exist and cannot be created".to_owned(),
        }
    }

    /// Creates a JSON document, like [`create`](Self::create).
    ///
    /// # Cancel safety
    /// As [`create`](Self::create).
    ///
    /// # Errors
    /// [`Error::Conflict`] when it exists with other contents.
    pub async fn create_json<T: Serialize>(&self, key: &str, value: &T) -> Result<bool, Error> {
        self.create(key, json(value)).await
    }

    pub(crate) async fn create_new(&self, key: &str, bytes: Bytes) -> Result<bool, Error> {
        let path = self.key(key)?;
        REQUESTS
            .run(|| async {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match self.inner.put_opts(&path, PutPayload::from(bytes.clone()), options).await {
                    Ok(_) => Ok(true),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                    Err(error) => Err(self.error(key, error)),
                }
            })
            .await
    }

    /// Uploads a local file, a large one in parts. Returns its digest and size.
    ///
    /// # Cancel safety
    /// A cancelled call leaves the object whole or absent. A remote store may keep uploaded parts
    /// until its lifecycle rule removes them.
    ///
    /// # Errors
    /// When the file cannot be read or the store cannot be written. No partial object is left
    /// behind.
    pub async fn put_file(&self, key: &str, path: &Path) -> Result<ArtifactRef, Error> {
        REQUESTS.run(|| self.put_file_once(key, path)).await
    }

    async fn put_file_once(&self, key: &str, path: &Path) -> Result<ArtifactRef, Error> {
        let local = |error: std::io::Error| Error::from_io(&path.display().to_string(), error);
        let mut file = tokio::fs::File::open(path).await.map_err(local)?;
        let mut target = object_store::buffered::BufWriter::with_capacity(
            Arc::clone(&self.inner),
            self.key(key)?,
            16 << 20,
        )
        .with_max_concurrency(4);
        let mut hasher = lethe_shared::digest::Hasher::new();
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
            // Uploaded parts cost money until they are removed. The first error is the one to
            // report.
            let _ = target.abort().await;
            return Err(error);
        }
        // A failed shutdown removes the parts itself.
        target.shutdown().await.map_err(remote)?;
        Ok(ArtifactRef { digest: hasher.finish(), bytes })
    }

    /// Lists the keys under a prefix, sorted.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        Ok(self.list_objects(prefix).await?.into_iter().map(|object| object.key).collect())
    }

    /// Lists the objects under a prefix, sorted by key.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list_objects(&self, prefix: &str) -> Result<Vec<Object>, Error> {
        let path = self.key(prefix)?;
        let list = || async {
            self.inner
                .list(Some(&path))
                .try_collect()
                .await
                .map_err(|error| self.error(prefix, error))
        };
        let found: Vec<object_store::ObjectMeta> = REQUESTS.run(list).await?;
        let mut objects: Vec<Object> = found.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    /// Deletes an object; one that does not exist is no error. Published objects must not be
    /// deleted.
    ///
    /// # Cancel safety
    /// A cancelled call may have deleted the object.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        let path = self.key(key)?;
        match REQUESTS
            .run(|| async {
                self.inner.delete(&path).await.map_err(|error| self.error(key, error))
            })
            .await
        {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn key(&self, key: &str) -> Result<Key, Error> {
        let plain = !key.is_empty()
            && key.len() <= MAX_KEY
            && key.split('/').all(|part| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_graphic() && !b"\\#?%*\"<>|{}^~[]`".contains(&b))
            });
        if !plain {
            return Err(Error::Invalid {
                what: format!("key `{key}`"),
                problem: "must be printable ASCII parts joined by single slashes".into(),
            });
        }
        Key::parse(key).map_err(|error| Error::Invalid {
            what: format!("key `{key}`"),
            problem: error.to_string(),
        })
    }

    pub(crate) fn error(&self, key: &str, error: object_store::Error) -> Error {
        Error::from_store(&format!("{}/{key}", self.name), error)
    }
}

pub(crate) fn object(meta: object_store::ObjectMeta) -> Object {
    Object {
        key: meta.location.to_string(),
        bytes: meta.size,
        modified: meta.last_modified.timestamp(),
    }
}

pub(crate) fn json<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = serde_json::to_vec_pretty(value)
        .expect("plain data without non-string keys always serialises");
    bytes.push(b'\n');
    bytes.into()
}

/// Returns the number of a document named `<number>.json`. Larger numbers than `u32::MAX` are
/// ignored, so that a stray object cannot exhaust the numbers.
pub fn document_number(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok().filter(|&number| number <= u64::from(u32::MAX))
}

/// Returns the key of an artifact.
pub fn artifact_key(artifact: &ArtifactRef) -> String {
    let hex = artifact.digest.to_string();
    format!("artifacts/{}/{hex}", &hex[..2])
}

fn outcome_key(job: JobId) -> String {
    let hex = job.to_string();
    format!("outcomes/{}/{hex}.json", &hex[..2])
}

#[cfg(test)]
mod tests;

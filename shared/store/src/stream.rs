//! Sequential reading of files at addresses, without a local copy.

use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use lethe_shared::address::Address;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::fetch::parent;
use crate::store::{REQUESTS, Store};

/// Bytes per range request.
const PIECE: u64 = 8 << 20;
/// Requests in flight for one file.
const AHEAD: usize = 3;
/// Bytes at the end of the file that are kept.
const TAIL: usize = 512;

/// A file with its size and version, at the time of [`Source::look`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where it is.
    pub address: Address,
    /// Its size.
    pub bytes: u64,
    /// Its version: the ETag of the object, or the modification time of the local file.
    pub version: String,
}

impl Source {
    /// Reads size and version of the file at an address.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be reached.
    pub async fn look(address: &Address) -> Result<Self, Error> {
        let (bytes, version) = match address {
            Address::Local(path) => {
                let look = |path: &Path| {
                    let metadata = std::fs::metadata(path)?;
                    if metadata.is_dir() {
                        return Err(io::Error::from(io::ErrorKind::IsADirectory));
                    }
                    Ok((metadata.len(), version(&metadata)))
                };
                look(path).map_err(|error| Error::from_io(&path.display().to_string(), error))?
            }
            Address::Remote(url) => {
                let (store, key) = parent(url)?;
                let head = || async {
                    store.inner.head(&key).await.map_err(|error| store.error(key.as_ref(), error))
                };
                let meta = REQUESTS.run(head).await?;
                (
                    meta.size,
                    meta.e_tag.unwrap_or_else(|| meta.last_modified.timestamp().to_string()),
                )
            }
        };
        Ok(Self { address: address.clone(), bytes, version })
    }

    /// Opens the file for sequential, blocking reads on a thread outside the runtime. A remote file
    /// is fetched by range requests that run a few pieces ahead of the reader; failed requests are
    /// retried.
    ///
    /// # Errors
    /// When the file no longer exists, or has another version.
    pub fn open(&self, runtime: &Handle) -> Result<Stream, Error> {
        let inner = match &self.address {
            Address::Local(path) => {
                let failed = |error| Error::from_io(&path.display().to_string(), error);
                let file = std::fs::File::open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if (metadata.len(), version(&metadata)) != (self.bytes, self.version.clone()) {
                    return Err(changed(&self.address));
                }
                Inner::File(file)
            }
            Address::Remote(url) => {
                let (store, key) = parent(url)?;
                let (sender, pieces) = mpsc::channel(1);
                runtime.spawn(send_pieces(store, key, self.clone(), sender));
                Inner::Pieces { pieces, now: Bytes::new() }
            }
        };
        Ok(Stream {
            inner,
            address: self.address.clone(),
            expected: self.bytes,
            read: 0,
            tail: Vec::with_capacity(TAIL),
            failure: None,
        })
    }
}

fn version(metadata: &std::fs::Metadata) -> String {
    let written = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    written.map(|time| format!("{}.{:09}", time.as_secs(), time.subsec_nanos())).unwrap_or_default()
}

fn changed(address: &Address) -> Error {
    Error::Invalid {
        what: address.to_string(),
        problem: "was modified while it was read; try again when it is complete".to_owned(),
    }
}

/// Fetches a file piece by piece until it ends, a request fails, or the reader is dropped.
async fn send_pieces(
    store: Store,
    key: Key,
    source: Source,
    sender: mpsc::Sender<Result<Bytes, Error>>,
) {
    let ranges = (0..source.bytes)
        .step_by(PIECE as usize)
        .map(|start| start..source.bytes.min(start + PIECE));
    let fetched = futures::stream::iter(ranges)
        .map(|range| fetch(&store, &key, &source, range))
        .buffered(AHEAD);
    let mut fetched = std::pin::pin!(fetched);
    while let Some(piece) = fetched.next().await {
        let failed = piece.is_err();
        if sender.send(piece).await.is_err() || failed {
            return;
        }
    }
}

async fn fetch(
    store: &Store,
    key: &Key,
    source: &Source,
    range: Range<u64>,
) -> Result<Bytes, Error> {
    let inner = Arc::clone(&store.inner);
    REQUESTS
        .run(|| async {
            let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
            let failed = |error| store.error(key.as_ref(), error);
            let answer = inner.get_opts(key, options).await.map_err(failed)?;
            // All pieces must be of the same version.
            let tag = answer
                .meta
                .e_tag
                .clone()
                .unwrap_or_else(|| answer.meta.last_modified.timestamp().to_string());
            if (answer.meta.size, &tag) != (source.bytes, &source.version) {
                return Err(changed(&source.address));
            }
            answer.bytes().await.map_err(failed)
        })
        .await
}

/// A sequential reader of a file.
#[derive(Debug)]
pub struct Stream {
    inner: Inner,
    address: Address,
    expected: u64,
    read: u64,
    tail: Vec<u8>,
    failure: Option<Error>,
}

#[derive(Debug)]
enum Inner {
    File(std::fs::File),
    Pieces { pieces: mpsc::Receiver<Result<Bytes, Error>>, now: Bytes },
}

impl Stream {
    /// Takes the error of a failed read: a failure of disk or network, not of the contents.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Returns the last bytes that were read, at most 512.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    fn next(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        match &mut self.inner {
            Inner::File(file) => loop {
                match file.read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => {
                        return read
                            .map_err(|error| Error::from_io(&self.address.to_string(), error));
                    }
                }
            },
            Inner::Pieces { pieces, now } => {
                while now.is_empty() && self.read < self.expected {
                    *now = match pieces.blocking_recv() {
                        Some(piece) => piece?,
                        None => {
                            return Err(Error::Unavailable {
                                object: self.address.to_string(),
                                cause: "the process is stopping".into(),
                            });
                        }
                    };
                }
                let n = now.len().min(buffer.len());
                now.copy_to_slice(&mut buffer[..n]);
                Ok(n)
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = match self.next(buffer) {
            Ok(n) => n,
            Err(error) => {
                let said = io::Error::other(error.to_string());
                self.failure = Some(error);
                return Err(said);
            }
        };
        self.read += n as u64;
        let kept = &buffer[n.saturating_sub(TAIL)..n];
        let old = (self.tail.len() + kept.len()).saturating_sub(TAIL);
        self.tail.drain(..old);
        self.tail.extend_from_slice(kept);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_to_its_end_and_only_while_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let source = Source::look(&Address::Local(path.clone())).await.unwrap();
        let mut stream = source.open(&Handle::current()).unwrap();
        let mut read = Vec::new();
        let mut buffer = [0; 700];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => read.extend_from_slice(&buffer[..n]),
            }
            assert!(read.ends_with(stream.tail()));
            assert_eq!(stream.tail().len(), read.len().min(TAIL));
        }
        assert_eq!(read, bytes);
        std::fs::write(&path, b"another").unwrap();
        assert!(matches!(source.open(&Handle::current()), Err(Error::Invalid { .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(source.open(&Handle::current()), Err(Error::NotFound { .. })));
        assert!(Source::look(&Address::Local(folder.path().into())).await.is_err());
    }
}

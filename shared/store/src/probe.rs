//! The store probe: checks the guarantees that runs need before anything depends on them.
//!
//! Workers, coordinators and `doctor` use the same probe. Its object is created once and never
//! deleted, so that any number of processes can probe at the same time, and a process without
//! permission to delete leaves nothing more behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use lethe_shared::retry::{GiveUp, RetryPolicy};
use object_store::{PutMode, PutOptions, PutPayload};

use crate::answers;
use crate::error::Error;
use crate::store::{REQUESTS, Store};

/// The prefix of probe objects.
const FOLDER: &str = "probe";
/// The object that all processes share.
const SHARED: &str = "probe/create-once.txt";
/// A key that is never written.
const MISSING: &str = "probe/missing.txt";
/// A key for one unconditional write, when the conditional one was rejected.
const PLAIN: &str = "probe/unconditional.txt";
/// The contents of the object.
const FIRST: &[u8] = b"created once; if this text changes, the store ignores If-None-Match\n";
/// Contents that must not replace them.
const SECOND: &[u8] = b"created twice: the store ignores If-None-Match\n";
/// Listings to try, and the pause between them. S3, GCS and Azure list an object as soon as it is
/// written.
const LISTINGS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(500),
    most: Duration::from_millis(500),
    give_up: GiveUp::Attempts(5),
};

/// The remedy for a store without create-if-absent.
const NEEDED: &str = "conditional writes are needed so that two processes never overwrite each other: use a store that supports \
                      If-None-Match on PUT (AWS S3, GCS, Azure, MinIO, Ceph from Tentacle on), or a folder on a disk with hard links";

impl Store {
    /// Checks that the store refuses to create an object twice, reads back what was written,
    /// reports a missing object as missing, and lists what was written.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the object of the probe behind, as a complete call does.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the store lacks one of these, with a remedy;
    /// [`Error::Permission`] when the credentials do not allow it; otherwise why the store cannot
    /// be reached.
    pub async fn probe(&self) -> Result<(), Error> {
        self.probe_with(SHARED).await
    }

    /// Like [`probe`](Self::probe), with the caller's own key below `probe/`; the caller removes
    /// the object.
    ///
    /// # Errors
    /// As [`probe`](Self::probe).
    pub(crate) async fn probe_with(&self, key: &str) -> Result<(), Error> {
        self.create_probe(key, FIRST).await?;
        // The second contents are there when an earlier probe overwrote the object; the store may
        // have been repaired since.
        let Some(first) = self.get(key).await?.filter(|bytes| bytes == FIRST || bytes == SECOND)
        else {
            return Err(self.unsupported(&format!(
                "{key} was written and other bytes are read back; do not use this store"
            )));
        };
        if self.create_probe(key, SECOND).await? {
            return Err(self.unsupported(&format!("{key} was created a second time; {NEEDED}")));
        }
        if self.get(key).await?.as_ref() != Some(&first) {
            return Err(self.unsupported(&format!(
                "{key} has changed though the store refused to create it again; {NEEDED}"
            )));
        }
        match self.size(MISSING).await {
            Ok(None) => {}
            Ok(Some(_)) => {
                return Err(self.unsupported(&format!(
                    "{MISSING} exists though nothing writes it; remove it"
                )));
            }
            // Without permission to list, S3 answers 403 for a missing object.
            Err(Error::Permission { object, cause }) => {
                let why = "the store answers like this for a missing object; allow listing too (s3:ListBucket on the bucket)";
                return Err(Error::Permission { object, cause: format!("{cause}; {why}") });
            }
            Err(error) => return Err(error),
        }
        let mut listings = LISTINGS.attempts();
        let began = Instant::now();
        loop {
            if self.list(FOLDER).await?.iter().any(|listed| listed == key) {
                return Ok(());
            }
            let Some(pause) = listings.failed() else { break };
            tokio::time::sleep(pause).await;
        }
        Err(self.unsupported(&format!(
            "{key} is not in a listing {} ms after it was written; leases and release numbers need listings that are up to date",
            began.elapsed().as_millis()
        )))
    }

    /// Creates the probe's object; returns `false` when it exists.
    async fn create_probe(&self, key: &str, bytes: &'static [u8]) -> Result<bool, Error> {
        let path = self.key(key)?;
        REQUESTS
            .run(|| async {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                let error = match self.inner.put_opts(&path, PutPayload::from_static(bytes), options).await {
                    Ok(_) => return Ok(true),
                    Err(object_store::Error::AlreadyExists { .. }) => return Ok(false),
                    Err(error) => error,
                };
                let refused = answers::find(&error).is_some_and(answers::FinalAnswer::is_bad_request)
                    || (self.folder.is_some() && Error::io_kind(&error) == Some(std::io::ErrorKind::PermissionDenied));
                if refused && self.takes_plain_writes().await {
                    return Err(self.unsupported(&format!("{key} can be written but not created conditionally ({error}); {NEEDED}")));
                }
                match self.error(key, error) {
                    Error::Unsupported { object, problem } if !problem.contains(NEEDED) => {
                        Err(Error::Unsupported { object, problem: format!("{problem}; {NEEDED}") })
                    }
                    Error::NotFound { .. } => Err(Error::Invalid {
                        what: self.name.clone(),
                        problem: "there is no such bucket or container; create it, or check the address and the endpoint".to_owned(),
                    }),
                    other => Err(other),
                }
            })
            .await
    }

    async fn takes_plain_writes(&self) -> bool {
        let written = self.put(PLAIN, Bytes::from_static(FIRST)).await.is_ok();
        if written {
            // Not needed any more; a leftover is small and overwritten by the next probe.
            let _ = self.remove(PLAIN).await;
        }
        written
    }

    fn unsupported(&self, problem: &str) -> Error {
        Error::Unsupported { object: self.name.clone(), problem: problem.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::ops::Range;
    use std::sync::Arc;

    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use lethe_shared::address::Address;
    use lethe_shared::retry::Transient;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        PutMultipartOptions, PutResult, Result,
    };

    use super::*;

    /// A defect of the store under test.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        IgnoresCondition,
        NotImplemented,
        BadRequest,
        ForbidsMissing,
        ListsNothing,
    }

    #[derive(Debug)]
    struct Unfit(object_store::memory::InMemory, Fault);

    impl fmt::Display for Unfit {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{self:?}")
        }
    }

    #[async_trait]
    impl ObjectStore for Unfit {
        async fn put_opts(
            &self,
            at: &Path,
            payload: PutPayload,
            mut options: PutOptions,
        ) -> Result<PutResult> {
            let create = options.mode == PutMode::Create;
            let answer = |status| {
                let source = Box::new(answers::FinalAnswer {
                    status,
                    method: "PUT".into(),
                    text: String::new(),
                });
                Err(object_store::Error::Generic { store: "S3", source })
            };
            match self.1 {
                Fault::IgnoresCondition => options.mode = PutMode::Overwrite,
                Fault::NotImplemented if create => return answer(501),
                Fault::BadRequest if create => return answer(400),
                _ => {}
            }
            self.0.put_opts(at, payload, options).await
        }

        async fn put_multipart_opts(
            &self,
            at: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, options).await
        }

        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            match self.0.get_opts(at, options).await {
                Err(object_store::Error::NotFound { path, source })
                    if self.1 == Fault::ForbidsMissing =>
                {
                    Err(object_store::Error::PermissionDenied { path, source })
                }
                other => other,
            }
        }

        async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
            self.0.get_ranges(at, ranges).await
        }

        fn delete_stream(
            &self,
            at: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(at)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            if self.1 == Fault::ListsNothing {
                Box::pin(futures::stream::empty())
            } else {
                self.0.list(prefix)
            }
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    fn unfit(fault: Fault) -> Store {
        Store::over(Arc::new(Unfit(object_store::memory::InMemory::new(), fault)), "s3://bucket")
    }

    #[tokio::test(start_paused = true)]
    async fn defective_stores_are_rejected_permanently() {
        for (fault, said) in [
            (Fault::IgnoresCondition, "created a second time"),
            (Fault::NotImplemented, "answers 501"),
            (Fault::BadRequest, "can be written but not created"),
            (Fault::ListsNothing, "is not in a listing"),
        ] {
            let error = unfit(fault).probe().await.unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }) && !error.is_transient(), "{error}");
            assert!(error.to_string().contains(said), "{fault:?}: {error}");
        }
        let error = unfit(Fault::ForbidsMissing).probe().await.unwrap_err();
        assert!(
            matches!(error, Error::Permission { .. })
                && error.to_string().contains("s3:ListBucket"),
            "{error}"
        );
        unfit(Fault::None).probe().await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_probes_leave_one_object() {
        let folder = tempfile::tempdir().unwrap();
        for store in
            [Store::in_memory(), Store::open(&Address::Local(folder.path().into())).unwrap()]
        {
            let probes = (0..16).map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.probe().await })
            });
            for probed in futures::future::join_all(probes).await {
                probed.unwrap().unwrap();
            }
            assert_eq!(store.list("probe").await.unwrap(), [SHARED]);
            assert_eq!(store.get(SHARED).await.unwrap().unwrap(), FIRST);
        }
    }

    #[tokio::test]
    async fn a_store_that_was_repaired_is_accepted() {
        let store = Store::in_memory();
        store.put(SHARED, Bytes::from_static(SECOND)).await.unwrap();
        store.probe().await.unwrap();
        store.put(SHARED, Bytes::from_static(b"someone else's")).await.unwrap();
        assert!(matches!(store.probe().await, Err(Error::Unsupported { .. })));
    }
}

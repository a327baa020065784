//! A coordinator that has lost its run makes no further externally visible write, at any point of
//! publishing.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lethe::attest::key::SigningKey;
use lethe::exec::dispatch::Dispatcher;
use lethe::exec::embedded::Workers;
use lethe::failure::Failure;
use lethe::intake::plan::Plan;
use lethe::layout::{ATTESTATIONS, RECORD, SIGNATURE};
use lethe::lease::fence::Fence;
use lethe::run::Options;
use lethe_shared::exit;
use lethe_store::Store;
use lethe_tests::SmallJob;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio_util::sync::CancellationToken;

/// A store in which another coordinator claims the run right after a number of writes of a release.
#[derive(Debug)]
struct Contested {
    inner: Arc<dyn ObjectStore>,
    run: String,
    left: AtomicUsize,
    /// The write after which the run was claimed, then every later one.
    since: Mutex<Vec<String>>,
}

impl Contested {
    fn over(inner: &Arc<dyn ObjectStore>, run: &str, writes: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            run: run.to_owned(),
            left: AtomicUsize::new(writes),
            since: Mutex::default(),
        })
    }

    async fn wrote(&self, location: &Key) {
        let is_last = location.as_ref().starts_with("releases/")
            && self.left.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last {
            Store::over(Arc::clone(&self.inner), "memory")
                .claim(&self.run, "another")
                .await
                .unwrap();
        }
        let mut since = self.since.lock().unwrap();
        if is_last || !since.is_empty() {
            since.push(location.to_string());
        }
    }
}

impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Contested {
    async fn put_opts(
        &self,
        location: &Key,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let put = self.inner.put_opts(location, payload, options).await?;
        self.wrote(location).await;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, options).await?;
        self.wrote(location).await;
        Ok(upload)
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Key, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Returns a private key as openssl makes it.
fn key(job: &SmallJob) -> SigningKey {
    let path = job.path("key.pem");
    let made = Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-out"])
        .arg(&path)
        .status();
    assert!(made.expect("openssl starts").success());
    SigningKey::read(&path).unwrap()
}

/// Runs the job as a coordinator with a claim, in a store that may contest it.
async fn run(
    plan: &Plan,
    signer: Option<&SigningKey>,
    store: &Store,
    cache: &Path,
) -> Result<(), Failure> {
    let workers = Workers::start(&plan.manifest.execution, store, cache)?;
    let (cancel, give_up) = (CancellationToken::new(), Duration::from_secs(600));
    let claim = store.claim(&plan.run, "first").await?;
    let mut dispatcher =
        Dispatcher::new(workers.queue.clone(), store.clone(), cancel.clone(), give_up);
    dispatcher.fence = Fence::of(store.clone(), claim, give_up, cancel);
    let ended = lethe::run::run(
        plan,
        &Options { signer: signer.cloned(), quiet: true, ..Options::default() },
        &dispatcher,
    )
    .await;
    workers.stop().await;
    ended.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_visible_is_written_once_another_has_claimed_the_run() {
    let job = SmallJob::summed();
    let cache = job.path("cache");
    let plan = Plan::make(&job.path("job.toml"), &cache).await.unwrap();
    let signer = key(&job);
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let plain = Store::over(Arc::clone(&inner), "memory");
    let mut last_writes = Vec::new();
    for writes in 1.. {
        let contested = Contested::over(&inner, &plan.run, writes);
        let ended =
            run(&plan, Some(&signer), &Store::over(contested.clone(), "memory"), &cache).await;
        let since = contested.since.lock().unwrap().clone();
        let Some((last, late)) = since.split_first() else {
            ended.unwrap();
            break;
        };
        let failure = ended.expect_err(last);
        assert_eq!(failure.exit_code(), exit::INFRASTRUCTURE, "after {last}: {failure}");
        assert_eq!(
            failure.to_string(),
            format!(
                "another coordinator has taken over {}; this one publishes nothing more",
                plan.run
            )
        );
        // Files of a release without a record are not a release.
        let is_hidden = |key: &String| {
            let parts: Vec<&str> = key.split('/').collect();
            matches!(parts[..], ["releases", "small", _, file] if ![RECORD, ATTESTATIONS, SIGNATURE].contains(&file))
        };
        assert!(late.iter().all(is_hidden), "after {last}: {late:?}");
        last_writes.push(last.rsplit('/').next().unwrap().to_owned());
        // Outcomes stay; a new coordinator publishes the run's release.
        for key in
            [plain.list("releases").await.unwrap(), plain.list("runs").await.unwrap()].concat()
        {
            plain.remove(&key).await.unwrap();
        }
    }
    // The run was taken over after every file, and after every externally visible write.
    let (files, seen) = last_writes.split_at(last_writes.len() - 5);
    assert!(files.len() >= 8, "{files:?}");
    assert_eq!(seen, [RECORD, "1.json", ATTESTATIONS, SIGNATURE, "1.json"]);
    assert!(plain.get(&format!("runs/{}/summary.json", plan.run)).await.unwrap().is_some());
}

//! `bench-queue [JOBS [WORKERS]]`: measures the overhead of the queue. Empty jobs go through a real
//! nats-server and a local store; each worker is a process. Prints coordinator time and memory, and
//! NATS messages and store requests per job.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use futures::stream::BoxStream;
use lethe::exec::dispatch::Dispatcher;
use lethe::progress::Progress;
use lethe_queue::conformance::job;
use lethe_queue::nats::{JetStreamQueue, Options, Role};
use lethe_shared::fault::Fault;
use lethe_shared::job::Job;
use lethe_shared::outcome::{Execution, Outcome};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{Protect, ProtectOutput};
use lethe_store::Store;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::free_port;
use lethe_worker::engine::Stopped;
use lethe_worker::service::{Execute, Service};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio_util::sync::CancellationToken;

/// An engine that returns at once.
#[derive(Debug)]
struct Nothing;

impl Execute for Nothing {
    fn execute(&self, job: &Job, _: &CancellationToken) -> Result<Outcome, Stopped> {
        let execution = Execution {
            worker: "w".into(),
            seconds: 0.0,
            stages: BTreeMap::new(),
            peak_memory_bytes: 0,
            device: "none".into(),
            arithmetic: "none".into(),
        };
        let artifact = ArtifactRef { digest: job.id().digest(), bytes: 0 };
        let output = ProtectOutput { inputs: artifact, inverse: artifact, vectors: 0 };
        Outcome::of::<Protect>(job.id(), &output, execution)
            .map_err(|error| Stopped::Fault(Fault::computation(error)))
    }

    fn check(&self, _: &Job) -> Result<(), Fault> {
        Ok(())
    }
}

/// A store whose requests are counted.
#[derive(Debug)]
struct Counted {
    inner: LocalFileSystem,
    requests: Arc<AtomicU64>,
}

impl Counted {
    fn one(&self) -> &LocalFileSystem {
        self.requests.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn put_opts(
        &self,
        key: &Key,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.one().put_opts(key, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.one().put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.one().get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.one().delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.one().list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.one().list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.one().copy_opts(from, to, options).await
    }
}

fn store(folder: &Path) -> Result<(Store, Arc<AtomicU64>)> {
    std::fs::create_dir_all(folder)?;
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        inner: LocalFileSystem::new_with_prefix(folder)?,
        requests: Arc::clone(&requests),
    };
    Ok((Store::over(Arc::new(counted), "bench"), requests))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, url, folder] = &arguments[..]
        && role == "worker"
    {
        return work(url, Path::new(folder)).await;
    }
    let number =
        |at: usize, otherwise: usize| arguments.get(at).map_or(Ok(otherwise), |text| text.parse());
    coordinate(number(0, 5000)?, number(1, 4)?).await
}

async fn work(url: &str, folder: &Path) -> Result<()> {
    let (store, requests) = store(&folder.join("store"))?;
    let queue = JetStreamQueue::connect(url, Role::Worker, "bench", &options()).await?;
    let (drain, report) =
        (CancellationToken::new(), folder.join(format!("worker-{}", std::process::id())));
    let stop = drain.clone();
    tokio::spawn(async move {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        terminate.recv().await;
        stop.cancel();
        std::io::Result::Ok(())
    });
    Service::with_engine(Arc::new(Nothing), "bench", 1, Arc::new(queue.clone()), store)
        .run(drain, CancellationToken::new())
        .await?;
    queue.close().await;
    std::fs::write(report, requests.load(Ordering::Relaxed).to_string())?;
    Ok(())
}

fn options() -> Options {
    Options { ack_wait: 60, give_up: 60, replicas: 1, ..Options::default() }
}

fn jobs(count: usize) -> Result<Vec<Job>> {
    Ok((0..u32::try_from(count)?).map(|number| job("bench", number)).collect())
}

async fn coordinate(count: usize, workers: usize) -> Result<()> {
    let monitor = free_port();
    let server = NatsServer::with(Version::Current, &format!("http: \"127.0.0.1:{monitor}\""));
    let folder = tempfile::tempdir()?;
    let (store, requests) = store(&folder.path().join("store"))?;
    let queue = Arc::new(
        JetStreamQueue::connect(&server.url(), Role::Coordinator, "bench", &options()).await?,
    );
    let start = || {
        Command::new(std::env::current_exe()?)
            .arg("worker")
            .arg(server.url())
            .arg(folder.path())
            .spawn()
    };
    let mut processes = (0..workers).map(|_| start()).collect::<std::io::Result<Vec<_>>>()?;
    let jobs = jobs(count)?;
    let (memory, cpu, messages) = (resident("VmRSS"), processor_seconds(), messages(monitor)?);
    let began = Instant::now();
    let dispatcher =
        Dispatcher::new(queue, store, CancellationToken::new(), Duration::from_secs(600));
    let (ended, _) =
        dispatcher.run("bench", &jobs, &mut Progress::silent()).await.context("the run")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(ended.iter().all(std::result::Result::is_ok), "every job has an outcome");
    let per = |value: f64| value / count as f64;
    let sent = crate::messages(monitor)? - messages;
    let cpu = processor_seconds() - cpu;
    for process in &mut processes {
        Command::new("kill").args(["-TERM", &process.id().to_string()]).status()?;
        process.wait()?;
    }
    let mut by_workers = 0u64;
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("worker-") {
            by_workers += std::fs::read_to_string(entry.path())?.parse::<u64>()?;
        }
    }
    println!("jobs                              {count}");
    println!("workers                           {workers}");
    println!(
        "seconds                           {seconds:.1} ({:.0} jobs a second)",
        count as f64 / seconds
    );
    println!("coordinator, processor per job    {:.2} ms", 1000.0 * per(cpu));
    println!("coordinator, memory before        {:.1} MB", memory as f64 / 1e6);
    println!("coordinator, memory at most       {:.1} MB", resident("VmHWM") as f64 / 1e6);
    println!("NATS messages in and out per job  {:.1}", per(sent as f64));
    println!(
        "store requests per job            {:.2} coordinator, {:.2} workers",
        per(requests.load(Ordering::Relaxed) as f64),
        per(by_workers as f64)
    );
    Ok(())
}

/// Returns the number of messages that the server has received and sent so far.
fn messages(monitor: u16) -> Result<u64> {
    let mut connection = TcpStream::connect(("127.0.0.1", monitor))?;
    connection.write_all(b"GET /varz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("an answer")?.1;
    let values: serde_json::Value = serde_json::from_str(body)?;
    Ok(["in_msgs", "out_msgs"].iter().filter_map(|name| values[name].as_u64()).sum())
}

/// Returns a line of this process's status, bytes.
fn resident(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|found| {
        found
            .strip_prefix(line)?
            .trim_matches([':', ' ', '\t'])
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0) * 1024
}

/// Returns user and system time of this process, seconds.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

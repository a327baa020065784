//! `broken-worker FILE NATS STORE CACHE`: a worker on the real queue and store whose engine is
//! broken while FILE exists. The file's content selects the fault:
//!
//! | content | each job |
//! |---|---|
//! | `panic` | panics |
//! | `cuda` | fails with the error that libtorch gives once a CUDA context is broken |
//! | `slow` | waits until the file is removed or the process stops, and then succeeds |
//!
//! Without the file the worker is sound. It serves metrics and probes on a free port and logs the
//! port, as `lethe-worker` does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lethe_operations::Health;
use lethe_operations::http::serve_probes;
use lethe_operations::log;
use lethe_queue::nats::{JetStreamQueue, Options as Connection, Role};
use lethe_shared::address::Address;
use lethe_shared::fault::{Class, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::outcome::Outcome;
use lethe_store::Store;
use lethe_worker::engine::{Engine, Options, Stopped};
use lethe_worker::service::{Execute, SELF_CHECK, Service};
use tch::Device;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Interval at which `slow` checks whether to continue.
const LOOK: Duration = Duration::from_millis(50);

/// An engine that is broken while a file exists.
#[derive(Debug)]
struct Broken {
    engine: Engine,
    file: PathBuf,
}

impl Broken {
    fn mode(&self) -> Option<String> {
        std::fs::read_to_string(&self.file).ok().map(|text| text.trim().to_owned())
    }

    /// Fails with the fault that the file names.
    fn fail(&self, cancel: &CancellationToken) -> Result<(), Stopped> {
        match self.mode().as_deref() {
            None => Ok(()),
            Some("cuda") => Err(Stopped::Fault(Fault::computation(CUDA_ERROR))),
            Some("slow") => {
                while self.mode().is_some() && !cancel.is_cancelled() {
                    std::thread::sleep(LOOK);
                }
                if cancel.is_cancelled() { Err(Stopped::Cancelled) } else { Ok(()) }
            }
            Some(mode) => panic!("the engine is broken: {mode}"),
        }
    }
}

/// Error message of libtorch once a CUDA context is broken.
const CUDA_ERROR: &str = "libtorch: CUDA error: an illegal memory access was encountered";

impl Execute for Broken {
    fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Stopped> {
        self.fail(cancel)?;
        self.engine.execute(job, cancel)
    }

    /// A broken context fails every call, and an engine that panics also panics in its self-check.
    fn check(&self, job: &Job) -> Result<(), Fault> {
        match self.mode().as_deref() {
            None | Some("slow") => self.engine.check(job),
            Some("cuda") => Err(Fault::new(Class::Environment(Origin::Device), CUDA_ERROR)),
            Some(mode) => panic!("the engine is broken: {mode}"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    lethe_worker::memory::keep_freed_memory();
    log::start(log::Format::default(), "info,object_store=warn,async_nats=warn");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, nats, store, cache] = &arguments[..] else {
        bail!("usage: broken-worker FILE NATS STORE CACHE")
    };
    let name = format!("broken-{}", std::process::id());
    let (drain, cancel) = (CancellationToken::new(), CancellationToken::new());
    let (stop, mut terminate) = (drain.clone(), signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        terminate.recv().await;
        stop.cancel();
    });
    let health = Health::waiting_for(&["queue", "store", SELF_CHECK]);
    serve_probes("0".parse().map_err(anyhow::Error::msg)?, health.clone()).await?;
    let store = Store::open(&Address::parse(store)?)?;
    store.probe().await.context("the store")?;
    health.met("store");
    let connection = Connection { ack_wait: 60, give_up: 60, replicas: 1, ..Connection::default() };
    let queue = JetStreamQueue::connect(nats, Role::Worker, &name, &connection)
        .await
        .context("the queue")?;
    health.met("queue");
    let engine = Engine::new(
        Options::new(name.clone(), Device::Cpu, cache.into()),
        store.clone(),
        Handle::current(),
    );
    let engine = Arc::new(Broken { engine, file: file.into() });
    let service =
        Service::with_engine(engine, &name, 1, Arc::new(queue.clone()), store).reporting_to(health);
    let served = service.run(drain, cancel).await;
    queue.close().await;
    served.context("this worker cannot continue")
}

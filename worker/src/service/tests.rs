//! The worker with engines that fail.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lethe_queue::conformance::job;
use lethe_queue::{Limits, MemoryQueue};
use lethe_shared::fault::{Class, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::outcome::{Execution, Outcome};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{Protect, ProtectOutput};

use super::*;
use crate::engine::Stopped;

/// An engine that fails while it is broken.
#[derive(Debug)]
struct Fragile {
    broken: AtomicBool,
    fault: fn() -> Fault,
    executed: AtomicUsize,
}

impl Fragile {
    fn new(broken: bool, fault: fn() -> Fault) -> Arc<Self> {
        Arc::new(Self { broken: AtomicBool::new(broken), fault, executed: AtomicUsize::new(0) })
    }
}

impl Execute for Fragile {
    fn execute(&self, job: &Job, _: &CancellationToken) -> Result<Outcome, Stopped> {
        self.executed.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            let fault = (self.fault)();
            assert!(!fault.message.contains("panic"), "{fault}");
            return Err(Stopped::Fault(fault));
        }
        let execution = Execution {
            worker: "w".into(),
            seconds: 0.0,
            stages: BTreeMap::new(),
            peak_memory_bytes: 0,
            device: "cpu".into(),
            arithmetic: "test".into(),
        };
        let artifact = ArtifactRef { digest: job.id().digest(), bytes: 1 };
        let output = ProtectOutput { inputs: artifact, inverse: artifact, vectors: 0 };
        Ok(Outcome::of::<Protect>(job.id(), &output, execution).unwrap())
    }

    fn check(&self, _: &Job) -> Result<(), Fault> {
        if self.broken.load(Ordering::SeqCst) { Err((self.fault)()) } else { Ok(()) }
    }
}

async fn until(what: &str, mut met: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !met().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A broken worker takes one job, releases it without counting a failure, reports the problem,
/// and takes jobs again when it is repaired. The same holds after a panic.
#[tokio::test]
async fn a_broken_worker_loses_no_job_and_resumes() {
    for fault in [
        || Fault::environment("permission denied"),
        || Fault::computation("panic: index out of bounds"),
    ] {
        let (queue, store, engine) =
            (MemoryQueue::new(Limits::default()), Store::in_memory(), Fragile::new(true, fault));
        let (health, drain) = (Health::default(), CancellationToken::new());
        let service =
            Service::with_engine(engine.clone(), "w", 2, Arc::new(queue.clone()), store.clone())
                .reporting_to(health.clone());
        let running = tokio::spawn(service.run(drain.clone(), CancellationToken::new()));
        queue.publish(&job("r", 0)).await.unwrap();
        until("the worker is not ready", async || !health.report().0).await;
        for number in 1..8 {
            queue.publish(&job("r", number)).await.unwrap();
        }
        // A paused worker takes no jobs.
        let taken = engine.executed.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(engine.executed.load(Ordering::SeqCst), taken);
        assert!(taken <= 2 && queue.dead_letters("r").await.unwrap().is_empty());
        engine.broken.store(false, Ordering::SeqCst);
        for number in 0..8 {
            until("every job is done", async || {
                store.get_outcome(job("r", number).id()).await.unwrap().is_some()
            })
            .await;
        }
        assert!(health.report().0);
        drain.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lost_device_ends_the_process() {
    let lost = || {
        Fault::new(
            Class::Environment(Origin::Device),
            "CUDA error: an illegal memory access was encountered",
        )
    };
    let (queue, engine) = (MemoryQueue::new(Limits::default()), Fragile::new(true, lost));
    let service = Service::with_engine(engine, "w", 2, Arc::new(queue.clone()), Store::in_memory());
    queue.publish(&job("r", 0)).await.unwrap();
    let running = service.run(CancellationToken::new(), CancellationToken::new());
    let ended = tokio::time::timeout(Duration::from_secs(30), running).await.expect("it ends");
    assert!(ended.unwrap_err().to_string().contains("illegal memory access"));
    assert!(queue.dead_letters("r").await.unwrap().is_empty());
}

#[tokio::test]
async fn bad_input_is_a_dead_letter_at_once() {
    let (queue, engine) =
        (MemoryQueue::new(Limits::default()), Fragile::new(true, || Fault::input("half a JPEG")));
    let drain = CancellationToken::new();
    let service = Service::with_engine(engine, "w", 1, Arc::new(queue.clone()), Store::in_memory());
    let running = tokio::spawn(service.run(drain.clone(), CancellationToken::new()));
    queue.publish(&job("r", 0)).await.unwrap();
    until("a dead letter", async || !queue.dead_letters("r").await.unwrap().is_empty()).await;
    let dead_letter = queue.dead_letters("r").await.unwrap().remove(0);
    assert_eq!((dead_letter.attempts, dead_letter.fault), (1, Fault::input("half a JPEG")));
    drain.cancel();
    running.await.unwrap().unwrap();
}

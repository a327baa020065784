//! One broken worker per test. Beside a sound worker, it costs only time; alone, its fault is
//! reported.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lethe_tests::broken::{BrokenWorker, Fault, Site};
use lethe_tests::ports::{LONGEST_WAIT, wait_until};
use lethe_tests::processes::Process;
use lethe_tests::{CONCEPTS, SmallJob, outcomes, releases};
use serde_json::Value;

/// Message of a run without a worker that can take its jobs.
const NO_FIT_WORKER: &str = "no fit worker";
/// Options that limit how long a run waits without a fit worker.
const PATIENCE: [&str; 2] = ["--give-up", "20"];
/// Exit code of a run that gives up.
const INFRASTRUCTURE: i32 = 5;

/// The report of an undisturbed run in one process.
static EXPECTED: LazyLock<Value> = LazyLock::new(|| SmallJob::new().run("undisturbed"));

/// Waits until a worker reports that it cannot take jobs and why, while its run goes on.
fn wait_until_unfit(broken: &mut BrokenWorker<'_>, run: &mut Process) {
    let deadline = Instant::now() + LONGEST_WAIT;
    while !broken.is_unfit() {
        let state = format!("{:?}: {}", broken.worker.readiness(), broken.worker.process.said());
        assert!(
            run.ended().is_none(),
            "the run has ended without a fit worker: {}\n{state}",
            run.said()
        );
        assert!(broken.worker.process.ended().is_none(), "the worker has ended: {state}");
        assert!(Instant::now() < deadline, "the worker does not say what it lacks: {state}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn succeeds(run: &mut Process) -> Value {
    assert_eq!(run.wait().code(), Some(0), "{}", run.said());
    run.printed()
}

fn is_undisturbed(report: &Value) {
    assert_eq!(report["digest"], EXPECTED["digest"]);
    assert_eq!(report["status"], "complete");
    for field in ["concepts", "edited", "missing"] {
        assert_eq!(report["summary"][field], EXPECTED["summary"][field], "{field}");
    }
    assert_eq!(report["summary"]["concepts"].as_u64(), Some(CONCEPTS.len() as u64));
}

/// The broken worker takes the first job and reports its fault, a sound worker executes the whole
/// run, and the repaired worker executes the next run.
async fn beside_a_sound_worker(fault: Fault) {
    let site = Site::of(fault).await;
    let mut broken = site.broken_worker(fault);
    let mut run = site.run("first", &[]);
    wait_until_unfit(&mut broken, &mut run);
    let mut sound = site.sound_worker();
    is_undisturbed(&succeeds(&mut run));
    let names = site.workers_with_outcomes();
    assert!(
        names.len() == 1 && names.iter().all(|name| sound.is_called(name)),
        "the sound worker did all the work: {names:?}"
    );
    assert!(broken.is_unfit(), "{:?}", broken.worker.readiness());
    sound.stop();
    broken.mend();
    takes_jobs(&site, &broken);
}

/// A repaired worker becomes ready, and executes a run of its own.
fn takes_jobs(site: &Site, mended: &BrokenWorker<'_>) {
    mended.worker.wait_until_ready();
    site.job.replace("job.toml", "search_evaluations = 6", "search_evaluations = 5");
    succeeds(&mut site.run("second", &[]));
    let names = site.workers_with_outcomes();
    assert!(
        names.iter().any(|name| mended.worker.is_called(name)),
        "the mended worker took jobs: {names:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_read_the_shards() {
    beside_a_sound_worker(Fault::Unreadable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_mount() {
    beside_a_sound_worker(Fault::Unmounted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_copies_of_the_shards_differ() {
    beside_a_sound_worker(Fault::Changed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_credentials_are_refused() {
    beside_a_sound_worker(Fault::Forbidden).await;
}

/// A worker repairs a copy of the model in its own cache: it fetches the model again and goes on
/// alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_damaged_model_in_its_cache_fetches_it_again() {
    let site = Site::of(Fault::DamagedCache).await;
    let broken = site.broken_worker(Fault::DamagedCache);
    is_undisturbed(&succeeds(&mut site.run("first", &[])));
    assert!(
        broken.worker.process.said().contains("is damaged; downloading it again"),
        "{}",
        broken.worker.process.said()
    );
    assert!(!broken.is_unfit(), "{:?}", broken.worker.readiness());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_disk_is_full() {
    beside_a_sound_worker(Fault::FullDisk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_engine_panics() {
    beside_a_sound_worker(Fault::Panic).await;
}

/// A broken CUDA context stays broken as long as the process lives, so the process exits and its
/// supervisor starts another.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_broken_cuda_context_ends() {
    let site = Site::local();
    let mut broken = site.broken_worker(Fault::Cuda);
    let mut run = site.run("first", &[]);
    let status = broken.worker.process.wait();
    assert!(
        status.code().is_some_and(|code| code != 0),
        "{status}: {}",
        broken.worker.process.said()
    );
    assert!(
        broken.names_the_reason(&broken.worker.process.said()),
        "{}",
        broken.worker.process.said()
    );
    let mut sound = site.sound_worker();
    is_undisturbed(&succeeds(&mut run));
    let names = site.workers_with_outcomes();
    assert!(names.len() == 1 && names.iter().all(|name| sound.is_called(name)), "{names:?}");
    sound.stop();
    broken.mend();
    broken.restart();
    takes_jobs(&site, &broken);
}

/// A slow worker is not broken: it keeps its job as long as it sends heartbeats.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_worker_keeps_its_job() {
    let site = Site::local();
    let slow = site.broken_worker(Fault::Slow);
    let mut run = site.run("first", &[]);
    wait_until("the slow worker has a job", || slow.worker.jobs_in_hand() > 0);
    let sound = site.sound_worker();
    // All work that does not depend on that job is executed.
    wait_until("the sound worker has done something", || outcomes(&site.store()) > 0);
    assert_eq!(slow.worker.readiness().map(|(status, _)| status), Some(200));
    slow.mend();
    is_undisturbed(&succeeds(&mut run));
    let names = site.workers_with_outcomes();
    for worker in [&slow.worker, &sound] {
        assert!(names.iter().any(|name| worker.is_called(name)), "each did something: {names:?}");
    }
}

/// A run without a fit worker reports the reason, gives up after its wait, and loses nothing: the
/// same command resumes once the worker is repaired.
async fn alone(fault: Fault) {
    let site = Site::of(fault).await;
    let mut broken = site.broken_worker(fault);
    let mut run = site.run("first", &PATIENCE);
    wait_until_unfit(&mut broken, &mut run);
    assert_eq!(run.wait().code(), Some(INFRASTRUCTURE), "{}", run.said());
    let said = run.said();
    assert!(said.contains(NO_FIT_WORKER) && broken.names_the_reason(&said), "{said}");
    assert_eq!((outcomes(&site.store()), releases(&site.store())), (0, 0));
    broken.mend();
    broken.worker.wait_until_ready();
    is_undisturbed(&succeeds(&mut site.run("second", &PATIENCE)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_fit_worker_a_run_gives_up_and_goes_on_later() {
    alone(Fault::Unmounted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_refused_credentials_alone_a_run_gives_up_and_goes_on_later() {
    alone(Fault::Forbidden).await;
}

//! The dispatcher on a queue in memory.

use lethe_queue::conformance::{job, number};
use lethe_queue::{Limits, MemoryQueue};
use lethe_shared::outcome::Execution;
use lethe_shared::task::{Protect, ProtectOutput};

use super::*;

fn jobs(count: u32) -> Vec<Job> {
    (0..count).map(|number| job("r", number)).collect()
}

fn outcome(job: &Job) -> Outcome {
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
    Outcome::of::<Protect>(job.id(), &output, execution).unwrap()
}

const GIVE_UP: Duration = Duration::from_secs(600);

/// Runs a worker that writes outcomes, fails job 2 with an input fault, and sends a notice for
/// every second outcome only.
async fn work(queue: MemoryQueue, store: Store) {
    while let Some(delivery) = queue.pull(Duration::from_secs(1)).await.unwrap() {
        if number(&delivery.job) == 2 {
            delivery.failed(&Fault::input("a broken image"), "m").await.unwrap();
            continue;
        }
        let outcome = outcome(&delivery.job);
        store.put_outcome(&outcome).await.unwrap();
        if number(&delivery.job).is_multiple_of(2) {
            let event = Event::Finished { seconds: 0.0 };
            queue
                .announce(&Notice {
                    run: "r".into(),
                    job: outcome.job,
                    attempt: 1,
                    worker: "w".into(),
                    event,
                })
                .await
                .unwrap();
        }
        delivery.done().await.unwrap();
    }
}

fn dispatcher(queue: &MemoryQueue, store: &Store, cancel: &CancellationToken) -> Dispatcher {
    Dispatcher::new(Arc::new(queue.clone()), store.clone(), cancel.clone(), GIVE_UP)
}

#[tokio::test]
async fn every_job_ends_even_when_notices_are_lost() {
    let (queue, store) = (MemoryQueue::new(Limits::default()), Store::in_memory());
    let jobs = jobs(6);
    store.put_outcome(&outcome(&jobs[0])).await.unwrap();
    let dispatcher = dispatcher(&queue, &store, &CancellationToken::new());
    let worker = tokio::spawn(work(queue, store));
    let (ended, found) = dispatcher.run("r", &jobs, &mut Progress::silent()).await.unwrap();
    assert_eq!((ended.len(), found), (6, 1));
    for (number, end) in ended.iter().enumerate() {
        assert_eq!(end.is_err(), number == 2);
    }
    worker.await.unwrap();
}

#[tokio::test]
async fn equal_jobs_are_one_and_each_gets_its_outcome() {
    let (queue, store) = (MemoryQueue::new(Limits::default()), Store::in_memory());
    let jobs = [0, 0, 1, 3, 1].map(|number| job("r", number));
    store.put_outcome(&outcome(&jobs[3])).await.unwrap();
    let dispatcher = dispatcher(&queue, &store, &CancellationToken::new());
    let worker = tokio::spawn(work(queue, store));
    let mut progress = Progress::silent();
    let running = dispatcher.run("r", &jobs, &mut progress);
    let (ended, found) =
        tokio::time::timeout(Duration::from_secs(60), running).await.expect("it ends").unwrap();
    let of: Vec<JobId> = ended.into_iter().map(|end| end.unwrap().job).collect();
    assert_eq!((of, found), (jobs.iter().map(Job::id).collect(), 1));
    worker.await.unwrap();
}

#[tokio::test]
async fn an_outcome_of_another_kind_is_quarantined_and_the_job_runs_again() {
    let (queue, store) = (MemoryQueue::new(Limits::default()), Store::in_memory());
    let jobs = jobs(1);
    let mut wrong = outcome(&jobs[0]);
    wrong.output = serde_json::json!({ "another": "kind" });
    store.put_outcome(&wrong).await.unwrap();
    let dispatcher = dispatcher(&queue, &store, &CancellationToken::new());
    let worker = tokio::spawn(work(queue, store.clone()));
    let (ended, found) = dispatcher.run("r", &jobs, &mut Progress::silent()).await.unwrap();
    assert_eq!((ended, found), (vec![Ok(outcome(&jobs[0]))], 0));
    assert_eq!(store.list("damaged").await.unwrap().len(), 1);
    worker.await.unwrap();
}

#[tokio::test]
async fn cancelling_removes_jobs_that_nobody_has_begun() {
    let (queue, cancel) = (MemoryQueue::new(Limits::default()), CancellationToken::new());
    let dispatcher = dispatcher(&queue, &Store::in_memory(), &cancel);
    cancel.cancel();
    assert!(matches!(
        dispatcher.run("r", &jobs(3), &mut Progress::silent()).await,
        Err(Failure::Cancelled)
    ));
    assert!(queue.pull(Duration::ZERO).await.unwrap().is_none());
}

#[tokio::test]
async fn a_coordinator_that_was_superseded_removes_nothing() {
    let (queue, cancel, store) =
        (MemoryQueue::new(Limits::default()), CancellationToken::new(), Store::in_memory());
    let mut late = dispatcher(&queue, &store, &cancel);
    let claim = store.claim("r", "late").await.unwrap();
    late.fence = Fence::of(store.clone(), claim, GIVE_UP, cancel.clone());
    store.claim("r", "successor").await.unwrap();
    cancel.cancel();
    assert!(matches!(
        late.run("r", &jobs(3), &mut Progress::silent()).await,
        Err(Failure::Cancelled)
    ));
    assert_eq!(queue.backlog().await.unwrap().waiting, 3);
    // The same if only the loss of the lease is known.
    let late = dispatcher(&queue, &store, &cancel);
    late.taken_over.cancel();
    assert!(matches!(
        late.run("r", &jobs(3), &mut Progress::silent()).await,
        Err(Failure::Cancelled)
    ));
    assert_eq!(queue.backlog().await.unwrap().waiting, 3);
}

#[tokio::test]
async fn a_run_without_a_fit_worker_ends_with_the_reason() {
    let (queue, store) = (MemoryQueue::new(Limits::default()), Store::in_memory());
    let mut dispatcher = dispatcher(&queue, &store, &CancellationToken::new());
    dispatcher.worker_wait = Duration::from_secs(1);
    let broken = tokio::spawn({
        let queue = queue.clone();
        async move {
            let delivery = queue.pull(Duration::from_secs(5)).await.unwrap().unwrap();
            let (run, job) = (delivery.job.run.clone(), delivery.job.id());
            delivery.failed(&Fault::environment("permission denied"), "m").await.unwrap();
            let event = Event::Paused { reason: "permission denied".into() };
            queue
                .announce(&Notice { run, job, attempt: 1, worker: "gpu-7".into(), event })
                .await
                .unwrap();
        }
    });
    let failure = dispatcher.run("r", &jobs(3), &mut Progress::silent()).await.unwrap_err();
    let text = failure.to_string();
    assert!(text.contains("no fit worker") && text.contains("gpu-7: permission denied"), "{text}");
    assert_eq!(failure.exit_code(), lethe_shared::exit::INFRASTRUCTURE);
    broken.await.unwrap();
}

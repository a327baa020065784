//! The same run on several processes: real nats-servers, workers and coordinators, and what may happen to each of them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use lethe_shared::queue::conformance::job;
use lethe_shared::queue::nats::{JetStreamQueue, Options, Role};
use lethe_shared::queue::{Event, Queue};
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::wait_until;
use lethe_tests::processes::{Process, signal, worker};
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, last_line, outcomes, releases, stderr};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `lethe run` over NATS with a short patience, so that what is lost comes again soon.
fn run(job: &SmallJob, server: &NatsServer, store: &str) -> Command {
    job.command("run", &["--store", store, "--nats", &server.url(), "--nats-patience", "3"])
}

fn start_worker(job: &SmallJob, server: &NatsServer, store: &str, name: &str) -> Process {
    Process::start(worker(&server.url(), store, &job.path("cache")), &job.path(&format!("{name}.log")))
}

fn succeed(mut command: Command) -> Value {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    last_line(&output)
}

#[test]
fn two_workers_and_a_real_object_store_give_the_same_checkpoint() {
    let (server, s3, job) = (NatsServer::start(Version::Oldest), S3Server::start(), SmallJob::new());
    let _bucket = s3.bucket("lethe");
    let alone = job.run("store");
    let workers = ["a", "b"].map(|name| {
        let mut command = worker(&server.url(), "s3://lethe/store", &job.path("cache"));
        S3Server::environment(&s3.endpoint(), &mut command);
        Process::start(command, &job.path(&format!("{name}.log")))
    });
    let mut command = run(&job, &server, "s3://lethe/store");
    S3Server::environment(&s3.endpoint(), &mut command);
    let together = succeed(command);
    assert_eq!(together["digest"], alone["digest"]);
    assert_eq!(together["status"], "complete");
    for mut worker in workers {
        assert!(worker.said().contains("done"), "each worker had something to do: {}", worker.said());
        signal(worker.id(), "TERM");
        assert_eq!(worker.wait(30).code(), Some(0), "{}", worker.said());
    }
}

#[test]
fn of_two_coordinators_one_works_and_the_other_finds_everything_done() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    let _worker = start_worker(&job, &server, text(&store), "worker");
    let mut coordinators = ["one", "two"].map(|name| Process::start(run(&job, &server, text(&store)), &job.path(&format!("{name}.log"))));
    for coordinator in &mut coordinators {
        assert_eq!(coordinator.wait(120).code(), Some(0), "{}", coordinator.said());
    }
    let reports = coordinators.each_ref().map(Process::printed);
    assert_eq!(reports[0]["release"], reports[1]["release"]);
    let mut done = reports.each_ref().map(|report| report["summary"]["jobs_done"].as_u64().unwrap());
    done.sort_unstable();
    assert!(done[0] == 0 && done[1] > 0, "one of them does all the work: {done:?}");
    assert!(coordinators.iter().any(|coordinator| coordinator.said().contains("works on it; waiting")));
    assert_eq!(releases(&store), 1);
}

#[test]
fn a_coordinator_that_is_stopped_takes_its_jobs_back_and_the_same_command_goes_on() {
    let (server, job) = (NatsServer::start(Version::Oldest), SmallJob::new());
    let store = job.path("store");
    let _worker = start_worker(&job, &server, text(&store), "worker");
    let mut coordinator = Process::start(run(&job, &server, text(&store)), &job.path("coordinator.log"));
    wait_until("a job is done", 60, || outcomes(&store) > 0);
    signal(coordinator.id(), "TERM");
    assert_eq!(coordinator.wait(30).code(), Some(130), "{}", coordinator.said());
    assert!(!store.join("releases").is_dir());
    let report = succeed(run(&job, &server, text(&store)));
    assert!(report["summary"]["jobs_found"].as_u64().unwrap() > 0);
    assert_eq!(report["digest"], job.run("alone")["digest"]);
}

#[test]
fn a_worker_that_is_stopped_hands_its_job_back_without_its_counting() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    // A patience that would make a lost job visible: the run would take longer than the test waits.
    let command = job.command("run", &["--store", text(&store), "--nats", &server.url(), "--nats-patience", "600"]);
    let mut coordinator = Process::start(command, &job.path("coordinator.log"));
    for number in 0..3 {
        let mut command = worker(&server.url(), text(&store), &job.path("cache"));
        command.args(["--grace", "0"]);
        let mut worker = Process::start(command, &job.path(&format!("stopped-{number}.log")));
        let before = outcomes(&store);
        wait_until("the worker does something", 60, || outcomes(&store) > before || coordinator.ended().is_some());
        signal(worker.id(), "TERM");
        assert_eq!(worker.wait(20).code(), Some(0), "{}", worker.said());
    }
    let _worker = start_worker(&job, &server, text(&store), "last");
    assert_eq!(coordinator.wait(120).code(), Some(0), "{}", coordinator.said());
}

/// A release of another algorithm is no reason to spoil a run: its job waits for a worker that computes the right one.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_algorithm_is_left_to_others() {
    let server = NatsServer::start(Version::Oldest);
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let connection = Options { patience: 30, give_up: 20, replicas: 1, ..Options::default() };
    let queue = JetStreamQueue::connect(&server.url(), Role::Coordinator, "test", &connection).await.unwrap();
    let mut notices = queue.notices("r").await.unwrap();
    let worker = Process::start(worker(&server.url(), text(&store), &folder.path().join("cache")), &folder.path().join("worker.log"));
    queue.publish(&job("r", 77)).await.unwrap();
    let refused = async {
        while let Some(notice) = notices.next().await {
            if let Event::Failed { error, will_retry } = notice.event {
                return (error, will_retry);
            }
        }
        panic!("the connection ended")
    };
    let (error, will_retry) = tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
    assert!(error.contains("algorithm version 77") && will_retry, "{error}");
    // Another takes it, and may fail as often as ever.
    let delivery = loop {
        if let Some(delivery) = queue.pull(Duration::from_secs(10)).await.unwrap() {
            break delivery;
        }
    };
    assert!(delivery.attempt >= 2 && !delivery.is_last);
    delivery.receipt.done().await.unwrap();
    assert!(queue.dead_letters("r").await.unwrap().is_empty());
    drop(worker);
}

/// What an earlier job made is damaged while the run waits for more: it is named, put aside, and made again.
#[test]
fn a_damaged_artifact_is_found_named_and_made_again() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    let expected = job.run("alone");
    let mut first = start_worker(&job, &server, text(&store), "first");
    let mut command = run(&job, &server, text(&store));
    command.arg("-v");
    let mut coordinator = Process::start(command, &job.path("coordinator.log"));
    // The retain gradient is there once a concept is being looked for, or done.
    wait_until("the retain gradient is made", 120, || outcome_of("retain-reduce", &store).is_some());
    first.kill();
    let digest = outcome_of("retain-reduce", &store).unwrap()["result"]["retain-reduce"]["gradient"]["digest"].as_str().unwrap().to_owned();
    let artifact = store.join("artifacts").join(&digest[..2]).join(&digest);
    let mut bytes = std::fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&artifact, bytes).unwrap();
    // An outcome is damaged too: half of it.
    let part = outcome_of("retain-gradient", &store).unwrap();
    let id = part["job"].as_str().unwrap();
    std::fs::write(store.join("outcomes").join(&id[..2]).join(format!("{id}.json")), "{ \"job\"").unwrap();
    let _second = start_worker(&job, &server, text(&store), "second");
    assert_eq!(coordinator.wait(180).code(), Some(0), "{}", coordinator.said());
    assert_eq!(coordinator.printed()["digest"], expected["digest"]);
    assert!(coordinator.said().contains(&digest), "it is named: {}", coordinator.said());
    assert!(store.join("damaged/artifacts").join(&digest[..2]).join(&digest).is_file());
    assert!(store.join("damaged/outcomes").is_dir());
}

/// An outcome of some kind of job in a store.
fn outcome_of(kind: &str, store: &Path) -> Option<Value> {
    let folders = std::fs::read_dir(store.join("outcomes")).ok()?.flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let read = |file: std::fs::DirEntry| serde_json::from_slice::<Value>(&std::fs::read(file.path()).ok()?).ok();
    files.filter_map(read).find(|outcome| outcome["result"].get(kind).is_some())
}

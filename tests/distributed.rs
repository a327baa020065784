//! Runs on several processes with real nats-servers, workers and coordinators, and faults of each
//! of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::StreamExt;
use lethe_queue::conformance::job;
use lethe_queue::nats::{JetStreamQueue, Options, Role};
use lethe_queue::{Event, Queue};
use lethe_shared::codec::encode_job;
use lethe_shared::digest::Digest;
use lethe_shared::fault::Class;
use lethe_shared::job::Job;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::wait_until;
use lethe_tests::processes::{Process, signal, worker};
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, last_line, outcomes, releases, stderr};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a `lethe run` command over NATS with a short time until redelivery.
fn run(job: &SmallJob, server: &NatsServer, store: &str) -> Command {
    job.command("run", &["--store", store, "--nats", &server.url(), "--nats-ack-wait", "3"])
}

fn start_worker(job: &SmallJob, server: &NatsServer, store: &str, name: &str) -> Process {
    Process::start(
        worker(&server.url(), store, &job.path("cache")),
        &job.path(&format!("{name}.log")),
    )
}

fn succeed(mut command: Command) -> Value {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    last_line(&output)
}

#[test]
fn two_workers_and_a_real_object_store_give_the_same_checkpoint() {
    let (server, s3, job) =
        (NatsServer::start(Version::Oldest), S3Server::start(), SmallJob::new());
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
        assert!(
            worker.said().contains("done"),
            "each worker had something to do: {}",
            worker.said()
        );
        signal(worker.id(), "TERM");
        assert_eq!(worker.wait().code(), Some(0), "{}", worker.said());
    }
}

#[test]
fn of_two_coordinators_one_works_and_the_other_finds_everything_done() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    let _worker = start_worker(&job, &server, text(&store), "worker");
    let mut coordinators = ["one", "two"].map(|name| {
        Process::start(run(&job, &server, text(&store)), &job.path(&format!("{name}.log")))
    });
    for coordinator in &mut coordinators {
        assert_eq!(coordinator.wait().code(), Some(0), "{}", coordinator.said());
    }
    let reports = coordinators.each_ref().map(Process::printed);
    assert_eq!(reports[0]["release"], reports[1]["release"]);
    let mut done =
        reports.each_ref().map(|report| report["summary"]["jobs_done"].as_u64().unwrap());
    done.sort_unstable();
    assert!(done[0] == 0 && done[1] > 0, "one of them does all the work: {done:?}");
    assert!(
        coordinators.iter().any(|coordinator| coordinator.said().contains("works on it; waiting"))
    );
    assert_eq!(releases(&store), 1);
}

#[test]
fn a_coordinator_that_is_stopped_takes_its_jobs_back_and_the_same_command_goes_on() {
    let (server, job) = (NatsServer::start(Version::Oldest), SmallJob::new());
    let store = job.path("store");
    let _worker = start_worker(&job, &server, text(&store), "worker");
    let mut coordinator =
        Process::start(run(&job, &server, text(&store)), &job.path("coordinator.log"));
    wait_until("a job is done", || outcomes(&store) > 0);
    signal(coordinator.id(), "TERM");
    assert_eq!(coordinator.wait().code(), Some(130), "{}", coordinator.said());
    assert!(!store.join("releases").is_dir());
    let report = succeed(run(&job, &server, text(&store)));
    assert!(report["summary"]["jobs_found"].as_u64().unwrap() > 0);
    assert_eq!(report["digest"], job.run("alone")["digest"]);
}

#[test]
fn a_worker_that_is_stopped_hands_its_job_back_without_its_counting() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    // A time until redelivery that is longer than the test's deadline, so that a lost job would
    // fail the test.
    let command = job.command(
        "run",
        &["--store", text(&store), "--nats", &server.url(), "--nats-ack-wait", "600"],
    );
    let mut coordinator = Process::start(command, &job.path("coordinator.log"));
    for number in 0..3 {
        let mut command = worker(&server.url(), text(&store), &job.path("cache"));
        command.args(["--grace", "0"]);
        let mut worker = Process::start(command, &job.path(&format!("stopped-{number}.log")));
        let before = outcomes(&store);
        wait_until("the worker does something", || {
            outcomes(&store) > before || coordinator.ended().is_some()
        });
        signal(worker.id(), "TERM");
        assert_eq!(worker.wait().code(), Some(0), "{}", worker.said());
    }
    let _worker = start_worker(&job, &server, text(&store), "last");
    assert_eq!(coordinator.wait().code(), Some(0), "{}", coordinator.said());
}

/// Returns the arithmetic classes of all outcomes in a store.
fn arithmetic(store: &Path) -> BTreeSet<String> {
    all_outcomes(store)
        .filter_map(|outcome| Some(outcome["execution"]["arithmetic"].as_str()?.to_owned()))
        .collect()
}

/// Workers of two arithmetic classes on one queue: a run that requires a single class is
/// executed by workers of one class.
#[test]
fn a_run_can_keep_to_one_class_of_arithmetic() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    job.replace("job.toml", "[execution]\n", "[execution]\narithmetic = \"same\"\n");
    let mut other = worker(&server.url(), text(&store), &job.path("cache"));
    // Another choice of kernels is another class.
    other.env("ATEN_CPU_CAPABILITY", "default");
    let other = Process::start(other, &job.path("other.log"));
    let one = start_worker(&job, &server, text(&store), "one");
    let report = succeed(run(&job, &server, text(&store)));
    let classes = arithmetic(&store);
    assert_eq!(classes.len(), 1, "{classes:?}");
    assert_eq!(report["summary"]["arithmetic"], serde_json::json!(classes));
    let left = one.said().contains("the run requires arithmetic")
        || other.said().contains("the run requires arithmetic");
    assert!(left, "one of them has left a job to the other: {}\n{}", one.said(), other.said());
}

/// Returns a job's message as the next release may write it, with an unknown version of its kind.
fn of_another_version(job: &Job) -> Vec<u8> {
    const HEADER: usize = 30;
    let message = encode_job(job).unwrap();
    let (header, mut body) = (&message[..10], message[HEADER..].to_vec());
    let kind = job.kind().as_bytes();
    let at = body.windows(kind.len()).position(|window| window == kind).unwrap();
    body[at + kind.len()] += 1;
    let checksum = Digest::of(&body);
    [header, &(body.len() as u32).to_le_bytes()[..], &checksum.as_bytes()[..16], &body[..]].concat()
}

/// Jobs of an unknown version do not fail a run: they wait for a worker that supports them, through
/// any number of deliveries, the coordinator is told the reason, and other jobs are executed
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_version_is_left_to_others() {
    let server = NatsServer::start(Version::Oldest);
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let connection = Options { ack_wait: 30, give_up: 20, replicas: 1, ..Options::default() };
    let queue = JetStreamQueue::connect(&server.url(), Role::Coordinator, "test", &connection)
        .await
        .unwrap();
    let mut notices = queue.notices("r").await.unwrap();
    let worker = Process::start(
        worker(&server.url(), text(&store), &folder.path().join("cache")),
        &folder.path().join("worker.log"),
    );
    let client = async_nats::connect(server.url()).await.unwrap();
    let strange = job("r", 77);
    let subject = format!("lethe.jobs.r.{}.{}", strange.kind(), strange.id());
    async_nats::jetstream::new(client)
        .publish(subject, of_another_version(&strange).into())
        .await
        .unwrap()
        .await
        .unwrap();
    for _ in 0..2 {
        let refused = async {
            while let Some(notice) = notices.next().await {
                if let Event::Failed { fault, will_retry } = notice.event {
                    return (notice.job, fault, will_retry);
                }
            }
            panic!("the connection ended")
        };
        let (id, fault, will_retry) =
            tokio::time::timeout(Duration::from_secs(60), refused).await.unwrap();
        assert!(id == strange.id() && will_retry);
        assert!(fault.class == Class::Foreign && fault.message.contains("same release"), "{fault}");
    }
    assert!(
        queue.dead_letters("r").await.unwrap().is_empty()
            && queue.stored_dead_letters(None).await.unwrap().is_empty()
    );
    drop(worker);
}

/// An artifact of an earlier job is damaged while the run waits for more: it is reported,
/// quarantined, and produced again.
#[test]
fn a_damaged_artifact_is_found_named_and_made_again() {
    let (server, job) = (NatsServer::start(Version::Current), SmallJob::new());
    let store = job.path("store");
    let expected = job.run("alone");
    let mut first = start_worker(&job, &server, text(&store), "first");
    let mut command = run(&job, &server, text(&store));
    command.arg("-v");
    let mut coordinator = Process::start(command, &job.path("coordinator.log"));
    // The retain gradient exists once a concept job has started or ended.
    wait_until("the retain gradient is made", || outcome_of("retain-reduce", &store).is_some());
    first.kill();
    let digest = outcome_of("retain-reduce", &store).unwrap()["output"]["gradient"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let artifact = store.join("artifacts").join(&digest[..2]).join(&digest);
    let mut bytes = std::fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&artifact, bytes).unwrap();
    // An outcome is truncated to half its length too.
    let part = outcome_of("retain-gradient", &store).unwrap();
    let id = part["job"].as_str().unwrap();
    std::fs::write(store.join("outcomes").join(&id[..2]).join(format!("{id}.json")), "{ \"job\"")
        .unwrap();
    let _second = start_worker(&job, &server, text(&store), "second");
    assert_eq!(coordinator.wait().code(), Some(0), "{}", coordinator.said());
    assert_eq!(coordinator.printed()["digest"], expected["digest"]);
    assert!(coordinator.said().contains(&digest), "it is named: {}", coordinator.said());
    assert!(store.join("damaged/artifacts").join(&digest[..2]).join(&digest).is_file());
    assert!(store.join("damaged/outcomes").is_dir());
}

/// Returns all outcomes in a store.
fn all_outcomes(store: &Path) -> impl Iterator<Item = Value> {
    let folders = std::fs::read_dir(store.join("outcomes")).into_iter().flatten().flatten();
    let files =
        folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.filter_map(|file| serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok())
}

/// Returns an outcome of a kind of job in a store.
fn outcome_of(kind: &str, store: &Path) -> Option<Value> {
    all_outcomes(store).find(|outcome| outcome["kind"] == kind)
}

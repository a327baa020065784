//! The same run on several processes: real nats-servers, workers and coordinators, and what may happen to each of them.

use std::path::Path;
use std::process::Command;

use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::wait_until;
use lethe_tests::processes::{Process, signal, worker};
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, last_line, outcomes, stderr};
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
    assert_eq!(std::fs::read_dir(store.join("releases/small")).unwrap().count(), 1);
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

//! A device that can hold only a few items at a time: the same run, in smaller passes.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use lethe_queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::address::Address;
use lethe_shared::record::Composition;
use lethe_store::Store;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::{SmallJob, last_line, stderr};
use lethe_worker::engine::Options;
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::service::Service;
use serde_json::Value;
use tch::Device;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Runs the job with one worker in this process, whose passes fail above this many items. Without a
/// fit worker, the run waits `give_up` seconds.
fn run_on_a_device_for(items: i64, job: &SmallJob, give_up: &str) -> Output {
    let server = NatsServer::start(Version::Oldest);
    let store = job.path("scarce");
    let runtime = Runtime::new().unwrap();
    let cancel = CancellationToken::new();
    let service = runtime.block_on(async {
        let connection = nats::Options { give_up: 20, ..nats::Options::default() };
        let queue = JetStreamQueue::connect(&server.url(), Role::Worker, "test", &connection)
            .await
            .unwrap();
        let mut options = Options::new("test".to_owned(), Device::Cpu, job.path("cache"));
        options.micro_batch = MicroBatch::UNLIMITED.failing_above(items);
        let at = Address::resolve(store.to_str().unwrap(), None).unwrap();
        Service::new(options, 1, Arc::new(queue), Store::open(&at).unwrap())
    });
    let working = runtime.spawn(service.run(cancel.clone(), cancel.clone()));
    let output = job
        .command(
            "run",
            &["--store", store.to_str().unwrap(), "--nats", &server.url(), "--give-up", give_up],
        )
        .output()
        .unwrap();
    cancel.cancel();
    runtime.block_on(working).unwrap().unwrap();
    output
}

fn record(report: &Value) -> Composition {
    let release = Path::new(report["release"].as_str().unwrap());
    serde_json::from_slice(&std::fs::read(release.join("composition.json")).unwrap()).unwrap()
}

/// Checks that the edits are the same except for the last bits of sums.
fn gives_the_same_edits(job: &SmallJob) {
    let output = run_on_a_device_for(5, job, "600");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (ours, expected) = (record(&last_line(&output)), record(&job.run("store")));
    assert_eq!(ours.concepts.len(), expected.concepts.len());
    for (ours, expected) in ours.concepts.iter().zip(&expected.concepts) {
        assert_eq!(
            (&ours.id, &ours.layer, ours.pairs),
            (&expected.id, &expected.layer, expected.pairs)
        );
        let values = [
            (ours.step, expected.step),
            (ours.coefficient, expected.coefficient),
            (ours.importance, expected.importance),
        ];
        for (ours, theirs) in values {
            assert!(
                (ours - theirs).abs() <= 1e-3 * theirs.abs(),
                "{}: {ours}, expected {theirs}",
                expected.id
            );
        }
        assert_eq!(
            (ours.before, ours.composed.map(|c| c.accuracy())),
            (expected.before, expected.composed.map(|c| c.accuracy())),
            "{}",
            expected.id
        );
    }
    assert_eq!(ours.utility.test.unwrap().after, expected.utility.test.unwrap().after);
}

#[test]
fn corrected_edits_are_the_same_in_smaller_passes() {
    gives_the_same_edits(&SmallJob::new());
}

#[test]
fn searched_edits_are_the_same_in_smaller_passes() {
    gives_the_same_edits(&SmallJob::summed());
}

/// Another machine may have more memory, so the job does not fail as bad input: the worker pauses,
/// and the run can resume later.
#[test]
fn a_device_that_holds_nothing_ends_the_run_with_a_sentence() {
    let job = SmallJob::new();
    let output = run_on_a_device_for(0, &job, "10");
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("no fit worker") && said.contains("too small for a single item's pass"),
        "{said}"
    );
}

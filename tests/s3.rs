//! The store on a real S3 server (moto's, on loopback): the conformance suite that memory and
//! folders share, and a run whose manifest is local and whose model, data and release are in
//! buckets.

use lethe_shared::digest::Digest;
use lethe_store::conformance;
use lethe_tests::proxy::BadLine;
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, demo, last_line, stderr};

#[tokio::test]
async fn s3_conforms() {
    let server = S3Server::start();
    conformance::check(&server.bucket("conformance")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_from_buckets_gives_the_same_checkpoint() {
    let server = S3Server::start();
    let data = server.bucket("data");
    let job = SmallJob::new();
    let local = job.run("store");

    for name in [
        "classes.txt",
        "concepts.csv",
        "validation.tar",
        "test.tar",
        "retain-0.tar",
        "retain-1.tar",
        "pizza.tar",
        "red-heart.tar",
        "rocket.tar",
    ] {
        data.put_file(&format!("jobs/small/{name}"), &job.path(name)).await.unwrap();
    }
    for entry in std::fs::read_dir(demo().join("model")).unwrap().map(Result::unwrap) {
        data.put_file(
            &format!("models/demo/{}", entry.file_name().to_str().unwrap()),
            &entry.path(),
        )
        .await
        .unwrap();
    }
    job.replace(
        "job.toml",
        &format!("uri = \"{}\"", demo().join("model").display()),
        "uri = \"s3://data/models/demo\"",
    );
    for name in ["retain-*.tar", "validation.tar", "test.tar", "classes.txt", "concepts.csv"] {
        job.replace(
            "job.toml",
            &format!("\"{name}\""),
            &format!("\"s3://data/jobs/small/{name}\""),
        );
    }

    let releases = server.bucket("releases");
    let run = || {
        let mut command = job.command("run", &["--store", "s3://releases/lethe/store"]);
        S3Server::environment(&server.endpoint(), &mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)
    };
    let report = run();
    assert_eq!(report["digest"], local["digest"]);
    assert!(
        report["release"]
            .as_str()
            .unwrap()
            .starts_with("s3://releases/lethe/store/releases/small/")
    );
    let keys = releases.list("lethe/store/releases").await.unwrap();
    assert!(
        keys.iter().any(|key| key.ends_with("/composition.json"))
            && keys.iter().any(|key| key.ends_with("/model.safetensors"))
    );
    assert_eq!(run()["summary"]["jobs_done"].as_u64(), Some(0));
}

/// The first attempts of every request fail, uploads break off, responses break off or are slow:
/// the run takes longer and gives the same result.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_to_the_store_costs_time_only() {
    let (server, job) = (S3Server::start(), SmallJob::new());
    let store = server.bucket("faulty");
    let line = BadLine::to(server.port());
    let mut command = job.command("run", &["--store", "s3://faulty/store"]);
    S3Server::environment(&line.endpoint(), &mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["digest"], job.run("store")["digest"]);
    let faults = line.faults();
    assert!(
        faults.refused > 20 && faults.torn > 5 && faults.cut > 2 && faults.slow > 0,
        "{faults:?}"
    );
    // Every artifact is complete and matches the digest in its name.
    for key in store.list("store/artifacts").await.unwrap() {
        let bytes = store.get(&key).await.unwrap().unwrap();
        assert_eq!(key.rsplit('/').next().unwrap(), Digest::of(&bytes).to_string(), "{key}");
    }
}

//! The store on a real S3 server (moto's, on loopback): the conformance suite that memory and
//! folders share, and a run whose manifest is local and whose model, data and release are in
//! buckets.

use std::path::Path;
use std::process::Command;

use lethe_shared::digest::Digest;
use lethe_store::conformance;
use lethe_tests::proxy::BadLine;
use lethe_tests::s3::S3Server;
use lethe_tests::{SmallJob, base_model, binary, last_line, shard_of, stderr};
use object_store::ObjectStoreExt;

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
    for entry in std::fs::read_dir(base_model()).unwrap().map(Result::unwrap) {
        data.put_file(
            &format!("models/demo/{}", entry.file_name().to_str().unwrap()),
            &entry.path(),
        )
        .await
        .unwrap();
    }
    job.replace(
        "job.toml",
        &format!("uri = \"{}\"", base_model().display()),
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

/// `lethe curate` with one concept table and one address of pairs.
fn curate(folder: &Path, pairs: &str) -> Command {
    std::fs::write(folder.join("t.csv"), "id,name\nx,cat\ny,dog\n").unwrap();
    let mut lethe = Command::new(binary("lethe"));
    lethe
        .env_remove("LETHE_LOG")
        .env("LETHE_CACHE", folder.join("cache"))
        .arg("curate")
        .arg(folder.join("t.csv"))
        .args(["--pairs", pairs, "--few", "1", "--json", "--into"])
        .arg(folder.join("out"));
    lethe
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_the_path_as_typed() {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest";
    let shard = shard_of(["a cat", "a dog", "x"].into_iter().enumerate().flat_map(|(n, text)| {
        [
            (format!("{n}.png"), [PNG, &n.to_le_bytes()].concat()),
            (format!("{n}.txt"), text.as_bytes().to_vec()),
        ]
    }));
    let server = S3Server::start();
    let bucket = server.raw_bucket("typed");
    for typed in ["müller/pairs v1", "100%/a%20b", "日本語/{x}~", "cafe\u{301}/a+b&c=d"] {
        let folder = tempfile::tempdir().unwrap();
        let key = object_store::path::Path::parse(format!("{typed}/p ü 1.tar")).unwrap();
        bucket.put(&key, shard.clone().into()).await.unwrap();
        let address = format!("s3://typed/{typed}/p ü 1.tar");
        for pattern in [address.clone(), format!("s3://typed/{typed}/p *.tar")] {
            let mut command = curate(folder.path(), &pattern);
            S3Server::environment(&server.endpoint(), &mut command);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            let record = std::fs::read_to_string(folder.path().join("out/curation.json")).unwrap();
            assert!(record.contains(&format!("\"{address}\"")), "{record}");
            std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        }
    }
}

#[test]
fn a_profile_without_keys_is_named_and_no_request_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = curate(folder.path(), "s3://nowhere/pairs.tar");
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        command.env_remove(name);
    }
    let output = command.env("AWS_PROFILE", "research").output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("AWS_PROFILE is set and AWS_ACCESS_KEY_ID is not"), "{text}");
    assert!(!text.contains("169.254"), "{text}");
}

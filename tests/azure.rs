//! The store on a real Azure Blob server (Azurite, on loopback): the conformance suite that all
//! stores share, and a run whose manifest and data are local and whose release is in a container.

use std::process::Command;

use lethe_store::conformance;
use lethe_tests::azure::AzureServer;
use lethe_tests::{SmallJob, binary, last_line, stderr};

#[tokio::test]
async fn azure_conforms() {
    let server = AzureServer::start();
    conformance::check(&server.container("conformance")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_into_a_container_gives_the_same_checkpoint() {
    let (server, job) = (AzureServer::start(), SmallJob::new());
    let releases = server.container("releases");
    let run = || {
        let mut command = job.command("run", &["--store", "az://releases/lethe/store"]);
        server.environment(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)
    };
    let report = run();
    assert_eq!(report["digest"], job.run("store")["digest"]);
    let release = report["release"].as_str().unwrap();
    assert!(release.starts_with("az://releases/lethe/store/releases/small/"));
    let keys = releases.list("lethe/store/releases").await.unwrap();
    assert!(
        keys.iter().any(|key| key.ends_with("/composition.json"))
            && keys.iter().any(|key| key.ends_with("/model.safetensors"))
    );
    assert_eq!(run()["summary"]["jobs_done"].as_u64(), Some(0));

    let mut verify = Command::new(binary("lethe"));
    server.environment(verify.env("LETHE_CACHE", job.path("cache")).args([
        "verify",
        "--recompute",
        "--json",
        release,
    ]));
    let output = verify.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["problems"].as_array().map(Vec::len), Some(0));
}

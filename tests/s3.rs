//! The store on a real S3 server (moto's, on loopback): the same conformance suite as memory and folders, and a whole
//! run whose manifest lies here and whose model, data and release lie in buckets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lethe_shared::store::{Store, conformance};
use lethe_tests::{SmallJob, demo, last_line, repository, stderr};
use object_store::aws::AmazonS3Builder;

/// A server of this test's own; it goes when the test does.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let packages = repository().join(".tools/s3/site");
        assert!(packages.is_dir(), "{} is missing: run tests/setup.sh first, as `make test` does", packages.display());
        // A port that was free a moment ago; the server cannot choose one and say so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("python3")
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .env("PYTHONPATH", packages)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, port };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the S3 server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn make_bucket(&self, name: &str) {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(connection, "PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn bucket(&self, name: &str) -> Store {
        self.make_bucket(name);
        let builder = AmazonS3Builder::new().with_bucket_name(name).with_endpoint(self.endpoint()).with_allow_http(true);
        let built = builder.with_access_key_id("test").with_secret_access_key("test").with_region("us-east-1").build().unwrap();
        Store::over(Arc::new(built), &format!("s3://{name}"))
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("AWS_ENDPOINT_URL", self.endpoint())
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "us-east-1");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn s3_conforms() {
    let server = Server::start();
    conformance::check(&server.bucket("conformance")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_from_buckets_gives_the_same_checkpoint() {
    let server = Server::start();
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
        data.put_file(&format!("models/demo/{}", entry.file_name().to_str().unwrap()), &entry.path()).await.unwrap();
    }
    job.replace("job.toml", &format!("uri = \"{}\"", demo().join("model").display()), "uri = \"s3://data/models/demo\"");
    for name in ["retain-*.tar", "validation.tar", "test.tar", "classes.txt", "concepts.csv"] {
        job.replace("job.toml", &format!("\"{name}\""), &format!("\"s3://data/jobs/small/{name}\""));
    }

    let releases = server.bucket("releases");
    let run = || {
        let mut command = job.command("run", &["--store", "s3://releases/lethe/store"]);
        server.environment(&mut command);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        last_line(&output)
    };
    let report = run();
    assert_eq!(report["digest"], local["digest"]);
    assert!(report["release"].as_str().unwrap().starts_with("s3://releases/lethe/store/releases/small/"));
    let keys = releases.list("lethe/store/releases").await.unwrap();
    assert!(keys.iter().any(|key| key.ends_with("/composition.json")) && keys.iter().any(|key| key.ends_with("/model.safetensors")));
    assert_eq!(run()["summary"]["jobs_done"].as_u64(), Some(0));
}

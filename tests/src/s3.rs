//! A real S3 server (moto's) for one test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use lethe_store::Store;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;

use crate::ports::{free_port, wait_for_port};
use crate::repository;

/// A server on loopback that ends with the test.
#[derive(Debug)]
pub struct S3Server {
    process: Child,
    port: u16,
}

impl S3Server {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        let packages = repository().join(".tools/s3/site");
        assert!(
            packages.is_dir(),
            "{} is missing: run tests/setup.sh first, as `make test` does",
            packages.display()
        );
        let port = free_port();
        let process = Command::new("python3")
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()])
            .env("PYTHONPATH", packages)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 starts");
        let mut server = Self { process, port };
        wait_for_port(port, &mut server.process, "the S3 server");
        server
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn make_bucket(&self, name: &str) {
        let mut connection =
            TcpStream::connect(("127.0.0.1", self.port)).expect("the S3 server answers");
        let request = format!(
            "PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).expect("the S3 server listens");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("the S3 server answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Creates a bucket and returns its store.
    pub fn bucket(&self, name: &str) -> Store {
        Store::over(self.raw_bucket(name), &format!("s3://{name}"))
    }

    /// Creates a bucket and returns its object store, for wrappers.
    pub fn raw_bucket(&self, name: &str) -> Arc<dyn ObjectStore> {
        self.make_bucket(name);
        let builder = AmazonS3Builder::new()
            .with_bucket_name(name)
            .with_endpoint(self.endpoint())
            .with_allow_http(true);
        let built = builder
            .with_access_key_id("test")
            .with_secret_access_key("test")
            .with_region("us-east-1")
            .build();
        Arc::new(built.expect("a client for the S3 server"))
    }

    /// Sets the variables by which a process can use the server at this endpoint.
    pub fn environment(endpoint: &str, command: &mut Command) {
        Self::environment_with_key(endpoint, "test", command);
    }

    /// Sets the same variables with this access key.
    pub fn environment_with_key(endpoint: &str, key: &str, command: &mut Command) {
        command
            .env("AWS_ENDPOINT_URL", endpoint)
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "us-east-1");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // A process that has already ended is not an error.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

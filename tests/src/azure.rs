//! A real Azure Blob server (Azurite) for one test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::BASE64;
use lethe_store::Store;
use object_store::azure::MicrosoftAzureBuilder;

use crate::ports::{free_port, wait_for_port};
use crate::repository;

/// The account of every Azurite, and its key: both are published, and not secret.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server on loopback that stores everything in memory and ends with the test.
#[derive(Debug)]
pub struct AzureServer {
    process: Child,
    port: u16,
}

impl AzureServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        let program =
            repository().join(".tools/azurite/node_modules/azurite/dist/src/blob/main.js");
        assert!(
            program.is_file(),
            "{} is missing: run tests/setup.sh first, as `make test` does",
            program.display()
        );
        let port = free_port();
        let process = Command::new("node")
            .arg(program)
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            .args([
                "--inMemoryPersistence",
                "--silent",
                "--disableTelemetry",
                "--skipApiVersionCheck",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("node starts");
        let mut server = Self { process, port };
        wait_for_port(port, &mut server.process, "Azurite");
        server
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Creates a container, with a request signed as in Azure's "Authorize with Shared Key".
    fn make_container(&self, name: &str) {
        let headers = "x-ms-date:Mon, 01 Jan 2024 00:00:00 GMT\nx-ms-version:2023-11-03\n";
        let resource = format!("/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container");
        let signed = format!("PUT\n{}{headers}{resource}", "\n".repeat(11));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(KEY.as_bytes()).expect("a key"));
        let signature = BASE64.encode(hmac::sign(&key, signed.as_bytes()).as_ref());
        let request = format!(
            "PUT /{ACCOUNT}/{name}?restype=container HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n{}\
             Authorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n",
            headers.replace('\n', "\r\n").replace(":Mon", ": Mon").replace(":2023", ": 2023")
        );
        let ask = || -> std::io::Result<String> {
            let mut connection = TcpStream::connect(("127.0.0.1", self.port))?;
            connection.write_all(request.as_bytes())?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        };
        // It accepts connections shortly before it serves them, and resets those.
        let mut answer = ask();
        for _ in 0..20 {
            if answer.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(250));
            answer = ask();
        }
        let answer = answer.expect("Azurite answers");
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// Creates a container and returns its store.
    pub fn container(&self, name: &str) -> Store {
        self.make_container(name);
        let url = format!("{}/{ACCOUNT}", self.endpoint());
        let builder = MicrosoftAzureBuilder::new()
            .with_container_name(name)
            .with_account(ACCOUNT)
            .with_access_key(KEY);
        let built =
            builder.with_endpoint(url).with_allow_http(true).build().expect("a client for Azurite");
        Store::over(Arc::new(built), &format!("az://{name}"))
    }

    /// Sets the variables by which a process can use the server.
    pub fn environment(&self, command: &mut Command) {
        command
            .env("AZURE_STORAGE_USE_EMULATOR", "true")
            .env("AZURITE_BLOB_STORAGE_URL", self.endpoint());
    }
}

impl Drop for AzureServer {
    fn drop(&mut self) {
        // A process that has already ended is not an error.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

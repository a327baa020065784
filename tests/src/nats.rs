//! Real nats-servers of a test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::ports::{free_port, wait_for_port};
use crate::repository;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The oldest that is supported: Debian's, 2.9.10.
    Oldest,
    /// A current one.
    Current,
}

impl Version {
    fn binary(self) -> PathBuf {
        let candidates = match self {
            Self::Oldest => vec![PathBuf::from("/usr/sbin/nats-server"), PathBuf::from("/usr/bin/nats-server")],
            Self::Current => vec![repository().join(".tools/nats/site/bin/nats-server")],
        };
        let found = candidates.into_iter().find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("nats-server ({self:?}) is missing: run tests/setup.sh first, as `make test` does"))
    }
}

/// A server with JetStream on loopback; it goes when the test does, and its disk with it.
#[derive(Debug)]
pub struct NatsServer {
    folder: tempfile::TempDir,
    version: Version,
    process: Option<Child>,
    port: u16,
}

impl NatsServer {
    /// A server that lets everyone in.
    pub fn start(version: Version) -> Self {
        Self::with(version, "")
    }

    /// A server with these lines in its configuration; `FOLDER` there stands for its folder, where `files` are written.
    pub fn with(version: Version, configuration: &str) -> Self {
        Self::with_files(version, configuration, &[])
    }

    /// The same, with files in its folder.
    pub fn with_files(version: Version, configuration: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self { folder, version, process: None, port: free_port() };
        for (name, text) in files {
            std::fs::write(server.path(name), text).expect("write a file of the server");
        }
        let place = server.folder.path().display().to_string();
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{place}/jetstream\" }}\n{}\n",
            server.port,
            configuration.replace("FOLDER", &place)
        );
        std::fs::write(server.path("nats.conf"), text).expect("write the server's configuration");
        server.run();
        server
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Gone is as good as killed.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Lets its streams have so many bytes of disk together from its next start on, whatever there is.
    pub fn limit_disk(&self, bytes: u64) {
        let text = std::fs::read_to_string(self.path("nats.conf")).expect("the server's configuration");
        let (before, after) = text.split_once("jetstream {").expect("a section of JetStream");
        let after = after.split_once("max_file_store").map_or(after, |(_, rest)| rest.split_once(',').map_or(rest, |(_, rest)| rest));
        let text = format!("{before}jetstream {{ max_file_store: {bytes},{after}");
        std::fs::write(self.path("nats.conf"), text).expect("write the server's configuration");
    }

    /// Forgets everything it stored; only while it is not running.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "a running server keeps its disk");
        let _ = std::fs::remove_dir_all(self.path("jetstream"));
    }

    /// Starts it on the same port and disk, and waits until it answers.
    pub fn run(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log file");
        let process = Command::new(self.version.binary())
            .arg("-c")
            .arg(self.path("nats.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        self.process = Some(process);
        wait_for_port(self.port, "nats-server");
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

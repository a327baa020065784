//! A NATS server, a store, and the processes of a long-lived coordinator on them.

use std::fs::DirEntry;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::wait_until;
use lethe_tests::processes::{Process, signal};
use lethe_tests::{SmallJob, binary, last_line, stderr};
use serde_json::Value;

/// The password on the server.
pub(crate) const SECRET: &str = "s3cr3t-passw0rd";
/// A secret that no program here reads.
pub(crate) const OTHER_SECRET: &str = "s3cr3t-key";

/// Sends SIGTERM and returns the exit code.
pub(crate) fn stop(process: &mut Process) -> Option<i32> {
    signal(process.id(), "TERM");
    process.wait().code()
}

/// A NATS server, a folder for store and logs, and the processes on them.
pub(crate) struct Site {
    pub(crate) nats: NatsServer,
    folder: tempfile::TempDir,
}

impl Site {
    /// Starts a server without authentication.
    pub(crate) fn open() -> Self {
        Self { nats: NatsServer::start(Version::Oldest), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn new() -> Self {
        Self::on(Version::Oldest)
    }

    /// Starts a server that requires a password.
    pub(crate) fn on(version: Version) -> Self {
        let users =
            format!("authorization {{ users: [ {{ user: lethe, password: \"{SECRET}\" }} ] }}");
        Self { nats: NatsServer::with(version, &users), folder: tempfile::tempdir().unwrap() }
    }

    /// Returns the URL with the password in it, as some users write it. No output may contain it.
    pub(crate) fn url(&self) -> String {
        format!("nats://lethe:{SECRET}@127.0.0.1:{}", self.nats.port())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        command
            .env_remove("LETHE_LOG")
            .env_remove("LETHE_LOG_FORMAT")
            .env("LETHE_NATS", self.url())
            .env("LETHE_CACHE", self.path("cache"));
        command.env("LETHE_NATS_USER", "lethe").env("LETHE_NATS_PASSWORD", SECRET);
        // No program here reads this variable, and no output may contain its value.
        command.env("AWS_SECRET_ACCESS_KEY", OTHER_SECRET);
        command
    }

    /// Starts `lethe serve` on a free port, with logs as JSON.
    pub(crate) fn serve(&self, log: &str) -> Process {
        self.serve_with(log, &[])
    }

    pub(crate) fn serve_with(&self, log: &str, more: &[&str]) -> Process {
        let mut command = self.command("lethe");
        command
            .args(["serve", "--http", "0", "--log-format", "json", "--store"])
            .arg(self.path("store"))
            .args(more);
        let mut process = Process::start(command, &self.path(log));
        wait_until("serve listens", || {
            assert!(process.ended().is_none(), "{}", process.said());
            process.said().contains("takes runs on")
        });
        process
    }

    pub(crate) fn worker(&self, log: &str) -> Process {
        let mut command = self.command("lethe-worker");
        command
            .args([
                "--log-format",
                "json",
                "--http",
                "0",
                "--device",
                "cpu",
                "--workers",
                "2",
                "--store",
            ])
            .arg(self.path("store"));
        let mut process = Process::start(command, &self.path(log));
        wait_until("the worker is ready", || {
            assert!(process.ended().is_none(), "{}", process.said());
            process.said().contains("\"ready\"")
        });
        process
    }

    pub(crate) fn lethe(&self, arguments: &[&str]) -> Output {
        self.command("lethe").args(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns the JSON that it prints.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let output = self.lethe(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        last_line(&output)
    }

    pub(crate) fn submit(&self, job: &SmallJob) -> String {
        let output = self.lethe(&["submit", job.path("job.toml").to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits for a run's end, and returns its exit code and its last state.
    pub(crate) fn watch(&self, run: &str) -> (Option<i32>, Value) {
        let mut command = self.command("lethe");
        let mut child = command
            .args(["status", run, "--watch", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until("a run ends", || child.try_wait().unwrap().is_some());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), last_line(&output))
    }

    pub(crate) fn state(&self, run: &str) -> String {
        self.ask(&["status", run])["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn outcomes(&self) -> usize {
        lethe_tests::outcomes(&self.path("store"))
    }

    /// Returns how many entries in the store say that a run ended.
    pub(crate) fn ends_of(&self, run: &str) -> usize {
        let entries = std::fs::read_dir(self.path(&format!("store/runs/{run}/entries"))).unwrap();
        let read = |entry: std::io::Result<DirEntry>| -> Value {
            serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap()
        };
        entries.map(read).filter(|entry| entry["exit_code"].is_number()).count()
    }
}

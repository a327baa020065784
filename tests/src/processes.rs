//! Workers and coordinators as separate processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::binary;
use crate::ports::LONGEST_WAIT;

/// Sends a signal by its name.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(sent.expect("kill starts").success(), "process {process} is gone");
}

/// A process whose output goes to files. It ends with the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command. Appends its stderr to `log`, and its stdout to a file beside it.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let open = |path: &Path| {
            std::fs::File::options().create(true).append(true).open(path).expect("a log file")
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&log.with_extension("out")))
            .stderr(open(log))
            .spawn();
        Self { child: child.expect("the command starts"), log: log.to_owned() }
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        // A process that has already ended is not an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "not ended after {LONGEST_WAIT:?}: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns its stderr, after that of its predecessors with the same log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the last line of its stdout, as JSON.
    pub fn printed(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.log.with_extension("out")).unwrap_or_default();
        serde_json::from_str(text.lines().last().unwrap_or_default())
            .unwrap_or_else(|error| panic!("{error}: {text}; {}", self.said()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns a command for `lethe-worker` with one thread on the CPU.
pub fn worker(nats: &str, store: &str, cache: &Path) -> Command {
    let mut command = Command::new(binary("lethe-worker"));
    // Settings of the user must not affect a test.
    for name in [
        "LETHE_LOG",
        "LETHE_NATS_CREDS",
        "LETHE_NATS_NKEY",
        "LETHE_NATS_USER",
        "LETHE_NATS_TOKEN",
        "LETHE_GRACE",
    ] {
        command.env_remove(name);
    }
    command
        .args(["--nats", nats, "--store", store, "--device", "cpu", "--workers", "1"])
        .arg("--cache")
        .arg(cache);
    command
}

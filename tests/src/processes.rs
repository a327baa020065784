//! Workers and coordinators as processes of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::binary;

/// Sends a signal by its name.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).stderr(Stdio::null()).status();
    assert!(sent.expect("kill starts").success(), "process {process} is gone");
}

/// A process that writes what it says into a file; it goes when the test does.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command, its stderr added to a file, its stdout to one beside it.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let open = |path: &Path| std::fs::File::options().create(true).append(true).open(path).expect("a log file");
        let child = command.stdin(Stdio::null()).stdout(open(&log.with_extension("out"))).stderr(open(log)).spawn();
        Self { child: child.expect("the command starts"), log: log.to_owned() }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        // Gone is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "not ended after {seconds} s: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it and its predecessors with the same log said on stderr.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last line that it printed, as JSON.
    pub fn printed(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.log.with_extension("out")).unwrap_or_default();
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {text}; {}", self.said()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `lethe-worker` with one thread on the CPU.
pub fn worker(nats: &str, store: &str, cache: &Path) -> Command {
    let mut command = Command::new(binary("lethe-worker"));
    // What a person has set must not decide a test.
    for name in ["LETHE_LOG", "LETHE_NATS_CREDS", "LETHE_NATS_NKEY", "LETHE_NATS_USER", "LETHE_NATS_TOKEN", "LETHE_GRACE"] {
        command.env_remove(name);
    }
    command.args(["--nats", nats, "--store", store, "--device", "cpu", "--workers", "1"]).arg("--cache").arg(cache);
    command
}

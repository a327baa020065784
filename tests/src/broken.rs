//! Runs on several workers, one of which has a fault that can be repaired.
//!
//! Each fault affects one process only: the worker beside it, on the same machine and under the
//! same user, has none.
//!
//! | fault | how it is made | needs |
//! |---|---|---|
//! | [`Unreadable`](Fault::Unreadable), [`Unmounted`](Fault::Unmounted), [`Changed`](Fault::Changed) | shards are named by `/proc/self/cwd/data/…`, which leads each process into its own working folder | nothing; `setpriv` if tests run as root, for whom file modes have no effect otherwise |
//! | [`Forbidden`](Fault::Forbidden) | an [`AccessControl`] before the S3 server answers 403 to the worker's access key | nothing |
//! | [`DamagedCache`](Fault::DamagedCache) | a byte of the weights in the worker's own cache is changed | nothing |
//! | [`FullDisk`](Fault::FullDisk) | the worker's cache is a full file system, mounted in a mount namespace of its own | `unshare`: root with CAP_SYS_ADMIN, or user namespaces |
//! | [`Panic`](Fault::Panic), [`Cuda`](Fault::Cuda), [`Slow`](Fault::Slow) | the engine of `broken-worker` fails while a file exists | nothing |

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lethe_store::Store;

use crate::nats::{NatsServer, Version};
use crate::ports::{LONGEST_WAIT, wait_until};
use crate::processes::{Process, signal, worker};
use crate::proxy::AccessControl;
use crate::s3::S3Server;
use crate::{CONCEPTS, SmallJob, base_model, binary};

/// Folder of the shards of a local site: below each process's own working folder.
pub const DATA: &str = "/proc/self/cwd/data";
/// Address of model and shards of a remote site, for all processes.
pub const BUCKET: &str = "s3://data";
/// Size of the disk of [`Fault::FullDisk`], bytes: enough for model and shards once it is no longer
/// full.
const DISK: u64 = 64 << 20;

/// A fault of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It lacks permission to read the folder of the shards.
    Unreadable,
    /// The folder of the shards is empty, like the mount point of an unmounted file system.
    Unmounted,
    /// Its copies of the shards have other bytes of the same size.
    Changed,
    /// The object store answers requests with its credentials with 403.
    Forbidden,
    /// One byte of the weights in its cache is wrong.
    DamagedCache,
    /// The disk of its cache is full.
    FullDisk,
    /// Its engine panics.
    Panic,
    /// Its engine fails with a CUDA error.
    Cuda,
    /// It holds each job until it is repaired.
    Slow,
}

impl Fault {
    /// Returns whether the fault needs model and shards in an object store.
    pub fn is_remote(self) -> bool {
        matches!(self, Self::Forbidden | Self::DamagedCache | Self::FullDisk)
    }

    /// Returns the texts that the worker's reason must contain, in lower case.
    pub fn reason(self) -> &'static [&'static str] {
        match self {
            Self::Unreadable => &["permission denied", DATA],
            Self::Unmounted | Self::Changed => &[DATA],
            Self::Forbidden => &["permission denied", "s3://data"],
            Self::DamagedCache => &["model"],
            Self::FullDisk => &["no space left on the device"],
            Self::Panic => &["the engine is broken: panic"],
            Self::Cuda => &["cuda error"],
            Self::Slow => &[],
        }
    }

    fn mode(self) -> Option<&'static str> {
        match self {
            Self::Panic => Some("panic"),
            Self::Cuda => Some("cuda"),
            Self::Slow => Some("slow"),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Remote {
    /// Ends with the site.
    _server: S3Server,
    access: AccessControl,
}

/// A job, a NATS server, a store in a folder, and the addresses of model and shards.
#[derive(Debug)]
pub struct Site {
    /// The job.
    pub job: SmallJob,
    nats: NatsServer,
    remote: Option<Remote>,
}

impl Site {
    /// Creates the site that a fault needs.
    pub async fn of(fault: Fault) -> Self {
        if fault.is_remote() { Self::remote().await } else { Self::local() }
    }

    /// Creates a site with shards in a folder below each process's own working folder.
    pub fn local() -> Self {
        let site =
            Self { job: SmallJob::new(), nats: NatsServer::start(Version::Current), remote: None };
        std::fs::create_dir_all(site.sound_folder().join("data")).expect("a folder of the job");
        for name in shards() {
            std::fs::rename(site.job.path(&name), site.sound_folder().join("data").join(&name))
                .expect("a shard of the job");
        }
        site.name_shards(DATA);
        site
    }

    /// Creates a site with model and shards in a bucket; each process has its own access key.
    pub async fn remote() -> Self {
        let server = S3Server::start();
        let access = AccessControl::of(server.port());
        let bucket: Store = server.bucket("data");
        let site = Self {
            job: SmallJob::new(),
            nats: NatsServer::start(Version::Current),
            remote: Some(Remote { _server: server, access }),
        };
        for name in shards() {
            bucket.put_file(&name, &site.job.path(&name)).await.expect("the bucket takes a shard");
        }
        for entry in std::fs::read_dir(base_model()).expect("the demo's model") {
            let entry = entry.expect("a file of the model");
            let key = format!("model/{}", entry.file_name().to_str().expect("UTF-8"));
            bucket
                .put_file(&key, &entry.path())
                .await
                .expect("the bucket takes a file of the model");
        }
        site.job.replace(
            "job.toml",
            &format!("uri = \"{}\"", base_model().display()),
            &format!("uri = \"{BUCKET}/model\""),
        );
        site.name_shards(BUCKET);
        std::fs::create_dir_all(site.sound_folder()).expect("a folder of the job");
        site
    }

    fn name_shards(&self, folder: &str) {
        for name in ["retain-*.tar", "validation.tar", "test.tar"] {
            self.job.replace("job.toml", &format!("\"{name}\""), &format!("\"{folder}/{name}\""));
        }
        for id in CONCEPTS {
            self.job.replace(
                "concepts.csv",
                &format!(",{id}.tar,"),
                &format!(",{folder}/{id}.tar,"),
            );
        }
    }

    /// Returns the store of runs over NATS.
    pub fn store(&self) -> PathBuf {
        self.job.path("store")
    }

    /// Returns the working folder of every process without a fault.
    fn sound_folder(&self) -> PathBuf {
        self.job.path("sound")
    }

    /// Gives a process access to model and shards.
    fn surroundings(&self, key: &str, folder: &Path, command: &mut Command) {
        command.current_dir(folder);
        if let Some(remote) = &self.remote {
            S3Server::environment_with_key(&remote.access.endpoint(), key, command);
        }
    }

    /// Returns `lethe COMMAND` on the job, as a coordinator without a fault.
    pub fn command(&self, command: &str, more: &[&str]) -> Command {
        let mut lethe = self.job.command(command, more);
        self.surroundings("coordinator", &self.sound_folder(), &mut lethe);
        lethe
    }

    /// Starts `lethe run` over NATS with more arguments; its log has this name.
    pub fn run(&self, name: &str, more: &[&str]) -> Process {
        let (store, url) = (self.store(), self.nats.url());
        let arguments =
            ["--store", store.to_str().expect("UTF-8"), "--nats", &url, "--nats-ack-wait", "3"];
        Process::start(
            self.command("run", &[&arguments, more].concat()),
            &self.job.path(&format!("{name}.log")),
        )
    }

    fn worker(&self, cache: &Path) -> Command {
        let mut command = worker(&self.nats.url(), self.store().to_str().expect("UTF-8"), cache);
        command.args(["--http", "0"]);
        command
    }

    /// Starts a worker without a fault.
    pub fn sound_worker(&self) -> Worker {
        let mut command = self.worker(&self.job.path("sound-cache"));
        self.surroundings("sound", &self.sound_folder(), &mut command);
        Worker::start(command, &self.job.path("sound.log"))
    }

    /// Starts a worker with this fault.
    pub fn broken_worker(&self, fault: Fault) -> BrokenWorker<'_> {
        let (folder, cache) = (self.job.path("broken"), self.job.path("broken-cache"));
        std::fs::create_dir_all(&folder).expect("a folder of the job");
        std::fs::create_dir_all(&cache).expect("a folder of the job");
        match fault {
            Fault::Unreadable => {
                self.copy_shards(&folder, |_| {});
                set_mode(&folder.join("data"), 0o000);
            }
            Fault::Unmounted => {
                std::fs::create_dir(folder.join("data")).expect("a folder of the job")
            }
            Fault::Changed => self.copy_shards(&folder, flip),
            Fault::Forbidden => self.remote_site().access.revoke("broken"),
            Fault::DamagedCache => self.damage_cache(&cache),
            // Mounted when the process starts.
            Fault::FullDisk => {}
            Fault::Panic | Fault::Cuda | Fault::Slow => {
                std::fs::write(self.fault_file(), fault.mode().expect("a mode"))
                    .expect("write the fault");
                symlink(self.sound_folder().join("data"), folder.join("data"))
                    .expect("a link to the shards");
            }
        }
        let worker = Worker::start(
            self.broken_command(fault, &folder, &cache),
            &self.job.path("broken.log"),
        );
        BrokenWorker { worker, site: self, fault, folder, cache }
    }

    fn broken_command(&self, fault: Fault, folder: &Path, cache: &Path) -> Command {
        let sound = self.worker(cache);
        let mut command = match fault {
            // Two capabilities let root read every file.
            Fault::Unreadable if is_root() => {
                under(&["setpriv", "--bounding-set", "-dac_override,-dac_read_search"], &sound)
            }
            Fault::FullDisk => {
                let mount = format!("mount -t tmpfs -o size={DISK} tmpfs \"$1\"");
                let fill = format!("{{ head -c {DISK} /dev/zero > \"$1/ballast\" || true; }}");
                let script = format!("{mount} && {fill} && shift && exec \"$@\"");
                under(
                    &[
                        "unshare",
                        mount_namespace(),
                        "sh",
                        "-c",
                        &script,
                        "sh",
                        cache.to_str().expect("UTF-8"),
                    ],
                    &sound,
                )
            }
            Fault::Panic | Fault::Cuda | Fault::Slow => {
                let mut command = Command::new(binary("broken-worker"));
                command
                    .env_remove("LETHE_LOG")
                    .arg(self.fault_file())
                    .arg(self.nats.url())
                    .arg(self.store())
                    .arg(cache);
                command
            }
            Fault::Unreadable
            | Fault::Unmounted
            | Fault::Changed
            | Fault::Forbidden
            | Fault::DamagedCache => sound,
        };
        self.surroundings("broken", folder, &mut command);
        command
    }

    fn remote_site(&self) -> &Remote {
        self.remote.as_ref().expect("a site with an object store")
    }

    fn fault_file(&self) -> PathBuf {
        self.job.path("fault")
    }

    /// Copies the shards to the folder where a worker reads them, and changes each copy.
    fn copy_shards(&self, folder: &Path, change: impl Fn(&Path)) {
        std::fs::create_dir(folder.join("data")).expect("a folder of the job");
        for name in shards() {
            let copy = folder.join("data").join(&name);
            std::fs::copy(self.sound_folder().join("data").join(&name), &copy)
                .expect("copy a shard");
            change(&copy);
        }
    }

    /// Fills a cache with the model, like an earlier run, and changes a byte of its weights.
    fn damage_cache(&self, cache: &Path) {
        let output = self
            .command("plan", &["--cache", cache.to_str().expect("UTF-8")])
            .output()
            .expect("lethe starts");
        assert!(output.status.success(), "{}", crate::stderr(&output));
        flip(&cached_weights(cache));
    }

    /// Returns the workers whose outcomes are in the store.
    pub fn workers_with_outcomes(&self) -> BTreeSet<String> {
        let folders = std::fs::read_dir(self.store().join("outcomes")).into_iter().flatten();
        let files = folders.flat_map(|folder| {
            std::fs::read_dir(folder.expect("a folder").path()).expect("a folder")
        });
        let paths = files
            .map(|file| file.expect("a file").path())
            .filter(|path| path.extension().is_some_and(|end| end == "json"));
        let worker = |path: PathBuf| {
            let outcome: serde_json::Value =
                serde_json::from_slice(&std::fs::read(path).expect("an outcome")).expect("JSON");
            outcome["execution"]["worker"].as_str().expect("a worker").to_owned()
        };
        paths.map(worker).collect()
    }
}

/// A worker process with its probes.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub process: Process,
    address: String,
}

impl Worker {
    /// Starts the process and waits until its probes answer.
    fn start(command: Command, log: &Path) -> Self {
        let mut process = Process::start(command, log);
        let mut address = None;
        wait_until("the worker's probes answer", || {
            assert!(process.ended().is_none(), "the worker has ended: {}", process.said());
            let said = process.said();
            let line = said.lines().find(|line| line.ends_with(": metrics and probes"));
            address = line.and_then(|line| {
                Some(line.split("http://").nth(1)?.split(": ").next()?.to_owned())
            });
            address.is_some()
        });
        Self { process, address: address.expect("it was found") }
    }

    /// Returns whether the worker name of an outcome is this worker's: the name contains the
    /// process id.
    pub fn is_called(&self, name: &str) -> bool {
        name.ends_with(&format!("-{}", self.process.id()))
    }

    /// Returns status and text of `/readyz`; `None` if nothing answers.
    pub fn readiness(&self) -> Option<(u16, String)> {
        self.get("/readyz")
    }

    /// Returns the number of its jobs in progress.
    pub fn jobs_in_hand(&self) -> u64 {
        let (_, text) = self.get("/metrics").unwrap_or_default();
        let values = text
            .lines()
            .filter(|line| line.starts_with("lethe_attempts_in_flight{"))
            .filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<u64>().expect("a whole number")).sum()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut connection = TcpStream::connect(&self.address).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )
        .ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Waits until the worker reports that it can take jobs.
    ///
    /// # Panics
    /// If it does not within three minutes.
    pub fn wait_until_ready(&self) {
        let mut last = None;
        let deadline = Instant::now() + LONGEST_WAIT;
        while last.as_ref().is_none_or(|(status, _)| *status != 200) {
            assert!(Instant::now() < deadline, "not ready: {last:?}: {}", self.process.said());
            std::thread::sleep(Duration::from_millis(100));
            last = self.readiness();
        }
    }

    /// Sends SIGTERM; the process must end with exit code 0.
    pub fn stop(&mut self) {
        signal(self.process.id(), "TERM");
        assert_eq!(self.process.wait().code(), Some(0), "{}", self.process.said());
    }
}

/// A worker with a fault.
#[derive(Debug)]
pub struct BrokenWorker<'a> {
    /// The worker.
    pub worker: Worker,
    site: &'a Site,
    fault: Fault,
    folder: PathBuf,
    cache: PathBuf,
}

impl BrokenWorker<'_> {
    /// Returns whether the worker reports that it cannot take jobs, with the reason.
    pub fn is_unfit(&self) -> bool {
        self.worker
            .readiness()
            .is_some_and(|(status, text)| status == 503 && self.names_the_reason(&text))
    }

    /// Returns whether a text names the fault.
    pub fn names_the_reason(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.fault.reason().iter().all(|part| text.contains(part))
    }

    /// Starts the process again after its end, like a supervisor.
    pub fn restart(&mut self) {
        let command = self.site.broken_command(self.fault, &self.folder, &self.cache);
        self.worker = Worker::start(command, &self.site.job.path("broken-again.log"));
    }

    /// Removes the fault; the process keeps running.
    pub fn mend(&self) {
        let data = self.folder.join("data");
        match self.fault {
            Fault::Unreadable => set_mode(&data, 0o755),
            Fault::Unmounted => {
                std::fs::remove_dir(&data).expect("the empty folder goes");
                symlink(self.site.sound_folder().join("data"), &data)
                    .expect("a link to the shards");
            }
            Fault::Changed => {
                for name in shards() {
                    std::fs::copy(
                        self.site.sound_folder().join("data").join(&name),
                        data.join(&name),
                    )
                    .expect("copy a shard");
                }
            }
            Fault::Forbidden => self.site.remote_site().access.restore("broken"),
            Fault::DamagedCache => {
                std::fs::remove_file(cached_weights(&self.cache)).expect("the damaged file goes")
            }
            Fault::FullDisk => {
                // The file system is visible only in the process's own mount namespace.
                let root = PathBuf::from(format!("/proc/{}/root", self.worker.process.id()));
                let ballast = root
                    .join(self.cache.strip_prefix("/").expect("an absolute path"))
                    .join("ballast");
                std::fs::remove_file(ballast).expect("the ballast goes");
            }
            Fault::Panic | Fault::Cuda | Fault::Slow => {
                std::fs::remove_file(self.site.fault_file()).expect("the fault goes")
            }
        }
    }
}

impl Drop for BrokenWorker<'_> {
    fn drop(&mut self) {
        if self.fault == Fault::Unreadable {
            // Otherwise a user other than root could not remove it.
            set_mode(&self.folder.join("data"), 0o755);
        }
    }
}

/// Returns the names of the shards that workers read.
fn shards() -> Vec<String> {
    let others = ["retain-0", "retain-1", "validation", "test"];
    CONCEPTS.iter().chain(&others).map(|name| format!("{name}.tar")).collect()
}

/// Returns the path of the model's weights in a cache.
fn cached_weights(cache: &Path) -> PathBuf {
    let folders =
        std::fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("an entry").path());
    folders
        .map(|folder| folder.join("model.safetensors"))
        .find(|path| path.is_file())
        .expect("the model is in the cache")
}

/// Changes the byte in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("the file can be written");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .expect("the mode can be set");
}

/// Returns whether tests run as root.
fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

/// Returns the `unshare` options that create a mount namespace here.
///
/// # Panics
/// If the system does not permit it.
fn mount_namespace() -> &'static str {
    let works = |option: &&str| {
        Command::new("unshare")
            .args([*option, "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|ended| ended.success())
    };
    let found = ["-m", "-Urm"].into_iter().find(|option| works(option));
    found
        .expect("a full disk needs a mount namespace of its own: CAP_SYS_ADMIN, or user namespaces")
}

/// Returns a command that runs another one, in the same process.
fn under(wrapper: &[&str], command: &Command) -> Command {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

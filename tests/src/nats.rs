//! Real nats-servers, each for one test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::ports::{free_port, wait_for_port, wait_until};
use crate::repository;

/// Version of a nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The oldest supported version: Debian's 2.9.10.
    Oldest,
    /// A current version.
    Current,
}

impl Version {
    fn binary(self) -> PathBuf {
        let candidates = match self {
            Self::Oldest => {
                vec![PathBuf::from("/usr/sbin/nats-server"), PathBuf::from("/usr/bin/nats-server")]
            }
            Self::Current => vec![repository().join(".tools/nats/site/bin/nats-server")],
        };
        let found = candidates.into_iter().find(|path| path.is_file());
        found.unwrap_or_else(|| {
            panic!(
                "nats-server ({self:?}) is missing: run tests/setup.sh first, as `make test` does"
            )
        })
    }
}

/// A server with JetStream on loopback. It ends with the test, and its disk is removed.
#[derive(Debug)]
pub struct NatsServer {
    folder: tempfile::TempDir,
    version: Version,
    process: Option<Child>,
    port: u16,
}

impl NatsServer {
    /// Starts a server without authentication.
    pub fn start(version: Version) -> Self {
        Self::with(version, "")
    }

    /// Starts a server with these lines in its configuration, where `FOLDER` stands for its folder.
    pub fn with(version: Version, configuration: &str) -> Self {
        Self::with_files(version, configuration, &[])
    }

    /// Starts a server with these lines in its configuration, and with files in its folder.
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

    /// Returns its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A process that has already ended is not an error.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Limits the total size of its streams on disk, from its next start on.
    pub fn limit_disk(&self, bytes: u64) {
        let text =
            std::fs::read_to_string(self.path("nats.conf")).expect("the server's configuration");
        let (before, after) = text.split_once("jetstream {").expect("a section of JetStream");
        let after = after
            .split_once("max_file_store")
            .map_or(after, |(_, rest)| rest.split_once(',').map_or(rest, |(_, rest)| rest));
        let text = format!("{before}jetstream {{ max_file_store: {bytes},{after}");
        std::fs::write(self.path("nats.conf"), text).expect("write the server's configuration");
    }

    /// Removes all stored data; only while the server is not running.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "a running server keeps its disk");
        let _ = std::fs::remove_dir_all(self.path("jetstream"));
    }

    /// Starts the server on the same port and disk, and waits until it answers.
    pub fn run(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .expect("a log file");
        let process = Command::new(self.version.binary())
            .arg("-c")
            .arg(self.path("nats.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        wait_for_port(self.port, self.process.insert(process), "nats-server");
    }

    /// Returns its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Number of servers of a cluster; two form a majority.
pub const NODES: usize = 3;

/// Three servers with JetStream that replicate each other's streams. They end with the test, and
/// their disks are removed.
///
/// The servers advertise no addresses to clients: a client uses only the addresses in its own list.
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
    monitors: Vec<u16>,
}

impl NatsCluster {
    /// Starts the servers and waits until they form a cluster.
    ///
    /// # Panics
    /// If they do not within two minutes.
    pub fn start(version: Version) -> Self {
        let routes: [u16; NODES] = std::array::from_fn(|_| free_port());
        let monitors: Vec<u16> = (0..NODES).map(|_| free_port()).collect();
        let addresses = routes.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        let configuration = |node: usize| {
            format!(
                "server_name: node-{node}\nhttp: \"127.0.0.1:{}\"\n\
                 cluster {{ name: lethe, listen: \"127.0.0.1:{}\", no_advertise: true, routes: [{addresses}] }}",
                monitors[node], routes[node]
            )
        };
        let nodes =
            (0..NODES).map(|node| NatsServer::with(version, &configuration(node))).collect();
        let cluster = Self { nodes, monitors };
        cluster.wait_until_healthy();
        cluster
    }

    /// Returns the addresses of all servers, separated by commas.
    pub fn url(&self) -> String {
        self.nodes.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Returns the address of one server.
    pub fn node_url(&self, node: usize) -> String {
        self.nodes[node].url()
    }

    /// Kills one server (SIGKILL).
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Removes all data of a server; only while it is not running.
    pub fn wipe(&mut self, node: usize) {
        self.nodes[node].wipe();
    }

    /// Starts a server on its ports and disk, and waits until it answers. It may need longer to
    /// catch up: [`wait_until_healthy`](Self::wait_until_healthy).
    pub fn run(&mut self, node: usize) {
        self.nodes[node].run();
    }

    /// Returns whether a server is running.
    pub fn runs(&self, node: usize) -> bool {
        self.nodes[node].process.is_some()
    }

    /// Returns the leader of JetStream's metadata, as known to a running server.
    pub fn leader(&self) -> Option<usize> {
        let known = (0..NODES).filter(|&node| self.runs(node)).find_map(|node| {
            let (_, body) = self.ask(node, "/jsz")?;
            let status: serde_json::Value = serde_json::from_str(&body).ok()?;
            status["meta_cluster"]["leader"].as_str()?.strip_prefix("node-")?.parse().ok()
        });
        known.filter(|&node| self.runs(node))
    }

    /// Waits until JetStream has a leader among the running servers, and returns it.
    ///
    /// # Panics
    /// If it has none within two minutes.
    pub fn wait_for_leader(&self) -> usize {
        let mut leader = None;
        wait_until("JetStream has a leader", || {
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("it has one")
    }

    /// Waits until JetStream has a leader and every server is running and has caught up, so that
    /// any one may be lost.
    ///
    /// # Panics
    /// If that takes more than two minutes.
    pub fn wait_until_healthy(&self) {
        self.wait_for_leader();
        let healthy = |node| self.ask(node, "/healthz").is_some_and(|(status, _)| status == 200);
        wait_until("every server of the cluster has caught up", || (0..NODES).all(healthy));
    }

    /// Returns the response of a server's monitoring port; `None` if it does not answer.
    fn ask(&self, node: usize, path: &str) -> Option<(u16, String)> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.monitors[node])).ok()?;
        // A health check may inspect many streams.
        connection.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(connection, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

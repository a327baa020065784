//! A run of many concepts whose workers, coordinators, servers and messages are killed, stopped,
//! lost and duplicated. It ends without intervention, with the digest of an undisturbed run. The
//! servers are a single NATS server in one test, and a cluster of three with three replicas in the
//! other.
//!
//! `LETHE_CHAOS_SEED` repeats a sequence of disturbances, `LETHE_CHAOS_EVENTS` sets their number
//! (16 on one server, 12 on the cluster), as in `LETHE_CHAOS_EVENTS=100 cargo test --release -p
//! lethe-tests --test chaos -- --nocapture`.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::stream::State;
use lethe_tests::nats::{NODES, NatsCluster, NatsServer, Version};
use lethe_tests::ports::{LONGEST_WAIT, wait_until};
use lethe_tests::processes::{Process, signal, worker};
use lethe_tests::{SmallJob, outcomes, releases};
use serde_json::Value;

const CONCEPTS: usize = 60;
/// Time until redelivery, and the term of a coordinator's lease: longer than a job, and short
/// enough for a test to wait for lost ones.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for which a process is suspended: long enough for its jobs, or its lease, to go to another
/// process.
const STOPPED: Duration = Duration::from_secs(8);
/// Time for which a killed server of the cluster stays down.
const AWAY: Duration = Duration::from_secs(5);
/// Exit code of a coordinator whose run was taken over.
const INFRASTRUCTURE: i32 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    KillWorker,
    StopWorker,
    KillCoordinator,
    /// Suspends the coordinator and starts another, which takes the run over; the first one resumes
    /// later.
    StopCoordinator,
    /// Kills a server and restarts it, on the cluster after a pause.
    RestartServer,
    /// Kills a server and restarts it with an empty disk.
    RestartServerWithoutItsDisk,
    LoseMessage,
    DoubleMessage,
}

use Disturbance::{
    DoubleMessage, KillCoordinator, KillWorker, LoseMessage, RestartServer,
    RestartServerWithoutItsDisk, StopCoordinator, StopWorker,
};

const ALL: [Disturbance; 8] = [
    KillWorker,
    StopCoordinator,
    RestartServer,
    StopWorker,
    RestartServerWithoutItsDisk,
    KillCoordinator,
    LoseMessage,
    DoubleMessage,
];

/// A pseudo-random number generator with a seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// The servers of a run.
enum Nats {
    Single(NatsServer),
    Cluster {
        servers: NatsCluster,
        /// Index of the server for the next disturbance, in turn.
        next: usize,
        /// The server that is down, and the time of its restart.
        away: Option<(usize, Instant)>,
    },
}

impl Nats {
    fn cluster(version: Version) -> Self {
        Self::Cluster { servers: NatsCluster::start(version), next: 0, away: None }
    }

    fn url(&self) -> String {
        match self {
            Self::Single(server) => server.url(),
            Self::Cluster { servers, .. } => servers.url(),
        }
    }

    fn replicas(&self) -> &'static str {
        match self {
            Self::Single(_) => "1",
            Self::Cluster { .. } => "3",
        }
    }

    fn restart(&mut self, is_wiped: bool) {
        match self {
            Self::Single(server) => {
                server.kill();
                if is_wiped {
                    server.wipe();
                }
                server.run();
            }
            Self::Cluster { servers, next, away } => {
                // A majority keeps all acknowledged messages, because a restarted server catches up
                // before the next one is killed.
                if let Some((node, _)) = away.take() {
                    servers.run(node);
                }
                servers.wait_until_healthy();
                let node = *next;
                *next = (node + 1) % NODES;
                servers.kill(node);
                if is_wiped {
                    servers.wipe(node);
                    servers.run(node);
                } else {
                    *away = Some((node, Instant::now() + AWAY));
                }
            }
        }
    }

    /// Restarts a server whose pause has passed.
    fn bring_back(&mut self) {
        if let Self::Cluster { servers, away, .. } = self
            && let Some((node, _)) = away.take_if(|(_, until)| Instant::now() >= *until)
        {
            servers.run(node);
        }
    }
}

/// All processes of a test.
struct Scene {
    job: SmallJob,
    nats: Nats,
    workers: Vec<Process>,
    /// The coordinator that executes the run, or waits for its lease.
    coordinator: Process,
    coordinators: usize,
    /// Indices of suspended workers, and the time to resume each.
    stopped: Vec<(usize, Instant)>,
    /// Suspended coordinators, and the time to resume each.
    asleep: Vec<(Process, Instant)>,
    /// Resumed coordinators whose run was taken over.
    late: Vec<Process>,
    doubles: u32,
}

impl Scene {
    fn start(job: SmallJob, nats: Nats) -> Self {
        let workers = (0..2).map(|number| start_worker(&job, &nats, number)).collect();
        let coordinator = start_coordinator(&job, &nats, 0);
        let (stopped, asleep, late) = (Vec::new(), Vec::new(), Vec::new());
        Self { job, nats, workers, coordinator, coordinators: 1, stopped, asleep, late, doubles: 0 }
    }

    fn next_coordinator(&mut self) -> Process {
        let next = start_coordinator(&self.job, &self.nats, self.coordinators);
        self.coordinators += 1;
        std::mem::replace(&mut self.coordinator, next)
    }

    async fn disturb(&mut self, disturbance: Disturbance, chance: &mut Chance) {
        let chosen = chance.below(self.workers.len());
        match disturbance {
            KillWorker => {
                self.stopped.retain(|(number, _)| *number != chosen);
                self.workers[chosen].kill();
                self.workers[chosen] = start_worker(&self.job, &self.nats, chosen);
            }
            StopWorker => {
                if !self.stopped.iter().any(|(number, _)| *number == chosen) {
                    signal(self.workers[chosen].id(), "STOP");
                    self.stopped.push((chosen, Instant::now() + STOPPED));
                }
            }
            KillCoordinator => {
                self.coordinator.kill();
                self.next_coordinator();
            }
            StopCoordinator => {
                signal(self.coordinator.id(), "STOP");
                let stopped = self.next_coordinator();
                self.asleep.push((stopped, Instant::now() + STOPPED));
            }
            RestartServer | RestartServerWithoutItsDisk => {
                self.nats.restart(disturbance == RestartServerWithoutItsDisk)
            }
            LoseMessage | DoubleMessage => {
                let meddled = tokio::time::timeout(
                    Duration::from_secs(5),
                    meddle(&self.nats.url(), disturbance, self.doubles),
                )
                .await;
                self.doubles += 1;
                // A server that has just started has no stream yet.
                println!("    {}", meddled.ok().flatten().unwrap_or("nothing to meddle with"));
            }
        }
    }

    /// Resumes every process whose time has come.
    fn wake(&mut self) {
        let now = Instant::now();
        let workers = &self.workers;
        self.stopped.retain(|(number, until)| {
            let is_over = now >= *until;
            if is_over {
                signal(workers[*number].id(), "CONT");
            }
            !is_over
        });
        for (coordinator, _) in self.asleep.extract_if(.., |(_, until)| now >= *until) {
            signal(coordinator.id(), "CONT");
            self.late.push(coordinator);
        }
        self.nats.bring_back();
    }

    /// Starts another coordinator when this one ended because a late one has taken the run over:
    /// a server lost the lease with its disk, and a coordinator that had been suspended took it.
    fn replace_superseded(&mut self) {
        let is_superseded =
            self.coordinator.ended().is_some_and(|status| status.code() == Some(INFRASTRUCTURE))
                && self.coordinator.said().contains("another coordinator has taken over");
        if is_superseded {
            let superseded = self.next_coordinator();
            self.late.push(superseded);
        }
    }

    /// Waits until the store has `target` outcomes, and resumes suspended processes meanwhile.
    fn wait(&mut self, store: &Path, target: usize, deadline: Instant) {
        while outcomes(store) < target {
            self.wake();
            self.replace_superseded();
            assert!(
                Instant::now() < deadline,
                "the run makes no progress: {}",
                self.coordinator.said()
            );
            assert!(
                self.coordinator.ended().is_none(),
                "the coordinator ended too soon: {}",
                self.coordinator.said()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of the run, and of every superseded coordinator.
    fn finish(&mut self, deadline: Instant) {
        let status = loop {
            self.wake();
            self.replace_superseded();
            if let Some(status) = self.coordinator.ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "the run does not end: {}", self.coordinator.said());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(status.code(), Some(0), "{}", self.coordinator.said());
        wait_until("every stopped coordinator is awake", || {
            self.wake();
            self.asleep.is_empty()
        });
        let expected = self.coordinator.printed();
        for late in &mut self.late {
            let code = late.wait().code();
            // A coordinator that was suspended after its last write ends normally.
            let is_done = code == Some(0) && late.printed()["digest"] == expected["digest"];
            let is_told = code == Some(INFRASTRUCTURE)
                && late.said().contains("another coordinator has taken over");
            assert!(is_done || is_told, "a late coordinator ended with {code:?}: {}", late.said());
        }
    }
}

/// Deletes a message that waits or is in progress, or publishes a copy of one.
async fn meddle(url: &str, disturbance: Disturbance, number: u32) -> Option<&'static str> {
    let context = jetstream(url).await?;
    let stream = context.get_stream("LETHE_JOBS").await.ok()?;
    let message = stream
        .raw_message_builder()
        .next_by_subject("lethe.jobs.>")
        .sequence(1)
        .send()
        .await
        .ok()?;
    if disturbance == LoseMessage {
        stream.delete_message(message.sequence).await.ok()?;
        return Some("lost a message");
    }
    context
        .publish(format!("lethe.jobs.double.concept.{number}"), message.payload)
        .await
        .ok()?
        .await
        .ok()?;
    Some("doubled a message")
}

async fn jetstream(urls: &str) -> Option<jetstream::Context> {
    let servers: Vec<&str> = urls.split(',').collect();
    Some(jetstream::new(async_nats::connect(&servers[..]).await.ok()?))
}

fn start_worker(job: &SmallJob, nats: &Nats, number: usize) -> Process {
    let store = job.path("store");
    let mut command = worker(&nats.url(), store.to_str().unwrap(), &job.path("cache"));
    command.args(["--nats-replicas", nats.replicas()]);
    Process::start(command, &job.path(&format!("worker-{number}.log")))
}

fn start_coordinator(job: &SmallJob, nats: &Nats, number: usize) -> Process {
    let (store, patience, url) = (job.path("store"), PATIENCE.as_secs().to_string(), nats.url());
    let nats = ["--nats", &url, "--nats-ack-wait", &patience, "--nats-replicas", nats.replicas()];
    let command =
        job.command("run", &[["--store", store.to_str().unwrap()].as_slice(), &nats].concat());
    Process::start(command, &job.path(&format!("coordinator-{number}.log")))
}

/// Returns a job of many cheap concepts: the test is about every job being executed, not about
/// results.
fn job_of_many_concepts() -> SmallJob {
    let job = SmallJob::with_concepts(CONCEPTS).lenient();
    job.replace("job.toml", "search_evaluations = 6", "search_evaluations = 4");
    job
}

/// The report of a run in one process, and the number of its outcomes.
static UNDISTURBED: LazyLock<(Value, usize)> = LazyLock::new(|| {
    let job = job_of_many_concepts();
    (job.run("undisturbed"), outcomes(&job.path("undisturbed")))
});

async fn endure(default_events: usize, nats: impl FnOnce(&mut Chance) -> Nats) {
    let seed = number("LETHE_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let events = number("LETHE_CHAOS_EVENTS").map_or(default_events, |events| events as usize);
    println!("LETHE_CHAOS_SEED={seed} LETHE_CHAOS_EVENTS={events}");
    let mut chance = Chance(seed);
    let nats = nats(&mut chance);
    let (expected, all) = (&UNDISTURBED.0, UNDISTURBED.1);

    let mut scene = Scene::start(job_of_many_concepts(), nats);
    let store = scene.job.path("store");
    let began = Instant::now();
    let deadline = began + Duration::from_secs(600 + 20 * events as u64);
    for event in 0..events {
        // Each kind once, then random ones, spread over the run by the number of outcomes.
        let disturbance = if event < ALL.len() {
            ALL[(event + seed as usize) % ALL.len()]
        } else {
            ALL[chance.below(ALL.len())]
        };
        scene.wait(&store, (event + 1) * all / (events + 4), deadline);
        println!(
            "{:>4} s, {:>3} of {all} jobs done, {:>3}: {disturbance:?}",
            began.elapsed().as_secs(),
            outcomes(&store),
            event + 1
        );
        scene.disturb(disturbance, &mut chance).await;
    }
    scene.finish(deadline);
    println!("{:>4} s, the run has ended", began.elapsed().as_secs());
    let report = scene.coordinator.printed();
    assert_eq!(report["digest"], expected["digest"]);
    for field in ["concepts", "edited", "forgotten_alone", "missing", "utility"] {
        assert_eq!(report["summary"][field], expected["summary"][field], "{field}");
    }
    assert_eq!(
        (report["summary"]["concepts"].as_u64(), outcomes(&store)),
        (Some(CONCEPTS as u64), all),
        "each job has one outcome"
    );
    assert_eq!(releases(&store), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_the_run_ends_with_the_same_bytes() {
    let version =
        |chance: &mut Chance| if chance.below(2) == 0 { Version::Oldest } else { Version::Current };
    endure(16, |chance| Nats::Single(NatsServer::start(version(chance)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_with_three_copies_the_run_ends_with_the_same_bytes() {
    endure(12, |_| Nats::cluster(Version::Current)).await;
}

/// Returns the state of the stream of jobs.
async fn jobs_on_the_queue(url: &str) -> Option<State> {
    let mut stream = jetstream(url).await?.get_stream("LETHE_JOBS").await.ok()?;
    Some(stream.info().await.ok()?.state.clone())
}

/// Returns the number of coordinators that have claimed a run in this store so far.
fn claims(store: &Path) -> usize {
    let Ok(runs) = std::fs::read_dir(store.join("runs")) else { return 0 };
    let folders =
        runs.filter_map(|run| std::fs::read_dir(run.expect("a folder").path().join("claims")).ok());
    folders.map(Iterator::count).sum()
}

/// A coordinator that was suspended until another took its run over does no harm when it resumes:
/// the other's jobs stay on the queue, and the other ends the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_coordinator_removes_no_job_of_its_successor() {
    let job = SmallJob::new();
    let expected = job.run("undisturbed");
    let nats = Nats::Single(NatsServer::start(Version::Current));
    let (url, store) = (nats.url(), job.path("store"));
    // There is no worker yet, so published jobs stay on the queue.
    let mut late = start_coordinator(&job, &nats, 0);
    let deadline = Instant::now() + LONGEST_WAIT;
    while jobs_on_the_queue(&url).await.is_none_or(|published| published.messages == 0) {
        assert!(Instant::now() < deadline, "no job is published: {}", late.said());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(late.id(), "STOP");
    let mut successor = start_coordinator(&job, &nats, 1);
    wait_until("the successor claims the run", || claims(&store) == 2);
    signal(late.id(), "CONT");
    assert_eq!(late.wait().code(), Some(INFRASTRUCTURE), "{}", late.said());
    assert!(late.said().contains("another coordinator has taken over"), "{}", late.said());
    let left = jobs_on_the_queue(&url).await.expect("the stream is there");
    assert_eq!(
        (left.first_sequence, left.messages),
        (1, left.last_sequence),
        "each message that was ever published is there"
    );
    let _worker = start_worker(&job, &nats, 0);
    assert_eq!(successor.wait().code(), Some(0), "{}", successor.said());
    assert_eq!(successor.printed()["digest"], expected["digest"]);
}

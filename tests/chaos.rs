//! One run of sixty concepts while everything around it is killed, stopped, lost and doubled: it ends by itself, with the
//! digest of an undisturbed run.
//!
//! `LETHE_CHAOS_SEED` repeats a run of events, `LETHE_CHAOS_EVENTS` makes it longer (24).

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::processes::{Process, signal, worker};
use lethe_tests::{SmallJob, outcomes, releases};

const CONCEPTS: usize = 60;
/// Longer than a job takes, shorter than anyone likes to wait for one that is lost.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    KillWorker,
    KillCoordinator,
    RestartServer,
    RestartServerWithoutItsDisk,
    StopWorker,
    LoseMessage,
    DoubleMessage,
}

use Happening::{DoubleMessage, KillCoordinator, KillWorker, LoseMessage, RestartServer, RestartServerWithoutItsDisk, StopWorker};

const ALL: [Happening; 7] =
    [KillWorker, KillCoordinator, RestartServer, RestartServerWithoutItsDisk, StopWorker, LoseMessage, DoubleMessage];

/// Numbers that a seed determines (SplitMix64).
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

/// Everything that takes part.
struct Cluster {
    job: SmallJob,
    server: NatsServer,
    workers: Vec<Process>,
    coordinator: Process,
    /// Workers that stand still, and until when.
    stopped: Vec<(usize, Instant)>,
    doubles: u32,
}

impl Cluster {
    fn start(job: SmallJob, server: NatsServer) -> Self {
        let workers = (0..2).map(|number| start_worker(&job, &server, number)).collect();
        let coordinator = start_coordinator(&job, &server);
        Self { job, server, workers, coordinator, stopped: Vec::new(), doubles: 0 }
    }

    async fn happen(&mut self, happening: Happening, chance: &mut Chance) {
        let chosen = chance.below(self.workers.len());
        match happening {
            KillWorker => {
                self.stopped.retain(|(number, _)| *number != chosen);
                self.workers[chosen].kill();
                self.workers[chosen] = start_worker(&self.job, &self.server, chosen);
            }
            KillCoordinator => {
                self.coordinator.kill();
                self.coordinator = start_coordinator(&self.job, &self.server);
            }
            RestartServer | RestartServerWithoutItsDisk => {
                self.server.kill();
                if happening == RestartServerWithoutItsDisk {
                    self.server.wipe();
                }
                self.server.run();
            }
            StopWorker => {
                if !self.stopped.iter().any(|(number, _)| *number == chosen) {
                    signal(self.workers[chosen].id(), "STOP");
                    self.stopped.push((chosen, Instant::now() + PATIENCE * 3 / 2));
                }
            }
            LoseMessage | DoubleMessage => {
                let meddled = tokio::time::timeout(Duration::from_secs(5), meddle(&self.server.url(), happening, self.doubles)).await;
                self.doubles += 1;
                // A server that is only just up has no stream to meddle with.
                println!("    {}", meddled.ok().flatten().unwrap_or("nothing to meddle with"));
            }
        }
    }

    fn wake(&mut self) {
        let workers = &self.workers;
        self.stopped.retain(|(number, until)| {
            let over = Instant::now() >= *until;
            if over {
                signal(workers[*number].id(), "CONT");
            }
            !over
        });
    }
}

/// Loses a message that waits or is in hand, or puts a copy of one beside it.
async fn meddle(url: &str, happening: Happening, number: u32) -> Option<&'static str> {
    let context = jetstream::new(async_nats::connect(url).await.ok()?);
    let stream = context.get_stream("LETHE_JOBS").await.ok()?;
    let message = stream.raw_message_builder().next_by_subject("lethe.jobs.>").sequence(1).send().await.ok()?;
    if happening == LoseMessage {
        stream.delete_message(message.sequence).await.ok()?;
        return Some("lost a message");
    }
    context.publish(format!("lethe.jobs.double.concept.{number}"), message.payload).await.ok()?.await.ok()?;
    Some("doubled a message")
}

fn start_worker(job: &SmallJob, server: &NatsServer, number: usize) -> Process {
    let store = job.path("store");
    let command = worker(&server.url(), store.to_str().unwrap(), &job.path("cache"));
    Process::start(command, &job.path(&format!("worker-{number}.log")))
}

fn start_coordinator(job: &SmallJob, server: &NatsServer) -> Process {
    let (store, patience) = (job.path("store"), PATIENCE.as_secs().to_string());
    let store = store.to_str().unwrap();
    let command = job.command("run", &["--store", store, "--nats", &server.url(), "--nats-patience", &patience]);
    Process::start(command, &job.path("coordinator.log"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_the_run_ends_with_the_same_bytes() {
    let seed = number("LETHE_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let events = number("LETHE_CHAOS_EVENTS").unwrap_or(24) as usize;
    println!("LETHE_CHAOS_SEED={seed}");
    let mut chance = Chance(seed);
    let version = if chance.below(2) == 0 { Version::Oldest } else { Version::Current };
    let job = SmallJob::with_concepts(CONCEPTS);
    // Cheap: what is computed matters less than that it is computed once and for all.
    job.replace("job.toml", "search_evaluations = 6", "search_evaluations = 4");
    job.replace("job.toml", "[execution]", "[policy]\nrequired = 0.01\n\n[execution]");
    let expected = job.run("undisturbed");
    let all = outcomes(&job.path("undisturbed"));

    let mut cluster = Cluster::start(job, NatsServer::start(version));
    let store = cluster.job.path("store");
    let deadline = Instant::now() + Duration::from_secs(600 + 20 * events as u64);
    for event in 0..events {
        // Everything happens once, then anything; spread over the run by what is done.
        let happening = if event < ALL.len() { ALL[(event + seed as usize) % ALL.len()] } else { ALL[chance.below(ALL.len())] };
        let target = (event + 1) * all / (events + 4);
        wait(&mut cluster, &store, target, deadline);
        println!("{:>3} at {} of {all}: {happening:?}", event + 1, outcomes(&store));
        cluster.happen(happening, &mut chance).await;
    }
    let status = loop {
        cluster.wake();
        if let Some(status) = cluster.coordinator.ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "the run does not end: {}", cluster.coordinator.said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(0), "{}", cluster.coordinator.said());
    let report = cluster.coordinator.printed();
    assert_eq!(report["digest"], expected["digest"]);
    for field in ["concepts", "edited", "forgotten_alone", "missing", "utility"] {
        assert_eq!(report["summary"][field], expected["summary"][field], "{field}");
    }
    assert_eq!((report["summary"]["concepts"].as_u64(), outcomes(&store)), (Some(CONCEPTS as u64), all), "each job has one outcome");
    assert_eq!(releases(&store), 1);
}

/// Waits until so many jobs are done, waking workers whose time has come.
fn wait(cluster: &mut Cluster, store: &Path, target: usize, deadline: Instant) {
    while outcomes(store) < target {
        cluster.wake();
        assert!(Instant::now() < deadline, "the run makes no progress: {}", cluster.coordinator.said());
        assert!(cluster.coordinator.ended().is_none(), "the coordinator ended too soon: {}", cluster.coordinator.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

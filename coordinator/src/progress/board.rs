//! The current activity of a run, for display only. The store holds the authoritative state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lethe_shared::reference::JobId;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;

/// Number of problems that are kept.
const PROBLEMS: usize = 20;
/// A worker is no longer shown this long after its last notice.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The board of one run.
#[derive(Debug)]
pub struct Board {
    live: Mutex<Live>,
    /// Number of changes, for watchers.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Live {
    stage: String,
    phases: Vec<Phase>,
    workers: BTreeMap<String, Busy>,
    /// Paused workers, which take no jobs until their self-check passes, with the reasons for its
    /// failure.
    paused: BTreeMap<String, String>,
    problems: VecDeque<String>,
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    total: usize,
    found: usize,
    done: usize,
    began: Instant,
    ended: Option<Instant>,
}

#[derive(Debug)]
struct Busy {
    id: JobId,
    job: String,
    since: Instant,
}

/// A snapshot of the board.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Live")]
pub struct Seen {
    /// The current step.
    pub stage: String,
    /// Phases so far, in order.
    pub phases: Vec<SeenPhase>,
    /// Workers that hold a job of the run.
    pub workers: Vec<SeenWorker>,
    /// Paused workers, which take no jobs until their self-check passes.
    pub paused: Vec<SeenPause>,
    /// The last problems, newest last.
    pub problems: Vec<String>,
}

/// A worker that is paused.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "PausedWorker")]
pub struct SeenPause {
    /// Its name.
    pub name: String,
    /// The reason for the pause.
    pub reason: String,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Phase")]
pub struct SeenPhase {
    /// Its name.
    pub name: &'static str,
    /// Number of its jobs.
    pub total: usize,
    /// Jobs that have ended.
    pub done: usize,
    /// Jobs whose stored outcome was reused.
    pub found: usize,
    /// Seconds so far.
    pub seconds: f64,
    /// Jobs per minute so far.
    pub per_minute: Option<f64>,
    /// Estimated remaining seconds at the current rate.
    pub seconds_left: Option<f64>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Worker")]
pub struct SeenWorker {
    /// Its name.
    pub name: String,
    /// Its job.
    pub job: String,
    /// Seconds since the job began.
    pub seconds: f64,
}

impl Live {
    fn problem(&mut self, problem: String) {
        if self.problems.len() == PROBLEMS {
            self.problems.pop_front();
        }
        self.problems.push_back(problem);
    }
}

impl Board {
    /// Creates an empty board, which increments `changed` with every change.
    pub fn new(changed: watch::Sender<u64>) -> Arc<Self> {
        Arc::new(Self { live: Mutex::default(), changed })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    /// Clears the board for a new attempt at the run.
    pub fn clear(&self) {
        *self.live() = Live::default();
        self.changed();
    }

    /// Sets the current step.
    pub fn stage(&self, stage: &str) {
        stage.clone_into(&mut self.live().stage);
        self.changed();
    }

    /// Starts a phase, or adds jobs to it.
    pub fn phase(&self, name: &'static str, total: usize, found: usize) {
        let mut live = self.live();
        name.clone_into(&mut live.stage);
        match live.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => {
                phase.total += total;
                phase.found += found;
                phase.done += found;
                phase.ended = (phase.done >= phase.total).then(Instant::now);
            }
            None => {
                let (began, ended) = (Instant::now(), (found >= total).then(Instant::now));
                live.phases.push(Phase { name, total, found, done: found, began, ended });
            }
        }
        drop(live);
        self.changed();
    }

    /// Records that `jobs` more jobs of a phase have ended.
    pub fn ended(&self, name: &'static str, jobs: usize) {
        let mut live = self.live();
        if let Some(phase) = live.phases.iter_mut().find(|phase| phase.name == name) {
            phase.done += jobs;
            phase.ended = (phase.done >= phase.total).then(Instant::now);
        }
        drop(live);
        self.changed();
    }

    /// Records that a worker has taken a job; `label` is the job's name for people. A worker that
    /// held the job before has missed its heartbeats, or has released the job.
    pub fn took(&self, worker: &str, id: JobId, label: &str) {
        let mut live = self.live();
        let others = live.workers.extract_if(.., |name, busy| busy.id == id && name != worker);
        let lost: Vec<String> = others.map(|(name, _)| name).collect();
        live.workers
            .insert(worker.to_owned(), Busy { id, job: label.to_owned(), since: Instant::now() });
        for name in lost {
            live.problem(format!("{label}: no heartbeat from {name}; redelivered to {worker}"));
        }
        drop(live);
        self.changed();
    }

    /// Records that a worker no longer holds its job.
    pub fn let_go(&self, worker: &str) {
        self.live().workers.remove(worker);
        self.changed();
    }

    /// Records that a job has ended, so that no worker holds it.
    pub fn over(&self, id: JobId) {
        self.live().workers.retain(|_, busy| busy.id != id);
        self.changed();
    }

    /// Records that a worker takes no jobs until its self-check passes.
    pub fn paused(&self, worker: &str, reason: &str) {
        let mut live = self.live();
        if live
            .paused
            .insert(worker.to_owned(), reason.to_owned())
            .is_none_or(|before| before != reason)
        {
            live.problem(format!("{worker} takes no jobs: {reason}"));
        }
        drop(live);
        self.changed();
    }

    /// Records that a worker takes jobs again.
    pub fn resumed(&self, worker: &str) {
        self.live().paused.remove(worker);
        self.changed();
    }

    /// Adds a problem.
    pub fn problem(&self, problem: String) {
        self.live().problem(problem);
        self.changed();
    }

    /// Returns a snapshot.
    pub fn seen(&self) -> Seen {
        let live = self.live();
        let phase = |phase: &Phase| {
            let seconds =
                phase.ended.unwrap_or_else(Instant::now).duration_since(phase.began).as_secs_f64();
            let (done, left) = (phase.done - phase.found, phase.total.saturating_sub(phase.done));
            let pace = (done > 0 && seconds > 0.0).then(|| done as f64 / seconds);
            SeenPhase {
                name: phase.name,
                total: phase.total,
                done: phase.done,
                found: phase.found,
                seconds: tenths(seconds),
                per_minute: pace.map(|pace| tenths(60.0 * pace)),
                seconds_left: pace.filter(|_| left > 0).map(|pace| tenths(left as f64 / pace)),
            }
        };
        let busy = live.workers.iter().filter(|(_, busy)| busy.since.elapsed() < FORGOTTEN);
        let worker = |(name, busy): (&String, &Busy)| SeenWorker {
            name: name.clone(),
            job: busy.job.clone(),
            seconds: tenths(busy.since.elapsed().as_secs_f64()),
        };
        Seen {
            stage: live.stage.clone(),
            phases: live.phases.iter().map(phase).collect(),
            workers: busy.map(worker).collect(),
            paused: live
                .paused
                .iter()
                .map(|(name, reason)| SeenPause { name: name.clone(), reason: reason.clone() })
                .collect(),
            problems: live.problems.iter().cloned().collect(),
        }
    }
}

fn tenths(number: f64) -> f64 {
    (10.0 * number).round() / 10.0
}

#[cfg(test)]
mod tests {
    use lethe_shared::digest::Digest;

    use super::*;

    fn id(text: &str) -> JobId {
        Digest::of(text.as_bytes()).into()
    }

    #[test]
    fn a_job_is_in_one_worker_s_hands() {
        let board = Board::new(watch::Sender::new(0));
        let names =
            || board.seen().workers.into_iter().map(|worker| worker.name).collect::<Vec<_>>();
        board.took("dead/0", id("pizza"), "concept pizza");
        board.took("w/0", id("rocket"), "concept rocket");
        // A repeated notice changes nothing.
        board.took("w/0", id("rocket"), "concept rocket");
        assert_eq!(
            (names(), board.seen().problems.len()),
            (vec!["dead/0".to_owned(), "w/0".to_owned()], 0)
        );
        // After missed heartbeats, another worker holds the job.
        board.took("w/1", id("pizza"), "concept pizza");
        assert_eq!(names(), ["w/0", "w/1"]);
        assert_eq!(
            board.seen().problems,
            ["concept pizza: no heartbeat from dead/0; redelivered to w/1"]
        );
        // The store shows that the job has ended, though no notice arrived.
        board.over(id("pizza"));
        assert_eq!(names(), ["w/0"]);
    }

    #[test]
    fn a_board_tells_what_it_was_told() {
        let (changed, seen) = watch::channel(0);
        let board = Board::new(changed);
        board.phase("retain gradient", 2, 1);
        board.phase("retain gradient", 1, 0);
        board.ended("retain gradient", 1);
        board.took("w/0", id("pizza"), "concept pizza");
        board.took("w/1", id("rocket"), "concept rocket");
        board.let_go("w/1");
        board.paused("w/2", "permission denied");
        board.paused("w/2", "permission denied");
        assert_eq!((board.seen().paused.len(), board.seen().problems.len()), (1, 1));
        board.resumed("w/2");
        assert!(board.seen().paused.is_empty());
        for number in 0..30 {
            board.problem(format!("problem {number}"));
        }
        let now = board.seen();
        assert_eq!(
            (now.stage.as_str(), now.phases.len(), now.workers.len()),
            ("retain gradient", 1, 1)
        );
        let phase = &now.phases[0];
        assert_eq!((phase.total, phase.found, phase.done), (3, 1, 2));
        assert!(phase.seconds_left.is_some());
        assert_eq!((now.problems.len(), now.problems[19].as_str()), (PROBLEMS, "problem 29"));
        assert!(*seen.borrow() > 30);
        board.clear();
        assert_eq!(board.seen(), Seen::default());
    }
}

//! What a run is doing right now, for those who look. Never the truth: that is in the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lethe_shared::job::JobId;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;

/// Problems that are kept.
const PROBLEMS: usize = 20;
/// A worker that was not heard of for this long is not shown.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The board of one run.
#[derive(Debug)]
pub struct Board {
    live: Mutex<Live>,
    /// Told that there is something new.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Live {
    stage: String,
    phases: Vec<Phase>,
    workers: BTreeMap<String, Busy>,
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

/// What a board says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Live")]
pub struct Seen {
    /// What is being done, in words.
    pub stage: String,
    /// Phases so far, in order.
    pub phases: Vec<SeenPhase>,
    /// Who works on it.
    pub workers: Vec<SeenWorker>,
    /// What went wrong lately, newest last.
    pub problems: Vec<String>,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Phase")]
pub struct SeenPhase {
    /// Its name.
    pub name: &'static str,
    /// Its jobs.
    pub total: usize,
    /// Jobs that have ended.
    pub done: usize,
    /// Jobs whose outcome was there before.
    pub found: usize,
    /// Seconds so far.
    pub seconds: f64,
    /// Jobs a minute.
    pub per_minute: Option<f64>,
    /// Seconds that are left, at this pace.
    pub seconds_left: Option<f64>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Worker")]
pub struct SeenWorker {
    /// Its name.
    pub name: String,
    /// The job in its hands.
    pub job: String,
    /// For how many seconds.
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
    /// An empty board; `changed` is told of every change.
    pub fn new(changed: watch::Sender<u64>) -> Arc<Self> {
        Arc::new(Self { live: Mutex::default(), changed })
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    /// A new attempt at the run begins.
    pub fn clear(&self) {
        *self.live() = Live::default();
        self.changed();
    }

    /// What is being done, in words.
    pub fn stage(&self, stage: &str) {
        stage.clone_into(&mut self.live().stage);
        self.changed();
    }

    /// A phase begins, or gets more jobs.
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

    /// This many more jobs of a phase have ended.
    pub fn ended(&self, name: &'static str, jobs: usize) {
        let mut live = self.live();
        if let Some(phase) = live.phases.iter_mut().find(|phase| phase.name == name) {
            phase.done += jobs;
            phase.ended = (phase.done >= phase.total).then(Instant::now);
        }
        drop(live);
        self.changed();
    }

    /// A worker has taken a job; `label` is what people call it. Whoever had it before was silent for too long, or handed it back.
    pub fn took(&self, worker: &str, id: JobId, label: &str) {
        let mut live = self.live();
        let others = live.workers.extract_if(.., |name, busy| busy.id == id && name != worker);
        let lost: Vec<String> = others.map(|(name, _)| name).collect();
        live.workers.insert(worker.to_owned(), Busy { id, job: label.to_owned(), since: Instant::now() });
        for name in lost {
            live.problem(format!("{label}: {name} has not finished it, {worker} has it now"));
        }
        drop(live);
        self.changed();
    }

    /// A worker has done with its job.
    pub fn let_go(&self, worker: &str) {
        self.live().workers.remove(worker);
        self.changed();
    }

    /// A job has ended: nobody has it in hand any more, whatever was heard of them.
    pub fn over(&self, id: JobId) {
        self.live().workers.retain(|_, busy| busy.id != id);
        self.changed();
    }

    /// Something went wrong.
    pub fn problem(&self, problem: String) {
        self.live().problem(problem);
        self.changed();
    }

    /// What the board says now.
    pub fn seen(&self) -> Seen {
        let live = self.live();
        let phase = |phase: &Phase| {
            let seconds = phase.ended.unwrap_or_else(Instant::now).duration_since(phase.began).as_secs_f64();
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
        let names = || board.seen().workers.into_iter().map(|worker| worker.name).collect::<Vec<_>>();
        board.took("dead/0", id("pizza"), "concept pizza");
        board.took("w/0", id("rocket"), "concept rocket");
        // The same again is no news.
        board.took("w/0", id("rocket"), "concept rocket");
        assert_eq!((names(), board.seen().problems.len()), (vec!["dead/0".to_owned(), "w/0".to_owned()], 0));
        // Its silence has lasted long enough: another one has its job.
        board.took("w/1", id("pizza"), "concept pizza");
        assert_eq!(names(), ["w/0", "w/1"]);
        assert_eq!(board.seen().problems, ["concept pizza: dead/0 has not finished it, w/1 has it now"]);
        // What the store says has ended is in nobody's hands, though no worker said so.
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
        for number in 0..30 {
            board.problem(format!("problem {number}"));
        }
        let now = board.seen();
        assert_eq!((now.stage.as_str(), now.phases.len(), now.workers.len()), ("retain gradient", 1, 1));
        let phase = &now.phases[0];
        assert_eq!((phase.total, phase.found, phase.done), (3, 1, 2));
        assert!(phase.seconds_left.is_some());
        assert_eq!((now.problems.len(), now.problems[19].as_str()), (PROBLEMS, "problem 29"));
        assert!(*seen.borrow() > 30);
        board.clear();
        assert_eq!(board.seen(), Seen::default());
    }
}

//! A coordinator's view of its runs, shared by all tasks of the service.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lethe_operations::{Health, metrics};
use lethe_queue as queue;
use lethe_queue::Queue;
use lethe_queue::nats::JetStreamQueue;
use lethe_shared::exit;
use lethe_store::Store;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::api::{LetterView, Overview, RunView};
use super::ledger::{self, Entry, Ledger, State};
use crate::failure::Failure;
use crate::progress::board::Board;
use crate::run;

/// Number of ended runs in an overview.
const ENDED: usize = 200;
/// Number of dead letters on the page.
const LETTERS: usize = 200;

/// Pause between two attempts to take over a run that another coordinator executes.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Options of a coordinator.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, in entries and leases.
    pub name: String,
    /// Largest number of concurrent runs; others wait.
    pub runs: usize,
    /// Folder for downloads.
    pub cache: PathBuf,
    /// Options of every run: gates in addition to its manifest's, and the key that signs its
    /// release.
    pub run: run::Options,
    /// Longest time for which each call to an unreachable queue or store is retried.
    pub give_up: Duration,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Arc<JetStreamQueue>,
    pub(super) store: Store,
    pub(super) ledger: Ledger,
    pub(super) options: Options,
    pub(super) health: Health,
    pub(super) runs: Mutex<BTreeMap<String, Known>>,
    /// The newest dead letters at the last poll.
    pub(super) letters: Mutex<Vec<LetterView>>,
    /// Number of changes, for watchers.
    pub(super) changed: watch::Sender<u64>,
    /// Wakes the loop that starts runs.
    pub(super) wake: Notify,
}

/// A run as known to this process.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) entry: Entry,
    pub(super) board: Arc<Board>,
    /// Stops the run.
    pub(super) stop: CancellationToken,
    /// Whether a task of this process executes the run.
    pub(super) is_active: bool,
    /// Time before which this process does not try to execute the run, because another coordinator
    /// does.
    not_before: Option<Instant>,
}

impl Shared {
    /// Creates the state of a coordinator that has read nothing yet.
    pub(super) fn new(
        queue: Arc<JetStreamQueue>,
        store: Store,
        options: Options,
        health: Health,
    ) -> Self {
        let ledger = Ledger::new(store.clone());
        let (runs, letters, wake) = (Mutex::default(), Mutex::default(), Notify::new());
        let changed = watch::Sender::new(0);
        Self { queue, store, ledger, options, health, runs, letters, changed, wake }
    }

    pub(super) fn runs(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // No code under this lock panics within a change, so a poisoned lock is consistent.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a newer entry of a run.
    pub(super) fn learn(&self, run: &str, entry: Entry) {
        let mut runs = self.runs();
        match runs.get_mut(run) {
            Some(known) if known.entry.number <= entry.number => {
                if entry.state == State::Cancelling || entry.state == State::Cancelled {
                    known.stop.cancel();
                }
                known.entry = entry;
            }
            Some(_) => {}
            None => {
                let board = Board::new(self.changed.clone());
                runs.insert(
                    run.to_owned(),
                    Known {
                        entry,
                        board,
                        stop: CancellationToken::new(),
                        is_active: false,
                        not_before: None,
                    },
                );
            }
        }
        metrics().runs_are(State::ALL.map(|state| {
            (state.name(), runs.values().filter(|known| known.entry.state == state).count())
        }));
        drop(runs);
        self.changed.send_modify(|number| *number += 1);
        self.wake.notify_one();
    }

    /// Starts the run that has waited longest.
    pub(super) fn start_next(
        &self,
        cancel: &CancellationToken,
    ) -> Option<(String, CancellationToken)> {
        let mut runs = self.runs();
        let now = Instant::now();
        let waiting = runs.iter().filter(|(_, known)| {
            !known.is_active
                && !known.entry.state.is_end()
                && known.not_before.is_none_or(|time| time <= now)
        });
        let run = waiting
            .min_by_key(|(run, known)| (known.entry.submitted, (*run).clone()))
            .map(|(run, _)| run.clone())?;
        let known = runs.get_mut(&run)?;
        known.is_active = true;
        known.stop = cancel.child_token();
        if known.entry.state == State::Cancelling {
            known.stop.cancel();
        }
        Some((run, known.stop.clone()))
    }

    /// Records that another coordinator executes a run.
    pub(super) fn put_off(&self, run: &str) {
        if let Some(known) = self.runs().get_mut(run) {
            known.not_before = Some(Instant::now() + TRY_AGAIN);
        }
    }

    /// Records that no task executes a run any more.
    pub(super) fn rest(&self, run: &str) {
        if let Some(known) = self.runs().get_mut(run) {
            known.is_active = false;
        }
        self.wake.notify_one();
    }

    /// Polls the queue, and reads dead letters if they differ from those of the last poll.
    pub(super) async fn look_at_queue(
        &self,
        letters: &mut Option<(u64, u64)>,
    ) -> Result<(), queue::Error> {
        let backlog = self.queue.backlog().await?;
        let dead = self.queue.dead_letter_count().await?;
        metrics().queue_holds(
            backlog.waiting as u64,
            backlog.in_hand as u64,
            dead.0,
            backlog.asking as u64,
        );
        if *letters != Some(dead) {
            let read = newest_letters(&self.queue).await?;
            *self.letters.lock().unwrap_or_else(PoisonError::into_inner) = read;
            *letters = Some(dead);
            self.changed.send_modify(|number| *number += 1);
        }
        Ok(())
    }

    pub(super) fn known(&self, run: &str) -> Option<Known> {
        self.runs().get(run).cloned()
    }

    /// Returns the number of each run's last known entry.
    pub(super) fn numbers(&self) -> HashMap<String, u64> {
        self.runs().iter().map(|(run, known)| (run.clone(), known.entry.number)).collect()
    }

    /// Returns the run of this name: its own name, or its plan name (then the newest
    /// such run).
    pub(super) fn find(&self, name: &str) -> Option<String> {
        let runs = self.runs();
        if runs.contains_key(name) {
            return Some(name.to_owned());
        }
        let planned = runs.iter().filter(|(_, known)| known.entry.plan.as_deref() == Some(name));
        planned.max_by_key(|(_, known)| known.entry.submitted).map(|(run, _)| run.clone())
    }

    /// Ends a run after a fault of this program, which another attempt would repeat.
    pub(super) async fn break_off(&self, run: &str, problem: &str) {
        let problem = format!("a fault in lethe serve: {problem}");
        let failed = |last: &Entry| {
            let exit_code = Some(exit::INFRASTRUCTURE);
            (!last.state.is_end()).then(|| Entry {
                problem: Some(problem.clone()),
                exit_code,
                ..last.next(State::Failed, &self.options.name)
            })
        };
        if let Err(failure) = self.write(run, failed).await {
            error!(run, %failure, "what became of the run could not be written");
        }
    }

    /// Writes a run's next entry and records it. Returns the current entry.
    pub(super) async fn write(
        &self,
        run: &str,
        decide: impl Fn(&Entry) -> Option<Entry> + Send + Sync,
    ) -> Result<Entry, Failure> {
        let last = self.known(run).map(|known| known.entry);
        let (entry, _) = self.ledger.change(run, last, |last| last.and_then(&decide)).await?;
        self.learn(run, entry.clone());
        Ok(entry)
    }

    /// Returns one run.
    pub(super) fn view(&self, name: &str) -> Option<RunView> {
        let run = self.find(name)?;
        self.known(&run).map(|known| view(&run, &known))
    }

    /// Returns all unfinished runs, and the newest of the ended ones.
    pub(super) fn overview(&self) -> Overview {
        let mut runs: Vec<RunView> =
            self.runs().iter().map(|(run, known)| view(run, known)).collect();
        let has_ended = |view: &RunView| view.entry.state.is_end();
        runs.sort_by(|a, b| {
            has_ended(a)
                .cmp(&has_ended(b))
                .then_with(|| (b.entry.submitted, &a.run).cmp(&(a.entry.submitted, &b.run)))
        });
        let going = runs.iter().take_while(|run| !has_ended(run)).count();
        runs.truncate(going + ENDED);
        Overview {
            coordinator: self.options.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            now: ledger::now(),
            runs,
        }
    }

    /// Returns the newest dead letters of all runs, at the last poll.
    pub(super) fn letters(&self) -> Vec<LetterView> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns a run in the API's format.
fn view(run: &str, known: &Known) -> RunView {
    RunView {
        run: run.to_owned(),
        entry: known.entry.clone(),
        live: known.is_active.then(|| known.board.seen()),
    }
}

/// Reads the newest dead letters of all runs.
async fn newest_letters(queue: &JetStreamQueue) -> Result<Vec<LetterView>, queue::Error> {
    let mut letters = queue.stored_dead_letters(None).await?;
    let first = letters.len().saturating_sub(LETTERS);
    Ok(letters.drain(first..).map(LetterView::from).collect())
}

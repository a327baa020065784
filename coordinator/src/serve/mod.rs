//! The long-lived coordinator: runs what is submitted, several runs at once, and goes on after its own death.
//!
//! | file | what |
//! |---|---|
//! | [`ledger`] | what became of each run, in the store: the truth |
//! | [`view`] | that and what each run is doing right now, as JSON |
//! | [`answer`] | what commands ask |
//! | [`work`] | one run |
//! | [`http`], [`openapi`] | page and JSON API, and what it is |
//!
//! A coordinator that is killed leaves entries that say `running`; the next one reads them and goes on from the store. Two coordinators on one store
//! share the runs: each run is done by whoever holds its lease.

pub mod answer;
pub mod http;
pub mod ledger;
pub mod openapi;
pub mod view;
pub mod work;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lethe_shared::exit;
use lethe_shared::manifest::Gates;
use lethe_shared::queue::Queue;
use lethe_shared::queue::nats::JetStreamQueue;
use lethe_shared::store::Store;
use lethe_shared::telemetry::{Health, metrics};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::ledger::{Entry, Ledger, State};
use self::view::LetterView;
use crate::attest::key::SigningKey;
use crate::board::Board;
use crate::failure::Failure;
use crate::patience::Patience;

/// How often queue and store are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often entries of other coordinators are looked for.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(30);
/// How long runs are given to stop.
const STOP: Duration = Duration::from_secs(30);

/// How a coordinator works.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, in entries and leases.
    pub name: String,
    /// Runs at one time; more wait.
    pub runs: usize,
    /// Folder for downloads.
    pub cache: PathBuf,
    /// Gates that every run's release has to pass, beside its manifest's.
    pub gates: Option<Gates>,
    /// Key that releases are signed with.
    pub signer: Option<SigningKey>,
    /// How long a queue or store that cannot be reached is waited for, each time.
    pub patience: Patience,
}

/// A long-lived coordinator; clones are the same one.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Arc<JetStreamQueue>,
    store: Store,
    ledger: Ledger,
    options: Options,
    health: Health,
    runs: Mutex<BTreeMap<String, Known>>,
    /// The newest dead letters, as of the last look.
    letters: Mutex<Vec<LetterView>>,
    /// Counts changes, for those who watch.
    changed: watch::Sender<u64>,
    /// Wakes the loop that starts runs.
    wake: Notify,
}

/// A run as this process knows it.
#[derive(Debug, Clone)]
struct Known {
    entry: Entry,
    board: Arc<Board>,
    /// Stops it.
    stop: CancellationToken,
    /// Whether a task of this process works on it.
    is_active: bool,
}

impl Service {
    /// A coordinator on a queue and a store.
    pub fn new(queue: Arc<JetStreamQueue>, store: Store, options: Options, health: Health) -> Self {
        let ledger = Ledger::new(store.clone());
        let (runs, letters, wake) = (Mutex::default(), Mutex::default(), Notify::new());
        let changed = watch::Sender::new(0);
        Self { shared: Arc::new(Shared { queue, store, ledger, options, health, runs, letters, changed, wake }) }
    }

    /// Works until `cancel`. Runs in progress are then stopped at a safe point and go on when a coordinator is there again.
    ///
    /// # Errors
    /// When what the store holds cannot be read at the start, or requests cannot be heard.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Failure> {
        let shared = &self.shared;
        for (run, entry) in shared.ledger.all().await? {
            if !entry.state.is_end() {
                info!(run, state = entry.state.name(), "goes on");
            }
            shared.learn(&run, entry);
        }
        let requests = shared.queue.requests().await?;
        let mut helpers = JoinSet::new();
        helpers.spawn(answer::all(Arc::clone(shared), requests));
        helpers.spawn(look_around(Arc::clone(shared)));
        shared.health.met("runs");

        let (mut running, mut names) = (JoinSet::new(), HashMap::new());
        let ended = loop {
            while running.len() < shared.options.runs
                && let Some((run, stop)) = shared.start_next(&cancel)
            {
                let task = running.spawn(work::run(Arc::clone(shared), run.clone(), stop));
                names.insert(task.id(), run);
            }
            tokio::select! {
                () = cancel.cancelled() => break Ok(()),
                Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                    let id = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                    let Some(run) = names.remove(&id) else { continue };
                    if let Err(error) = ended {
                        error!(run, %error, "a run ended badly");
                        shared.break_off(&run, &error).await;
                    }
                    shared.rest(&run);
                }
                Some(ended) = helpers.join_next() => {
                    break Err(Failure::Infrastructure(format!("requests are no longer heard: {ended:?}")));
                }
                () = shared.wake.notified() => {}
            }
        };
        cancel.cancel();
        let stopped = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP, stopped).await.is_err() {
            warn!("runs did not stop in time; they go on when a coordinator is there again");
        }
        ended
    }
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // Nothing under this lock can panic half-way through a change.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newer entry of a run.
    fn learn(&self, run: &str, entry: Entry) {
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
                runs.insert(run.to_owned(), Known { entry, board, stop: CancellationToken::new(), is_active: false });
            }
        }
        metrics().runs_are(State::ALL.map(|state| (state.name(), runs.values().filter(|known| known.entry.state == state).count())));
        drop(runs);
        self.changed.send_modify(|number| *number += 1);
        self.wake.notify_one();
    }

    /// The run that has waited longest, to be worked on now.
    fn start_next(&self, cancel: &CancellationToken) -> Option<(String, CancellationToken)> {
        let mut runs = self.runs();
        let waiting = runs.iter().filter(|(_, known)| !known.is_active && !known.entry.state.is_end());
        let run = waiting.min_by_key(|(run, known)| (known.entry.submitted, (*run).clone())).map(|(run, _)| run.clone())?;
        let known = runs.get_mut(&run)?;
        known.is_active = true;
        known.stop = cancel.child_token();
        if known.entry.state == State::Cancelling {
            known.stop.cancel();
        }
        Some((run, known.stop.clone()))
    }

    /// No task works on a run any more.
    fn rest(&self, run: &str) {
        if let Some(known) = self.runs().get_mut(run) {
            known.is_active = false;
        }
        self.wake.notify_one();
    }

    /// Looks at the queue, and reads dead letters when there are others than at the last look.
    async fn look_at_queue(&self, letters: &mut Option<(u64, u64)>) -> Result<(), lethe_shared::queue::Error> {
        let backlog = self.queue.backlog().await?;
        let dead = self.queue.dead_letter_count().await?;
        metrics().queue_holds(backlog.waiting as u64, backlog.in_hand as u64, dead.0, backlog.asking as u64);
        if *letters != Some(dead) {
            let read = view::letters(&self.queue).await?;
            *self.letters.lock().unwrap_or_else(PoisonError::into_inner) = read;
            *letters = Some(dead);
            self.changed.send_modify(|number| *number += 1);
        }
        Ok(())
    }

    fn known(&self, run: &str) -> Option<Known> {
        self.runs().get(run).cloned()
    }

    /// The run that a person means: its own name, or what its jobs and release call it (then the newest of that name).
    fn find(&self, name: &str) -> Option<String> {
        let runs = self.runs();
        if runs.contains_key(name) {
            return Some(name.to_owned());
        }
        let planned = runs.iter().filter(|(_, known)| known.entry.plan.as_deref() == Some(name));
        planned.max_by_key(|(_, known)| known.entry.submitted).map(|(run, _)| run.clone())
    }

    /// A fault of this program ended a run; another attempt would meet it again.
    async fn break_off(&self, run: &str, error: &JoinError) {
        let problem = format!("a fault in lethe serve: {error}");
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

    /// Writes a run's next entry, and knows it. Returns what counts now.
    async fn write(&self, run: &str, decide: impl Fn(&Entry) -> Option<Entry> + Send + Sync) -> Result<Entry, Failure> {
        let last = self.known(run).map(|known| known.entry);
        let (entry, _) = self.ledger.change(run, last, |last| last.and_then(&decide)).await?;
        self.learn(run, entry.clone());
        Ok(entry)
    }
}

/// Looks at the queue for metrics, at the store for readiness, and for entries of other coordinators.
async fn look_around(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(LOOK);
    let mut others = tokio::time::Instant::now();
    let mut letters = None;
    loop {
        ticks.tick().await;
        let seen = shared.look_at_queue(&mut letters).await;
        shared.health.set("queue", seen.map_err(|error| error.problem()));
        if others.elapsed() < LOOK_AT_OTHERS {
            continue;
        }
        others = tokio::time::Instant::now();
        match shared.ledger.all().await {
            Ok(entries) => {
                shared.health.met("store");
                for (run, entry) in entries {
                    if shared.known(&run).is_none_or(|known| known.entry.number < entry.number) {
                        shared.learn(&run, entry);
                    }
                }
            }
            Err(error) => shared.health.unmet("store", error),
        }
    }
}

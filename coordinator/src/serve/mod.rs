//! The long-lived coordinator: executes submitted runs, several at once, and resumes after a crash.
//!
//! | file | content |
//! |---|---|
//! | [`submission`] | the manifest as a coordinator receives it |
//! | [`ledger`] | the authoritative state of each run, in the store |
//! | `state.rs` | this coordinator's view of its runs |
//! | `work.rs` | executes one run |
//! | `thread.rs` | a dedicated thread for each run, so that its work blocks nothing else |
//! | `requests.rs` | answers requests of commands |
//! | [`api`] | the API's types |
//! | `http.rs`, `openapi.rs` | the status page and the API over HTTP, and its description |
//! | `files.rs` | report, record and card of a run's release over HTTP |
//!
//! A coordinator that is killed leaves entries with the state `running`; the next one reads them
//! and resumes from the store. Two coordinators on one store share the runs: the holder of a run's
//! lease executes it, and the others look for another run meanwhile.

pub mod api;
mod files;
mod http;
pub mod ledger;
mod openapi;
mod requests;
mod state;
pub mod submission;
mod thread;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use lethe_operations::Health;
use lethe_queue::nats::JetStreamQueue;
use lethe_store::Store;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::state::Options;
use self::state::Shared;
use crate::failure::Failure;

/// Interval between two polls of queue and store.
const LOOK: Duration = Duration::from_secs(5);
/// Interval between two polls for entries of other coordinators.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(10);
/// Interval between two searches for a run while a coordinator could execute another one.
const SEARCH: Duration = Duration::from_secs(1);
/// Longest wait for runs to stop.
const STOP: Duration = Duration::from_secs(30);

/// A long-lived coordinator. Clones share its state.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

impl Service {
    /// Creates a coordinator on a queue and a store.
    pub fn new(queue: Arc<JetStreamQueue>, store: Store, options: Options, health: Health) -> Self {
        Self { shared: Arc::new(Shared::new(queue, store, options, health)) }
    }

    /// Returns the routes of the status page and the API.
    pub fn routes(&self) -> Router {
        http::routes(Arc::clone(&self.shared))
    }

    /// Executes runs until `cancel` is cancelled. Runs in progress then stop at a safe point, and
    /// the next coordinator resumes them.
    ///
    /// # Errors
    /// [`Failure`] when the runs in the store cannot be read at the start, or requests cannot be
    /// received.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Failure> {
        let shared = &self.shared;
        for (run, entry) in shared.ledger.newer(&HashMap::new()).await? {
            if !entry.state.is_end() {
                info!(run, state = entry.state.name(), "goes on");
            }
            shared.learn(&run, entry);
        }
        let requests = shared.queue.requests().await?;
        let mut helpers = JoinSet::new();
        helpers.spawn(requests::answer_all(Arc::clone(shared), requests));
        helpers.spawn(look_around(Arc::clone(shared)));
        shared.health.met("runs");

        let (mut running, mut names) = (JoinSet::new(), HashMap::new());
        let ended = loop {
            while running.len() < shared.options.runs
                && let Some((run, stop)) = shared.start_next(&cancel)
            {
                let (name, work) =
                    (format!("run {run}"), work::run(Arc::clone(shared), run.clone(), stop));
                let task = running.spawn(async move { thread::on_own_thread(&name, work).await });
                names.insert(task.id(), run);
            }
            tokio::select! {
                () = cancel.cancelled() => break Ok(()),
                Some(ended) = running.join_next_with_id(), if !running.is_empty() => {
                    let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
                    let Some(run) = names.remove(&id) else { continue };
                    let problem = match ended {
                        Ok((_, Ok(()))) => None,
                        Ok((_, Err(error))) => Some(format!("no thread for it: {error}")),
                        Err(error) => Some(error.to_string()),
                    };
                    if let Some(problem) = problem {
                        error!(run, %problem, "a run ended badly");
                        shared.break_off(&run, &problem).await;
                    }
                    shared.rest(&run);
                }
                Some(ended) = helpers.join_next() => {
                    break Err(Failure::Infrastructure(format!("requests are no longer heard: {ended:?}")));
                }
                () = shared.wake.notified() => {}
                () = tokio::time::sleep(SEARCH), if running.len() < shared.options.runs => {}
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

/// Polls the queue for metrics, the store for readiness, and entries of other coordinators.
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
        match shared.ledger.newer(&shared.numbers()).await {
            Ok(entries) => {
                shared.health.met("store");
                for (run, entry) in entries {
                    shared.learn(&run, entry);
                }
            }
            Err(error) => shared.health.unmet("store", error),
        }
    }
}

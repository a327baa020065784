//! Answers requests of commands.

use std::sync::Arc;

use futures::StreamExt;
use lethe_queue::nats::{Asked, Requests};
use lethe_shared::message::{Reply, Request};
use serde::Serialize;
use tracing::{info, warn};

use super::ledger::{Entry, State};
use super::state::Shared;
use super::submission::Submission;
use crate::failure::Failure;

/// Requests that are answered concurrently.
const AT_ONCE: usize = 16;

/// The answer to `lethe submit`.
#[derive(Debug, Serialize)]
struct Submitted {
    run: String,
    state: State,
    /// Whether this submission queued the run; false if the run was queued or running already.
    new: bool,
    store: String,
}

/// Answers requests until the connection is closed.
pub(super) async fn answer_all(shared: Arc<Shared>, requests: Requests) {
    let answer = |asked: Asked| {
        let shared = Arc::clone(&shared);
        async move {
            let reply = match &asked.request {
                Ok(request) => answer(&shared, request.clone())
                    .await
                    .unwrap_or_else(|failure| refused(&failure)),
                Err(error) => refused(&Failure::input(error)),
            };
            if let Err(error) = asked.reply(&reply).await {
                warn!(%error, "an answer could not be given");
            }
        }
    };
    requests.for_each_concurrent(AT_ONCE, answer).await;
}

fn refused(failure: &Failure) -> Reply {
    Reply::Refused { exit_code: failure.exit_code(), problem: failure.to_string() }
}

fn done(document: &impl Serialize) -> Result<Reply, Failure> {
    let json = serde_json::to_string(document)
        .map_err(|error| Failure::Infrastructure(error.to_string()))?;
    Ok(Reply::Done { json })
}

async fn answer(shared: &Shared, request: Request) -> Result<Reply, Failure> {
    match request {
        Request::Submit { submission } => {
            let submission = Submission::from_json(&submission)?;
            let run = submission.id();
            let (entry, new) = shared.ledger.submit(&submission, &shared.options.name).await?;
            info!(run, state = entry.state.name(), new, "submitted");
            let state = entry.state;
            shared.learn(&run, entry);
            done(&Submitted { run, state, new, store: shared.store.name().to_owned() })
        }
        Request::Status { run: None } => done(&shared.overview()),
        Request::Status { run: Some(run) } => {
            done(&shared.view(&run).ok_or_else(|| unknown(&run))?)
        }
        Request::Cancel { run } => {
            let run = shared.find(&run).ok_or_else(|| unknown(&run))?;
            let name = &shared.options.name;
            // A queued run has not started, so there is nothing to stop first.
            let next = |last: &Entry| match last.state {
                State::Queued | State::Running => Some(last.next(State::Cancelling, name)),
                _ => None,
            };
            let entry = shared.write(&run, next).await?;
            info!(run, state = entry.state.name(), "asked to cancel");
            done(&shared.view(&run).ok_or_else(|| unknown(&run))?)
        }
        Request::Resume { run } => {
            let run = shared.find(&run).ok_or_else(|| unknown(&run))?;
            let name = &shared.options.name;
            let next = |last: &Entry| match last.state {
                State::Incomplete | State::Failed => Some(last.next(State::Queued, name)),
                _ => None,
            };
            let entry = shared.write(&run, next).await?;
            info!(run, state = entry.state.name(), "asked to go on");
            done(&shared.view(&run).ok_or_else(|| unknown(&run))?)
        }
    }
}

fn unknown(run: &str) -> Failure {
    let shown: String = run.chars().take(100).collect();
    Failure::input(format!("run `{shown}` is not known here; `lethe status` lists the runs"))
}

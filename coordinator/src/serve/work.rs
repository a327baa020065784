//! One run of a long-lived coordinator, from submission to end.

use std::sync::Arc;
use std::time::Duration;

use lethe_shared::exit;
use lethe_shared::queue::{Cause, Queue};
use lethe_shared::telemetry::trace::TraceContext;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::ledger::{Entry, State};
use super::{Options, Shared};
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::lease::{self, Tenure};
use crate::plan::Plan;
use crate::progress::Show;
use crate::summary::{Report, Status};

/// Attempts at a run whose queue or store gives up.
const ATTEMPTS: u32 = 3;
/// Pause before the second; it doubles.
const PAUSE: Duration = Duration::from_secs(5);

/// What one attempt at a run came to.
enum Came {
    /// To its end.
    ToAnEnd(Box<End>),
    /// Another coordinator brought it to its end.
    ElsewhereToAnEnd,
}

/// How a run ended.
struct End {
    state: State,
    exit_code: u8,
    report: Option<Report>,
    problem: Option<String>,
}

impl From<Report> for End {
    fn from(report: Report) -> Self {
        let (state, exit_code) = match report.status {
            Status::Complete => (State::Complete, exit::DONE),
            Status::Incomplete => (State::Incomplete, exit::INCOMPLETE),
            Status::GatesMissed => (State::Incomplete, exit::NOT_PASSED),
        };
        let gates = report.missed.iter().map(|gate| format!("a gate is missed: {gate}"));
        let missing: Vec<&str> = report.summary.missing.iter().map(|missing| missing.id.as_str()).take(20).collect();
        let missing =
            (!missing.is_empty()).then(|| format!("{} concepts are missing: {}", report.summary.missing.len(), missing.join(", ")));
        let problems: Vec<String> = gates.chain(missing).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Self { state, exit_code, report: Some(report), problem }
    }
}

/// Brings a run to its end, or to a safe point when `stop` says so.
pub(super) async fn run(shared: Arc<Shared>, run: String, stop: CancellationToken) {
    let span = info_span!("run", %run, trace = tracing::field::Empty);
    async {
        if let Err(failure) = to_an_end(&shared, &run, &stop).await {
            // The store did not take the last word; a later look finds the run unfinished.
            error!(%failure, "what became of the run could not be written");
            tokio::time::sleep(PAUSE).await;
        }
    }
    .instrument(span)
    .await;
}

async fn to_an_end(shared: &Shared, run: &str, stop: &CancellationToken) -> Result<(), Failure> {
    let Some(known) = shared.known(run) else { return Ok(()) };
    known.board.clear();
    let mut attempt = 1;
    let end = loop {
        let failure = match one_attempt(shared, run, stop).await {
            Ok(Came::ToAnEnd(end)) => break *end,
            Ok(Came::ElsewhereToAnEnd) => return Ok(()),
            Err(failure) => failure,
        };
        match failure {
            // The coordinator stops, or a person has cancelled the run.
            Failure::Cancelled => {
                let is_wanted = shared.known(run).is_some_and(|known| known.entry.state == State::Cancelling);
                if !is_wanted {
                    return Ok(());
                }
                break End { state: State::Cancelled, exit_code: exit::CANCELLED, report: None, problem: None };
            }
            Failure::Infrastructure(problem) if attempt < ATTEMPTS && !is_given_up(shared, run).await => {
                warn!(%problem, attempt, "an attempt at the run failed; it is tried again");
                known.board.problem(problem);
                tokio::select! {
                    () = stop.cancelled() => continue,
                    () = tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)) => {}
                }
                attempt += 1;
            }
            failure => {
                let (exit_code, problem) = (failure.exit_code(), Some(failure.to_string()));
                break End { state: State::Failed, exit_code, report: None, problem };
            }
        }
    };
    info!(state = end.state.name(), problem = end.problem.as_deref().unwrap_or_default(), "ended");
    let name = &shared.options.name;
    let last = |last: &Entry| {
        (!last.state.is_end()).then(|| Entry {
            release: end.report.as_ref().map(|report| report.release.clone()).or_else(|| last.release.clone()),
            digest: end.report.as_ref().map(|report| report.digest).or(last.digest),
            problem: end.problem.clone(),
            exit_code: Some(end.exit_code),
            ..last.next(end.state, name)
        })
    };
    shared.write(run, last).await?;
    known.board.stage(end.state.name());
    Ok(())
}

/// Whether jobs of the run are dead letters by circumstances: trying again at once would end the same way.
async fn is_given_up(shared: &Shared, run: &str) -> bool {
    let Some(plan) = shared.known(run).and_then(|known| known.entry.plan) else { return false };
    let letters = shared.queue.dead_letters(&plan).await.unwrap_or_default();
    letters.iter().any(|letter| letter.cause == Cause::Circumstances)
}

async fn one_attempt(shared: &Shared, run: &str, stop: &CancellationToken) -> Result<Came, Failure> {
    let Some(known) = shared.known(run) else { return Ok(Came::ElsewhereToAnEnd) };
    if stop.is_cancelled() {
        return Err(Failure::Cancelled);
    }
    known.board.stage("plan");
    let manifest = shared.ledger.submission(run).await?.into_manifest();
    let mut plan = tokio::select! {
        () = stop.cancelled() => return Err(Failure::Cancelled),
        plan = Plan::of(manifest, &shared.options.cache) => plan?,
    };
    plan.gates.extend(shared.options.gates.clone());
    plan.signer.clone_from(&shared.options.signer);
    tracing::Span::current().record("trace", TraceContext::of_run(&plan.run).trace_id());
    for warning in &plan.warnings {
        warn!(%warning, "planned");
    }

    known.board.stage("wait for the lease");
    // Ends with the lease, with the run, or with this process.
    let cancel = stop.child_token();
    let Options { name, patience, .. } = &shared.options;
    let tenure = lease::take(&shared.queue, &shared.store, &plan.run, name, *patience, &cancel).await?;
    let ended = under_lease(shared, run, &plan, &tenure, &cancel).await;
    tenure.end(ended).await
}

/// The run is this coordinator's. Whether there is anything to do is known only now: another may have brought it to its end.
async fn under_lease(shared: &Shared, run: &str, plan: &Plan, tenure: &Tenure, cancel: &CancellationToken) -> Result<Came, Failure> {
    let Some(known) = shared.known(run) else { return Ok(Came::ElsewhereToAnEnd) };
    let name = &shared.options.name;
    let taken = |last: &Entry| match last.state {
        State::Queued | State::Running => Some(Entry { plan: Some(plan.run.clone()), ..last.next(State::Running, name) }),
        _ => None,
    };
    let entry = shared.write(run, taken).await?;
    if entry.state != State::Running {
        return if entry.state.is_end() { Ok(Came::ElsewhereToAnEnd) } else { Err(Failure::Cancelled) };
    }
    info!(plan = %plan.run, concepts = plan.concepts.len(), "begun");

    let queue = Arc::clone(&shared.queue) as Arc<dyn Queue>;
    let mut dispatcher = Dispatcher::new(queue, shared.store.clone(), cancel.clone(), shared.options.patience);
    dispatcher.claim = Some(tenure.claim().clone());
    dispatcher.show = Show::Board(Arc::clone(&known.board));
    let (report, _) = crate::run::run(plan, &dispatcher, false).await?;
    Ok(Came::ToAnEnd(Box::new(report.into())))
}

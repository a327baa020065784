//! One run of a long-lived coordinator, from submission to its end.

use std::sync::Arc;
use std::time::Duration;

use lethe_operations::trace::TraceContext;
use lethe_queue::Queue;
use lethe_shared::exit;
use lethe_shared::fault::Class;
use lethe_shared::manifest::Arithmetic;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::retry::RetryPolicy;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span, warn};

use super::ledger::{Entry, State};
use super::state::{Options, Shared};
use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::lease::RunLease;
use crate::lease::fence::{Fence, taken_over};
use crate::present::run_summary::{Report, Status};
use crate::progress::Show;
use crate::retry::retry;

/// Attempts at a run whose queue or store is unreachable.
const ATTEMPTS: u32 = 3;
/// Pause before the second attempt; it doubles with each further one.
const PAUSE: Duration = Duration::from_secs(5);

/// The result of an attempt without a failure.
enum Attempt {
    /// The run has ended, and its last entry is written.
    Ended,
    /// Another coordinator has ended the run.
    EndedElsewhere,
    /// Another coordinator executes the run.
    HeldElsewhere,
}

/// The final state of a run.
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
        let gates = report.missed.iter().map(|gate| format!("a gate is not met: {gate}"));
        let missing: Vec<&str> =
            report.summary.missing.iter().map(|missing| missing.id.as_str()).take(20).collect();
        let missing = (!missing.is_empty()).then(|| {
            format!(
                "{} concepts are missing (no edit was found): {}",
                report.summary.missing.len(),
                missing.join(", ")
            )
        });
        let showing = report
            .summary
            .not_removed
            .iter()
            .filter(|concept| concept.status == ConceptStatus::Showing);
        let showing: Vec<&str> = showing.map(|concept| concept.id.as_str()).collect();
        let shown = showing.iter().take(20).copied().collect::<Vec<_>>().join(", ");
        let showing = (!showing.is_empty()).then(|| {
            format!(
                "{} concepts are still recognised by the composed model: {shown}",
                showing.len()
            )
        });
        let problems: Vec<String> = gates.chain(missing).chain(showing).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Self { state, exit_code, report: Some(report), problem }
    }
}

/// Executes a run until it ends, or until a safe point after `stop` is cancelled.
pub(super) async fn run(shared: Arc<Shared>, run: String, stop: CancellationToken) {
    let span = info_span!("run", %run, trace = tracing::field::Empty);
    async {
        if let Err(failure) = run_to_end(&shared, &run, &stop).await {
            // The last entry is missing, so a later poll finds the run unfinished.
            error!(%failure, "the final state of the run could not be written");
            tokio::time::sleep(PAUSE).await;
        }
    }
    .instrument(span)
    .await;
}

async fn run_to_end(shared: &Shared, run: &str, stop: &CancellationToken) -> Result<(), Failure> {
    let Some(known) = shared.known(run) else { return Ok(()) };
    known.board.clear();
    let mut attempt = 1;
    // The fence of the last attempt that had the run's lease.
    let mut fence = Fence::open();
    let end = loop {
        let failure = match one_attempt(shared, run, stop, &mut fence).await {
            Ok(Attempt::Ended | Attempt::EndedElsewhere) => return Ok(()),
            Ok(Attempt::HeldElsewhere) => {
                leave_to_its_holder(shared, run).await;
                return Ok(());
            }
            Err(failure) => failure,
        };
        // The new holder of the lease ends the run; this does not count as a failed attempt.
        if fence.is_current().await.is_ok_and(|is_current| !is_current) {
            return left_to_its_new_holder(&failure);
        }
        match failure {
            // The coordinator is stopping, or a person has cancelled the run.
            Failure::Cancelled => {
                let is_wanted =
                    shared.known(run).is_some_and(|known| known.entry.state == State::Cancelling);
                if !is_wanted {
                    return Ok(());
                }
                break End {
                    state: State::Cancelled,
                    exit_code: exit::CANCELLED,
                    report: None,
                    problem: None,
                };
            }
            Failure::Infrastructure(problem)
                if attempt < ATTEMPTS && !has_failed_for_good(shared, run).await =>
            {
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
    if !fence.is_current().await? {
        return left_to_its_new_holder(&end.problem.as_deref().unwrap_or_else(|| end.state.name()));
    }
    write_end(shared, run, &end).await
}

/// Leaves a run to the coordinator that has taken it over and will write its last entry. If that
/// coordinator dies, this one resumes the run.
fn left_to_its_new_holder(problem: &dyn std::fmt::Display) -> Result<(), Failure> {
    warn!(%problem, "another coordinator has taken over the run");
    Ok(())
}

/// Leaves a run to the coordinator that executes it, so that another run can be started in its
/// place. Reads what that coordinator wrote; the run is tried again later.
async fn leave_to_its_holder(shared: &Shared, run: &str) {
    shared.put_off(run);
    match shared.ledger.last(run).await {
        Ok(Some(entry)) => shared.learn(run, entry),
        Ok(None) => {}
        Err(failure) => warn!(%failure, "the state of the run could not be read"),
    }
}

/// Writes the last entry of a run.
async fn write_end(shared: &Shared, run: &str, end: &End) -> Result<(), Failure> {
    let (problem, unmoved) =
        (end.problem.as_deref(), end.report.as_ref().and_then(|report| report.unmoved.as_deref()));
    info!(
        state = end.state.name(),
        problem = problem.unwrap_or_default(),
        latest = unmoved.unwrap_or_default(),
        "ended"
    );
    let name = &shared.options.name;
    let last = |last: &Entry| {
        (!last.state.is_end()).then(|| Entry {
            release: end
                .report
                .as_ref()
                .map(|report| report.release.clone())
                .or_else(|| last.release.clone()),
            digest: end.report.as_ref().map(|report| report.digest).or(last.digest),
            problem: end.problem.clone(),
            exit_code: Some(end.exit_code),
            ..last.next(end.state, name)
        })
    };
    shared.write(run, last).await?;
    if let Some(known) = shared.known(run) {
        known.board.stage(end.state.name());
    }
    Ok(())
}

/// Returns whether dead letters of the run show that an immediate new attempt would fail in the
/// same way, without an error in the input.
async fn has_failed_for_good(shared: &Shared, run: &str) -> bool {
    let Some(plan) = shared.known(run).and_then(|known| known.entry.plan) else { return false };
    let letters = shared.queue.dead_letters(&plan).await.unwrap_or_default();
    letters.iter().any(|letter| letter.fault.class != Class::Input)
}

/// Returns whether a coordinator holds the lease of the run with this plan name.
async fn is_held(shared: &Shared, plan: &str, stop: &CancellationToken) -> Result<bool, Failure> {
    let retries = RetryPolicy::service(shared.options.give_up);
    let holder = retry(&retries, "ask", stop, || shared.queue.lease_holder(plan)).await?;
    Ok(holder.is_some())
}

async fn one_attempt(
    shared: &Shared,
    run: &str,
    stop: &CancellationToken,
    fence: &mut Fence,
) -> Result<Attempt, Failure> {
    let Some(known) = shared.known(run) else { return Ok(Attempt::EndedElsewhere) };
    if stop.is_cancelled() {
        return Err(Failure::Cancelled);
    }
    // Another coordinator may execute the run or have ended it. Asking costs a few requests;
    // planning reads the run's inputs.
    if known.entry.state == State::Running
        && let Some(entry) = shared.ledger.last(run).await?
    {
        shared.learn(run, entry.clone());
        if entry.state.is_end() {
            return Ok(Attempt::EndedElsewhere);
        }
        if let Some(plan) = &entry.plan
            && is_held(shared, plan, stop).await?
        {
            return Ok(Attempt::HeldElsewhere);
        }
    }
    known.board.stage("plan");
    let manifest = shared.ledger.submission(run).await?.into_manifest();
    let plan = tokio::select! {
        () = stop.cancelled() => return Err(Failure::Cancelled),
        plan = Plan::of(manifest, &shared.options.cache) => plan?,
    };
    tracing::Span::current().record("trace", TraceContext::of_run(&plan.run).trace_id());
    for warning in &plan.warnings {
        warn!(%warning, "planned");
    }

    known.board.stage("take the lease");
    // Cancelled with the lease, with the run, or with this process.
    let cancel = stop.child_token();
    let Options { name, give_up, .. } = &shared.options;
    let taken =
        RunLease::try_take(&shared.queue, &shared.store, &plan.run, name, *give_up, &cancel)
            .await?;
    let Some(lease) = taken else { return Ok(Attempt::HeldElsewhere) };
    fence.clone_from(lease.fence());
    let ended = under_lease(shared, run, &plan, fence, (lease.lost(), &cancel)).await;
    lease.end(ended).await
}

/// Executes a run whose lease this coordinator holds. Only now it is known whether another
/// coordinator has ended the run. The last entry is written before the lease is released, so that
/// the next holder does not find an unfinished run.
async fn under_lease(
    shared: &Shared,
    run: &str,
    plan: &Plan,
    fence: &Fence,
    (lost, cancel): (&CancellationToken, &CancellationToken),
) -> Result<Attempt, Failure> {
    let Some(known) = shared.known(run) else { return Ok(Attempt::EndedElsewhere) };
    let name = &shared.options.name;
    let taken = |last: &Entry| match last.state {
        State::Queued | State::Running => {
            Some(Entry { plan: Some(plan.run.clone()), ..last.next(State::Running, name) })
        }
        _ => None,
    };
    fence.check().await?;
    let entry = shared.write(run, taken).await?;
    if entry.state != State::Running {
        return if entry.state.is_end() {
            Ok(Attempt::EndedElsewhere)
        } else {
            Err(Failure::Cancelled)
        };
    }
    info!(plan = %plan.run, concepts = plan.concepts.len(), "started");

    let queue = Arc::clone(&shared.queue) as Arc<dyn Queue>;
    let mut dispatcher =
        Dispatcher::new(queue, shared.store.clone(), cancel.clone(), shared.options.give_up);
    dispatcher.fence = fence.clone();
    dispatcher.taken_over = lost.clone();
    dispatcher.same_arithmetic = plan.manifest.execution.arithmetic == Arithmetic::Same;
    dispatcher.show = Show::Board(Arc::clone(&known.board));
    let (report, _) = crate::run::run(plan, &shared.options.run, &dispatcher).await?;
    // The release is published, so a later request to stop does not change the final state.
    if !fence.is_current().await? {
        return Err(taken_over(&plan.run));
    }
    write_end(shared, run, &End::from(report)).await?;
    Ok(Attempt::Ended)
}

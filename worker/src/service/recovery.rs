//! Self-checks of a paused worker, which resumes when one passes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use lethe_operations::metrics::metrics;
use lethe_queue::Event;
use lethe_shared::fault::{Class, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::retry::{GiveUp, RetryPolicy};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::engine_thread::panicked;
use super::state::{SELF_CHECK, State};

/// Delays between self-checks of a paused worker.
const SELF_CHECK_RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_secs(1),
    most: Duration::from_secs(300),
    give_up: GiveUp::Never,
};

/// Runs self-checks while the worker is paused, and resumes it when one passes.
pub(super) async fn recover(
    state: Arc<State>,
    drain: CancellationToken,
    cancel: CancellationToken,
) {
    let mut pause_reason = state.pause_reason.subscribe();
    loop {
        if pause_reason.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let reason = state.pause_reason.borrow().clone().unwrap_or_default();
        let (job, mut failures) = {
            let pauses = state.pauses();
            (pauses.job.clone(), pauses.failures)
        };
        let Some(job) = job else { continue };
        warn!(worker = %state.name, %reason, "paused: taking no jobs until the self-check passes");
        announce(&state, &job, Event::Paused { reason: reason.clone() }).await;
        let mut reported = reason;
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                () = tokio::time::sleep(SELF_CHECK_RETRY.pause(failures)) => {}
            }
            failures = failures.saturating_add(1);
            let fault = match self_check(&state, &job).await {
                Ok(()) => break,
                Err(fault) => fault,
            };
            if fault.class == Class::Environment(Origin::Device) {
                warn!(worker = %state.name, error = %fault, "the device no longer responds: ending this process");
                announce(&state, &job, Event::Paused { reason: fault.message.clone() }).await;
                state.pauses().fatal = Some(fault.message);
                cancel.cancel();
                drain.cancel();
                return;
            }
            if fault.message != reported {
                warn!(worker = %state.name, error = %fault, "the self-check failed");
                reported.clone_from(&fault.message);
            }
            state.health.unmet(SELF_CHECK, &fault);
            // Announced every time, because a coordinator may have started in the meantime.
            announce(&state, &job, Event::Paused { reason: fault.message }).await;
        }
        {
            let mut pauses = state.pauses();
            pauses.job = None;
            pauses.failures = pauses.failures.max(failures);
        }
        info!(worker = %state.name, "the self-check passed: taking jobs again");
        state.health.met(SELF_CHECK);
        metrics().worker_paused(false);
        announce(&state, &job, Event::Resumed).await;
        state.pause_reason.send_replace(None);
    }
}

/// Runs the engine's self-check on a separate thread.
async fn self_check(state: &State, job: &Job) -> Result<(), Fault> {
    let (engine, job) = (Arc::clone(&state.engine), job.clone());
    let (reply, result) = oneshot::channel();
    let check = move || {
        tch::set_num_threads(1);
        let checked = catch_unwind(AssertUnwindSafe(|| engine.check(&job)));
        let _ = reply.send(checked.unwrap_or_else(|panic| Err(panicked(&*panic))));
    };
    let gone = |problem: &dyn std::fmt::Display| {
        Fault::environment(format!("cannot run the self-check: {problem}"))
    };
    std::thread::Builder::new()
        .name("self-check".to_owned())
        .spawn(check)
        .map_err(|error| gone(&error))?;
    result.await.map_err(|error| gone(&error))?
}

/// Announces an event of the paused worker.
async fn announce(state: &State, job: &Job, event: Event) {
    state.announce(&state.name, job, 1, event).await;
}

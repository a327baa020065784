//! Workers for a command's jobs: in this process, or on a NATS server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use lethe_operations::log::say;
use lethe_queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::manifest::Arithmetic;
use lethe_store::Store;
use tokio_util::sync::CancellationToken;

use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::lease::{self, RunLease};

/// Longest wait for the workers of this process to pass their self-check.
#[cfg(feature = "embedded")]
const EMBEDDED_WORKER_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Workers {
    /// NATS servers (nats://host:4222, tls://…, several separated by commas). lethe-worker
    /// processes connected there execute the jobs; they must be able to reach model, data and store
    /// too.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    connection: nats::Options,
}

impl Workers {
    /// Returns how long calls to an unreachable queue or store are retried.
    pub(super) fn give_up(&self) -> Duration {
        self.connection.give_up()
    }

    /// Runs `work`, which needs jobs of a plan. On NATS, this coordinator takes the run lease
    /// first.
    pub(super) async fn with<T>(
        &self,
        plan: &Plan,
        store: Store,
        cache: &Path,
        cancel: CancellationToken,
        work: impl AsyncFnOnce(&Dispatcher) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match &self.nats {
            None => self.in_this_process(plan, store, cache, cancel, work).await,
            Some(url) => self.elsewhere(plan, store, url, cancel, work).await,
        }
    }

    async fn elsewhere<T>(
        &self,
        plan: &Plan,
        store: Store,
        url: &str,
        cancel: CancellationToken,
        work: impl AsyncFnOnce(&Dispatcher) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (name, give_up) = (lease::name_of_this_process(), self.give_up());
        let queue = tokio::select! {
            () = cancel.cancelled() => return Err(Failure::Cancelled),
            queue = JetStreamQueue::connect(url, Role::Coordinator, &name, &self.connection) => queue?,
        };
        let (run, concepts, server) = (&plan.run, plan.concepts.len(), nats::without_secrets(url));
        say(
            "info",
            &format!("{run}: {concepts} concepts, workers at {server}, store {}", store.name()),
        );
        // Cancelled with the lease, or by a signal to this process.
        let cancel = cancel.child_token();
        let lease = RunLease::take(&queue, &store, &plan.run, &name, give_up, &cancel).await?;
        let mut dispatcher = Dispatcher::new(Arc::new(queue.clone()), store, cancel, give_up);
        dispatcher.fence = lease.fence().clone();
        dispatcher.taken_over = lease.lost().clone();
        dispatcher.same_arithmetic = plan.manifest.execution.arithmetic == Arithmetic::Same;
        let ended = work(&dispatcher).await;
        let ended = lease.end(ended).await;
        queue.close().await;
        ended
    }

    #[cfg(feature = "embedded")]
    async fn in_this_process<T>(
        &self,
        plan: &Plan,
        store: Store,
        cache: &Path,
        cancel: CancellationToken,
        work: impl AsyncFnOnce(&Dispatcher) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let workers =
            crate::exec::embedded::Workers::start(&plan.manifest.execution, &store, cache)?;
        let (run, concepts, count) = (&plan.run, plan.concepts.len(), workers.count);
        say(
            "info",
            &format!(
                "{run}: {concepts} concepts, {count} workers on {}, store {}",
                workers.device,
                store.name()
            ),
        );
        let queue: Arc<dyn lethe_queue::Queue> = workers.queue.clone();
        let mut dispatcher = Dispatcher::new(queue, store, cancel, self.give_up());
        // The workers are in this process, so only its user can fix what they lack.
        dispatcher.worker_wait = dispatcher.worker_wait.min(EMBEDDED_WORKER_WAIT);
        let ended = work(&dispatcher).await;
        workers.stop().await;
        ended
    }

    #[cfg(not(feature = "embedded"))]
    async fn in_this_process<T>(
        &self,
        _: &Plan,
        _: Store,
        _: &Path,
        _: CancellationToken,
        _: impl AsyncFnOnce(&Dispatcher) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        Err(Failure::input(
            "this lethe was built without workers (feature `embedded`); give --nats",
        ))
    }
}

//! Where a command's jobs are done: by workers in this process, or by workers elsewhere.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use lethe_shared::queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::store::Store;
use lethe_shared::telemetry::log::say;
use tokio_util::sync::CancellationToken;

use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::lease;
use crate::patience::Patience;
use crate::plan::Plan;

#[derive(Debug, Args)]
pub(super) struct Workers {
    /// NATS servers (nats://host:4222, tls://…, several separated by commas): jobs are done by lethe-worker processes
    /// that are connected there, and model, data and store must be where they can reach them too.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    connection: nats::Options,
}

impl Workers {
    /// How long what cannot be reached is waited for.
    pub(super) fn patience(&self) -> Patience {
        Patience { give_up: self.connection.give_up() }
    }

    /// Does something that needs jobs of a plan done; on NATS, as the run's one coordinator.
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
        let (name, patience) = (lease::name_of_this_process(), self.patience());
        let queue = tokio::select! {
            () = cancel.cancelled() => return Err(Failure::Cancelled),
            queue = JetStreamQueue::connect(url, Role::Coordinator, &name, &self.connection) => queue?,
        };
        let (run, concepts, server) = (&plan.run, plan.concepts.len(), nats::without_secrets(url));
        say("info", &format!("{run}: {concepts} concepts, workers at {server}, store {}", store.name()));
        // Ends with the lease, or with this process's signal.
        let cancel = cancel.child_token();
        let tenure = lease::take(&queue, &store, &plan.run, &name, patience, &cancel).await?;
        let mut dispatcher = Dispatcher::new(Arc::new(queue.clone()), store, cancel, patience);
        dispatcher.claim = Some(tenure.claim().clone());
        let ended = work(&dispatcher).await;
        let ended = tenure.end(ended).await;
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
        let workers = crate::embedded::Workers::start(&plan.manifest.execution, &store, cache)?;
        let (run, concepts, count) = (&plan.run, plan.concepts.len(), workers.count);
        say("info", &format!("{run}: {concepts} concepts, {count} workers on {}, store {}", workers.device, store.name()));
        let queue: Arc<dyn lethe_shared::queue::Queue> = workers.queue.clone();
        let ended = work(&Dispatcher::new(queue, store, cancel, self.patience())).await;
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
        Err(Failure::input("this lethe was built without workers (feature `embedded`); give --nats"))
    }
}

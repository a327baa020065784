//! Workers inside this process, on an in-memory queue: `lethe run` without `--nats`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lethe_queue::{Limits, MemoryQueue};
use lethe_shared::manifest::ExecutionSection;
use lethe_store::Store;
use lethe_worker::engine::Options;
use lethe_worker::service::Service;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Workers of this process, on an in-memory queue.
#[derive(Debug)]
pub struct Workers {
    /// Their queue.
    pub queue: Arc<MemoryQueue>,
    /// Description of their device.
    pub device: String,
    /// Their number.
    pub count: usize,
    cancel: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Workers {
    /// Starts the workers that a manifest asks for.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the manifest's device cannot be used.
    pub fn start(
        execution: &ExecutionSection,
        store: &Store,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let device = lethe_worker::device::open(&execution.device).map_err(Failure::input)?;
        let count = lethe_worker::device::workers(execution.workers as usize, device);
        let queue = Arc::new(MemoryQueue::new(Limits::default()));
        let cancel = CancellationToken::new();
        let options = Options::new("embedded".to_owned(), device, cache.to_owned());
        let service = Service::new(options, count, queue.clone(), store.clone());
        let task = tokio::spawn(service.run(cancel.clone(), cancel.clone()));
        Ok(Self { queue, device: format!("{device:?}").to_lowercase(), count, cancel, task })
    }

    /// Stops the workers. Jobs in progress end at their next safe point.
    pub async fn stop(self) {
        self.cancel.cancel();
        // A worker that does not stop in time ends with the process.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.task).await;
    }
}

//! One coordinator a run: a lease on the queue so that only one works, a claim in the store so that a late one publishes
//! nothing.

use std::time::Duration;

use lethe_shared::queue::nats::{JetStreamQueue, Lease};
use lethe_shared::store::{Claim, Store};
use lethe_shared::telemetry::log::say;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::failure::Failure;
use crate::patience::Patience;

/// How often a lease that another has is asked for.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A run that is this process's.
#[derive(Debug)]
pub struct Tenure {
    lease: Lease,
    claim: Claim,
    watch: JoinHandle<()>,
}

/// Waits until no other coordinator works on the run, and takes it. `cancel` is cancelled when another takes it over.
///
/// # Errors
/// [`Failure::Infrastructure`] when queue or store give up, [`Failure::Cancelled`].
pub async fn take(
    queue: &JetStreamQueue,
    store: &Store,
    run: &str,
    name: &str,
    patience: Patience,
    cancel: &CancellationToken,
) -> Result<Tenure, Failure> {
    let mut told = false;
    let lease = loop {
        if let Some(lease) = patience.keep("take the lease", cancel, || queue.lease(run)).await? {
            break lease;
        }
        if !told {
            let holder = patience.keep("ask", cancel, || queue.lease_holder(run)).await?;
            say("info", &format!("{run}: {} works on it; waiting", holder.unwrap_or_else(|| "another coordinator".to_owned())));
            told = true;
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(Failure::Cancelled),
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    };
    let claim = patience.keep("claim the run", cancel, || store.claim(run, name)).await?;
    let (lost, cancel) = (lease.lost().clone(), cancel.clone());
    let watch = tokio::spawn(async move {
        lost.cancelled().await;
        cancel.cancel();
    });
    Ok(Tenure { lease, claim, watch })
}

impl Tenure {
    /// What the store knows of it.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Gives the run up, and says of a run that was taken over that it was.
    ///
    /// # Errors
    /// The run's own.
    pub async fn end<T>(self, ended: Result<T, Failure>) -> Result<T, Failure> {
        self.watch.abort();
        let lost = self.lease.lost().is_cancelled();
        if let Err(error) = self.lease.release().await {
            warn!(%error, "the lease could not be given back; it ends by itself");
        }
        match ended {
            Err(Failure::Cancelled) if lost => {
                Err(Failure::Infrastructure(format!("another coordinator has taken over {}", self.claim.run)))
            }
            other => other,
        }
    }
}

/// What a coordinator is called: machine and process.
pub fn name_of_this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "lethe" } else { host }, std::process::id())
}

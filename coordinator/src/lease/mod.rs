//! The run lease: one active coordinator per run. A lease on the queue excludes others while it is
//! held, and a claim in the store keeps a superseded coordinator from publishing.

pub mod fence;

use std::time::Duration;

use lethe_operations::log::say;
use lethe_queue::nats::{JetStreamQueue, Lease};
use lethe_shared::retry::RetryPolicy;
use lethe_store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::failure::Failure;
use crate::lease::fence::{Fence, taken_over};
use crate::retry::retry;

/// Pause between two attempts to take a lease that another coordinator holds.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The lease of a run, renewed until [`RunLease::end`], and the fence of its claim.
#[derive(Debug)]
pub struct RunLease {
    run: String,
    lease: Lease,
    fence: Fence,
    watch: JoinHandle<()>,
}

impl RunLease {
    /// Takes the lease of a run as coordinator `name`, and claims the run in the store. Waits while
    /// another coordinator holds the lease. Cancelling `cancel` ends the wait; the lease cancels it
    /// when it is lost later.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when calls to queue or store fail for longer than `give_up`;
    /// [`Failure::Cancelled`].
    ///
    /// # Cancel safety
    /// If the future is dropped after the lease was taken, the lease is no longer renewed, and
    /// other coordinators can take it after its term.
    pub async fn take(
        queue: &JetStreamQueue,
        store: &Store,
        run: &str,
        name: &str,
        give_up: Duration,
        cancel: &CancellationToken,
    ) -> Result<Self, Failure> {
        let mut told = false;
        loop {
            if let Some(lease) = Self::try_take(queue, store, run, name, give_up, cancel).await? {
                return Ok(lease);
            }
            if !told {
                let retries = RetryPolicy::service(give_up);
                let holder = retry(&retries, "ask", cancel, || queue.lease_holder(run)).await?;
                say(
                    "info",
                    &format!(
                        "{run}: {} works on it; waiting",
                        holder.unwrap_or_else(|| "another coordinator".to_owned())
                    ),
                );
                told = true;
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Failure::Cancelled),
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    /// Takes the lease of a run as [`RunLease::take`] does, without waiting: returns `None` while
    /// another coordinator holds it.
    ///
    /// # Errors
    /// As for [`RunLease::take`].
    ///
    /// # Cancel safety
    /// As for [`RunLease::take`].
    pub async fn try_take(
        queue: &JetStreamQueue,
        store: &Store,
        run: &str,
        name: &str,
        give_up: Duration,
        cancel: &CancellationToken,
    ) -> Result<Option<Self>, Failure> {
        let retries = RetryPolicy::service(give_up);
        let Some(lease) = retry(&retries, "take the lease", cancel, || queue.lease(run)).await?
        else {
            return Ok(None);
        };
        let claim = retry(&retries, "claim the run", cancel, || store.claim(run, name)).await?;
        let fence = Fence::of(store.clone(), claim, give_up, cancel.clone());
        let (lost, cancel) = (lease.lost().clone(), cancel.clone());
        let watch = tokio::spawn(async move {
            lost.cancelled().await;
            cancel.cancel();
        });
        Ok(Some(Self { run: run.to_owned(), lease, fence, watch }))
    }

    /// Returns the token that is cancelled when another coordinator has the lease.
    pub fn lost(&self) -> &CancellationToken {
        self.lease.lost()
    }

    /// Returns the fence to check before every externally visible write.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Releases the lease, so that the next coordinator need not wait for the end of its term.
    /// `ended` is the result of the run.
    ///
    /// Deletes only this coordinator's own message: the stream's last one, if this coordinator
    /// wrote it. A lease that another coordinator has taken stays.
    ///
    /// # Errors
    /// The error in `ended`. [`Failure::Cancelled`] becomes [`Failure::Infrastructure`] if the
    /// lease was lost, because another coordinator has taken the run over.
    ///
    /// # Cancel safety
    /// If the future is dropped, the lease ends with its term.
    pub async fn end<T>(self, ended: Result<T, Failure>) -> Result<T, Failure> {
        self.watch.abort();
        let lost = self.lease.lost().is_cancelled();
        if let Err(error) = self.lease.release().await {
            warn!(%error, "the lease could not be given up; it ends with its term");
        }
        match ended {
            Err(Failure::Cancelled) if lost => Err(taken_over(&self.run)),
            other => other,
        }
    }
}

/// Returns the name of this process as a coordinator: machine and process id.
pub fn name_of_this_process() -> String {
    lethe_operations::process::process_name()
}

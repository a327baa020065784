//! Fencing: a coordinator that has lost its run makes no further externally visible write.
//!
//! Each coordinator of a run has a [`Claim`], a number in the store that is larger than those of
//! earlier coordinators. [`Fence::check`] lists the claims before every externally visible write: a
//! release's record, its number, its signature, a channel entry, an evaluation, the run's summary
//! and manifest, and the final state of a submitted run.
//!
//! # Remaining window
//! A process can be suspended between the answer to the check and the write that follows, and
//! object stores have no write that depends on another key. In that window, one request long, a
//! superseded coordinator may still make one write. That write is harmless, because
//! - records, numbers, signatures, evaluations and channel entries are created only if absent, so
//!   that a late write either fails with a conflict, or creates the object that the successor then
//!   finds;
//! - a release's folder is named after its record, and the same run gives the same bytes, so that a
//!   late release is the same release;
//! - a channel's entry follows the last entry that its writer read, so that an intervening move
//!   makes the late one fail, and an older release never replaces a manual decision
//!   ([`advance`](crate::release::channels::advance));
//! - the run's summary and manifest hold only times and addresses, on which no decision depends.

use std::time::Duration;

use lethe_shared::retry::RetryPolicy;
use lethe_store::{Claim, Store};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::retry::retry;

/// Permission to publish the results of a run. Clones share the claim.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    held: Option<Held>,
}

#[derive(Debug, Clone)]
struct Held {
    store: Store,
    claim: Claim,
    retries: RetryPolicy,
    stop: CancellationToken,
}

impl Fence {
    /// Returns a fence that always passes: for interactive commands, and for runs inside one
    /// process, which have no claim.
    pub fn open() -> Self {
        Self::default()
    }

    /// Returns the fence of a claim in a store. `stop` is cancelled when the run lease is lost or
    /// the run is to end. `give_up` is how long calls to an unreachable store are retried.
    pub fn of(store: Store, claim: Claim, give_up: Duration, stop: CancellationToken) -> Self {
        Self { held: Some(Held { store, claim, retries: RetryPolicy::service(give_up), stop }) }
    }

    /// Fails unless this coordinator still owns the run. Call it immediately before each externally
    /// visible write.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when another coordinator has claimed the run, or the store
    /// cannot be read; [`Failure::Cancelled`] when the run lease was lost or the run is to end.
    ///
    /// # Cancel safety
    /// Only reads the store, so the future can be dropped at any point.
    pub async fn check(&self) -> Result<(), Failure> {
        let Some(Held { store, claim, retries, stop }) = &self.held else { return Ok(()) };
        if !retry(retries, "read the claims", stop, || store.holds(claim)).await? {
            return Err(taken_over(&claim.run));
        }
        if stop.is_cancelled() { Err(Failure::Cancelled) } else { Ok(()) }
    }

    /// Returns whether no other coordinator has claimed the run, even if the run is to end.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the store cannot be read.
    ///
    /// # Cancel safety
    /// Only reads the store, so the future can be dropped at any point.
    pub async fn is_current(&self) -> Result<bool, Failure> {
        match &self.held {
            Some(held) => Ok(held.store.holds(&held.claim).await?),
            None => Ok(true),
        }
    }
}

/// Returns the failure of a coordinator whose run another coordinator has taken over.
pub(crate) fn taken_over(run: &str) -> Failure {
    Failure::Infrastructure(format!(
        "another coordinator has taken over {run}; this one publishes nothing more"
    ))
}

#[cfg(test)]
mod tests {
    use lethe_shared::exit;

    use super::*;

    #[tokio::test]
    async fn only_the_newest_claim_passes() {
        let (store, stop) = (Store::in_memory(), CancellationToken::new());
        let fence = |claim| Fence::of(store.clone(), claim, Duration::ZERO, stop.clone());
        let first = fence(store.claim("r", "a").await.unwrap());
        first.check().await.unwrap();
        let second = fence(store.claim("r", "b").await.unwrap());
        let refused = first.check().await.unwrap_err();
        assert_eq!(refused.exit_code(), exit::INFRASTRUCTURE);
        assert_eq!(
            refused.to_string(),
            "another coordinator has taken over r; this one publishes nothing more"
        );
        assert!(!first.is_current().await.unwrap());
        second.check().await.unwrap();
        // The loss of a lease stops its holder before another coordinator has claimed the run.
        stop.cancel();
        assert!(matches!(second.check().await, Err(Failure::Cancelled)));
        assert!(second.is_current().await.unwrap());
        Fence::open().check().await.unwrap();
    }
}

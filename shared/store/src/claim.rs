//! Claims: fencing numbers for the coordinators of a run, each larger than those before.
//!
//! The lease in the queue keeps two coordinators from working at once, but a process that was
//! suspended may believe that it still holds the lease. The claim fences it: a coordinator that
//! finds a larger number than its own publishes nothing more. Claims are in the store because the
//! store is durable.

use std::time::Duration;

use lethe_shared::retry::{GiveUp, RetryPolicy};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::store::{Store, document_number, json};

/// Attempts to create the next number while others take it concurrently.
const CLAIMS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(100),
    most: Duration::from_millis(100),
    give_up: GiveUp::Attempts(50),
};

/// A coordinator's claim to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The run.
    pub run: String,
    /// The fencing number, from 1.
    pub number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claimant {
    holder: String,
}

fn prefix(run: &str) -> String {
    format!("runs/{run}/claims")
}

impl Store {
    /// Claims a run with the next number.
    ///
    /// # Cancel safety
    /// A cancelled call may have taken a number, which fences earlier coordinators.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn claim(&self, run: &str, holder: &str) -> Result<Claim, Error> {
        let attempt = || async {
            let number = self.latest_claim(run).await? + 1;
            let key = format!("{}/{number:08}.json", prefix(run));
            // Of two coordinators that read the same latest number, the one that loses reads again.
            if self.create_new(&key, json(&Claimant { holder: holder.to_owned() })).await? {
                return Ok(Claim { run: run.to_owned(), number });
            }
            let cause = "cannot be created, although no listing shows it".to_owned();
            Err(Error::Unavailable { object: format!("{}/{key}", self.name), cause })
        };
        CLAIMS.run(attempt).await
    }

    /// Returns whether a claim is still the latest one of its run.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn holds(&self, claim: &Claim) -> Result<bool, Error> {
        Ok(self.latest_claim(&claim.run).await? == claim.number)
    }

    async fn latest_claim(&self, run: &str) -> Result<u64, Error> {
        let keys = self.list(&prefix(run)).await?;
        let number = |key: &String| document_number(key.rsplit('/').next()?);
        Ok(keys.iter().filter_map(number).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_latest_claim_holds() {
        let store = Store::in_memory();
        let first = store.claim("r", "a").await.unwrap();
        assert!(store.holds(&first).await.unwrap());
        let claims =
            futures::future::join_all(["b", "c", "d"].map(|holder| store.claim("r", holder))).await;
        let mut numbers: Vec<u64> = claims.into_iter().map(|claim| claim.unwrap().number).collect();
        numbers.sort_unstable();
        assert_eq!((first.number, numbers), (1, vec![2, 3, 4]));
        assert!(!store.holds(&first).await.unwrap());
        assert_eq!(store.claim("another", "a").await.unwrap().number, 1);
        // Whoever put this there has claimed nothing.
        store
            .put(&format!("runs/r/claims/{}.json", u64::MAX), bytes::Bytes::from_static(b"{}"))
            .await
            .unwrap();
        assert_eq!(store.claim("r", "e").await.unwrap().number, 5);
    }
}

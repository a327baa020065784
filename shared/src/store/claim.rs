//! Claims: a number for each coordinator of a run, larger than those before.
//!
//! A lease (see the queue) keeps two coordinators from working at once, but a process that was stopped for a while may
//! think that it still has one. The number decides: whoever finds a larger one publishes nothing more. It is in the
//! store because the store is what lasts.

use serde::{Deserialize, Serialize};

use super::{Error, Store, document_number, json};

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
    /// Claims a run: the next number.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn claim(&self, run: &str, holder: &str) -> Result<Claim, Error> {
        loop {
            let number = self.latest_claim(run).await? + 1;
            let key = format!("{}/{number:08}.json", prefix(run));
            // Of two who count at one moment, one counts again.
            if self.create_new(&key, json(&Claimant { holder: holder.to_owned() })).await? {
                return Ok(Claim { run: run.to_owned(), number });
            }
        }
    }

    /// Whether nobody has claimed the run since.
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
        let claims = futures::future::join_all(["b", "c", "d"].map(|holder| store.claim("r", holder))).await;
        let mut numbers: Vec<u64> = claims.into_iter().map(|claim| claim.unwrap().number).collect();
        numbers.sort_unstable();
        assert_eq!((first.number, numbers), (1, vec![2, 3, 4]));
        assert!(!store.holds(&first).await.unwrap());
        assert_eq!(store.claim("another", "a").await.unwrap().number, 1);
        // Whoever put this there has claimed nothing.
        store.put(&format!("runs/r/claims/{}.json", u64::MAX), bytes::Bytes::from_static(b"{}")).await.unwrap();
        assert_eq!(store.claim("r", "e").await.unwrap().number, 5);
    }
}

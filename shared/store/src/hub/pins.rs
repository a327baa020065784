//! Addresses with their branches and tags resolved to commits.

use std::collections::BTreeMap;

use lethe_shared::address::Address;
use tokio::sync::Mutex;

use super::repository::Repository;
use crate::error::Error;

/// The commits of the branches and tags that one plan names. Each is asked for once, so that all
/// addresses of a plan with the same branch get the same commit.
#[derive(Debug, Default)]
pub struct Pins {
    commits: Mutex<BTreeMap<String, String>>,
}

impl Pins {
    /// Returns an `hf://` address with the commit that its revision has now, and any other address
    /// as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such repository or revision; when the hub cannot be
    /// reached.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    pub async fn pin(&self, address: &Address) -> Result<Address, Error> {
        let Some(hub) = address.as_hub() else { return Ok(address.clone()) };
        // Without a revision, it is the default branch by its name.
        let whole = hub.with_path("").at(hub.revision());
        let mut commits = self.commits.lock().await;
        let commit = match commits.get(&whole.to_string()) {
            Some(commit) => commit.clone(),
            None => {
                let pinned = Repository::open(&whole)?.pinned().await?;
                commits.insert(whole.to_string(), pinned.revision().to_owned());
                pinned.revision().to_owned()
            }
        };
        Ok(Address::Remote(hub.at(&commit).to_string()))
    }
}

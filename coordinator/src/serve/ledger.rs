//! The ledger of runs: the history of each submitted run in the object store. Entries are created
//! one after the other and never changed. (The NATS stream `LETHE_LEDGER` is unrelated: it holds
//! how earlier deliveries of a job ended.)
//!
//! | key | content |
//! |---|---|
//! | `runs/<run>/submission.json` | the manifest as it was submitted |
//! | `runs/<run>/entries/<number>.json` | the state of the run; each entry is complete, and the last one is current |
//!
//! Two coordinators cannot both write entry 7: one gets a conflict, reads the entry, and learns the
//! other's decision.

use std::collections::{BTreeMap, HashMap};

use lethe_shared::digest::Digest;
use lethe_store as store;
use lethe_store::Store;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::serve::submission::Submission;

/// Version of an entry's format.
const VERSION: u32 = 1;
/// Entries that are read concurrently.
const AT_ONCE: usize = 32;

/// State of a run.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits to be started.
    Queued,
    /// A coordinator executes it.
    Running,
    /// A cancellation was requested.
    Cancelling,
    /// Every required concept is removed.
    Complete,
    /// Finished, but a required concept has no edit or is still recognised.
    Incomplete,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl State {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Complete,
        Self::Incomplete,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Returns its name in metrics, JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns whether the state is final.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Cancelling)
    }
}

/// An entry of a run's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Version of this format: 1.
    pub version: u32,
    /// Its index among the run's entries, from 1.
    pub number: u64,
    /// When it was written, seconds since 1970.
    pub at: u64,
    /// When the run was last submitted, seconds since 1970.
    pub submitted: u64,
    /// State of the run.
    pub state: State,
    /// Name of the coordinator that wrote the entry.
    pub coordinator: String,
    /// Name of the run in jobs, lease and release; known once it is planned.
    pub plan: Option<String>,
    /// Address of its release, if there is one.
    pub release: Option<String>,
    /// SHA-256 over the released checkpoint's tensor bytes in name order.
    pub digest: Option<Digest>,
    /// Why it failed, or which concepts have no edit or are still recognised.
    pub problem: Option<String>,
    /// The exit code that `lethe run` would have had.
    pub exit_code: Option<u8>,
}

impl Entry {
    /// Returns the next entry, in another state and without problem and exit code.
    #[must_use]
    pub fn next(&self, state: State, coordinator: &str) -> Self {
        let (problem, exit_code) = (None, None);
        Self {
            number: self.number + 1,
            at: now(),
            state,
            coordinator: coordinator.to_owned(),
            problem,
            exit_code,
            ..self.clone()
        }
    }
}

/// Returns the current time, seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// The runs of a store.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Store,
}

fn submission_key(run: &str) -> String {
    format!("runs/{run}/submission.json")
}

fn entries(run: &str) -> String {
    format!("runs/{run}/entries")
}

fn entry_key(run: &str, number: u64) -> String {
    format!("{}/{number:08}.json", entries(run))
}

impl Ledger {
    /// Returns the runs of a store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Records a submission: the first one creates the run, and a later one queues the run again if
    /// it has ended. Returns the last entry, and whether this call wrote it.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the store cannot be read or written.
    pub async fn submit(
        &self,
        submission: &Submission,
        coordinator: &str,
    ) -> Result<(Entry, bool), Failure> {
        let run = submission.id();
        self.store.create(&submission_key(&run), submission.to_json().into()).await?;
        let first = Entry {
            version: VERSION,
            number: 1,
            at: now(),
            submitted: now(),
            state: State::Queued,
            coordinator: coordinator.to_owned(),
            plan: None,
            release: None,
            digest: None,
            problem: None,
            exit_code: None,
        };
        let last = self.last(&run).await?;
        self.change(&run, last, |last| match last {
            None => Some(first.clone()),
            Some(last) if last.state.is_end() => {
                Some(Entry { submitted: now(), ..last.next(State::Queued, coordinator) })
            }
            Some(_) => None,
        })
        .await
    }

    /// Writes the entry that `decide` makes of the last one. After a conflict with another
    /// coordinator, it decides again. Returns the current entry, and whether this call wrote it.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the store cannot be read or written.
    pub async fn change(
        &self,
        run: &str,
        mut last: Option<Entry>,
        decide: impl Fn(Option<&Entry>) -> Option<Entry>,
    ) -> Result<(Entry, bool), Failure> {
        loop {
            let Some(next) = decide(last.as_ref()) else {
                let last =
                    last.ok_or_else(|| Failure::Infrastructure(format!("run {run} has no entry")))?;
                return Ok((last, false));
            };
            let bytes = serde_json::to_vec_pretty(&next)
                .map_err(|error| Failure::Infrastructure(error.to_string()))?;
            match self.store.create(&entry_key(run, next.number), bytes.into()).await {
                // Equal bytes come from an earlier attempt of this call whose response was lost.
                Ok(_) => return Ok((next, true)),
                Err(store::Error::Conflict { .. }) => last = self.last(run).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns the manifest of a run.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when this program cannot read the stored submission.
    pub async fn submission(&self, run: &str) -> Result<Submission, Failure> {
        let bytes = self.store.get(&submission_key(run)).await?;
        let bytes = bytes
            .ok_or_else(|| Failure::Infrastructure(format!("{}: has gone", submission_key(run))))?;
        Submission::from_json(&String::from_utf8_lossy(&bytes))
    }

    /// Returns the last entry of a run.
    ///
    /// # Errors
    /// [`Failure`] when the store cannot be read.
    pub async fn last(&self, run: &str) -> Result<Option<Entry>, Failure> {
        let numbers = self.store.list(&entries(run)).await?;
        let newest = numbers
            .iter()
            .filter_map(|key| number_of(key).filter(|(of, _)| *of == run))
            .map(|(_, number)| number)
            .max();
        match newest {
            Some(number) => self.read(run, number).await.map(Some),
            None => Ok(None),
        }
    }

    async fn read(&self, run: &str, number: u64) -> Result<Entry, Failure> {
        let key = entry_key(run, number);
        let entry: Option<Entry> = self.store.get_json(&key).await?;
        match entry {
            Some(entry) if entry.version == VERSION && entry.number == number => Ok(entry),
            Some(entry) => Err(Failure::Infrastructure(format!(
                "{key}: has version {} and number {}; this program reads version {VERSION}",
                entry.version, entry.number
            ))),
            None => Err(Failure::Infrastructure(format!("{key}: has gone"))),
        }
    }

    /// Returns the last entry of every run whose number is larger than the one in `known`: one
    /// listing, and a read for each change.
    ///
    /// # Errors
    /// [`Failure`] when the store cannot be read.
    pub async fn newer(
        &self,
        known: &HashMap<String, u64>,
    ) -> Result<BTreeMap<String, Entry>, Failure> {
        use futures::{StreamExt, TryStreamExt};
        let mut newest: BTreeMap<String, u64> = BTreeMap::new();
        for key in self.store.list("runs").await? {
            if let Some((run, number)) = number_of(&key) {
                let newest = newest.entry(run.to_owned()).or_default();
                *newest = number.max(*newest);
            }
        }
        newest.retain(|run, number| known.get(run).is_none_or(|known| known < number));
        futures::stream::iter(newest)
            .map(|(run, number)| async move { Ok((run.clone(), self.read(&run, number).await?)) })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }
}

/// Returns the run and the number in a key.
fn number_of(key: &str) -> Option<(&str, u64)> {
    let (run, file) = key.strip_prefix("runs/")?.split_once("/entries/")?;
    Some((run, store::document_number(file)?))
}

#[cfg(test)]
mod tests {
    use lethe_shared::manifest::Manifest;

    use super::*;

    fn submission(name: &str) -> Submission {
        let text = format!(
            r#"{{"version":1,"name":"{name}","model":{{"uri":"/m"}},"data":{{"retain":["/r.tar"],"classes":"/c.txt"}},
               "concepts":{{"table":"/t.csv"}}}}"#
        );
        Submission::new(Manifest::from_json(&text, std::path::Path::new("/m.json")).unwrap())
            .unwrap()
    }

    #[tokio::test]
    async fn the_last_entry_counts_and_one_coordinator_writes_it() {
        let ledger = Ledger::new(Store::in_memory());
        let submission = submission("a");
        let run = submission.id();
        let (first, new) = ledger.submit(&submission, "one").await.unwrap();
        assert_eq!((first.state, first.number, new), (State::Queued, 1, true));
        let (again, new) = ledger.submit(&submission, "two").await.unwrap();
        assert_eq!((again.number, new), (1, false));

        // Both take the run from the same entry, and one gets a conflict.
        let take = |name: &'static str| {
            move |last: Option<&Entry>| {
                last.filter(|last| last.state == State::Queued)
                    .map(|last| last.next(State::Running, name))
            }
        };
        let (one, wrote) = ledger.change(&run, Some(first.clone()), take("one")).await.unwrap();
        assert!(wrote);
        let (two, wrote) = ledger.change(&run, Some(first), take("two")).await.unwrap();
        assert_eq!((two, wrote), (one.clone(), false));

        let end = |last: Option<&Entry>| {
            last.map(|last| Entry { exit_code: Some(5), ..last.next(State::Failed, "one") })
        };
        ledger.change(&run, Some(one), end).await.unwrap();
        let (resubmitted, new) = ledger.submit(&submission, "two").await.unwrap();
        assert_eq!(
            (resubmitted.state, resubmitted.number, resubmitted.exit_code, new),
            (State::Queued, 4, None, true)
        );
        assert_eq!(ledger.last(&run).await.unwrap(), Some(resubmitted));
        assert_eq!(ledger.submission(&run).await.unwrap().id(), run);
    }

    #[tokio::test]
    async fn all_runs_are_found_beside_what_else_lies_there() {
        let store = Store::in_memory();
        let ledger = Ledger::new(store.clone());
        let nothing_known = HashMap::new();
        assert!(ledger.newer(&nothing_known).await.unwrap().is_empty());
        for name in ["a", "b"] {
            ledger.submit(&submission(name), "one").await.unwrap();
        }
        store.put("runs/c-1/summary.json", "{}".into()).await.unwrap();
        let all = ledger.newer(&nothing_known).await.unwrap();
        let (a, b) = (submission("a").id(), submission("b").id());
        assert_eq!(all.keys().cloned().collect::<Vec<_>>(), [a.clone(), b.clone()]);
        // Only what has changed since is read.
        let known = HashMap::from([(a.clone(), 1), (b, 1)]);
        assert!(ledger.newer(&known).await.unwrap().is_empty());
        let cancel = |last: Option<&Entry>| last.map(|last| last.next(State::Cancelled, "two"));
        ledger.change(&a, Some(all[&a].clone()), cancel).await.unwrap();
        let changed = ledger.newer(&known).await.unwrap();
        assert_eq!(changed.keys().collect::<Vec<_>>(), [&a]);
        assert_eq!(ledger.last("a").await.unwrap(), None);
    }
}

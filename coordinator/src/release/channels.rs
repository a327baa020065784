//! Channels: names such as `production` that point to a release's number.
//!
//! | key | content |
//! |---|---|
//! | `releases/<name>/channels/<channel>/<n>.json` | [`Move`]: the release that the channel pointed to from then on; the largest n is current |
//!
//! A channel is moved by creating the entry after the last one that was read: compare-and-set by
//! create-if-absent, which all stores support, including local disks. Nothing is overwritten, so
//! that a reader finds the old release or the new one, and the history stays on record.
//!
//! # Decisions by hand
//! Runs move one channel, [`LATEST`], and only to later releases ([`advance`]). A promotion or a
//! rollback is a person's decision. The channel's entry records it together with the largest number
//! at that moment ([`Decision`]); afterwards runs move the channel only to releases with a larger
//! number. A repeated run finds that its release was published before the decision, and does not
//! move the channel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures::{StreamExt, TryStreamExt};
use lethe_store::Store;
use serde::{Deserialize, Serialize};

use super::publish::{ATTEMPTS, Published, checked, created, numbers, open, published, unknown};
use crate::failure::Failure;
use crate::lease::fence::Fence;

/// The channel that points to the newest release that passed its gates.
pub const LATEST: &str = "latest";
/// Channel entries that are read concurrently.
const AT_ONCE: usize = 16;

/// An entry of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// Number of the release that the channel points to.
    pub number: u64,
    /// Number of the entry that a rollback returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// The decision, if a person moved [`LATEST`]. Absent from moves by runs, and from entries of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

impl Move {
    /// Returns the largest number that this entry covers. Runs move the channel only to larger
    /// ones.
    fn settled(&self) -> u64 {
        self.decision.map_or(self.number, |decision| decision.newest.max(self.number))
    }
}

/// A person's decision on the release that [`LATEST`] points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The command that made it.
    pub by: By,
    /// The largest number of the name at that moment. The decision covers every release up to it.
    pub newest: u64,
}

/// A command by which a person moves a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// `lethe release promote`
    Promotion,
    /// `lethe release rollback`
    Rollback,
}

/// The reason why [`advance`] did not move [`LATEST`]. Its text is one sentence with the command
/// that moves the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmoved {
    /// The release that the channel does not point to.
    pub release: Published,
    /// Number of the release that the channel points to instead.
    pub stays: u64,
    /// The reason.
    pub why: Why,
}

/// The reason why a channel was not moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The channel points to a later release.
    Later,
    /// A person moved the channel after the release was published. Entries of earlier versions do
    /// not record the command.
    ByHand(Option<By>),
}

impl fmt::Display for Unmoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { release, stays, why } = self;
        let name = &release.release.name;
        let why = match why {
            Why::Later => "a later release",
            Why::ByHand(Some(By::Promotion)) => "promoted by hand",
            Why::ByHand(Some(By::Rollback)) => "rolled back by hand",
            Why::ByHand(None) => "moved by hand",
        };
        write!(
            f,
            "{LATEST} stays at {name}:{stays} ({why}); `lethe release promote {name}:{} {LATEST}` changes that",
            release.number
        )
    }
}

fn channel_folder(name: &str, channel: &str) -> String {
    format!("releases/{name}/channels/{channel}")
}

/// Returns the channels of a name, each with the number of its last entry and that entry.
///
/// # Errors
/// [`Failure`] when the store cannot be read.
pub async fn channels(store: &Store, name: &str) -> Result<BTreeMap<String, (u64, Move)>, Failure> {
    let folder = format!("releases/{name}/channels");
    let keys = store.list(&folder).await?;
    let channel = |key: &String| {
        Some(key.strip_prefix(&folder)?.strip_prefix('/')?.split_once('/')?.0.to_owned())
    };
    let mut found = BTreeMap::new();
    for channel in keys.iter().filter_map(channel).collect::<BTreeSet<_>>() {
        if let Some(last) = last_move(store, name, &channel).await? {
            found.insert(channel, last);
        }
    }
    Ok(found)
}

pub(super) async fn last_move(
    store: &Store,
    name: &str,
    channel: &str,
) -> Result<Option<(u64, Move)>, Failure> {
    let folder = channel_folder(name, channel);
    match numbers(store, &folder).await?.last() {
        Some(&entry) => Ok(Some((entry, read_move(store, name, channel, entry).await?))),
        None => Ok(None),
    }
}

async fn read_move(store: &Store, name: &str, channel: &str, entry: u64) -> Result<Move, Failure> {
    let key = format!("{}/{entry}.json", channel_folder(name, channel));
    let found = store.get_json(&key).await?;
    found.ok_or_else(|| Failure::Infrastructure(format!("{}/{key} is gone", store.name())))
}

/// Moves a channel, unless another writer has moved it since `seen`.
async fn follow(
    store: &Store,
    name: &str,
    channel: &str,
    seen: Option<u64>,
    to: Move,
) -> Result<bool, Failure> {
    let entry = seen.map_or(1, |seen| seen + 1);
    created(store, &format!("{}/{entry}.json", channel_folder(name, channel)), &to).await
}

/// Returns every entry of a channel, by number.
async fn history(store: &Store, name: &str, channel: &str) -> Result<BTreeMap<u64, Move>, Failure> {
    let entries = numbers(store, &channel_folder(name, channel)).await?;
    futures::stream::iter(entries)
        .map(|entry| async move { Ok((entry, read_move(store, name, channel, entry).await?)) })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

/// Moves [`LATEST`] to a new release. A release is new if its number is larger than every number
/// that the channel ever pointed to, and larger than every number that was published when a person
/// last promoted or rolled back. Returns `None` if the channel points to the release afterwards,
/// and the reason if it was not moved.
///
/// Repeating the call is safe: it completes a publication whose process died between number and
/// channel, and it never undoes a decision. The channel also moves to a release that first missed
/// its gates and passes them later, unless a person has decided in between.
///
/// # Errors
/// [`Failure::Infrastructure`] when another coordinator has taken the run over, or the store cannot
/// be written.
pub async fn advance(
    store: &Store,
    fence: &Fence,
    one: &Published,
) -> Result<Option<Unmoved>, Failure> {
    let name = &one.release.name;
    for _ in 0..ATTEMPTS {
        let history = history(store, name, LATEST).await?;
        let before = match history.last_key_value() {
            Some((_, last)) if last.number == one.number => return Ok(None),
            // The whole history counts: entries of earlier versions record no decision.
            Some((_, last)) if history.values().any(|entry| entry.settled() >= one.number) => {
                let is_by_hand = last.decision.is_some() || last.number < one.number;
                let why = if is_by_hand {
                    Why::ByHand(last.decision.map(|decision| decision.by))
                } else {
                    Why::Later
                };
                return Ok(Some(Unmoved { release: one.clone(), stays: last.number, why }));
            }
            last => last.map(|(&entry, _)| entry),
        };
        fence.check().await?;
        if follow(store, name, LATEST, before, Move { number: one.number, before, decision: None })
            .await?
        {
            return Ok(None);
        }
    }
    Err(Failure::Infrastructure(format!(
        "{}: others move {name}@{LATEST} all the time",
        store.name()
    )))
}

/// Returns the decision that a move by hand records. Runs move only [`LATEST`], so moves of other
/// channels record none.
///
/// Must be called before the channel is read, so that a release published afterwards counts as new.
async fn decision(
    store: &Store,
    name: &str,
    channel: &str,
    by: By,
) -> Result<Option<Decision>, Failure> {
    if channel != LATEST {
        return Ok(None);
    }
    let newest = numbers(store, &format!("releases/{name}")).await?.last().copied().unwrap_or(0);
    Ok(Some(Decision { by, newest }))
}

/// Points a channel to a release, and returns the number that it pointed to before, if any. If
/// [`LATEST`] already points to the release and a run could move it to another one, an entry
/// records the decision that it stays.
///
/// # Errors
/// [`Failure::BadInput`] when the release is not complete, or the channel was moved concurrently.
pub async fn promote(
    store: &Store,
    one: &Published,
    channel: &str,
) -> Result<Option<u64>, Failure> {
    let name = &one.release.name;
    checked(channel).map_err(Failure::input)?;
    open(store, one).await?;
    let decision = decision(store, name, channel, By::Promotion).await?;
    let last = last_move(store, name, channel).await?;
    let seen = last.map(|(entry, _)| entry);
    let before = match last {
        Some((_, there)) if there.number == one.number => {
            if decision.is_none_or(|decision| there.settled() >= decision.newest) {
                return Ok(Some(one.number));
            }
            // A later rollback returns to the same release as without this entry.
            there.before
        }
        _ => seen,
    };
    moved(
        follow(store, name, channel, seen, Move { number: one.number, before, decision }).await?,
        name,
        channel,
    )?;
    Ok(last.map(|(_, last)| last.number))
}

/// Points a channel back to its previous release. Returns the numbers of the release before and
/// after the call.
///
/// # Errors
/// [`Failure::BadInput`] when there is no previous release, or the channel was moved concurrently.
pub async fn rollback(store: &Store, name: &str, channel: &str) -> Result<(u64, u64), Failure> {
    let none = || Failure::input(format!("{name}@{channel} leads nowhere else to go back to"));
    let decision = decision(store, name, channel, By::Rollback).await?;
    let (entry, last) = last_move(store, name, channel).await?.ok_or_else(none)?;
    let before = read_move(store, name, channel, last.before.ok_or_else(none)?).await?;
    // The previous release must still be complete.
    let there = published(store, name).await?;
    open(store, there.get(&before.number).ok_or_else(|| unknown(name, before.number))?).await?;
    moved(
        follow(store, name, channel, Some(entry), Move { decision, ..before }).await?,
        name,
        channel,
    )?;
    Ok((last.number, before.number))
}

fn moved(done: bool, name: &str, channel: &str) -> Result<(), Failure> {
    let problem = || {
        Failure::input(format!(
            "{name}@{channel} was moved by someone else at the same moment; look where it leads, and try again"
        ))
    };
    if done { Ok(()) } else { Err(problem()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lethe_shared::digest::Digest;
    use lethe_shared::record::{Composition, ReleaseRef};
    use tokio_util::sync::CancellationToken;

    use super::super::publish::publish;
    use super::super::publish::tests::released;
    use super::*;
    use crate::compose::gate_rules;

    fn one(number: u64) -> Published {
        let release = ReleaseRef { name: "n".into(), record: Digest::of(b"record") };
        Published { number, release, digest: Digest::of(b"weights"), parent: None }
    }

    /// Publishes and advances like the end of a run, and returns the reason if the channel was not
    /// moved. Afterwards, `latest` must point to `number`.
    async fn run_leads_to(store: &Store, one: &Published, number: u64) -> Option<String> {
        let unmoved = advance(store, &Fence::open(), one).await.unwrap();
        let (_, last) = last_move(store, "n", LATEST).await.unwrap().unwrap();
        assert_eq!(last.number, number, "{unmoved:?}");
        assert_eq!(unmoved.is_none(), last.number == one.number);
        unmoved.map(|unmoved| unmoved.to_string())
    }

    #[tokio::test]
    async fn a_channel_follows_whoever_moved_it_first() {
        let store = Store::in_memory();
        let entry = |number, before| Move { number, before, decision: None };
        assert!(follow(&store, "n", "c", None, entry(1, None)).await.unwrap());
        assert!(follow(&store, "n", "c", Some(1), entry(2, Some(1))).await.unwrap());
        // A writer that has read only entry 1 gets a conflict; one that writes the same entry does
        // not.
        assert!(!follow(&store, "n", "c", Some(1), entry(3, Some(1))).await.unwrap());
        assert!(follow(&store, "n", "c", Some(1), entry(2, Some(1))).await.unwrap());
        assert_eq!(last_move(&store, "n", "c").await.unwrap(), Some((2, entry(2, Some(1)))));
        assert_eq!(
            channels(&store, "n").await.unwrap(),
            BTreeMap::from([("c".into(), (2, entry(2, Some(1))))])
        );
    }

    #[tokio::test]
    async fn runs_move_latest_forwards_alone() {
        let store = Store::in_memory();
        for number in [2, 1, 2, 3] {
            advance(&store, &Fence::open(), &one(number)).await.unwrap();
        }
        let (entry, last) = last_move(&store, "n", LATEST).await.unwrap().unwrap();
        assert_eq!((entry, last), (2, Move { number: 3, before: Some(1), decision: None }));
        let unmoved = advance(&store, &Fence::open(), &one(1)).await.unwrap().unwrap();
        assert_eq!((unmoved.stays, unmoved.why), (3, Why::Later));
        assert_eq!(history(&store, "n", LATEST).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_rollback_is_undone_by_no_run_and_ended_by_a_new_release() {
        let store = Store::in_memory();
        let (first, second) = (released(&store, "a").await, released(&store, "b").await);
        assert_eq!(run_leads_to(&store, &first, 1).await, None);
        assert_eq!(run_leads_to(&store, &second, 2).await, None);
        assert_eq!(rollback(&store, "n", LATEST).await.unwrap(), (2, 1));
        for _ in 0..2 {
            let said = run_leads_to(&store, &second, 1).await.unwrap();
            assert_eq!(
                said,
                "latest stays at n:1 (rolled back by hand); `lethe release promote n:2 latest` changes that"
            );
        }
        assert_eq!(run_leads_to(&store, &first, 1).await, None);
        let third = released(&store, "c").await;
        assert_eq!(run_leads_to(&store, &third, 3).await, None);
        // A rolled-back release stays rolled back, and so does one that was published before the
        // decision and promoted after it.
        assert!(run_leads_to(&store, &second, 3).await.unwrap().contains("a later release"));
        assert_eq!(rollback(&store, "n", LATEST).await.unwrap(), (3, 1));
        assert!(run_leads_to(&store, &third, 1).await.is_some());
        assert!(run_leads_to(&store, &second, 1).await.is_some());
        // A person can promote it.
        promote(&store, &third, LATEST).await.unwrap();
        assert_eq!(run_leads_to(&store, &third, 3).await, None);
    }

    #[tokio::test]
    async fn a_promotion_is_about_every_release_there_is() {
        let store = Store::in_memory();
        let (first, second, third) =
            (released(&store, "a").await, released(&store, "b").await, released(&store, "c").await);
        run_leads_to(&store, &third, 3).await;
        assert_eq!(promote(&store, &first, LATEST).await.unwrap(), Some(3));
        // The channel pointed to the third before; it never pointed to the second, which was
        // available to choose.
        for one in [&second, &third] {
            let said = run_leads_to(&store, one, 1).await.unwrap();
            assert!(said.starts_with("latest stays at n:1 (promoted by hand); "), "{said}");
        }
        let fourth = released(&store, "d").await;
        run_leads_to(&store, &fourth, 4).await;
        // Back to the release that a person had chosen.
        assert_eq!(rollback(&store, "n", LATEST).await.unwrap(), (4, 1));
        assert!(run_leads_to(&store, &fourth, 1).await.is_some());
    }

    #[tokio::test]
    async fn a_promotion_to_where_latest_leads_keeps_it_there() {
        let store = Store::in_memory();
        let first = released(&store, "a").await;
        run_leads_to(&store, &first, 1).await;
        // There is no other release, so there is no decision to record.
        assert_eq!(promote(&store, &first, LATEST).await.unwrap(), Some(1));
        assert_eq!(last_move(&store, "n", LATEST).await.unwrap().unwrap().0, 1);
        // For example a release that missed a gate.
        let second = released(&store, "b").await;
        for _ in 0..2 {
            assert_eq!(promote(&store, &first, LATEST).await.unwrap(), Some(1));
            assert_eq!(last_move(&store, "n", LATEST).await.unwrap().unwrap().0, 2, "decided once");
        }
        assert!(run_leads_to(&store, &second, 1).await.is_some());
        // An entry that records a decision is not a target of a rollback.
        assert!(rollback(&store, "n", LATEST).await.is_err());
    }

    #[tokio::test]
    async fn what_a_publisher_left_undone_is_finished_by_the_next() {
        let store = Store::in_memory();
        let first = released(&store, "a").await;
        run_leads_to(&store, &first, 1).await;
        // The run died after the number, or its release missed a gate that it passes now; there was
        // no decision since.
        let second = released(&store, "b").await;
        assert_eq!(released(&store, "b").await, second);
        assert_eq!(run_leads_to(&store, &second, 2).await, None);
        // The same with a decision before the release was published.
        rollback(&store, "n", LATEST).await.unwrap();
        let third = released(&store, "c").await;
        assert_eq!(run_leads_to(&store, &third, 3).await, None);
    }

    #[tokio::test]
    async fn entries_from_before_decisions_were_recorded_are_read_and_respected() {
        let store = Store::in_memory();
        let (second, third) = {
            released(&store, "a").await;
            (released(&store, "b").await, released(&store, "c").await)
        };
        // 1, 2, back to 1.
        for (entry, json) in
            [(1, r#"{"number":1}"#), (2, r#"{"number":2,"before":1}"#), (3, r#"{"number":1}"#)]
        {
            store
                .put(&format!("{}/{entry}.json", channel_folder("n", LATEST)), json.into())
                .await
                .unwrap();
        }
        let said = run_leads_to(&store, &second, 1).await.unwrap();
        assert!(said.starts_with("latest stays at n:1 (moved by hand); "), "{said}");
        run_leads_to(&store, &third, 3).await;
    }

    #[tokio::test]
    async fn whoever_decides_while_a_run_publishes_is_heard() {
        // Both read the same last entry: either the run moves first and the person gets a conflict,
        // or the run finds the decision.
        for _ in 0..20 {
            let store = Store::in_memory();
            let (first, second) = (released(&store, "a").await, released(&store, "b").await);
            run_leads_to(&store, &first, 1).await;
            run_leads_to(&store, &second, 2).await;
            let third = released(&store, "c").await;
            let fence = Fence::open();
            let (back, moved) =
                tokio::join!(rollback(&store, "n", LATEST), advance(&store, &fence, &third));
            let (_, last) = last_move(&store, "n", LATEST).await.unwrap().unwrap();
            match (back, moved.unwrap()) {
                (Ok((from, to)), unmoved) => {
                    assert_eq!(last.number, to);
                    assert_eq!(unmoved.is_some(), from == 2, "{last:?}");
                }
                (Err(_), unmoved) => assert_eq!((last.number, unmoved), (3, None)),
            }
        }
    }

    #[tokio::test]
    async fn two_runs_of_one_release_and_two_of_two_agree() {
        let store = Store::in_memory();
        let fence = Fence::open();
        let releases =
            [released(&store, "a").await, released(&store, "b").await, released(&store, "c").await];
        let runs = releases.iter().chain(&releases).map(|one| advance(&store, &fence, one));
        for unmoved in futures::future::join_all(runs).await {
            assert!(unmoved.unwrap().is_none_or(|unmoved| unmoved.why == Why::Later));
        }
        assert_eq!(last_move(&store, "n", LATEST).await.unwrap().unwrap().1.number, 3);
        promote(&store, &releases[0], LATEST).await.unwrap();
        let runs = releases.iter().chain(&releases).map(|one| advance(&store, &fence, one));
        let unmoved = futures::future::join_all(runs)
            .await
            .into_iter()
            .filter(|unmoved| unmoved.as_ref().unwrap().is_some());
        assert_eq!(unmoved.count(), 4);
        assert_eq!(last_move(&store, "n", LATEST).await.unwrap().unwrap().1.number, 1);
    }

    #[tokio::test]
    async fn a_coordinator_that_lost_its_run_gives_no_number_and_moves_no_channel() {
        let store = Store::in_memory();
        let claim = store.claim("r", "first").await.unwrap();
        let fence =
            Fence::of(store.clone(), claim, Duration::from_secs(600), CancellationToken::new());
        let there = released(&store, "a").await;
        let record = Composition {
            name: "n".into(),
            digest: Digest::of(b"b"),
            ..gate_rules::tests::record()
        };
        store.claim("r", "second").await.unwrap();
        for refused in [
            publish(&store, &fence, &record, Digest::of(b"b")).await.map(drop),
            advance(&store, &fence, &there).await.map(drop),
        ] {
            assert!(
                refused.unwrap_err().to_string().contains("another coordinator has taken over r")
            );
        }
        assert_eq!(published(&store, "n").await.unwrap().len(), 1);
        assert_eq!(last_move(&store, "n", LATEST).await.unwrap(), None);
    }
}

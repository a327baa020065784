//! What of a release others see: its number, and the channels that lead to it.
//!
//! | key | what |
//! |---|---|
//! | `releases/<name>/<digest>/…` | a release's files, in a folder named after its record |
//! | `releases/<name>/<number>.json` | [`Published`]: created last, when everything it speaks of is there |
//! | `releases/<name>/channels/<channel>/<n>.json` | [`Move`]: where the channel led from then on, the largest n last |
//!
//! A channel is moved by creating the entry after the last one that was seen: compare-and-set by create-if-absent, which every store
//! has, local disks too. Nothing is overwritten, so that a reader finds the old place or the new one, and the way back is on record.
//! A publisher that dies at any point leaves files that nobody is led to; the same again finds them and goes on.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::digest::Digest;
use lethe_shared::manifest::is_id;
use lethe_shared::record::{Composition, ReleaseRef};
use lethe_shared::store::{self, Store};
use serde::{Deserialize, Serialize};

use super::read::{Place, Release};
use crate::failure::Failure;

/// The channel that leads to the newest release that passed its gates.
pub const LATEST: &str = "latest";
/// Attempts at a number or an entry that others take at the same moment.
const ATTEMPTS: u32 = 20;

/// A release that is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Its number among the releases of its name, from 1.
    pub number: u64,
    /// Which one.
    pub release: ReleaseRef,
    /// SHA-256 over the weights' bytes in name order.
    pub digest: Digest,
    /// The release it was composed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ReleaseRef>,
}

impl Published {
    /// Its folder in the store.
    pub fn prefix(&self) -> String {
        prefix(&self.release)
    }
}

/// A channel's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The release it leads to.
    pub number: u64,
    /// The entry that a rollback goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
}

/// A release by its name, as people write it: `NAME`, `NAME:NUMBER` or `NAME@CHANNEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The name.
    pub name: String,
    /// Which one of that name.
    pub which: Which,
}

/// Which release of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one that [`LATEST`] leads to, or without it the last.
    Newest,
    /// The one with this number.
    Number(u64),
    /// The one that a channel leads to.
    Channel(String),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, which) = if let Some((name, channel)) = text.split_once('@') {
            (name, Which::Channel(checked(channel)?.to_owned()))
        } else if let Some((name, number)) = text.split_once(':') {
            (name, Which::Number(number.parse().map_err(|_| format!("`{number}` is no number of a release"))?))
        } else {
            (text, Which::Newest)
        };
        Ok(Self { name: checked(name)?.to_owned(), which })
    }
}

fn checked(name: &str) -> Result<&str, String> {
    if is_id(name) { Ok(name) } else { Err(format!("`{}` is no name: letters, digits, `.`, `_`, `-`", name.escape_default())) }
}

/// A release's folder in a store.
pub fn prefix(release: &ReleaseRef) -> String {
    format!("releases/{}/{}", release.name, release.record.short())
}

/// Names that have releases.
///
/// # Errors
/// When the store cannot be listed.
pub async fn names(store: &Store) -> Result<BTreeSet<String>, Failure> {
    let keys = store.list("releases").await?;
    Ok(keys.iter().filter_map(|key| Some(key.strip_prefix("releases/")?.split_once('/')?.0.to_owned())).collect())
}

/// Every published release of a name, by number.
///
/// # Errors
/// When the store cannot be read, or holds something else there.
pub async fn published(store: &Store, name: &str) -> Result<BTreeMap<u64, Published>, Failure> {
    let mut found = BTreeMap::new();
    for number in numbers(store, &format!("releases/{name}")).await? {
        let one: Option<Published> = store.get_json(&number_key(name, number)).await?;
        let Some(one) = one.filter(|one| one.number == number && one.release.name == name) else {
            return Err(Failure::input(format!("{}/{} is about another release", store.name(), number_key(name, number))));
        };
        found.insert(number, one);
    }
    Ok(found)
}

/// Numbers of the JSON documents directly in a folder.
async fn numbers(store: &Store, folder: &str) -> Result<BTreeSet<u64>, Failure> {
    let number = |key: &String| store::document_number(key.strip_prefix(folder)?.strip_prefix('/')?);
    Ok(store.list(folder).await?.iter().filter_map(number).collect())
}

fn number_key(name: &str, number: u64) -> String {
    format!("releases/{name}/{number}.json")
}

fn channel_folder(name: &str, channel: &str) -> String {
    format!("releases/{name}/channels/{channel}")
}

/// Gives a release that is whole its number; one that has a number keeps it.
///
/// # Errors
/// When the store cannot be written.
pub async fn publish(store: &Store, record: &Composition, digest: Digest) -> Result<Published, Failure> {
    let release = ReleaseRef { name: record.name.clone(), record: digest };
    for _ in 0..ATTEMPTS {
        let there = published(store, &record.name).await?;
        if let Some(one) = there.values().find(|one| one.release == release) {
            return Ok(one.clone());
        }
        let one = Published {
            number: there.keys().next_back().map_or(1, |last| last + 1),
            release: release.clone(),
            digest: record.digest,
            parent: record.parent.as_ref().map(|parent| parent.release.clone()),
        };
        if created(store, &number_key(&record.name, one.number), &one).await? {
            return Ok(one);
        }
    }
    Err(Failure::Infrastructure(format!("{}: others take every number of {} at the same moment", store.name(), record.name)))
}

/// Creates a document; `false` when another one is there.
async fn created<T: Serialize>(store: &Store, key: &str, value: &T) -> Result<bool, Failure> {
    match store.create_json(key, value).await {
        Ok(_) => Ok(true),
        Err(store::Error::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Channels of a name, each with its last entry and that entry's number.
///
/// # Errors
/// When the store cannot be read.
pub async fn channels(store: &Store, name: &str) -> Result<BTreeMap<String, (u64, Move)>, Failure> {
    let folder = format!("releases/{name}/channels");
    let keys = store.list(&folder).await?;
    let channel = |key: &String| Some(key.strip_prefix(&folder)?.strip_prefix('/')?.split_once('/')?.0.to_owned());
    let mut found = BTreeMap::new();
    for channel in keys.iter().filter_map(channel).collect::<BTreeSet<_>>() {
        if let Some(last) = last_move(store, name, &channel).await? {
            found.insert(channel, last);
        }
    }
    Ok(found)
}

async fn last_move(store: &Store, name: &str, channel: &str) -> Result<Option<(u64, Move)>, Failure> {
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

/// Moves a channel, if nobody else has since `seen`.
async fn follow(store: &Store, name: &str, channel: &str, seen: Option<u64>, to: Move) -> Result<bool, Failure> {
    let entry = seen.map_or(1, |seen| seen + 1);
    created(store, &format!("{}/{entry}.json", channel_folder(name, channel)), &to).await
}

/// Leads [`LATEST`] to a release, unless it leads to a later one.
///
/// # Errors
/// When the store cannot be written.
pub async fn advance(store: &Store, one: &Published) -> Result<(), Failure> {
    let name = &one.release.name;
    for _ in 0..ATTEMPTS {
        let last = last_move(store, name, LATEST).await?;
        if last.is_some_and(|(_, last)| last.number >= one.number) {
            return Ok(());
        }
        let before = last.map(|(entry, _)| entry);
        if follow(store, name, LATEST, before, Move { number: one.number, before }).await? {
            return Ok(());
        }
    }
    Err(Failure::Infrastructure(format!("{}: others move {name}@{LATEST} all the time", store.name())))
}

/// Leads a channel to a release: what it led to before, if anything.
///
/// # Errors
/// [`Failure::BadInput`] when the release is not whole, or someone else has moved the channel meanwhile.
pub async fn promote(store: &Store, one: &Published, channel: &str) -> Result<Option<u64>, Failure> {
    let name = &one.release.name;
    checked(channel).map_err(Failure::input)?;
    open(store, one).await?;
    let last = last_move(store, name, channel).await?;
    match last {
        Some((_, there)) if there.number == one.number => Ok(Some(one.number)),
        _ => {
            let before = last.map(|(entry, _)| entry);
            moved(follow(store, name, channel, before, Move { number: one.number, before }).await?, name, channel)?;
            Ok(last.map(|(_, last)| last.number))
        }
    }
}

/// Leads a channel back to where it led before: from there, and to there.
///
/// # Errors
/// [`Failure::BadInput`] when there is no way back, or someone else has moved the channel meanwhile.
pub async fn rollback(store: &Store, name: &str, channel: &str) -> Result<(u64, u64), Failure> {
    let none = || Failure::input(format!("{name}@{channel} leads nowhere else to go back to"));
    let (entry, last) = last_move(store, name, channel).await?.ok_or_else(none)?;
    let before = read_move(store, name, channel, last.before.ok_or_else(none)?).await?;
    // Where it leads must be whole still.
    let there = published(store, name).await?;
    open(store, there.get(&before.number).ok_or_else(|| unknown(name, before.number))?).await?;
    moved(follow(store, name, channel, Some(entry), before).await?, name, channel)?;
    Ok((last.number, before.number))
}

fn moved(done: bool, name: &str, channel: &str) -> Result<(), Failure> {
    let problem =
        || Failure::input(format!("{name}@{channel} was moved by someone else at the same moment; look where it leads, and try again"));
    if done { Ok(()) } else { Err(problem()) }
}

fn unknown(name: &str, number: u64) -> Failure {
    Failure::input(format!("there is no release {name}:{number}"))
}

/// Opens a published release; its record must be the one that was published.
///
/// # Errors
/// [`Failure::BadInput`] when it is not there or has another record.
pub async fn open(store: &Store, one: &Published) -> Result<Release, Failure> {
    let release = Place::stored(store.clone(), one.prefix()).open().await?;
    if release.digest == one.release.record {
        Ok(release)
    } else {
        Err(Failure::input(format!("{}: its record is not the one that was published as number {}", release.address(), one.number)))
    }
}

/// The release that is wanted.
///
/// # Errors
/// [`Failure::BadInput`] when there is none.
pub async fn find(store: &Store, wanted: &Wanted) -> Result<Published, Failure> {
    let name = &wanted.name;
    let mut there = published(store, name).await?;
    let led = |last: Option<(u64, Move)>| last.map(|(_, last)| last.number);
    let number = match &wanted.which {
        Which::Number(number) => *number,
        Which::Channel(channel) => led(last_move(store, name, channel).await?)
            .ok_or_else(|| Failure::input(format!("{}: there is no {name}@{channel}", store.name())))?,
        Which::Newest => match led(last_move(store, name, LATEST).await?) {
            Some(number) => number,
            None => *there.keys().next_back().ok_or_else(|| Failure::input(format!("{} has no release {name}", store.name())))?,
        },
    };
    there.remove(&number).ok_or_else(|| unknown(name, number))
}

/// Objects of publishes that were never finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// The folder.
    pub folder: String,
    /// Its objects.
    pub objects: Vec<String>,
    /// Their size.
    pub bytes: u64,
}

/// Folders of a name that no number speaks of, and into which nothing was written since `before` (seconds since 1970): a publisher
/// may be at work on a younger one.
///
/// # Errors
/// When the store cannot be read.
pub async fn leftovers(store: &Store, name: &str, before: i64) -> Result<Vec<Leftover>, Failure> {
    // First what is there, then what is published: what is published in between counts.
    let objects = store.survey(&format!("releases/{name}")).await?;
    let published: BTreeSet<String> = published(store, name).await?.values().map(Published::prefix).collect();
    let mut folders: BTreeMap<String, (i64, Leftover)> = BTreeMap::new();
    for object in objects {
        let Some((folder, _)) = object.key.rsplit_once('/') else { continue };
        // Folders of releases are directly under the name, and hold files alone.
        if folder.matches('/').count() != 2 || published.contains(folder) {
            continue;
        }
        let empty = || (i64::MIN, Leftover { folder: folder.to_owned(), objects: Vec::new(), bytes: 0 });
        let (newest, leftover) = folders.entry(folder.to_owned()).or_insert_with(empty);
        *newest = (*newest).max(object.modified);
        leftover.bytes += object.bytes;
        leftover.objects.push(object.key);
    }
    Ok(folders.into_values().filter(|(newest, _)| *newest < before).map(|(_, leftover)| leftover).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lethe_shared::store::Store;

    use super::*;

    fn one(number: u64) -> Published {
        let release = ReleaseRef { name: "n".into(), record: Digest::of(b"record") };
        Published { number, release, digest: Digest::of(b"weights"), parent: None }
    }

    #[test]
    fn releases_are_named_as_people_write_them() {
        let of = |text: &str| text.parse::<Wanted>().map(|wanted| (wanted.name, wanted.which));
        assert_eq!(of("a"), Ok(("a".into(), Which::Newest)));
        assert_eq!(of("a:12"), Ok(("a".into(), Which::Number(12))));
        assert_eq!(of("a@production"), Ok(("a".into(), Which::Channel("production".into()))));
        for text in ["", "a:", "a:x", "a@", "../a", "a/b", "a@b/c"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_channel_follows_whoever_moved_it_first() {
        let store = Store::in_memory();
        let entry = |number, before| Move { number, before };
        assert!(follow(&store, "n", "c", None, entry(1, None)).await.unwrap());
        assert!(follow(&store, "n", "c", Some(1), entry(2, Some(1))).await.unwrap());
        // Someone who saw entry 1 alone is too late; who wants the same is not.
        assert!(!follow(&store, "n", "c", Some(1), entry(3, Some(1))).await.unwrap());
        assert!(follow(&store, "n", "c", Some(1), entry(2, Some(1))).await.unwrap());
        assert_eq!(last_move(&store, "n", "c").await.unwrap(), Some((2, entry(2, Some(1)))));
        assert_eq!(channels(&store, "n").await.unwrap(), BTreeMap::from([("c".into(), (2, entry(2, Some(1))))]));
    }

    #[tokio::test]
    async fn latest_goes_forwards_alone() {
        let store = Store::in_memory();
        for number in [2, 1, 2, 3] {
            advance(&store, &one(number)).await.unwrap();
        }
        let (entry, last) = last_move(&store, "n", LATEST).await.unwrap().unwrap();
        assert_eq!((entry, last), (2, Move { number: 3, before: Some(1) }));
    }

    #[tokio::test]
    async fn what_was_never_finished_is_found() {
        let store = Store::in_memory();
        let published = one(1);
        store.create_json(&number_key("n", 1), &published).await.unwrap();
        for key in [
            format!("{}/a", published.prefix()),
            "releases/n/half/a".into(),
            "releases/n/half/b".into(),
            "releases/n/channels/c/1.json".into(),
        ] {
            store.put(&key, Bytes::from_static(b"xyz")).await.unwrap();
        }
        let found = leftovers(&store, "n", i64::MAX).await.unwrap();
        let objects = vec!["releases/n/half/a".to_owned(), "releases/n/half/b".to_owned()];
        assert_eq!(found, [Leftover { folder: "releases/n/half".into(), objects, bytes: 6 }]);
        assert_eq!(leftovers(&store, "n", 0).await.unwrap(), [], "someone may be at work on it");
        assert_eq!(names(&store).await.unwrap(), BTreeSet::from(["n".to_owned()]));
    }
}

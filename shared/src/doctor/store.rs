//! The object store: whether it does what runs rest on.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{Finding, PATIENCE, machine};
use crate::address::Address;
use crate::store::{Error, Store};

/// Clocks further apart than this are said, seconds.
const SKEW: i64 = 5;
const STORE: &str = "store";
const CLOCK: &str = "clock";

/// Creates an object, sees that it cannot be created twice, reads it back, compares clocks, and takes it away again.
pub async fn examine(address: &Address) -> Vec<Finding> {
    // Opening a local store makes its folders: those that were not there go again.
    let made = address.as_local().map(missing_folders).unwrap_or_default();
    let findings = match Store::open(address) {
        Ok(store) => {
            let looked = tokio::time::timeout(3 * PATIENCE, look(&store)).await;
            looked.unwrap_or_else(|_| {
                vec![Finding::failed(STORE, format!("{address}: no answer"), "check the address, the endpoint and the network")]
            })
        }
        Err(error) => vec![failed(&error)],
    };
    let space = address.as_local().filter(|folder| folder.is_dir()).map(|folder| machine::disk("disk", folder));
    for folder in made {
        // One that someone else has begun to use meanwhile is not empty, and stays.
        let _ = std::fs::remove_dir(folder);
    }
    findings.into_iter().chain(space).collect()
}

/// Folders on the way to this one that are not there, the deepest first.
fn missing_folders(folder: &Path) -> Vec<PathBuf> {
    folder.ancestors().take_while(|folder| !folder.try_exists().unwrap_or(true)).map(Path::to_owned).collect()
}

async fn look(store: &Store) -> Vec<Finding> {
    let key = format!("doctor-{}-{:x}.txt", std::process::id(), now().as_nanos());
    let text = Bytes::from(key.clone());
    let before = now().as_secs();
    let created = match store.create(&key, text.clone()).await {
        Ok(_) => tried(store, &key, &text).await,
        Err(error) => return vec![failed(&error)],
    };
    let after = now().as_secs();
    let clock = match store.modified(&key).await {
        Ok(modified) => modified.map(|modified| skew(modified, before, after)),
        Err(error) => Some(failed(&error)),
    };
    let removed = match store.remove(&key).await {
        Ok(()) => None,
        Err(Error::Permission { .. }) => Some(Finding::warning(
            STORE,
            format!("{}/{key} cannot be removed", store.name()),
            "right for workers; a coordinator needs to delete for `release gc`, and to put damaged objects aside",
        )),
        Err(error) => Some(failed(&error)),
    };
    [Some(created), removed, clock].into_iter().flatten().collect()
}

/// Whether an object that is there stays as it is.
async fn tried(store: &Store, key: &str, text: &Bytes) -> Finding {
    let name = store.name();
    match store.create(key, Bytes::from_static(b"another")).await {
        Err(Error::Conflict { .. }) => {}
        Err(error) => return failed(&error),
        Ok(_) => {
            let found = format!("{name}: an object was created where one was already: two workers would overwrite each other");
            return Finding::failed(STORE, found, "use a store with conditional writes (If-None-Match), or a disk with hard links");
        }
    }
    match store.get(key).await {
        Ok(Some(there)) if there == *text => match store.list("doctor").await {
            Ok(_) => Finding::ok(STORE, format!("{name}: objects can be created once, read and listed")),
            Err(error) => failed(&error),
        },
        Ok(_) => Finding::failed(STORE, format!("{name}: what is read is not what was written"), "do not use this store"),
        Err(error) => failed(&error),
    }
}

fn skew(modified: i64, before: u64, after: u64) -> Finding {
    let (before, after) = (i64::try_from(before).unwrap_or(i64::MAX), i64::try_from(after).unwrap_or(i64::MAX));
    let off = if modified < before { modified - before } else { (modified - after).max(0) };
    match off {
        off if off.abs() <= SKEW => Finding::ok(CLOCK, "agrees with the store's"),
        off => {
            let found = format!("the store's is {} s {}", off.abs(), if off > 0 { "ahead" } else { "behind" });
            Finding::warning(
                CLOCK,
                found,
                "set this machine's clock (chronyc, timedatectl): signed requests are refused when clocks differ much",
            )
        }
    }
}

fn failed(error: &Error) -> Finding {
    let fix = match error {
        Error::Permission { .. } => "this user, or these credentials, must be able to create, read and list there",
        Error::NoSpace { .. } => "free some space",
        Error::Invalid { .. } => "a store is a path, file://, s3://BUCKET/…, gs:// or az://",
        Error::Unavailable { .. } | Error::NotFound { .. } => {
            "check the address, the bucket, the endpoint (AWS_ENDPOINT_URL) and the network"
        }
        Error::Corrupt { .. } | Error::Conflict { .. } => "use another store",
    };
    Finding::failed(STORE, error.to_string(), fix)
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[tokio::test]
    async fn a_sound_store_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        for place in ["", "not/yet/there"] {
            let findings = examine(&Address::Local(folder.path().join(place))).await;
            assert!(findings.iter().all(|finding| finding.state != State::Failed), "{findings:?}");
            let names: Vec<&str> = findings.iter().map(|finding| finding.name.as_str()).collect();
            assert_eq!(names, ["store", "clock", "disk"]);
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let findings = examine(&Address::Local(file)).await;
        assert_eq!((findings[0].state, findings[0].name.as_str()), (State::Failed, "store"), "{findings:?}");
    }

    #[test]
    fn clocks_are_compared_by_whole_seconds() {
        let state = |modified| skew(modified, 1000, 1002).state;
        assert_eq!([994, 995, 1001, 1007, 1008].map(state), [State::Warning, State::Ok, State::Ok, State::Ok, State::Warning]);
        assert!(skew(2000, 1000, 1002).found.contains("998 s ahead") && skew(10, 1000, 1002).found.contains("990 s behind"));
    }
}

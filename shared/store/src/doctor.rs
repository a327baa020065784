//! The store checks of `lethe doctor` and `lethe-worker check`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lethe_operations::doctor::disk;
use lethe_shared::address::Address;
use lethe_shared::finding::{ANSWER_TIMEOUT, Finding};

use crate::error::Error;
use crate::store::Store;

/// Clock difference that causes a warning, in seconds.
const SKEW: i64 = 5;
const STORE: &str = "store";
const CLOCK: &str = "clock";

/// Runs the store probe that workers and coordinators use, compares clocks, and removes the probe's
/// object.
///
/// # Cancel safety
/// A cancelled call may leave the object of the probe, or empty folders, behind.
pub async fn examine(address: &Address) -> Vec<Finding> {
    // Opening a local store creates folders; those that did not exist before are removed again.
    let made =
        address.as_local().map(|folder| missing_folders(&folder.join("probe"))).unwrap_or_default();
    let findings = match Store::open(address) {
        Ok(store) => {
            let looked = tokio::time::timeout(3 * ANSWER_TIMEOUT, look(&store)).await;
            looked.unwrap_or_else(|_| {
                vec![Finding::failed(
                    STORE,
                    format!("{address}: no answer"),
                    "check the address, the endpoint and the network",
                )]
            })
        }
        Err(error) => vec![failed(&error)],
    };
    let space =
        address.as_local().filter(|folder| folder.is_dir()).map(|folder| disk("disk", folder));
    for folder in made {
        // A folder that is not empty any more is in use, and stays.
        let _ = std::fs::remove_dir(folder);
    }
    findings.into_iter().chain(space).collect()
}

/// Returns the missing folders on the path to this one, the deepest first.
fn missing_folders(folder: &Path) -> Vec<PathBuf> {
    folder
        .ancestors()
        .take_while(|folder| !folder.try_exists().unwrap_or(true))
        .map(Path::to_owned)
        .collect()
}

async fn look(store: &Store) -> Vec<Finding> {
    let key = format!("probe/doctor-{}-{:x}.txt", std::process::id(), now().as_nanos());
    let before = now().as_secs();
    if let Err(error) = store.probe_with(&key).await {
        // The object may have been written before the error.
        let _ = store.remove(&key).await;
        return vec![failed(&error)];
    }
    let after = now().as_secs();
    let probed = Finding::ok(
        STORE,
        format!("{}: objects can be created once, read and listed", store.name()),
    );
    let clock = match store.modified(&key).await {
        Ok(modified) => modified.map(|modified| skew(modified, before, after)),
        Err(error) => Some(failed(&error)),
    };
    let removed = match store.remove(&key).await {
        Ok(()) => None,
        Err(Error::Permission { .. }) => Some(Finding::warning(
            STORE,
            format!("{}/{key} cannot be removed", store.name()),
            "sufficient for workers; a coordinator needs to delete objects for `release gc` and for quarantining corrupt ones",
        )),
        Err(error) => Some(failed(&error)),
    };
    [Some(probed), removed, clock].into_iter().flatten().collect()
}

fn skew(modified: i64, before: u64, after: u64) -> Finding {
    let (before, after) =
        (i64::try_from(before).unwrap_or(i64::MAX), i64::try_from(after).unwrap_or(i64::MAX));
    let off = if modified < before { modified - before } else { (modified - after).max(0) };
    match off {
        off if off.abs() <= SKEW => Finding::ok(CLOCK, "agrees with the store's"),
        off => {
            let found = format!(
                "the store's is {} s {}",
                off.abs(),
                if off > 0 { "ahead" } else { "behind" }
            );
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
        Error::Permission { .. } => {
            "this user, or these credentials, must be able to create, read and list there"
        }
        Error::NoSpace { .. } => "free some space",
        Error::Invalid { .. } => "a store is a path, file://, s3://BUCKET/…, gs:// or az://",
        Error::Unavailable { .. } | Error::NotFound { .. } => {
            "check the address, the bucket, the endpoint (AWS_ENDPOINT_URL) and the network"
        }
        Error::Corrupt { .. }
        | Error::Conflict { .. }
        | Error::Unsupported { .. }
        | Error::Refused { .. } => "use another store",
    };
    Finding::failed(STORE, error.to_string(), fix)
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lethe_shared::finding::State;

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
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let findings = examine(&Address::Local(file)).await;
        assert_eq!(
            (findings[0].state, findings[0].name.as_str()),
            (State::Failed, "store"),
            "{findings:?}"
        );
    }

    #[test]
    fn clocks_are_compared_by_whole_seconds() {
        let state = |modified| skew(modified, 1000, 1002).state;
        assert_eq!(
            [994, 995, 1001, 1007, 1008].map(state),
            [State::Warning, State::Ok, State::Ok, State::Ok, State::Warning]
        );
        assert!(
            skew(2000, 1000, 1002).found.contains("998 s ahead")
                && skew(10, 1000, 1002).found.contains("990 s behind")
        );
    }
}

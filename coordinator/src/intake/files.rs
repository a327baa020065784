//! Files of a manifest: finds them, and reads small ones completely.

use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::manifest::{Error, Manifest};
use lethe_store as store;
use lethe_store::Source;

use crate::failure::Failure;

/// Reads a small file from any address.
///
/// # Errors
/// [`Failure::BadInput`] when it is missing or larger than `most`; [`Failure::Infrastructure`] when a
/// store cannot be reached.
pub async fn read_file(
    place: &str,
    address: &Address,
    most: u64,
    cache: &Path,
) -> Result<Vec<u8>, Failure> {
    let wrong = |problem: String| Failure::input(Error::new(place, problem));
    let too_large =
        |size: u64| wrong(format!("{address} has {size} bytes, at most {most} are read"));
    if address.as_local().is_none() {
        // A larger file is not even downloaded.
        let source = Source::look(address).await.map_err(|error| missing(place, error))?;
        if source.bytes > most {
            return Err(too_large(source.bytes));
        }
    }
    let path =
        store::fetch_file(address, cache, None).await.map_err(|error| missing(place, error))?;
    let size = std::fs::metadata(&path)
        .map_err(|error| wrong(format!("{address} cannot be read: {error}")))?
        .len();
    if size > most {
        return Err(too_large(size));
    }
    std::fs::read(&path).map_err(|error| wrong(format!("{address} cannot be read: {error}")))
}

/// Returns the failure for a file that a manifest names: a missing file is an error in the
/// manifest, an unreachable store is not.
pub(super) fn missing(place: &str, error: store::Error) -> Failure {
    match error {
        store::Error::Unavailable { .. } => Failure::Infrastructure(format!("{place}: {error}")),
        other => Failure::input(Error::new(place, other.to_string())),
    }
}

/// Returns the files that patterns match, in the manifest's order, and by name within a pattern.
pub(super) async fn expand(
    manifest: &Manifest,
    field: &str,
    patterns: &[String],
) -> Result<Vec<Address>, Failure> {
    let mut addresses = Vec::new();
    for pattern in patterns {
        let pattern = manifest.address(field, pattern)?;
        let place = || format!("{}: {field}", manifest.file.display());
        addresses.extend(store::expand(&pattern).await.map_err(|error| missing(&place(), error))?);
    }
    Ok(addresses)
}

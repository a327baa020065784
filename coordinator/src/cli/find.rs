//! Finds the release that an argument names: a folder, or a name in a store.

use std::path::Path;

use lethe_shared::address::Address;
use lethe_store::Store;

use super::common::here;
use crate::failure::Failure;
use crate::release::lookup::{self, Wanted};
use crate::release::publish::{self, Published};
use crate::release::read::Release;

/// Environment variable with the default of `--store`. Without it, the default is ./store.
const VARIABLE: &str = "LETHE_STORE";
const FOLDER: &str = "store";

/// Returns whether an argument is a release's folder, and not a name.
pub(super) fn is_folder(text: &str) -> bool {
    text.contains(['/', '\\']) || Path::new(text).is_dir()
}

/// Returns the address of the store with the releases: `--store`, or `LETHE_STORE`, or ./store.
fn store_address(given: Option<&str>) -> Result<Address, Failure> {
    let variable = || std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let text = given.map(str::to_owned).or_else(variable).unwrap_or_else(|| FOLDER.to_owned());
    here("--store", &text)
}

/// Opens that store, without creating a missing folder.
///
/// # Errors
/// [`Failure::BadInput`] when the store does not exist.
pub(super) fn store(given: Option<&str>) -> Result<Store, Failure> {
    let address = store_address(given)?;
    // Opening a local store would create its folder.
    if address.as_local().is_some_and(|path| !path.is_dir()) {
        return Err(Failure::input(format!(
            "{address} is not a store; give the store of the releases with --store or {VARIABLE}"
        )));
    }
    Ok(Store::open(&address)?)
}

/// Finds a release by its name: NAME, NAME:NUMBER or NAME@CHANNEL in a store.
///
/// # Errors
/// [`Failure::BadInput`] when there is no such release.
pub(super) async fn published(
    text: &str,
    given: Option<&str>,
) -> Result<(Store, Published), Failure> {
    let wanted: Wanted =
        text.parse().map_err(|problem| Failure::input(format!("RELEASE: {problem}")))?;
    let store = store(given)?;
    let found = lookup::find(&store, &wanted).await?;
    Ok((store, found))
}

/// Opens a release by its folder or its name.
///
/// # Errors
/// [`Failure::BadInput`] when there is no such release.
pub(super) async fn release(text: &str, given: Option<&str>) -> Result<Release, Failure> {
    if is_folder(text) {
        return Release::open(&here("RELEASE", text)?).await;
    }
    let (store, found) = published(text, given).await?;
    publish::open(&store, &found).await
}

//! Which release a person means: a folder, or a name in a store.

use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::store::Store;

use super::here;
use crate::failure::Failure;
use crate::release::publish::{self, Published, Wanted};
use crate::release::read::Release;

/// What `--store` is without the option: as the programs that fill it have it, or the folder that a manifest beside it fills.
const VARIABLE: &str = "LETHE_STORE";
const FOLDER: &str = "store";

/// Whether a release is given by its folder, and not by a name.
pub(super) fn is_folder(text: &str) -> bool {
    text.contains(['/', '\\']) || Path::new(text).is_dir()
}

/// The store that releases are in: `--store`, or `LETHE_STORE`, or ./store.
fn store_address(given: Option<&str>) -> Result<Address, Failure> {
    let variable = || std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let text = given.map(str::to_owned).or_else(variable).unwrap_or_else(|| FOLDER.to_owned());
    here("--store", &text)
}

/// That store; a folder that is not there is none, and looking makes none.
///
/// # Errors
/// [`Failure::BadInput`] when it is no store.
pub(super) fn store(given: Option<&str>) -> Result<Store, Failure> {
    let address = store_address(given)?;
    // Opening a store makes its folder.
    if address.as_local().is_some_and(|path| !path.is_dir()) {
        return Err(Failure::input(format!("{address} is no store; --store (or {VARIABLE}) says where releases are")));
    }
    Ok(Store::open(&address)?)
}

/// A release by its name: NAME, NAME:NUMBER or NAME@CHANNEL in a store.
///
/// # Errors
/// [`Failure::BadInput`] when there is none.
pub(super) async fn published(text: &str, given: Option<&str>) -> Result<(Store, Published), Failure> {
    let wanted: Wanted = text.parse().map_err(|problem| Failure::input(format!("RELEASE: {problem}")))?;
    let store = store(given)?;
    let found = publish::find(&store, &wanted).await?;
    Ok((store, found))
}

/// A release by its folder or its name.
///
/// # Errors
/// [`Failure::BadInput`] when there is none.
pub(super) async fn release(text: &str, given: Option<&str>) -> Result<Release, Failure> {
    if is_folder(text) {
        return Release::open(&here("RELEASE", text)?).await;
    }
    let (store, found) = published(text, given).await?;
    publish::open(&store, &found).await
}

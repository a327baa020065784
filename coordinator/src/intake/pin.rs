//! Pins a manifest's `hf://` addresses: branches and tags become the commits that they have now.
//! Everything that follows then reads the same bytes, however the branches move.

use lethe_shared::address::Address;
use lethe_shared::manifest::Manifest;
use lethe_store::Pins;

use super::files::missing;
use crate::failure::Failure;

/// Returns a manifest with its `hf://` addresses pinned, and all others as they are. Addresses in a
/// concept table are pinned when the table is read.
///
/// # Errors
/// [`Failure::BadInput`] when an address is invalid, or a repository or revision does not exist or
/// may not be read; [`Failure::Infrastructure`] when the hub cannot be reached.
pub async fn pin(mut manifest: Manifest, pins: &Pins) -> Result<Manifest, Failure> {
    let original = manifest.clone();
    for (field, text) in manifest.inputs_mut() {
        if let Some(pinned) = pinned(&original, field, text, pins).await? {
            *text = pinned;
        }
    }
    for row in &mut manifest.concepts.list {
        let mut parts = Vec::new();
        for part in row.forget.split(';').map(str::trim) {
            let pinned = pinned(&original, "concepts.list", part, pins).await?;
            parts.push(pinned.unwrap_or_else(|| part.to_owned()));
        }
        row.forget = parts.join(";");
    }
    Ok(manifest)
}

/// Returns the pinned address of a text that names a model hub; `None` for any other text.
async fn pinned(
    manifest: &Manifest,
    field: &str,
    text: &str,
    pins: &Pins,
) -> Result<Option<String>, Failure> {
    if !text.starts_with("hf://") {
        return Ok(None);
    }
    let address = manifest.address(field, text)?;
    let place = format!("{}: {field}", manifest.file.display());
    Ok(Some(pin_address(&place, &address, pins).await?.to_string()))
}

/// Returns an address, pinned if it names a model hub. `place` names it in messages.
///
/// # Errors
/// As [`pin`].
pub async fn pin_address(place: &str, address: &Address, pins: &Pins) -> Result<Address, Failure> {
    pins.pin(address).await.map_err(|error| missing(place, error))
}

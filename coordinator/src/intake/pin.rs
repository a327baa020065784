//! Pins a manifest's `hf://` addresses: branches and tags become the commits that they have now.
//! Everything that follows then reads the same bytes, however the branches move.

use lethe_shared::address::Address;
use lethe_shared::manifest::{DataSection, Manifest, ReleaseSection};
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
    // All fields are listed, so that a new field with addresses fails to compile until it is handled
    // here.
    let DataSection {
        retain,
        retain_texts,
        retain_images,
        protect,
        validation,
        test,
        classes,
        template: _,
    } = &mut manifest.data;
    let ReleaseSection { uri: _, target, salt, names: _, license: _, base_model: _ } =
        &mut manifest.release;
    let mut fields = vec![("model.uri", &mut manifest.model.uri), ("data.classes", classes)];
    for (field, files) in [
        ("data.retain", retain),
        ("data.retain_texts", retain_texts),
        ("data.retain_images", retain_images),
        ("data.validation", validation),
        ("data.test", test),
    ] {
        fields.extend(files.iter_mut().map(|file| (field, file)));
    }
    fields.extend(protect.iter_mut().map(|file| ("data.protect", file)));
    fields.extend(manifest.concepts.table.iter_mut().map(|file| ("concepts.table", file)));
    fields.extend(target.iter_mut().map(|target| ("release.target", &mut target.uri)));
    fields.extend(salt.iter_mut().map(|file| ("release.salt", file)));
    for (field, text) in fields {
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

//! Gate files, and the signatures that gates require. [`gate_rules`](crate::compose::gate_rules)
//! checks the bounds.

use std::path::Path;

use lethe_shared::manifest::Gates;

use crate::attest::key::PublicKey;
use crate::failure::Failure;
use crate::release::read::Release;
use crate::release::signing;

/// Reads a gate file, and the key that it names, so that an error is found before the run.
///
/// # Errors
/// [`Failure::BadInput`] when the file or the key is invalid.
pub fn read(path: &Path) -> Result<Gates, Failure> {
    let gates = Gates::read(path)?;
    gates.signed_by.as_deref().map(PublicKey::read).transpose()?;
    Ok(gates)
}

/// Returns the missing signatures that gates require, one sentence each.
///
/// # Errors
/// [`Failure`] when a key or the store cannot be read.
pub async fn unsigned(
    gates: impl IntoIterator<Item = &Gates>,
    release: &Release,
) -> Result<Vec<String>, Failure> {
    let mut missed = Vec::new();
    for path in gates.into_iter().filter_map(|gates| gates.signed_by.as_ref()) {
        let problems = signing::check(release, &PublicKey::read(path)?).await?;
        missed.extend(
            problems.first().map(|problem| format!("signed_by {}: {problem}", path.display())),
        );
    }
    Ok(missed)
}

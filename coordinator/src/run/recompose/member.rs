//! A concept of a composition, with the release that its edit is from.

use lethe_shared::record::ConceptRecord;

use crate::failure::Failure;
use crate::release::read::Release;

/// A concept with the release that its edit is from.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) record: ConceptRecord,
    pub(super) from: Release,
}

impl Member {
    /// Returns the run that found the edit, unless it is `own`.
    pub(super) fn foreign_run(&self, own: &str) -> Option<String> {
        let run = self.record.run.as_ref().unwrap_or(&self.from.record.run);
        (run != own).then(|| run.clone())
    }
}

/// A release does not remove a concept.
pub(super) fn unknown(release: &Release, id: &str) -> Failure {
    let ids: Vec<&str> =
        release.record.concepts.iter().map(|concept| concept.id.as_str()).take(20).collect();
    Failure::input(format!(
        "{} removes no concept `{id}`; it removes {}",
        release.address(),
        ids.join(", ")
    ))
}

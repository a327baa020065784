//! Whether a release removes the concepts that its manifest requires. Pure: from the policy and a
//! record.
//!
//! A concept violates the policy if it has no edit, or if the composed model still recognises it.
//! Two kinds of concepts never do: those with a strength below 1, unless a list names them, and
//! those that the base model did not know.

use lethe_shared::manifest::Required;
use lethe_shared::record::Composition;
use lethe_shared::record::verdict::ConceptStatus;

/// Returns whether the concepts that a policy requires are removed.
pub fn is_satisfied(required: &Required, record: &Composition) -> bool {
    let count = |status| record.of_status(status).len();
    match required {
        Required::All(_) => record.missing.is_empty() && count(ConceptStatus::Showing) == 0,
        Required::Share(share) => {
            let removed = count(ConceptStatus::Removed) as f64;
            let left = record.missing.len() + count(ConceptStatus::Showing);
            removed >= share * (removed + left as f64)
        }
        Required::These(ids) => ids.iter().all(|id| {
            let concept = record.concepts.iter().find(|concept| concept.id == *id);
            let status = concept.map(|concept| record.verdict(concept).status);
            matches!(status, Some(ConceptStatus::Removed | ConceptStatus::UnknownBefore))
        }),
    }
}

/// Returns a message with the concepts that violate a policy, for the end of a run; `None` if every
/// concept has an edit and none is still recognised.
pub fn unmet(record: &Composition) -> Option<String> {
    let listed = |ids: Vec<String>| {
        let more = ids.len().saturating_sub(LISTED);
        let shown = ids.into_iter().take(LISTED).collect::<Vec<_>>().join(", ");
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    let missing: Vec<String> = record.missing.iter().map(|missing| missing.id.clone()).collect();
    let showing: Vec<String> =
        record.of_status(ConceptStatus::Showing).into_iter().map(|concept| concept.id).collect();
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} concepts are missing (no edit was found): {}",
            missing.len(),
            listed(missing)
        ));
    }
    if !showing.is_empty() {
        parts.push(format!(
            "{} concepts are still recognised by the composed model: {}",
            showing.len(),
            listed(showing)
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Number of ids in one sentence.
const LISTED: usize = 10;

#[cfg(test)]
mod tests {
    use lethe_shared::manifest::All;
    use lethe_shared::record::{ConceptRecord, Measured, Missing};

    use super::*;
    use crate::compose::gate_rules::tests::{concept, record};

    /// Returns a concept that the base model knew, with this strength and FA@5 in the composed
    /// model.
    fn known(id: &str, strength: f64, fa5: f64) -> ConceptRecord {
        let measured =
            |fa5| Measured { fa1: 0.0, fa5, within: None, held_out: None, utility: None };
        ConceptRecord {
            strength,
            before: measured(1.0),
            composed: Some(measured(fa5)),
            ..concept(id, 0.0, 0.0)
        }
    }

    fn of(concepts: Vec<ConceptRecord>, missing: &[&str]) -> Composition {
        let missing = missing
            .iter()
            .map(|id| Missing { id: (*id).to_owned(), reason: String::new() })
            .collect();
        Composition { concepts, missing, ..record() }
    }

    fn meets(record: &Composition) -> [bool; 4] {
        let these = Required::These(vec!["b".into()]);
        [Required::All(All::All), Required::Share(0.5), Required::Share(0.6), these]
            .map(|required| is_satisfied(&required, record))
    }

    #[test]
    fn what_still_shows_counts_as_what_is_missing() {
        let (gone, shows) = (|id| known(id, 1.0, 0.0), |id| known(id, 1.0, 0.25));
        assert_eq!(meets(&of(vec![gone("a"), gone("b")], &[])), [true, true, true, true]);
        assert_eq!(meets(&of(vec![shows("a"), gone("b")], &[])), [false, true, false, true]);
        assert_eq!(meets(&of(vec![gone("a"), shows("b")], &[])), [false, true, false, false]);
        assert_eq!(meets(&of(vec![gone("b")], &["a"])), [false, true, false, true]);
        assert_eq!(meets(&of(vec![gone("a")], &["b"])), [false, true, false, false]);
        assert!(
            is_satisfied(&Required::These(Vec::new()), &of(vec![shows("a")], &["b"])),
            "nothing is required"
        );
        let said = unmet(&of(vec![shows("a"), gone("b")], &["c"])).unwrap();
        assert_eq!(
            said,
            "1 concepts are missing (no edit was found): c; 1 concepts are still recognised by the composed model: a"
        );
        assert_eq!(unmet(&of(vec![gone("a")], &[])), None);
    }

    #[test]
    fn what_was_not_asked_to_be_gone_does_not_count() {
        let (weak, off, unknown) =
            (known("b", 0.5, 0.5), known("b", 0.0, 1.0), concept("b", 0.0, 0.0));
        let gone = || known("a", 1.0, 0.0);
        // A list that names a weakened concept requires its removal.
        assert_eq!(meets(&of(vec![gone(), weak], &[])), [true, true, true, false]);
        assert_eq!(meets(&of(vec![gone(), off], &[])), [true, true, true, false]);
        assert_eq!(meets(&of(vec![gone(), unknown], &[])), [true, true, true, true]);
    }
}

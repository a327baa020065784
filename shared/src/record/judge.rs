//! Judges every concept of a record by the numbers that are on record.

use super::measured::Measured;
use super::verdict::{ConceptStatus, Criterion, JudgedConcept, Verdict};
use super::{Composition, ConceptRecord};

impl Composition {
    /// Returns the criterion of a concept of this record. Records of earlier versions of Lethe
    /// contain no tolerance; it is then 0.
    pub fn criterion(&self, concept: &ConceptRecord) -> Criterion {
        concept.criterion.unwrap_or(Criterion { stop: self.search.stop, tolerance: 0.0 })
    }

    /// Returns the verdict on a concept by the numbers that are in the record now.
    pub fn verdict(&self, concept: &ConceptRecord) -> Verdict {
        verdict(self.criterion(concept), concept)
    }

    /// Stores the verdict of every concept in the record.
    pub fn judge(&mut self) {
        let verdicts: Vec<Verdict> =
            self.concepts.iter().map(|concept| self.verdict(concept)).collect();
        for (concept, verdict) in self.concepts.iter_mut().zip(verdicts) {
            concept.verdict = Some(verdict);
        }
    }

    /// Returns whether the base model knew a concept, by the concept's own criterion.
    pub fn was_known(&self, concept: &ConceptRecord) -> bool {
        !self.criterion(concept).is_met(&concept.before)
    }

    /// Returns the concepts with this status.
    pub fn of_status(&self, status: ConceptStatus) -> Vec<JudgedConcept> {
        let judged = |concept: &ConceptRecord| {
            let Verdict { status, reason } = self.verdict(concept);
            JudgedConcept { id: concept.id.clone(), status, reason }
        };
        self.concepts.iter().map(judged).filter(|concept| concept.status == status).collect()
    }

    /// Returns the concepts that were not removed although they were measured, and those whose edit
    /// is not applied: by status, then by id.
    pub fn not_removed(&self) -> Vec<JudgedConcept> {
        use ConceptStatus::{NotApplied, Showing, UnknownBefore, Weakened};
        [Showing, Weakened, UnknownBefore, NotApplied]
            .into_iter()
            .flat_map(|status| self.of_status(status))
            .collect()
    }
}

fn verdict(criterion: Criterion, concept: &ConceptRecord) -> Verdict {
    let measure = criterion.stop.measure();
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let found = |measured: &Measured| percent(criterion.share(measured));
    let allowed = percent(criterion.tolerance);
    let (status, reason) = match (&concept.composed, !criterion.is_met(&concept.before)) {
        _ if concept.strength == 0.0 => (
            ConceptStatus::NotApplied,
            "its strength is 0, so that its edit is not applied".to_owned(),
        ),
        (Some(composed), _) if !criterion.is_met(composed) && concept.strength < 1.0 => (
            ConceptStatus::Weakened,
            format!(
                "at strength {} {measure} is {} on its forget images, {} before the edit",
                concept.strength,
                found(composed),
                found(&concept.before)
            ),
        ),
        (Some(composed), _) if !criterion.is_met(composed) => (
            ConceptStatus::Showing,
            format!(
                "{measure} is {} on its forget images in the composed model, and may be {allowed} at most",
                found(composed)
            ),
        ),
        (_, false) => (
            ConceptStatus::UnknownBefore,
            format!(
                "{measure} was {} on its forget images before any edit, which is no more than the {allowed} that count as forgotten; check \
                 that these images show the concept's class",
                found(&concept.before)
            ),
        ),
        (None, true) => {
            (ConceptStatus::NotMeasured, "the composed model has not been measured".to_owned())
        }
        (Some(composed), true) => (
            ConceptStatus::Removed,
            format!(
                "{measure} went from {} to {} on its forget images, and may be {allowed} at most",
                found(&concept.before),
                found(composed)
            ),
        ),
    };
    Verdict { status, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::concept;
    use crate::vocabulary::Stop;

    /// The status of a concept: FA@1 and FA@5 before and composed, at a strength, by a criterion.
    fn status(
        stop: Stop,
        tolerance: f64,
        strength: f64,
        before: (f64, f64),
        composed: Option<(f64, f64)>,
    ) -> ConceptStatus {
        let measured =
            |(fa1, fa5)| Measured { fa1, fa5, within: None, held_out: None, utility: None };
        let concept = ConceptRecord {
            strength,
            before: measured(before),
            composed: composed.map(measured),
            ..concept()
        };
        verdict(Criterion { stop, tolerance }, &concept).status
    }

    #[test]
    fn a_concept_is_judged_by_its_own_measure_and_tolerance() {
        use ConceptStatus::{Removed, Showing};
        let known = (1.0, 1.0);
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, known, Some((0.0, 0.0))), Removed);
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, known, Some((0.0, 0.1))), Showing);
        assert_eq!(status(Stop::Fa1, 0.0, 1.0, known, Some((0.0, 0.9))), Removed);
        assert_eq!(status(Stop::Fa5, 0.2, 1.0, known, Some((0.0, 0.2))), Removed);
        assert_eq!(status(Stop::Fa5, 0.2, 1.0, known, Some((0.0, 0.25))), Showing);
        assert_eq!(
            status(Stop::Fa5, 0.2, 1.0, known, Some((0.0, f64::NAN))),
            Showing,
            "what is no number was not forgotten"
        );
    }

    #[test]
    fn strength_says_what_is_to_be_expected() {
        use ConceptStatus::{NotApplied, Removed, Showing, Weakened};
        let known = (1.0, 1.0);
        assert_eq!(status(Stop::Fa5, 0.0, 0.0, known, Some((0.0, 0.0))), NotApplied);
        assert_eq!(status(Stop::Fa5, 0.0, 0.5, known, Some((0.2, 0.4))), Weakened);
        assert_eq!(status(Stop::Fa5, 0.0, 0.5, known, Some((0.0, 0.0))), Removed);
        assert_eq!(status(Stop::Fa5, 0.0, 2.0, known, Some((0.2, 0.4))), Showing);
    }

    #[test]
    fn nothing_is_claimed_of_what_was_never_known() {
        use ConceptStatus::{NotMeasured, Removed, Showing, UnknownBefore};
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, (0.0, 0.0), Some((0.0, 0.0))), UnknownBefore);
        // Known by FA@5 and not by FA@1, which decides.
        assert_eq!(status(Stop::Fa1, 0.0, 1.0, (0.0, 0.8), Some((0.0, 0.0))), UnknownBefore);
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, (0.0, 0.8), Some((0.0, 0.0))), Removed);
        assert_eq!(status(Stop::Fa5, 0.3, 1.0, (0.0, 0.25), Some((0.0, 0.0))), UnknownBefore);
        // Edits can bring up what was not known.
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, (0.0, 0.0), Some((0.0, 0.5))), Showing);
        // Nobody needs to measure the composed model to tell that.
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, (0.0, 0.0), None), UnknownBefore);
        assert_eq!(status(Stop::Fa5, 0.0, 1.0, (0.0, 0.8), None), NotMeasured);
    }
}

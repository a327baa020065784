//! What a model recognises again.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::measurement::Hits;

use super::subject::accuracy;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::PlannedConcept;

/// What a model recognises again of removed concepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Recovered {
    /// FA@1 and FA@5 on the forget sets.
    forget: (f64, f64),
    /// TA@1 and TA@5 on held-out images of the removed classes, where there are some.
    unseen: Option<(f64, f64)>,
}

impl Recovered {
    /// Computes it from hits on the forget sets, and on the test or the validation set.
    pub(super) fn of(
        removed: &[&PlannedConcept],
        hits: &BTreeMap<String, Hits>,
    ) -> Result<Self, Failure> {
        let classes: BTreeSet<u32> =
            removed.iter().map(|planned| planned.concept.class_index).collect();
        let of_removed = |class: u32| classes.contains(&class);
        let set = [jobs::TEST, jobs::VALIDATION].into_iter().find_map(|set| hits.get(set));
        let shown = set.filter(|hits| hits.classes.keys().any(|&class| of_removed(class)));
        Ok(Self {
            forget: accuracy(removed, hits)?,
            unseen: shown.map(|hits| (hits.mean_top1(of_removed), hits.mean_top5(of_removed))),
        })
    }

    /// Returns whether more is back than in another model: on held-out images where there are
    /// some, because forget images may be among those that were learned.
    pub(super) fn is_more_than(&self, other: &Self) -> bool {
        let measure = |of: &Self| of.unseen.unwrap_or(of.forget);
        let ((one, five), (other_one, other_five)) = (measure(self), measure(other));
        (five, one) > (other_five, other_one)
    }

    /// Returns the numbers, with this before their names.
    pub(super) fn numbers(&self, prefix: &str) -> Vec<(String, f64)> {
        let mut numbers =
            vec![(format!("{prefix}fa1"), self.forget.0), (format!("{prefix}fa5"), self.forget.1)];
        if let Some((one, five)) = self.unseen {
            numbers.push((format!("{prefix}unseen-ta1"), one));
            numbers.push((format!("{prefix}unseen-ta5"), five));
        }
        numbers
    }
}

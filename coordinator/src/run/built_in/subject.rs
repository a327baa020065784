//! The model that built-in probes measure, and the numbers that several of them have.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;
use lethe_shared::record::verdict::Criterion;
use lethe_shared::record::{Group, Measured, UtilityOn};
use lethe_shared::reference::ArtifactRef;

use crate::compose::apply::{self, Change};
use crate::compose::measure::Judgement;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::run::context::Run;
use crate::run::judgement::{HeldOut, counted};

/// What is measured: the model of a run's plan under a change.
pub(crate) struct Subject<'a> {
    /// The plan with the base model; the run's own, unless the model is no release.
    pub(crate) base_plan: &'a Plan,
    /// The change of the model.
    pub(crate) change: &'a Change,
    /// The plan's concepts that have an edit.
    pub(crate) edited: &'a [&'a PlannedConcept],
    /// Hits of the base model on the held-out sets.
    pub(crate) base: &'a HeldOut,
}

impl Subject<'_> {
    /// Returns the concepts whose removal users want in some part.
    pub(super) fn removed(&self) -> Vec<&PlannedConcept> {
        self.edited.iter().copied().filter(|planned| planned.concept.strength > 0.0).collect()
    }
}

/// Numbers by name, and sentences about them.
#[derive(Default)]
pub(super) struct Found {
    pub(super) numbers: BTreeMap<String, f64>,
    pub(super) notes: Vec<String>,
}

impl Run<'_> {
    /// Stores a change for jobs; `None` when it changes nothing.
    pub(super) async fn stored(&self, change: &Change) -> Result<Option<ArtifactRef>, Failure> {
        if change.is_empty() {
            return Ok(None);
        }
        let file = apply::encode(&self.plan.checkpoint, change)?;
        Ok(Some(self.dispatcher.store.put_artifact(file.into()).await?))
    }

    /// Evaluates the model under another change than the subject's.
    pub(super) async fn under(
        &mut self,
        subject: &Subject<'_>,
        change: &Change,
        prefix: &str,
    ) -> Result<Found, Failure> {
        let encoded = self.stored(change).await?;
        let judgement = self.judge(subject.edited, subject.base, encoded).await?;
        Ok(Found { numbers: numbers(prefix, subject, &judgement), notes: Vec::new() })
    }
}

/// Returns FA@1 and FA@5 on the forget sets, averaged over concepts.
pub(super) fn accuracy(
    concepts: &[&PlannedConcept],
    hits: &BTreeMap<String, Hits>,
) -> Result<(f64, f64), Failure> {
    let (mut fa1, mut fa5) = (0.0, 0.0);
    for planned in concepts {
        let hits = counted(hits, planned)?;
        let own = |class: u32| class == planned.concept.class_index;
        fa1 += hits.mean_top1(own);
        fa5 += hits.mean_top5(own);
    }
    let count = concepts.len().max(1) as f64;
    Ok((fa1 / count, fa5 / count))
}

/// Returns the numbers of a judgement.
fn numbers(prefix: &str, subject: &Subject<'_>, judgement: &Judgement) -> BTreeMap<String, f64> {
    let removed = subject.removed();
    let measured: Vec<(&PlannedConcept, &Measured)> = removed
        .iter()
        .filter_map(|planned| Some((*planned, judgement.concepts.get(&planned.concept.id)?)))
        .collect();
    let count = measured.len().max(1) as f64;
    let mean = |share: fn(&Measured) -> f64| {
        measured.iter().map(|(_, measured)| share(measured)).sum::<f64>() / count
    };
    let is_forgotten = |(planned, measured): &&(&PlannedConcept, &Measured)| {
        Criterion { stop: planned.stop, tolerance: planned.tolerance }.is_met(measured)
    };
    let forgotten = measured.iter().filter(is_forgotten).count();
    let mut numbers = BTreeMap::from([
        (format!("{prefix}fa1"), mean(|measured| measured.fa1)),
        (format!("{prefix}fa5"), mean(|measured| measured.fa5)),
        (format!("{prefix}forgotten"), forgotten as f64 / count),
    ]);
    let utility = &judgement.utility;
    if let Some(on) = utility.test.as_ref().or(utility.validation.as_ref()) {
        let UtilityOn { covered, never_seen, .. } = on;
        for (name, group) in [("covered-kept", covered), ("never-seen-kept", never_seen)] {
            if let Some(Group { before, after, .. }) = group.filter(|of| of.before.ta1 > 0.0) {
                numbers.insert(format!("{prefix}{name}"), after.ta1 / before.ta1);
            }
        }
    }
    numbers
}

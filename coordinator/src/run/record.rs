//! Makes the record of a run's composition, and the summary of the run.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::manifest::Names;
use lethe_shared::record::verdict::{ConceptStatus, Criterion};
use lethe_shared::record::{
    self, Base, Composition, ConceptRecord, DataFile, Measured, Missing, TopPredictions,
};

use super::context::Run;
use super::edits::{EditedConcept, Edits};
use super::judgement::HeldOut;
use crate::compose::apply::{self, Change};
use crate::compose::measure::{self, Judgement, Spread};
use crate::compose::{merge, near_duplicates};
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::present::run_summary::{Phase, Summary};

/// Makes the record of a composition, except for the fields that writing the release adds.
pub(super) fn make_record(
    plan: &Plan,
    change: &Change,
    edits: &Edits<'_>,
    base: &HeldOut,
    mut judgement: Judgement,
) -> Result<Composition, Failure> {
    let found = &edits.found;
    let solved = edits.recipe.parts().iter().zip(edits.recipe.by_others());
    let solved = edits.recipe.coefficients().into_iter().zip(solved).map(
        |(coefficient, (part, by_others))| Solved { target: part.target, coefficient, by_others },
    );
    // Predictions contain names of classes.
    let plain = plan.manifest.release.names == Names::Plain;
    let record = |(found, solved): (&EditedConcept<'_>, Solved)| {
        let id = &found.planned.concept.id;
        let (composed, said) = (judgement.concepts.remove(id), judgement.said.remove(id));
        let within = judgement.within_before.remove(id);
        let before =
            found.said.as_ref().map(|said| measure::top_predictions(said, plan.classes.names()));
        let said = if plain { (before, said) } else { (None, None) };
        concept_record(found, solved, base, (within, composed), said)
    };
    let concepts = found.iter().zip(solved).map(record).collect();
    let mut record = Composition {
        version: record::VERSION,
        name: plan.manifest.name.clone(),
        run: plan.run.clone(),
        parent: None,
        base: Base { address: plan.model.address.to_string(), digest: plan.model.weights },
        // Replaced when the weights are written.
        digest: plan.model.weights,
        method: plan.manifest.composition.method().name().to_owned(),
        merge: merge::rule(&plan.manifest.composition),
        search: plan.settings.clone(),
        moments: edits.moments.clone(),
        concepts,
        missing: hidden(&edits.missing, plan),
        near_duplicates: near_duplicates::near_duplicates(&edits.recipe),
        utility: judgement.utility,
        recognition: judgement.recognition,
        protected: Vec::new(),
        layers: apply::sizes(&plan.checkpoint, change)?,
        change_bound: None,
        towers: Vec::new(),
        probes: Vec::new(),
        receipts_for_unknown: plan.manifest.policy.receipts_for_unknown,
        gates: Some(plan.manifest.gates.clone()).filter(|gates| !gates.is_empty()),
        origin: Some(plan.origin()),
        targets: Vec::new(),
        files: BTreeMap::new(),
    };
    record.judge();
    Ok(record)
}

/// Returns the missing concepts with reasons that name no file, because file names may contain
/// names to hide.
fn hidden(missing: &[Missing], plan: &Plan) -> Vec<Missing> {
    let hide = plan.manifest.release.names == Names::Hashed;
    let reason = |missing: &Missing| {
        if hide { "the run's log says why".to_owned() } else { missing.reason.clone() }
    };
    missing
        .iter()
        .map(|missing| Missing { id: missing.id.clone(), reason: reason(missing) })
        .collect()
}

/// Coefficient and predictions of one concept.
struct Solved {
    target: Option<f64>,
    coefficient: f64,
    by_others: Option<f64>,
}

fn concept_record(
    found: &EditedConcept<'_>,
    solved: Solved,
    base: &HeldOut,
    (within, composed): (Option<f64>, Option<Measured>),
    (predictions_before, predictions_composed): (Option<TopPredictions>, Option<TopPredictions>),
) -> ConceptRecord {
    let (concept, edit) = (&found.planned.concept, &found.edit);
    let class = concept.class_index;
    let before = measure::before(found.before, class, base.validation.as_ref(), within);
    let alone =
        found.alone.as_ref().map(|chosen| measure::alone(chosen, class, base.validation.as_ref()));
    let layer = found.ranking.iter().find(|layer| layer.layer == edit.layer);
    ConceptRecord {
        id: concept.id.clone(),
        name: concept.name.clone(),
        class: concept.class.clone(),
        group: concept.group.clone(),
        run: None,
        tower: edit.tower,
        layer: edit.layer.clone(),
        layers: if edit.layers.len() > 1 { edit.layers.clone() } else { Vec::new() },
        step: edit.step,
        relative_step: edit.relative_step,
        strength: concept.strength,
        coefficient: solved.coefficient,
        target: solved.target,
        by_others: solved.by_others,
        importance: layer.map_or(0.0, |layer| layer.importance),
        alignment: layer.map_or(0.0, |layer| layer.alignment),
        direction: edit.direction,
        rank: edit.rank,
        residual: edit.residual,
        gradients: found.gradients,
        criterion: Some(Criterion { stop: found.planned.stop, tolerance: found.planned.tolerance }),
        verdict: None,
        pairs: found.pairs,
        forget: found.planned.forget.iter().map(DataFile::from).collect(),
        before,
        alone,
        composed,
        predictions_before,
        predictions_composed,
        ranking: found.ranking.clone(),
        search: found.search.clone(),
    }
}

/// Makes the summary of a run.
pub(super) fn summarise(run: &Run<'_>, record: &Composition) -> Summary {
    let mut drops: Vec<(String, f64)> = record
        .concepts
        .iter()
        .filter_map(|c| Some((c.id.clone(), 100.0 * (c.before.utility? - c.alone?.utility?))))
        .collect();
    let utility_drop_alone = Spread::of(drops.iter().map(|(_, drop)| *drop).collect());
    drops.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    drops.truncate(10);
    let mut towers: BTreeMap<String, usize> = BTreeMap::new();
    for concept in &record.concepts {
        let name = match concept.towers().len() {
            2 => "both",
            _ => concept.tower.name(),
        };
        *towers.entry(name.to_owned()).or_default() += 1;
    }
    let mut phases = run.phases.clone();
    phases.push(Phase { name: "total".into(), seconds: run.began.elapsed().as_secs_f64() });
    Summary {
        concepts: run.plan.concepts.len(),
        edited: record.concepts.len(),
        forgotten_alone: record.forgotten_alone(),
        forgotten_composed: record.of_status(ConceptStatus::Removed).len(),
        not_removed: record.not_removed(),
        missing: record.missing.clone(),
        utility_drop_alone,
        costliest: drops,
        utility: record.utility.clone(),
        towers,
        phases,
        seconds_per_concept: Spread::of(run.concept_seconds.values().copied().collect()),
        stages: run.stages.clone(),
        peak_memory_bytes: run.peak_memory,
        jobs_found: run.found,
        jobs_done: run.done,
        arithmetic: run.arithmetic.iter().cloned().collect(),
    }
}

/// Returns a warning if the jobs of a run used several classes of arithmetic.
pub(super) fn mixed_arithmetic(classes: &BTreeSet<String>) -> Option<String> {
    let names: Vec<&str> = classes.iter().map(String::as_str).collect();
    (names.len() > 1).then(|| {
        format!(
            "machines of {} classes of arithmetic took part ({}): the digest depends on which worker did which job; \
             execution.arithmetic = \"same\" keeps a run to one class",
            names.len(),
            names.join(" / ")
        )
    })
}

//! The statistics of retained data that preconditioned edits need, and the layers that must not
//! move protected texts.

use std::collections::BTreeSet;

use bytes::Bytes;
use lethe_shared::record::Missing;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::SurveyOutput;

use super::context::{Run, concept_results};
use super::judgement::{HeldOut, held_out};
use crate::exec::batch::Batch;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::PlannedConcept;

/// The moments that correct and evaluate directions: one artifact per layer.
pub(super) struct Moments {
    /// The layers, of all towers that may change.
    pub(super) layers: BTreeSet<String>,
    pub(super) inverses: Vec<ArtifactRef>,
    /// None with a method that needs no efficiencies of layers.
    pub(super) cross_fit: Vec<ArtifactRef>,
}

/// What is known before any edit: the statistics, and the surveyed concepts.
pub(super) struct Surveyed<'a> {
    /// Hits of the unedited model.
    pub(super) base: HeldOut,
    pub(super) moments: Moments,
    pub(super) concepts: Vec<(&'a PlannedConcept, SurveyOutput)>,
    pub(super) missing: Vec<Missing>,
}

/// Computes the statistics, and surveys the layers for every concept.
pub(super) async fn survey<'a>(run: &mut Run<'a>) -> Result<Surveyed<'a>, Failure> {
    let plan = run.plan;
    let (gradient, base, moments) = statistics(run).await?;
    let mut missing = Vec::new();
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let ended =
        run.of_concepts("survey", jobs::surveys(plan, gradient, &moments.cross_fit)).await?;
    let concepts = concept_results(&concepts, ended, &mut missing)?;
    Ok(Surveyed { base, moments, concepts, missing })
}

/// Computes the retain gradient, the hits of the unedited model, and the second moments.
async fn statistics(run: &mut Run<'_>) -> Result<(ArtifactRef, HeldOut, Moments), Failure> {
    let plan = run.plan;
    let mut texts = Vec::new();
    for slice in &plan.retain_texts {
        let bytes = serde_json::to_vec(slice).map_err(Failure::input)?;
        texts.push(run.dispatcher.store.put_artifact(Bytes::from(bytes)).await?);
    }
    // The largest first, because the worker that takes the last job works on it alone.
    let (towers, mut batch) = (jobs::moments(plan, &texts), Batch::default());
    let tickets: Vec<_> = towers
        .into_iter()
        .map(|jobs| (jobs.tower, batch.add(jobs.paired), batch.add(jobs.unlabelled)))
        .collect();
    let gradients = batch.add(jobs::retain_gradients(plan));
    let base = batch.add(jobs::base_evaluation(plan, run.classes, run.removed));
    let mut results = run.must("statistics", &batch).await?;

    let mut batch = Batch::default();
    let reduced = batch.add([jobs::retain_reduce(plan, &results.take(&gradients)?)]);
    let (mut reduces, mut layers) = (Vec::new(), BTreeSet::new());
    for (tower, paired, unlabelled) in &tickets {
        let (paired, unlabelled) = (results.take(paired)?, results.take(unlabelled)?);
        reduces.extend(jobs::moments_reduces(plan, *tower, &paired, &unlabelled));
        layers.extend(paired.into_iter().flat_map(|sums| sums.layers.into_keys()));
    }
    let reduces = batch.add(reduces);
    let base = held_out(results.take(&base)?);
    let mut results = run.must("statistics", &batch).await?;
    let gradient = results.only(&reduced)?.gradient;
    let reduced = results.take(&reduces)?;
    let moments = Moments {
        layers,
        inverses: reduced.iter().map(|output| output.inverse).collect(),
        cross_fit: reduced.iter().filter_map(|output| output.cross_fit).collect(),
    };
    Ok((gradient, base, moments))
}

/// Makes directions on some text layers orthogonal to the inputs of protected texts. Adds the
/// preconditioners to `inverses`, and returns those inputs, for the composition.
pub(super) async fn protect(
    run: &mut Run<'_>,
    text_layers: Vec<String>,
    inverses: &mut Vec<ArtifactRef>,
) -> Result<Option<ArtifactRef>, Failure> {
    let Some(protected) = run.plan.protected.as_ref().filter(|_| !text_layers.is_empty()) else {
        return Ok(None);
    };
    let texts = serde_json::to_vec(&protected.prompts).map_err(Failure::input)?;
    let texts = run.dispatcher.store.put_artifact(Bytes::from(texts)).await?;
    let output =
        run.one("statistics", jobs::protect(run.plan, texts, text_layers, inverses)).await?;
    inverses.push(output.inverse);
    Ok(Some(output.inputs))
}

//! Edits by SLUG's full procedure: searches every layer on a concept's Pareto fronts, and takes the
//! best result.

use lethe_shared::record::Missing;
use lethe_shared::task::SearchOutput;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept, Edits, unsolved};
use super::judgement::{HeldOut, held_out};
use super::not_forgotten;
use crate::exec::batch::Batch;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let mut batch = Batch::default();
    let gradients = batch.add(jobs::retain_gradients(plan));
    let base = batch.add(jobs::base_evaluation(plan, run.classes, run.removed));
    let mut results = run.must("statistics", &batch).await?;
    let base = held_out(results.take(&base)?);
    let gradient = run
        .one("statistics", jobs::retain_reduce(plan, &results.take(&gradients)?))
        .await?
        .gradient;
    let ended = run.of_concepts("concepts", jobs::searches(plan, gradient, run.classes)).await?;
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (planned, result) in concept_results(&concepts, ended, &mut missing)? {
        match result.chosen {
            None => missing.push(Missing {
                id: planned.concept.id.clone(),
                reason: reason(plan, planned, &result),
            }),
            Some(chosen) => found.push(EditedConcept {
                planned,
                pairs: result.pairs,
                before: result.before,
                ranking: result.ranking,
                search: result.search,
                edit: ConceptEdit::of(&chosen, None),
                alone: Some(chosen),
                gradients: None,
                said: Some(result.said),
                thumbnails: result.thumbnails,
            }),
        }
    }
    let recipe = unsolved(&found)?;
    Ok((Edits { found, missing, recipe, moments: Vec::new(), protected: None }, base))
}

fn reason(plan: &Plan, planned: &PlannedConcept, result: &SearchOutput) -> String {
    let layers = result.ranking.iter().filter(|layer| layer.pareto).count();
    let tried = format!("none of {layers} front layers forgot");
    not_forgotten::reason(&tried, &result.search, planned.stop, plan.settings.search_evaluations)
}

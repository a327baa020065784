//! Edits by SLUG's full procedure: every layer on a concept's fronts is searched, the best answer is its edit.

use lethe_shared::outcome::{ConceptResult, RetainGradientResult, TaskResult};
use lethe_shared::record::Missing;

use super::{Edits, Found, HeldOut, Run, concept_results, mismatch, unsolved};
use crate::failure::Failure;
use crate::jobs;
use crate::plan::PlannedConcept;

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let (reduce, base, _) = run.statistics(&[]).await?;
    let TaskResult::RetainReduce(RetainGradientResult { gradient, .. }) = run.one("statistics", reduce).await? else {
        return Err(mismatch("retain-reduce"));
    };
    let ended = run.phase("concepts", &jobs::concepts(plan, gradient, run.classes)).await?;
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (planned, result) in concept_results(&concepts, ended, &mut missing)? {
        let TaskResult::Concept(result) = result else { return Err(mismatch("concept")) };
        match result.chosen {
            None => missing.push(Missing { id: planned.concept.id.clone(), reason: not_forgotten(run, &result) }),
            Some(chosen) => found.push(Found {
                planned,
                pairs: result.pairs,
                before: result.before,
                ranking: result.ranking,
                search: result.search,
                chosen,
                gradients: None,
                said: result.said,
                thumbnails: result.thumbnails,
            }),
        }
    }
    let recipe = unsolved(&found)?;
    Ok((Edits { found, missing, recipe, moments: Vec::new(), protected: None }, base))
}

fn not_forgotten(run: &Run<'_>, result: &ConceptResult) -> String {
    let layers = result.ranking.iter().filter(|layer| layer.pareto).count();
    let best = result.search.iter().map(|trial| trial.fa5).fold(f64::INFINITY, f64::min);
    format!(
        "none of {layers} front layers forgot within {} evaluations (lowest FA@5 {:.0} %); raise method.search_evaluations",
        run.plan.settings.search_evaluations,
        100.0 * best
    )
}

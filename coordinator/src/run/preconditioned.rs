//! Edits along preconditioned directions, with coefficients solved together
//! (`docs/composition.md`).
//!
//! The phases are:
//! 1. Collect the second moments of retained data.
//! 2. Survey the layers for every concept, and select the best layers for the run.
//! 3. Find each concept's direction on its layer, and its step alone (`directions.rs`).
//! 4. Compute the effect of each edit on each concept.
//! 5. Solve the coefficients together, and adjust the targets over some rounds of evaluation of the
//!    composed model.

use lethe_shared::edit::{self, Edit};
use lethe_shared::task::EffectsPart;
use lethe_shared::vocabulary::Tower;
use safetensors::SafeTensors;

use super::context::Run;
use super::directions::directions;
use super::edits::{EditedConcept, Edits, Stored, unsolved};
use super::judgement::{HeldOut, recognition};
use super::statistics::{Surveyed, protect, survey};
use crate::compose::effect_matrix::{Criterion, adjust};
use crate::compose::recipe::Recipe;
use crate::compose::{layers, near_duplicates};
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::PlannedConcept;

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let Surveyed { base, moments, concepts: surveyed, mut missing } = survey(run).await?;
    let rankings: Vec<&[_]> =
        surveyed.iter().map(|(_, survey)| survey.ranking.as_slice()).collect();
    let assignment =
        layers::assign(&rankings, plan.manifest.composition.layers as usize, plan.layers.as_ref());

    let mut inverses = moments.inverses;
    let of_texts = |name: &&String| {
        rankings
            .iter()
            .copied()
            .flatten()
            .any(|layer| layer.layer == **name && layer.tower == Tower::Text)
    };
    let text_layers = assignment.layers.iter().filter(of_texts).cloned().collect();
    let protected = protect(run, text_layers, &mut inverses).await?;
    let found = directions(run, surveyed, &assignment, &inverses, &mut missing).await?;
    let recipe = if found.is_empty() {
        unsolved(&found)?
    } else {
        solve(run, &found, &assignment.layers).await?
    };
    Ok((Edits { found, missing, recipe, moments: inverses, protected }, base))
}

/// Solves all coefficients together, and adjusts the target of each concept by its measurement in
/// the composed model. Returns the recipe with the fewest concepts still recognised, and among those
/// with the least cost.
async fn solve(
    run: &mut Run<'_>,
    found: &[EditedConcept<'_>],
    layers: &[String],
) -> Result<Recipe, Failure> {
    let plan = run.plan;
    let mut recipe = recipe(run, found, layers).await?;
    for group in near_duplicates::near_duplicates(&recipe) {
        let names = group.join(", ");
        tracing::warn!(
            "the model hardly tells these concepts apart, what removes one goes far towards removing the others: {names}"
        );
    }
    let rounds = plan.manifest.composition.rounds;
    if rounds == 0 {
        return Ok(recipe);
    }
    let stored = Stored::of(plan, run.dispatcher);
    let mut wanted: Vec<f64> = recipe.parts().iter().filter_map(|part| part.target).collect();
    let others = plan.classes.names().len().saturating_sub(1) as u32;
    let criterion = |found: &EditedConcept<'_>| Criterion {
        tolerance: found.planned.tolerance,
        top: u64::from(found.planned.stop.rank(others)),
    };
    let criteria: Vec<Criterion> = found.iter().map(criterion).collect();
    let planned: Vec<&PlannedConcept> = found.iter().map(|found| found.planned).collect();
    let mut best: Option<(usize, f64, Vec<f64>)> = None;
    for round in 0..=rounds {
        recipe = recipe.with_targets(&wanted);
        let edits = recipe.edits();
        let (_, change) = run.compose(&edits, &stored).await?;
        let measured = recognition(run, &planned, change, None).await?;
        // Only concepts with strength 1 are expected to be forgotten.
        let judged = |i: usize| found[i].planned.concept.strength == 1.0;
        let recognised = (0..found.len())
            .filter(|&i| judged(i) && measured[i].share > criteria[i].tolerance)
            .count();
        let steps: Vec<f64> = edits.iter().map(Edit::factor).collect();
        let cost = recipe
            .effect_matrix()
            .map_or(0.0, |effect_matrix| effect_matrix.predicted_cost(&steps));
        if best.as_ref().is_none_or(|(least, cheapest, _)| {
            recognised < *least || (recognised == *least && cost < *cheapest)
        }) {
            best = Some((recognised, cost, wanted.clone()));
        }
        tracing::info!(round, recognised, cost, "coefficients");
        let before = wanted.clone();
        adjust(&mut wanted, &measured, &criteria);
        for i in (0..found.len()).filter(|&i| !judged(i)) {
            wanted[i] = before[i];
        }
        if wanted == before {
            break;
        }
    }
    Ok(match best {
        Some((_, _, wanted)) => recipe.with_targets(&wanted),
        None => recipe,
    })
}

/// Returns the recipe whose targets are the first-order effects of each edit alone.
async fn recipe(
    run: &mut Run<'_>,
    found: &[EditedConcept<'_>],
    layers: &[String],
) -> Result<Recipe, Failure> {
    let part = |found: &EditedConcept<'_>| {
        let without = || {
            Failure::Infrastructure(format!(
                "concept {} has no gradients to solve coefficients with",
                found.planned.concept.id
            ))
        };
        let gradients = found.gradients.ok_or_else(without)?;
        Ok(EffectsPart {
            layer: found.edit.layer.clone(),
            gradients,
            direction: found.edit.direction,
        })
    };
    let parts = found.iter().map(part).collect::<Result<Vec<_>, Failure>>()?;
    let result = run.one("doses", jobs::effects(run.plan, layers, parts)).await?;
    let file = run.dispatcher.artifact(&run.plan.run, &result.effect).await?;
    let damaged = |problem: String| {
        Failure::Infrastructure(format!("artifact {}: {problem}", result.effect.digest))
    };
    let parsed = SafeTensors::deserialize(&file).map_err(|error| damaged(error.to_string()))?;
    let view = parsed.tensor("effect").map_err(|error| damaged(error.to_string()))?;
    let effect = edit::widen("effect", view.data(), view.dtype())?;
    let own = |i: usize| effect.get(i * found.len() + i).copied().unwrap_or(f64::NAN);
    let parts =
        (0..found.len()).map(|i| found[i].part(Some(found[i].edit.step * own(i)))).collect();
    Recipe::solved(parts, effect).map_err(damaged)
}

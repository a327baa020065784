//! Edits along corrected directions, with doses solved together (`docs/composition.md`).
//!
//! Second moments of what must stay are gathered once; every concept is surveyed for the layers that serve it; the run takes the
//! best of them; each concept's direction and its step alone are found on its layer; what each edit does to each concept is
//! worked out; doses are solved together, and adjusted over some rounds of looking at the composed model.

use std::collections::VecDeque;

use bytes::Bytes;
use lethe_shared::edit::{self, Edit};
use lethe_shared::job::{ArtifactRef, InterferencePart, Job, MomentsPart};
use lethe_shared::manifest::Stop;
use lethe_shared::outcome::{Hits, Outcome, RankedLayer, SurveyResult, TaskResult, Tower};
use lethe_shared::record::Missing;
use safetensors::SafeTensors;

use super::{Edits, Found, HeldOut, Run, Stored, concept_results, mismatch, unsolved};
use crate::dosing::{Aim, Seen, adjust};
use crate::failure::Failure;
use crate::plan::PlannedConcept;
use crate::recipe::Recipe;
use crate::{clusters, jobs, layers};

/// What directions are corrected by and judged on, one artifact per tower that may change.
struct Moments {
    inverses: Vec<ArtifactRef>,
    folds: Vec<ArtifactRef>,
}

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let (gradient, base, moments) = statistics(run).await?;
    let mut missing = Vec::new();

    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let ended = run.phase("survey", &jobs::surveys(plan, gradient, &moments.folds)).await?;
    let mut surveyed: Vec<(&PlannedConcept, SurveyResult)> = Vec::new();
    for (planned, result) in concept_results(&concepts, ended, &mut missing)? {
        let TaskResult::Survey(result) = result else { return Err(mismatch("survey")) };
        surveyed.push((planned, result));
    }
    let rankings: Vec<&[_]> = surveyed.iter().map(|(_, survey)| survey.ranking.as_slice()).collect();
    let assignment = layers::assign(&rankings, plan.manifest.composition.layers as usize, plan.layers.as_ref());

    let mut inverses = moments.inverses;
    let protected = protect(run, &rankings, &assignment, &mut inverses).await?;
    let found = directions(run, surveyed, &assignment, &inverses, &mut missing).await?;
    let recipe = if found.is_empty() { unsolved(&found)? } else { dose(run, &found).await? };
    Ok((Edits { found, missing, recipe, moments: inverses, protected }, base))
}

/// The retain gradient, the hits of the unedited model, and the second moments.
async fn statistics(run: &mut Run<'_>) -> Result<(ArtifactRef, HeldOut, Moments), Failure> {
    let plan = run.plan;
    let mut texts = Vec::new();
    for slice in &plan.retain_texts {
        let bytes = serde_json::to_vec(slice).map_err(Failure::input)?;
        texts.push(run.dispatcher.store.put_artifact(Bytes::from(bytes)).await?);
    }
    let towers = jobs::moments(plan, &texts);
    let sums: Vec<Job> = towers.iter().flat_map(|tower| tower.paired.iter().chain(&tower.unlabelled)).cloned().collect();
    let (reduce, base, outcomes) = run.statistics(&sums).await?;
    let part = |outcome: Outcome| match outcome.result {
        TaskResult::Moments(part) => Ok(part),
        _ => Err(mismatch("moments")),
    };
    let mut parts = outcomes.into_iter().map(part).collect::<Result<VecDeque<MomentsPart>, _>>()?;
    let mut reduces = vec![reduce];
    for tower in &towers {
        let paired = parts.drain(..tower.paired.len()).collect();
        let unlabelled = parts.drain(..tower.unlabelled.len()).collect();
        reduces.push(jobs::moments_reduce(plan, paired, unlabelled));
    }
    let (mut gradient, mut moments) = (None, Moments { inverses: Vec::new(), folds: Vec::new() });
    for outcome in run.must("statistics", &reduces).await? {
        match outcome.result {
            TaskResult::RetainReduce(result) => gradient = Some(result.gradient),
            TaskResult::MomentsReduce(result) => {
                moments.inverses.push(result.inverse);
                moments.folds.push(result.folds);
            }
            _ => return Err(mismatch("moments-reduce")),
        }
    }
    Ok((gradient.ok_or_else(|| mismatch("retain-reduce"))?, base, moments))
}

/// Turns directions on the run's text layers aside from what must not change; what that is, for whoever composes.
async fn protect(
    run: &mut Run<'_>,
    rankings: &[&[RankedLayer]],
    assignment: &layers::Assignment,
    inverses: &mut Vec<ArtifactRef>,
) -> Result<Option<ArtifactRef>, Failure> {
    let Some(protected) = &run.plan.protected else { return Ok(None) };
    let of_texts = |name: &&String| rankings.iter().copied().flatten().any(|layer| layer.layer == **name && layer.tower == Tower::Text);
    let layers: Vec<String> = assignment.layers.iter().filter(of_texts).cloned().collect();
    if layers.is_empty() {
        return Ok(None);
    }
    let texts = serde_json::to_vec(&protected.prompts).map_err(Failure::input)?;
    let texts = run.dispatcher.store.put_artifact(Bytes::from(texts)).await?;
    match run.one("statistics", jobs::protect(run.plan, texts, layers, inverses)).await? {
        TaskResult::Protect(result) => {
            inverses.push(result.inverse);
            Ok(Some(result.inputs))
        }
        _ => Err(mismatch("protect")),
    }
}

async fn directions<'a>(
    run: &mut Run<'a>,
    surveyed: Vec<(&'a PlannedConcept, SurveyResult)>,
    assignment: &layers::Assignment,
    inverses: &[ArtifactRef],
    missing: &mut Vec<Missing>,
) -> Result<Vec<Found<'a>>, Failure> {
    let plan = run.plan;
    let (mut tasks, mut concepts, mut surveys) = (Vec::new(), Vec::new(), Vec::new());
    for ((planned, survey), layer) in surveyed.into_iter().zip(&assignment.of) {
        match layer {
            Some(layer) => {
                tasks.push(jobs::direction(plan, planned, layer, &assignment.layers, inverses, run.classes));
                concepts.push(planned);
                surveys.push(survey);
            }
            None => {
                let reason = "no layer of the towers that may change has second moments; see composition.towers".to_owned();
                missing.push(Missing { id: planned.concept.id.clone(), reason });
            }
        }
    }
    let ended = run.phase("concepts", &tasks).await?;
    let mut lost = Vec::new();
    let results = concept_results(&concepts, ended, &mut lost)?;
    let mut surveys: Vec<(&PlannedConcept, SurveyResult)> = concepts.into_iter().zip(surveys).collect();
    surveys.retain(|(planned, _)| !lost.iter().any(|missing| missing.id == planned.concept.id));
    missing.extend(lost);
    let mut found = Vec::new();
    for ((planned, result), (_, survey)) in results.into_iter().zip(surveys) {
        let TaskResult::Direction(result) = result else { return Err(mismatch("direction")) };
        let Some(chosen) = result.chosen else {
            let best = result.search.iter().map(|trial| trial.fa5).fold(f64::INFINITY, f64::min);
            let reason = format!(
                "no step on its layer forgot within {} evaluations (lowest FA@5 {:.0} %); raise method.search_evaluations",
                plan.settings.search_evaluations,
                100.0 * best
            );
            missing.push(Missing { id: planned.concept.id.clone(), reason });
            continue;
        };
        found.push(Found {
            planned,
            pairs: survey.pairs,
            before: result.before,
            ranking: survey.ranking,
            search: result.search,
            chosen,
            gradients: Some(result.gradients),
            said: result.said,
            thumbnails: result.thumbnails,
        });
    }
    Ok(found)
}

/// Solves all doses together, and adjusts what is wanted of each concept by how it fares in the composed model. The targets kept are
/// those that leave the fewest concepts showing, and cost least among those.
async fn dose(run: &mut Run<'_>, found: &[Found<'_>]) -> Result<Recipe, Failure> {
    let plan = run.plan;
    let mut recipe = recipe(run, found).await?;
    for group in clusters::near_duplicates(&recipe) {
        let names = group.join(", ");
        tracing::warn!("the model hardly tells these concepts apart, what removes one goes far towards removing the others: {names}");
    }
    let rounds = plan.manifest.composition.rounds;
    if rounds == 0 {
        return Ok(recipe);
    }
    let stored = Stored::of(plan, run.dispatcher);
    let mut wanted: Vec<f64> = recipe.parts().iter().filter_map(|part| part.target).collect();
    let aim = |found: &Found<'_>| {
        let top = match found.planned.stop {
            Stop::Fa1 => 1,
            Stop::Fa5 => 5,
        };
        Aim { tolerance: found.planned.tolerance, top }
    };
    let aims: Vec<Aim> = found.iter().map(aim).collect();
    let mut best: Option<(usize, f64, Vec<f64>)> = None;
    for round in 0..=rounds {
        recipe = recipe.with_targets(&wanted);
        let edits = recipe.edits();
        let seen = look(run, found, &edits, &stored).await?;
        // Only what is applied as found is expected to be gone.
        let judged = |i: usize| found[i].planned.concept.strength == 1.0;
        let showing = (0..found.len()).filter(|&i| judged(i) && seen[i].share > aims[i].tolerance).count();
        let steps: Vec<f64> = edits.iter().map(Edit::factor).collect();
        let cost = recipe.interference().map_or(0.0, |interference| interference.predicted_cost(&steps));
        if best.as_ref().is_none_or(|(least, cheapest, _)| showing < *least || (showing == *least && cost < *cheapest)) {
            best = Some((showing, cost, wanted.clone()));
        }
        tracing::info!(round, showing, cost, "doses");
        let before = wanted.clone();
        adjust(&mut wanted, &seen, &aims);
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

/// The recipe with what each edit achieved alone as its target, to first order.
async fn recipe(run: &mut Run<'_>, found: &[Found<'_>]) -> Result<Recipe, Failure> {
    let part = |found: &Found<'_>| {
        let gradients = found.gradients.ok_or_else(|| mismatch("direction"))?;
        Ok(InterferencePart { layer: found.chosen.answer.layer.clone(), gradients, direction: found.chosen.direction })
    };
    let parts = found.iter().map(part).collect::<Result<Vec<_>, Failure>>()?;
    let TaskResult::Interference(result) = run.one("doses", jobs::interference(run.plan, parts)).await? else {
        return Err(mismatch("interference"));
    };
    let file = run.dispatcher.artifact(&run.plan.run, &result.effect).await?;
    let damaged = |problem: String| Failure::Infrastructure(format!("artifact {}: {problem}", result.effect.digest));
    let parsed = SafeTensors::deserialize(&file).map_err(|error| damaged(error.to_string()))?;
    let view = parsed.tensor("effect").map_err(|error| damaged(error.to_string()))?;
    let effect = edit::widen("effect", view.data(), view.dtype())?;
    let own = |i: usize| effect.get(i * found.len() + i).copied().unwrap_or(f64::NAN);
    let parts = (0..found.len()).map(|i| found[i].part(Some(found[i].chosen.answer.step * own(i)))).collect();
    Recipe::solved(parts, effect).map_err(damaged)
}

/// How each concept fares in the model composed of these edits.
async fn look(run: &mut Run<'_>, found: &[Found<'_>], edits: &[Edit], stored: &Stored<'_>) -> Result<Vec<Seen>, Failure> {
    let (_, change) = run.compose(edits, stored).await?;
    let planned: Vec<&PlannedConcept> = found.iter().map(|found| found.planned).collect();
    let outcomes = run.must("doses", &jobs::forget_evaluation(run.plan, &planned, change, run.classes)).await?;
    let (mut hits, mut best) = (std::collections::BTreeMap::new(), std::collections::BTreeMap::new());
    for outcome in outcomes {
        let TaskResult::Evaluate(result) = outcome.result else { return Err(mismatch("evaluate")) };
        hits.extend(result.items);
        best.extend(result.best);
    }
    let empty = Hits::default();
    let seen = |found: &Found<'_>| {
        let item = jobs::forget_item(&found.planned.concept.id);
        let hits = hits.get(&item).unwrap_or(&empty);
        let own = |class: u32| class == found.planned.concept.class_index;
        let share = match found.planned.stop {
            Stop::Fa1 => hits.mean_top1(own),
            Stop::Fa5 => hits.mean_top5(own),
        };
        Seen { share, best: best.get(&item).copied().unwrap_or(0) }
    };
    Ok(found.iter().map(seen).collect())
}

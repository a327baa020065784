//! Each concept's direction on its layer, and its step alone; on its next layer where no step
//! forgets the concept.
//!
//! Where the concept has no answer on any of the run's layers, its best layers beyond them are
//! tried. Concepts have gradients at the run's layers, so the effect of an edit on another layer is
//! known for its own concept only. The rounds that follow measure all of them together.

use std::collections::BTreeMap;

use lethe_shared::measurement::Trial;
use lethe_shared::record::Missing;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{DirectionOutput, SurveyOutput};
use lethe_shared::vocabulary::Tower;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept};
use super::not_forgotten;
use crate::compose::layers::Assignment;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// A concept whose direction is searched.
struct Attempt<'a, 'l> {
    /// Its position among the concepts.
    position: usize,
    planned: &'a PlannedConcept,
    survey: SurveyOutput,
    /// The layers to try, in order.
    layers: Vec<&'l str>,
    /// The trials on earlier layers.
    search: Vec<Trial>,
}

impl<'a> Attempt<'a, '_> {
    /// Returns the tower of a layer.
    fn tower(&self, layer: &str) -> Tower {
        let ranked = self.survey.ranking.iter().find(|ranked| ranked.layer == layer);
        ranked.map_or(Tower::Text, |ranked| ranked.tower)
    }

    /// Takes the result of a search. Returns the edit, or the attempt when no step forgot.
    fn end(mut self, result: DirectionOutput) -> Result<EditedConcept<'a>, Self> {
        self.search.extend(result.search);
        let Some(chosen) = result.chosen else { return Err(self) };
        Ok(EditedConcept {
            planned: self.planned,
            pairs: self.survey.pairs,
            before: result.before,
            ranking: self.survey.ranking,
            search: self.search,
            edit: ConceptEdit::of(&chosen, Some((result.rank, result.residual))),
            alone: Some(chosen),
            gradients: Some(result.gradients),
            said: Some(result.said),
            thumbnails: result.thumbnails,
        })
    }

    /// Returns why there is no edit.
    fn missing(&self, plan: &Plan) -> Missing {
        let tried = match self.layers.len() {
            1 => "no step on its layer forgot".to_owned(),
            several => format!("no step on any of the {several} layers tried forgot"),
        };
        let evaluations = plan.settings.search_evaluations;
        let mut reason =
            not_forgotten::reason(&tried, &self.search, self.planned.stop, evaluations);
        if !may_go_further(plan) {
            reason.push_str(
                "; with data.protect only the run's layers are tried, composition.layers adds some",
            );
        }
        Missing { id: self.planned.concept.id.clone(), reason }
    }
}

/// Returns whether layers beyond those of the run may be tried. Directions are orthogonal to
/// protected texts at the run's layers only.
fn may_go_further(plan: &Plan) -> bool {
    plan.protected.is_none()
}

/// Finds the directions of all concepts. Concepts without one are added to `missing`.
pub(super) async fn directions<'a>(
    run: &mut Run<'a>,
    surveyed: Vec<(&'a PlannedConcept, SurveyOutput)>,
    assignment: &Assignment,
    inverses: &[ArtifactRef],
    missing: &mut Vec<Missing>,
) -> Result<Vec<EditedConcept<'a>>, Failure> {
    let plan = run.plan;
    let mut waiting = Vec::new();
    let layers_of = assignment.of.iter().zip(&assignment.further);
    for (position, ((planned, survey), (of, further))) in
        surveyed.into_iter().zip(layers_of).enumerate()
    {
        let further = further.iter().filter(|_| may_go_further(plan));
        let layers: Vec<&str> = of.iter().chain(further).map(String::as_str).collect();
        if layers.is_empty() {
            let reason =
                "no layer of the towers that may change has second moments; see composition.towers"
                    .to_owned();
            missing.push(Missing { id: planned.concept.id.clone(), reason });
        } else {
            waiting.push(Attempt { position, planned, survey, layers, search: Vec::new() });
        }
    }
    let (mut found, mut next) = (BTreeMap::new(), 0);
    while !waiting.is_empty() {
        let task = |attempt: &Attempt<'_, '_>| {
            let layer = attempt.layers[next];
            let mut kept = assignment.layers.clone();
            if !kept.iter().any(|known| known == layer) {
                kept.push(layer.to_owned());
            }
            let at = (layer, attempt.tower(layer));
            jobs::direction(plan, attempt.planned, at, &kept, inverses, run.classes)
        };
        let tasks = waiting.iter().map(task).collect();
        let ended = run.of_concepts("concepts", tasks).await?;
        next += 1;
        let mut again = Vec::new();
        for (attempt, end) in waiting.into_iter().zip(ended) {
            let mut result = concept_results(&[attempt.planned], vec![end], missing)?;
            let Some((_, result)) = result.pop() else { continue };
            let position = attempt.position;
            match attempt.end(result) {
                Ok(edit) => _ = found.insert(position, edit),
                Err(attempt) if next < attempt.layers.len() => again.push(attempt),
                Err(attempt) => missing.push(attempt.missing(plan)),
            }
        }
        waiting = again;
    }
    Ok(found.into_values().collect())
}

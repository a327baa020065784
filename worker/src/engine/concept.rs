//! One concept: its gradient, the ranking of every candidate layer, the search on each front layer, the choice.

use std::collections::HashMap;

use lethe_shared::edit;
use lethe_shared::job::{ConceptTask, ModelRef, ShardRef};
use lethe_shared::manifest::Towers;
use lethe_shared::outcome::{Chosen, ConceptResult, RankedLayer, Tower};
use tch::Tensor;

use super::data;
use super::ground::{Forget, Judges};
use super::model::Model;
use super::moments::Matrices;
use super::retain::RetainGradient;
use super::{Error, Scope, Stages, thumbnails};
use crate::model::ParameterId;
use crate::model::weights::tensor_to_bytes;
use crate::slug::choice::choose;
use crate::slug::factors::Factors;
use crate::slug::gradient::{GradientSum, Images, Loss};
use crate::slug::ranking::{Scores, pareto_front};
use crate::slug::search::{FrontLayer, search_layer};
use crate::slug::witness::Witnesses;

/// A candidate layer with what its ranking needs.
pub(super) struct Candidate {
    id: ParameterId,
    name: String,
    tower: Tower,
    scores: Scores,
    gradient: Tensor,
    pareto: bool,
    efficiency: Option<f64>,
}

impl Candidate {
    pub(super) fn ranked(self) -> RankedLayer {
        RankedLayer {
            layer: self.name,
            tower: self.tower,
            importance: self.scores.importance,
            alignment: self.scores.alignment(),
            cosine: self.scores.cosine,
            pareto: self.pareto,
            efficiency: self.efficiency,
        }
    }
}

/// η of a layer, judged on the half of the retain set that did not shape the direction; `None` without moments.
fn efficiency(folds: &Matrices, layer: &str, gradient: &Tensor) -> Result<Option<f64>, Error> {
    let of = |side: &str| Some((folds.get(&format!("{layer}.{side}.inverse"))?, folds.get(&format!("{layer}.{side}.moment"))?));
    let Some((inverse, moment)) = of("inputs") else { return Ok(None) };
    let outputs = of("outputs");
    let outputs = outputs.as_ref().map(|(inverse, moment)| (inverse, moment));
    let (gained, moved) = Factors::spanning(gradient)?.gained_and_moved(outputs, (&inverse, &moment))?;
    Ok(Some(if moved > 0.0 { gained / moved.sqrt() } else { 0.0 }))
}

/// Finds the edit of one concept.
pub(super) fn find_edit(scope: Scope<'_>, reference: &ModelRef, task: &ConceptTask, stages: &mut Stages) -> Result<ConceptResult, Error> {
    let model = stages.time("model", || Model::of(scope, reference))?;
    let judges = Judges::of(scope, &model, reference, &task.classes, &task.validation, Towers::Both, stages)?;
    let retain = stages.time("retain gradient", || RetainGradient::of(scope, &task.retain_gradient))?;
    let weights = model.parameters.weights();

    let layers = model.candidates(Towers::Both, task.method.normalisation_gains);
    let batch = task.method.batch_size;
    let (forget, pairs) = stages.time("gradient", || forget_gradient(scope, &model, reference, layers, &task.forget, batch))?;
    let gradients: HashMap<ParameterId, Tensor> = forget.mean(&weights)?.into_iter().collect();
    let _guard = tch::no_grad_guard();
    let candidates = stages.time("ranking", || rank(&model, &gradients, &retain, None, task.layers.as_deref()))?;

    let forget_images = Forget::of(scope, &model, reference, &judges, task.class, &task.forget, Towers::Both)?;
    let (ground, subject) = (judges.ground(scope, &model), forget_images.subject());
    let witnesses = Witnesses::of(ground, &subject, task.method.stop)?;
    let (mut trials, mut found) = (Vec::new(), Vec::new());
    for candidate in candidates.iter().filter(|candidate| candidate.pareto) {
        scope.check()?;
        let layer = FrontLayer { id: candidate.id, scores: candidate.scores, gradient: &candidate.gradient };
        let stage = format!("search {}", candidate.tower.name());
        let (tried, answer) = stages.time(&stage, || Ok(search_layer(ground, &subject, &layer, &task.method, witnesses.as_ref())?))?;
        trials.extend(tried);
        found.extend(answer);
    }
    let best = stages.time("choice", || choose(ground, &subject, found, task.method.stop, &mut trials, || scope.check()))?;

    let chosen = match best {
        None => None,
        Some(answer) => {
            let spec = model.clip.architecture().spec(answer.id);
            let shape: Vec<usize> = spec.shape.iter().map(|&n| n as usize).collect();
            let file = edit::encode_direction(&spec.name, &shape, &tensor_to_bytes(&gradients[&answer.id])?)
                .map_err(|error| Error::Input(error.to_string()))?;
            let direction = stages.time("store", || scope.put(file))?;
            Some(Chosen { answer: answer.summary, direction, validation: answer.validation })
        }
    };
    let ranking = candidates.into_iter().map(Candidate::ranked).collect();
    Ok(ConceptResult {
        pairs,
        forget_loss: forget.loss(),
        before: forget_images.before,
        ranking,
        search: trials,
        chosen,
        said: Some(forget_images.answers),
        thumbnails: stages.time("thumbnails", || thumbnails::of(scope, &task.forget))?,
    })
}

/// The forget gradient at some layers over consecutive batches of each shard; also the number of pairs. Without layers of the vision
/// tower nothing goes through it but what no job has embedded yet.
pub(super) fn forget_gradient(
    scope: Scope<'_>,
    model: &Model,
    reference: &ModelRef,
    layers: Vec<ParameterId>,
    forget: &[ShardRef],
    batch_size: u32,
) -> Result<(GradientSum, u64), Error> {
    let weights = model.parameters.weights();
    let sees = layers.iter().any(|&id| model.clip.architecture().spec(id).tower == Some(Tower::Vision));
    let mut sum = GradientSum::new(layers, scope.micro_batch);
    let mut count = 0;
    let batch = batch_size as usize;
    for shard in forget {
        let (images, captions) = if sees {
            let pairs = data::load(scope, model, shard)?;
            (pairs.pixels, pairs.captions)
        } else {
            let images = scope.engine.images.of(scope, model, reference, std::slice::from_ref(shard))?;
            (images.embedded, images.captions)
        };
        for (number, captions) in captions.chunks(batch).enumerate() {
            scope.check()?;
            let texts = model.batch(captions)?;
            let here = images.f_narrow(0, (number * batch) as i64, captions.len() as i64)?;
            let here = if sees { Images::Pixels(&here) } else { Images::Embedded(&here) };
            sum.add(Loss::Forget, &model.clip, &weights, here, &texts)?;
        }
        count += captions.len() as u64;
    }
    if count == 0 {
        return Err(Error::Input("the concept has no forget pairs".into()));
    }
    Ok((sum, count))
}

/// Scores every candidate and marks each tower's Pareto front; `folds` adds efficiencies where it has the moments. Where edits may
/// change some layers only (`among`), the front is of these: another one that is better in both scores would be no answer.
pub(super) fn rank(
    model: &Model,
    gradients: &HashMap<ParameterId, Tensor>,
    retain: &RetainGradient,
    folds: Option<&Matrices>,
    among: Option<&[String]>,
) -> Result<Vec<Candidate>, Error> {
    let mut ids: Vec<ParameterId> = gradients.keys().copied().collect();
    ids.sort_unstable();
    let mut candidates = Vec::with_capacity(ids.len());
    for id in ids {
        let spec = model.clip.architecture().spec(id);
        let Some(tower) = spec.tower else { continue };
        let gradient = gradients[&id].shallow_clone();
        let scores = Scores::of(&spec.name, &model.parameters.get(id), &gradient, &retain.layer(&spec.name)?)?;
        let efficiency = match folds {
            Some(folds) => efficiency(folds, &spec.name, &gradient)?,
            None => None,
        };
        candidates.push(Candidate { id, name: spec.name.clone(), tower, scores, gradient, pareto: false, efficiency });
    }
    for tower in [Tower::Vision, Tower::Text] {
        let may = |candidate: &Candidate| candidate.tower == tower && among.is_none_or(|among| among.contains(&candidate.name));
        let members: Vec<usize> = (0..candidates.len()).filter(|&i| may(&candidates[i])).collect();
        let scores: Vec<(f64, f64)> =
            members.iter().map(|&i| (candidates[i].scores.importance, candidates[i].scores.alignment())).collect();
        for (&i, on_front) in members.iter().zip(pareto_front(&scores)) {
            candidates[i].pareto = on_front;
        }
    }
    Ok(candidates)
}

//! The forget gradient of a concept, and the scores of every candidate layer.

use std::collections::HashMap;

use lethe_shared::measurement::RankedLayer;
use lethe_shared::reference::FileSpec;
use lethe_shared::vocabulary::Tower;
use tch::Tensor;

use super::error::Error;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use super::moments::Matrices;
use super::retain::RetainGradient;
use super::{data, image_embeddings};
use crate::model::ParameterId;
use crate::slug::factors::Factors;
use crate::slug::gradient::{GradientSum, Images, Loss};
use crate::slug::ranking::{Scores, pareto_front};

/// A candidate layer with its scores.
pub(super) struct RankedCandidate {
    pub(super) id: ParameterId,
    name: String,
    pub(super) tower: Tower,
    pub(super) scores: Scores,
    /// The forget gradient.
    pub(super) gradient: Tensor,
    /// Whether the layer is on its tower's Pareto front.
    pub(super) pareto: bool,
    efficiency: Option<f64>,
}

impl RankedCandidate {
    /// Converts the candidate to the form in which it is recorded.
    pub(super) fn record(self) -> RankedLayer {
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

/// Computes the forget gradient of some layers over consecutive batches of each shard. Also returns
/// the number of pairs. Without layers of the vision tower, images pass through it only if no
/// earlier job has embedded them.
pub(super) fn forget_gradient(
    context: JobContext<'_>,
    model: &LoadedModel,
    layers: Vec<ParameterId>,
    forget: &[FileSpec],
    batch_size: u32,
) -> Result<(GradientSum, u64), Error> {
    let weights = model.parameters.weights();
    let needs_pixels =
        layers.iter().any(|&id| model.clip.architecture().spec(id).tower == Some(Tower::Vision));
    let mut sum = GradientSum::new(layers, context.micro_batch);
    let mut count = 0;
    let batch = batch_size as usize;
    for shard in forget {
        let (images, captions) = if needs_pixels {
            let pairs = data::load(context, model, shard)?;
            (pairs.pixels, pairs.captions)
        } else {
            let embedded = image_embeddings::of(context, model, std::slice::from_ref(shard))?;
            (embedded.embeddings, embedded.captions)
        };
        for (number, captions) in captions.chunks(batch).enumerate() {
            context.check_cancelled()?;
            let texts = model.batch(captions)?;
            let images = images.f_narrow(0, (number * batch) as i64, captions.len() as i64)?;
            let images =
                if needs_pixels { Images::Pixels(&images) } else { Images::Embedded(&images) };
            sum.add(Loss::Forget, &model.clip, &weights, images, &texts)?;
        }
        count += captions.len() as u64;
    }
    if count == 0 {
        return Err(Error::Input("the concept has no forget pairs".into()));
    }
    Ok((sum, count))
}

/// Scores every candidate layer and marks the Pareto front of each tower.
///
/// With `cross_fit` moments, layers also get an efficiency. When only some layers may be edited
/// (`allowed`), the front is computed among these: a better layer that must not be edited is no
/// alternative.
pub(super) fn rank(
    model: &LoadedModel,
    gradients: &HashMap<ParameterId, Tensor>,
    retain: &RetainGradient,
    cross_fit: Option<&Matrices>,
    allowed: Option<&[String]>,
) -> Result<Vec<RankedCandidate>, Error> {
    let mut ids: Vec<ParameterId> = gradients.keys().copied().collect();
    ids.sort_unstable();
    let mut candidates = Vec::with_capacity(ids.len());
    for id in ids {
        let spec = model.clip.architecture().spec(id);
        let Some(tower) = spec.tower else { continue };
        let gradient = gradients[&id].shallow_clone();
        let scores = Scores::new(
            &spec.name,
            &model.parameters.get(id),
            &gradient,
            &retain.layer(&spec.name)?,
        )?;
        let efficiency = match cross_fit {
            Some(moments) => efficiency(moments, &spec.name, &gradient)?,
            None => None,
        };
        candidates.push(RankedCandidate {
            id,
            name: spec.name.clone(),
            tower,
            scores,
            gradient,
            pareto: false,
            efficiency,
        });
    }
    for tower in [Tower::Vision, Tower::Text] {
        let is_allowed = |candidate: &RankedCandidate| {
            candidate.tower == tower
                && allowed.is_none_or(|allowed| allowed.contains(&candidate.name))
        };
        let members: Vec<usize> =
            (0..candidates.len()).filter(|&i| is_allowed(&candidates[i])).collect();
        let scores: Vec<(f64, f64)> = members
            .iter()
            .map(|&i| (candidates[i].scores.importance, candidates[i].scores.alignment()))
            .collect();
        for (&i, on_front) in members.iter().zip(pareto_front(&scores)) {
            candidates[i].pareto = on_front;
        }
    }
    Ok(candidates)
}

/// Computes the efficiency η of a layer: the gain of the preconditioned gradient relative to its
/// cost, where the cost is measured on the half of the retain set that did not shape the
/// preconditioner (cross-fitting). Returns `None` without moments of the layer.
fn efficiency(cross_fit: &Matrices, layer: &str, gradient: &Tensor) -> Result<Option<f64>, Error> {
    let of_side = |side: &str| {
        Some((
            cross_fit.get(&format!("{layer}.{side}.inverse"))?,
            cross_fit.get(&format!("{layer}.{side}.moment"))?,
        ))
    };
    let Some((inverse, moment)) = of_side("inputs") else { return Ok(None) };
    let outputs = of_side("outputs");
    let outputs = outputs.as_ref().map(|(inverse, moment)| (inverse, moment));
    let (gain, cost) = Factors::sketch(gradient)?.gain_and_cost(outputs, (&inverse, &moment))?;
    Ok(Some(if cost > 0.0 { gain / cost.sqrt() } else { 0.0 }))
}

//! One concept with preconditioned directions: the scores of every layer, then direction and step
//! on the selected layer.

use std::collections::HashMap;

use lethe_shared::edit;
use lethe_shared::measurement::Chosen;
use lethe_shared::task::{Direction, DirectionOutput, Survey, SurveyOutput};
use lethe_shared::vocabulary::{Tower, Towers};
use tch::{Kind, Tensor};

use super::error::Error;
use super::evaluation_data::{EvaluationData, ForgetImages};
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::moments::Matrices;
use super::ranking::{RankedCandidate, forget_gradient, rank};
use super::retain::RetainGradient;
use super::thumbnails;
use crate::model::ParameterId;
use crate::model::weights::tensor_to_bytes;
use crate::slug::direction_search::search_direction;
use crate::slug::factors::Factors;
use crate::slug::margin::{Metric, Reduced, Rows};
use crate::slug::screen::NearestClassScreen;

/// Scores every candidate layer of one concept.
impl Perform for Survey {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<SurveyOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let retain = stages
            .time("retain gradient", || RetainGradient::of(context, &self.retain_gradient))?;
        let cross_fit = stages.time("moments", || Matrices::of(context, &self.cross_fit))?;
        let layers = model.candidates(self.towers, self.normalisation_gains);
        let (forget, pairs) = stages.time("gradient", || {
            forget_gradient(context, &model, layers, &self.forget, self.batch_size)
        })?;
        let gradients: HashMap<ParameterId, Tensor> =
            forget.mean(&model.parameters.weights())?.into_iter().collect();
        let _guard = tch::no_grad_guard();
        let candidates =
            stages.time("ranking", || rank(&model, &gradients, &retain, Some(&cross_fit), None))?;
        let ranking = candidates.into_iter().map(RankedCandidate::record).collect();
        Ok(SurveyOutput { pairs, forget_loss: forget.loss(), ranking })
    }
}

/// Finds the direction of one concept on its layer, and the smallest step along it that forgets.
impl Perform for Direction {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<DirectionOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let id = model.layer(&self.layer)?;
        let tower = match model.clip.architecture().spec(id).tower {
            Some(Tower::Vision) => Towers::Vision,
            Some(Tower::Text) | None => Towers::Text,
        };
        let data =
            EvaluationData::of(context, &model, &self.classes, &self.validation, tower, stages)?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let Some(position) = self.layers.iter().position(|name| *name == self.layer) else {
            return Err(Error::Input(format!(
                "layer `{}` is not among the run's layers",
                self.layer
            )));
        };
        let gradients = gradient_factors(context, &model, self, stages)?;
        let _guard = tch::no_grad_guard();
        let (direction, residual) =
            preconditioned(&gradients[position].1, &inverses, &self.layer, self.rank)?;

        let forget_images =
            ForgetImages::of(context, &model, &data, self.class, &self.forget, tower)?;
        let (evaluation, forget_set) =
            (data.evaluation_context(context, &model), forget_images.forget_set());
        let own_text = stages.time("classes", || {
            let prompt = data.classes.texts.prompts().nth(self.class as usize).unwrap_or_default();
            model.text_corpus(context, &[prompt])
        })?;
        let full_direction = direction.product()?.f_to_kind(Kind::Float)?;
        context.check_cancelled()?;
        let (search, selected) = stages.time("search", || {
            let screen = if tower == Towers::Text {
                NearestClassScreen::new(evaluation, &forget_set, self.method.stop)?
            } else {
                None
            };
            Ok(search_direction(
                evaluation,
                &forget_set,
                &own_text,
                screen.as_ref(),
                id,
                &full_direction,
                &self.method,
            )?)
        })?;

        let chosen = match selected {
            None => None,
            Some(edit) => {
                let file =
                    stages.time("store", || context.put(encode(&[(&self.layer, &direction)])?))?;
                Some(Chosen { answer: edit.summary, direction: file, validation: edit.validation })
            }
        };
        let named: Vec<(&String, &Factors)> =
            gradients.iter().map(|(name, factors)| (*name, factors)).collect();
        let stored_gradients = stages.time("store", || context.put(encode(&named)?))?;
        let thumbnails = stages.time("thumbnails", || thumbnails::of(context, &self.forget))?;
        Ok(DirectionOutput {
            before: forget_images.before,
            search,
            chosen,
            gradients: stored_gradients,
            rank: direction.rank() as u32,
            residual,
            said: forget_images.top_predictions,
            thumbnails,
        })
    }
}

/// Computes the factorized forget gradient of each of the run's layers, in the task's order.
fn gradient_factors<'a>(
    context: JobContext<'_>,
    model: &LoadedModel,
    task: &'a Direction,
    stages: &mut StageTimes,
) -> Result<Vec<(&'a String, Factors)>, Error> {
    let ids = task
        .layers
        .iter()
        .map(|name| model.layer(name))
        .collect::<Result<Vec<ParameterId>, _>>()?;
    let (forget, _) = stages.time("gradient", || {
        forget_gradient(context, model, ids, &task.forget, task.method.batch_size)
    })?;
    let gradients = forget.mean(&model.parameters.weights())?;
    let _guard = tch::no_grad_guard();
    stages.time("factors", || {
        let factor = |(name, (_, gradient)): (&'a String, &(ParameterId, Tensor))| {
            Ok((name, Factors::svd(gradient)?))
        };
        task.layers.iter().zip(&gradients).map(factor).collect()
    })
}

/// Computes the preconditioned direction D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹, cut to a rank of at most
/// `most` if there is a limit, and its relative error by the cut. Norm and error are those of the cost of changes, so
/// the cut keeps what the direction does to first order per cost.
fn preconditioned(
    gradient: &Factors,
    inverses: &Matrices,
    layer: &str,
    most: Option<u32>,
) -> Result<(Factors, f64), Error> {
    if gradient.rank() == 0 {
        return Ok((
            Factors {
                up: gradient.up.shallow_clone(),
                down: gradient.down.shallow_clone(),
                residual: 0.0,
            },
            0.0,
        ));
    }
    let wide = |t: &Tensor| t.f_to_kind(Kind::Double);
    let inputs = inverses
        .get(&format!("{layer}.inputs"))
        .ok_or_else(|| Error::Input(format!("there are no moments of layer `{layer}`")))?;
    let outputs = match inverses.get(&format!("{layer}.outputs")) {
        Some(outputs) => outputs,
        None => Tensor::f_eye(gradient.up.size()[0], (Kind::Double, gradient.up.device()))?,
    };
    let metric = Metric::new(&outputs, &inputs, 1.0)?;
    let rows = Rows { up: wide(&gradient.up)?.f_transpose(0, 1)?, down: wide(&gradient.down)? };
    let Reduced { rows, total, lost } =
        metric.reduce(&rows, 0.0, most.map_or(i64::MAX, i64::from))?;
    let direction = metric.direction(&rows)?;
    let up = direction.up.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let down = direction.down.f_to_kind(Kind::Float)?.f_contiguous()?;
    // An empty sum of squares is −0.
    let residual = (lost.abs() / total.max(f64::MIN_POSITIVE)).sqrt();
    Ok((Factors { up, down, residual: 0.0 }, residual))
}

/// Encodes factors by layer as a safetensors file: `NAME.up` and `NAME.down`.
fn encode(factors: &[(&String, &Factors)]) -> Result<Vec<u8>, Error> {
    let mut parts = Vec::with_capacity(2 * factors.len());
    for (layer, factor) in factors {
        for (side, tensor) in [("up", &factor.up), ("down", &factor.down)] {
            let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
            parts.push((format!("{layer}.{side}"), shape, tensor_to_bytes(tensor)?));
        }
    }
    edit::encode_tensors(
        parts
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), shape.as_slice(), bytes.as_slice())),
    )
    .map_err(Error::Input)
}

//! One concept on corrected directions: the scores of every layer, then direction and step on the layer that was chosen.

use std::collections::HashMap;

use lethe_shared::edit;
use lethe_shared::job::{DirectionTask, ModelRef, SurveyTask};
use lethe_shared::manifest::Towers;
use lethe_shared::outcome::{Chosen, DirectionResult, SurveyResult, Tower};
use tch::{Kind, Tensor};

use super::concept::{Candidate, forget_gradient, rank};
use super::ground::{Forget, Judges};
use super::model::Model;
use super::moments::Matrices;
use super::retain::RetainGradient;
use super::{Error, Scope, Stages, thumbnails};
use crate::model::weights::tensor_to_bytes;
use crate::model::{Architecture, ParameterId};
use crate::slug::factors::Factors;
use crate::slug::search::search_direction;
use crate::slug::witness::Witnesses;

/// Scores every candidate layer of one concept.
pub(super) fn survey(scope: Scope<'_>, reference: &ModelRef, task: &SurveyTask, stages: &mut Stages) -> Result<SurveyResult, Error> {
    let model = stages.time("model", || Model::of(scope, reference))?;
    let retain = stages.time("retain gradient", || RetainGradient::of(scope, &task.retain_gradient))?;
    let folds = stages.time("moments", || Matrices::of(scope, &task.folds))?;
    let weights = model.parameters.weights();
    let layers = model.candidates(task.towers, task.method.normalisation_gains);
    let batch = task.method.batch_size;
    let (forget, pairs) = stages.time("gradient", || forget_gradient(scope, &model, reference, layers, &task.forget, batch))?;
    let gradients: HashMap<ParameterId, Tensor> = forget.mean(&weights)?.into_iter().collect();
    let _guard = tch::no_grad_guard();
    let candidates = stages.time("ranking", || rank(&model, &gradients, &retain, Some(&folds), None))?;
    Ok(SurveyResult { pairs, forget_loss: forget.loss(), ranking: candidates.into_iter().map(Candidate::ranked).collect() })
}

/// Finds the direction of one concept on its layer, and the smallest step along it that forgets.
pub(super) fn find(scope: Scope<'_>, reference: &ModelRef, task: &DirectionTask, stages: &mut Stages) -> Result<DirectionResult, Error> {
    let model = stages.time("model", || Model::of(scope, reference))?;
    let architecture = model.clip.architecture();
    let own = layer(architecture, &task.layer)?;
    // The tower that an edit of this layer changes.
    let tower = if architecture.spec(own).tower == Some(Tower::Vision) { Towers::Vision } else { Towers::Text };
    let judges = Judges::of(scope, &model, reference, &task.classes, &task.validation, tower, stages)?;
    let inverses = stages.time("moments", || Matrices::of(scope, &task.inverses))?;
    let weights = model.parameters.weights();
    let ids = task.layers.iter().map(|name| layer(architecture, name)).collect::<Result<Vec<_>, _>>()?;
    let Some(position) = ids.iter().position(|&id| id == own) else {
        return Err(Error::Input(format!("layer `{}` is not among the run's layers", task.layer)));
    };

    let batch = task.method.batch_size;
    let (forget, _) = stages.time("gradient", || forget_gradient(scope, &model, reference, ids, &task.forget, batch))?;
    let gradients = forget.mean(&weights)?;
    let _guard = tch::no_grad_guard();
    let factored = stages.time("factors", || gradients.iter().map(|(_, g)| Ok(Factors::of(g)?)).collect::<Result<Vec<_>, Error>>())?;
    let direction = corrected(&factored[position], &inverses, &task.layer)?;

    let forget_images = Forget::of(scope, &model, reference, &judges, task.class, &task.forget, tower)?;
    let (ground, subject) = (judges.ground(scope, &model), forget_images.subject());
    let own_text = stages.time("classes", || {
        let prompt = judges.classes.texts.prompts().nth(task.class as usize).unwrap_or_default();
        scope.texts(&model, &[prompt])
    })?;
    let wide = direction.product()?.f_to_kind(Kind::Float)?;
    scope.check()?;
    let (search, answer) = stages.time("search", || {
        let witnesses = if tower == Towers::Text { Witnesses::of(ground, &subject, task.method.stop)? } else { None };
        Ok(search_direction(ground, &subject, &own_text, witnesses.as_ref(), own, &wide, &task.method)?)
    })?;

    let chosen = match answer {
        None => None,
        Some(answer) => {
            let file = stages.time("store", || scope.put(encode(&[(&task.layer, &direction)])?))?;
            Some(Chosen { answer: answer.summary, direction: file, validation: answer.validation })
        }
    };
    let named: Vec<(&String, &Factors)> = task.layers.iter().zip(&factored).collect();
    let gradients = stages.time("store", || scope.put(encode(&named)?))?;
    let thumbnails = stages.time("thumbnails", || thumbnails::of(scope, &task.forget))?;
    Ok(DirectionResult {
        before: forget_images.before,
        search,
        chosen,
        gradients,
        rank: factored.iter().map(|f| f.rank() as u32).max().unwrap_or(0),
        residual: factored.iter().map(|f| f.residual).fold(0.0, f64::max),
        said: Some(forget_images.answers),
        thumbnails,
    })
}

/// D = (M + ρ_M I)⁻¹ g (C + ρI)⁻¹, which has the rank of g: each side changes its own factor.
fn corrected(gradient: &Factors, inverses: &Matrices, layer: &str) -> Result<Factors, Error> {
    let wide = |t: &Tensor| t.f_to_kind(Kind::Double);
    let inputs =
        inverses.get(&format!("{layer}.inputs")).ok_or_else(|| Error::Input(format!("there are no moments of layer `{layer}`")))?;
    let down = wide(&gradient.down)?.f_matmul(&wide(&inputs)?)?.f_to_kind(Kind::Float)?;
    let up = match inverses.get(&format!("{layer}.outputs")) {
        Some(outputs) => wide(&outputs)?.f_matmul(&wide(&gradient.up)?)?.f_to_kind(Kind::Float)?,
        None => gradient.up.shallow_clone(),
    };
    Ok(Factors { up, down, residual: 0.0 })
}

pub(super) fn layer(architecture: &Architecture, name: &str) -> Result<ParameterId, Error> {
    architecture.find(name).ok_or_else(|| Error::Input(format!("the model has no layer `{name}`")))
}

/// Factors by layer as a safetensors file: `NAME.up` and `NAME.down`.
fn encode(factors: &[(&String, &Factors)]) -> Result<Vec<u8>, Error> {
    let mut parts = Vec::with_capacity(2 * factors.len());
    for (layer, factor) in factors {
        for (side, tensor) in [("up", &factor.up), ("down", &factor.down)] {
            let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
            parts.push((format!("{layer}.{side}"), shape, tensor_to_bytes(tensor)?));
        }
    }
    edit::encode_tensors(parts.iter().map(|(name, shape, bytes)| (name.as_str(), shape.as_slice(), bytes.as_slice()))).map_err(Error::Input)
}

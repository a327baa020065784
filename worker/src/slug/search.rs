//! The step search of one concept on one layer of the Pareto front (paper section 3.3).

use lethe_shared::measurement::{Accuracy, Trial};
use lethe_shared::vocabulary::{MethodSettings, Tower};
use tch::Tensor;

use super::evaluator::LayerEvaluator;
use super::screen::NearestClassScreen;
use super::step::StepSearch;
use super::trial::{
    CandidateEdit, EvaluationContext, ForgetSet, FrontLayer, StepOutcome, edited_layer,
};
use crate::model::{Error, Weights};

/// The evaluation of one step.
struct EvaluatedStep {
    outcome: StepOutcome,
    weights: Weights,
    /// Embeddings of all class texts, when the step changes them and they were computed.
    class_embeddings: Option<Tensor>,
}

/// Searches one layer for the smallest step that forgets. Returns every trial, and the edit if a
/// step forgot.
///
/// Only the forget images decide whether a step forgot. No step depends on the validation images,
/// which only [`choose`](super::choice::choose) uses. When `screen` proves a step on a text layer,
/// the remaining class texts are embedded only once, for the final step. A step that drives the
/// model out of range is a trial that did not forget.
///
/// # Errors
/// When libtorch returns an error.
pub fn search_layer<'a>(
    context: EvaluationContext<'a>,
    forget_set: &ForgetSet<'_>,
    layer: &FrontLayer<'a>,
    method: &MethodSettings,
    screen: Option<&NearestClassScreen>,
) -> Result<(Vec<Trial>, Option<CandidateEdit<'a>>), Error> {
    let Some(unit) = layer.scores.unit_step() else { return Ok((Vec::new(), None)) };
    let evaluator = LayerEvaluator::new(context, forget_set, layer.id, method.stop)?;
    let mut search = StepSearch::new(unit, method.search_evaluations, method.search_tolerance);
    let (mut trials, mut best) = (Vec::new(), None);
    while let Some(step) = search.next() {
        let evaluated = evaluate_step(&evaluator, layer.gradient, step, screen)?;
        trials.push(evaluator.trial(step, &evaluated.outcome));
        let forgotten = evaluator.is_forgotten(&evaluated.outcome);
        search.record(forgotten);
        if forgotten {
            best = Some(evaluated);
        }
    }
    let (Some(step), Some(best)) = (search.smallest_forgetting(), best) else {
        return Ok((trials, None));
    };
    let class_embeddings = match (evaluator.tower, best.class_embeddings) {
        (Tower::Text, None) => {
            let embeddings = evaluator.class_embeddings(&best.weights)?;
            if evaluator.measure(forget_set.embeddings, &embeddings)? != best.outcome {
                // The embedding of a class outside the screen is not finite.
                return search_layer(context, forget_set, layer, method, None);
            }
            Some(embeddings)
        }
        (_, embeddings) => embeddings,
    };
    let hits = |classes: Tensor| evaluator.validation_hits(context.validation_embeddings, &classes);
    let validation = class_embeddings.map(hits).transpose()?;
    let edit = CandidateEdit {
        id: layer.id,
        name: &context.clip.architecture().spec(layer.id).name,
        tower: evaluator.tower,
        gradient: layer.gradient,
        step,
        relative_step: step / unit,
        accuracy: best.outcome.recorded_accuracy(),
        validation,
    };
    Ok((trials, Some(edit)))
}

/// Evaluates one step on the forget images: first by the screen, where there is one, then by all
/// classes.
fn evaluate_step(
    evaluator: &LayerEvaluator<'_>,
    gradient: &Tensor,
    step: f64,
    screen: Option<&NearestClassScreen>,
) -> Result<EvaluatedStep, Error> {
    let (context, forget_set) = (evaluator.context, evaluator.forget_set);
    let tensor = edited_layer(context.parameters, evaluator.layer, gradient, step)?;
    let weights = evaluator.original.with(evaluator.layer, tensor.shallow_clone());
    if evaluator.tower == Tower::Vision {
        let images = evaluator.image_embeddings(forget_set.images, &weights)?;
        let outcome = evaluator.measure(&images, context.class_embeddings)?;
        return Ok(EvaluatedStep { outcome, weights, class_embeddings: None });
    }
    if let Some(screen) = screen {
        let accuracies = screen.accuracies(
            context,
            forget_set,
            &evaluator.original,
            evaluator.layer,
            &tensor.f_unsqueeze(0)?,
        )?;
        if accuracies.iter().all(|accuracy| accuracy.fa5 == 0.0) {
            let outcome = StepOutcome::Measured(Accuracy { fa1: 0.0, fa5: 0.0 });
            return Ok(EvaluatedStep { outcome, weights, class_embeddings: None });
        }
    }
    let classes = evaluator.class_embeddings(&weights)?;
    let outcome = evaluator.measure(forget_set.embeddings, &classes)?;
    Ok(EvaluatedStep { outcome, weights, class_embeddings: Some(classes) })
}

//! The step search of one concept along a preconditioned direction on one layer.
//!
//! A preconditioned direction hardly changes other texts. On a text layer, the search therefore
//! embeds only the concept's own text and compares it with the original embeddings of the other
//! classes. The step that it finds is then confirmed with the other class texts embedded anew, and
//! grown while it does not forget: first by the nearest-class screen, where there is one, then by
//! all classes. Steps on a vision layer change the forget images only, so their evaluation is exact
//! from the start.

use lethe_shared::measurement::{Accuracy, Hits, LayerAnswer, Trial};
use lethe_shared::vocabulary::{MethodSettings, Tower};
use tch::Tensor;

use super::evaluator::LayerEvaluator;
use super::screen::NearestClassScreen;
use super::step::StepSearch;
use super::trial::{EvaluationContext, ForgetSet, SelectedEdit, StepOutcome, edited_layers};
use crate::corpus::Corpus;
use crate::model::{Error, NotFinite, ParameterId, Weights};
use crate::zero_shot;

/// Factor by which a step grows that forgot by its own text alone, but not among all classes.
const STEP_GROWTH: f64 = 1.05;
/// The most times that a step grows.
const MAX_GROWTHS: usize = 12;

/// Searches the step along `direction` on one layer. Returns every trial, and the edit if a step
/// forgot.
///
/// `own_text` is the concept's own text, a single item. The module's page describes the procedure.
///
/// # Errors
/// [`Error::NotFinite`] when the direction is not finite; otherwise when libtorch returns an error.
/// A step that drives the model out of range is a trial that did not forget.
pub fn search_direction(
    context: EvaluationContext<'_>,
    forget_set: &ForgetSet<'_>,
    own_text: &Corpus,
    screen: Option<&NearestClassScreen>,
    layer: ParameterId,
    direction: &Tensor,
    method: &MethodSettings,
) -> Result<(Vec<Trial>, Option<SelectedEdit>), Error> {
    let evaluator = LayerEvaluator::new(context, forget_set, layer, method.stop)?;
    let length = direction.f_norm()?.f_double_value(&[])?;
    if !length.is_finite() {
        return Err(NotFinite::new(format!(
            "values of the direction on layer `{}`",
            evaluator.name
        ))
        .into());
    }
    if length == 0.0 {
        return Ok((Vec::new(), None));
    }
    let unit = context.parameters.get(layer).f_norm()?.f_double_value(&[])? / length;
    let mut search =
        DirectionSearch { evaluator, direction, own_text, screen, unit, trials: Vec::new() };
    let edit = match search.smallest_step(method)? {
        Some(step) => search.confirm(step)?,
        None => None,
    };
    Ok((search.trials, edit))
}

/// The state of a search along one direction.
struct DirectionSearch<'a> {
    evaluator: LayerEvaluator<'a>,
    direction: &'a Tensor,
    own_text: &'a Corpus,
    screen: Option<&'a NearestClassScreen>,
    /// The step that changes the layer by its own length.
    unit: f64,
    trials: Vec<Trial>,
}

/// Evaluates steps on a text layer by the concept's own text, several in one pass where that takes
/// no longer than one.
struct OwnTextEvaluation {
    /// Cosines of the forget images and the original class embeddings `[n, classes]`.
    scores: Tensor,
    /// How many evaluations ahead the search is followed in one pass.
    lookahead: u32,
    evaluated: Vec<(f64, StepOutcome)>,
}

impl DirectionSearch<'_> {
    /// Finds the smallest step that forgets: by the own text alone on a text layer, exactly on a
    /// vision layer.
    fn smallest_step(&mut self, method: &MethodSettings) -> Result<Option<f64>, Error> {
        // Retained data hardly notices a preconditioned direction, so the search starts at a step
        // of the layer's own length.
        let mut search =
            StepSearch::new(10.0 * self.unit, method.search_evaluations, method.search_tolerance);
        let mut own_text = match self.evaluator.tower {
            Tower::Text => Some(self.own_text_evaluation()?),
            Tower::Vision => None,
        };
        while let Some(step) = search.next() {
            let outcome = match &mut own_text {
                Some(evaluation) => self.evaluate_own_text(evaluation, &search, step)?,
                None => {
                    let weights = self.evaluator.edited(self.direction, step)?;
                    let images = self
                        .evaluator
                        .image_embeddings(self.evaluator.forget_set.images, &weights)?;
                    self.evaluator.measure(&images, self.evaluator.context.class_embeddings)?
                }
            };
            self.trials.push(self.evaluator.trial(step, &outcome));
            search.record(self.evaluator.is_forgotten(&outcome));
        }
        Ok(search.smallest_forgetting())
    }

    fn own_text_evaluation(&self) -> Result<OwnTextEvaluation, Error> {
        let LayerEvaluator { context, forget_set, layer, .. } = &self.evaluator;
        let scores = zero_shot::scores(forget_set.embeddings, context.class_embeddings)?;
        let comparisons = self.comparisons(context.class_embeddings.size()[0]);
        let steps = context.steps_per_pass(*layer, self.own_text.tokens(context.clip), comparisons);
        // Following k evaluations, whatever each one finds, takes up to 2^k − 1 steps.
        Ok(OwnTextEvaluation { scores, lookahead: (steps + 1).ilog2(), evaluated: Vec::new() })
    }

    /// Score comparisons of one step among this many classes.
    fn comparisons(&self, classes: i64) -> i64 {
        self.evaluator.forget_set.len() as i64 * classes
    }

    fn evaluate_own_text(
        &self,
        evaluation: &mut OwnTextEvaluation,
        search: &StepSearch,
        step: f64,
    ) -> Result<StepOutcome, Error> {
        let known = |evaluated: &[(f64, StepOutcome)]| {
            evaluated
                .iter()
                .find(|(evaluated, _)| *evaluated == step)
                .map(|(_, outcome)| outcome.clone())
        };
        if let Some(outcome) = known(&evaluation.evaluated) {
            return Ok(outcome);
        }
        let LayerEvaluator { context, forget_set, layer, original, .. } = &self.evaluator;
        let steps = search.possible_steps(evaluation.lookahead);
        let layers = edited_layers(context.parameters, *layer, self.direction, &steps)?;
        let own =
            self.own_text.embed_trials(context.clip, original, *layer, &layers)?.f_select(1, 0)?;
        let ranks = zero_shot::ranks_with_class_variants(
            forget_set.embeddings,
            &evaluation.scores,
            &own,
            forget_set.class,
        )?;
        evaluation.evaluated =
            steps.into_iter().zip(ranks.into_iter().map(StepOutcome::of_ranks)).collect();
        let missing = || Error::Tensor {
            tensor: "forget images".into(),
            problem: "are missing: there is nothing to measure".into(),
        };
        known(&evaluation.evaluated).ok_or_else(missing)
    }

    /// Confirms a step with the class texts embedded anew, and grows it while it does not forget.
    /// Returns the edit of the first step that forgets, or `None` when none does.
    fn confirm(&mut self, first_step: f64) -> Result<Option<SelectedEdit>, Error> {
        let mut step = first_step;
        let mut screened = Vec::new();
        for growths in 0..=MAX_GROWTHS {
            let outcome = self
                .screen_step(step, MAX_GROWTHS - growths, &mut screened)?
                .map(StepOutcome::Measured);
            if let Some(outcome) = outcome.filter(|outcome| !self.evaluator.is_forgotten(outcome)) {
                self.trials.push(self.evaluator.trial(step, &outcome));
                step *= STEP_GROWTH;
                continue;
            }
            let weights = self.evaluator.edited(self.direction, step)?;
            let (outcome, classes) = self.evaluate_all_classes(&weights)?;
            let mut trial = self.evaluator.trial(step, &outcome);
            if !trial.forgotten {
                self.trials.push(trial);
                step *= STEP_GROWTH;
                continue;
            }
            let validation = self.validation_hits(&weights, &classes)?;
            let utility = validation.mean_top1(|class| class != self.evaluator.forget_set.class);
            trial.utility = Some(utility);
            match self.trials.iter_mut().find(|trial| trial.step == step) {
                Some(searched) if growths == 0 => *searched = trial,
                _ => self.trials.push(trial),
            }
            let accuracy = outcome.recorded_accuracy();
            let summary = LayerAnswer {
                layer: self.evaluator.name.to_owned(),
                tower: self.evaluator.tower,
                step,
                relative_step: step / self.unit,
                fa1: accuracy.fa1,
                fa5: accuracy.fa5,
                utility,
            };
            return Ok(Some(SelectedEdit { id: self.evaluator.layer, summary, validation }));
        }
        Ok(None)
    }

    /// Returns the forget accuracies of a step among the classes of the screen; `None` without a
    /// screen, and when no growth remains, as the last step is decided by all classes. `screened`
    /// holds the accuracies of the steps that follow, in reverse order.
    fn screen_step(
        &self,
        step: f64,
        remaining_growths: usize,
        screened: &mut Vec<Accuracy>,
    ) -> Result<Option<Accuracy>, Error> {
        let Some(screen) =
            self.screen.filter(|_| self.evaluator.tower == Tower::Text && remaining_growths > 0)
        else {
            return Ok(None);
        };
        if screened.is_empty() {
            let LayerEvaluator { context, forget_set, layer, original, .. } = &self.evaluator;
            let steps = context.steps_per_pass(
                *layer,
                screen.tokens(*context),
                self.comparisons(screen.class_count()),
            );
            let count = steps.min(remaining_growths as i64) as usize;
            let steps: Vec<f64> =
                std::iter::successors(Some(step), |step| Some(step * STEP_GROWTH))
                    .take(count)
                    .collect();
            let layers = edited_layers(context.parameters, *layer, self.direction, &steps)?;
            *screened = screen.accuracies(*context, forget_set, original, *layer, &layers)?;
            screened.reverse();
        }
        Ok(screened.pop())
    }

    /// Measures the forget accuracies among all classes. Also returns the class embeddings under
    /// the edit.
    fn evaluate_all_classes(&self, weights: &Weights) -> Result<(StepOutcome, Tensor), Error> {
        let (context, forget_set) = (self.evaluator.context, self.evaluator.forget_set);
        match self.evaluator.tower {
            Tower::Text => {
                let classes = self.evaluator.class_embeddings(weights)?;
                Ok((self.evaluator.measure(forget_set.embeddings, &classes)?, classes))
            }
            Tower::Vision => {
                let images = self.evaluator.image_embeddings(forget_set.images, weights)?;
                let classes = context.class_embeddings.shallow_clone();
                Ok((self.evaluator.measure(&images, &classes)?, classes))
            }
        }
    }

    fn validation_hits(&self, weights: &Weights, classes: &Tensor) -> Result<Hits, Error> {
        let context = self.evaluator.context;
        match self.evaluator.tower {
            Tower::Text => self.evaluator.validation_hits(context.validation_embeddings, classes),
            Tower::Vision if context.validation_labels.is_empty() => Ok(Hits::default()),
            Tower::Vision => {
                let images = self.evaluator.image_embeddings(context.validation_images, weights)?;
                self.evaluator.validation_hits(&images, classes)
            }
        }
    }
}

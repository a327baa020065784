//! The trials of one concept on the layers that it is searched on (paper section 3.3).

use lethe_shared::job::MethodSettings;
use lethe_shared::manifest::Stop;
use lethe_shared::outcome::{Accuracy, Hits, LayerAnswer, Tower, Trial};
use tch::{Kind, Tensor};

use super::choice::Answer;
use super::ranking::Scores;
use super::step::StepSearch;
use super::witness::Witnesses;
use crate::corpus::{self, Corpus};
use crate::model::weights::kind_of;
use crate::model::{Clip, Error, ParameterId, Parameters, Weights};
use crate::zero_shot;

/// What every concept's search shares: the model, and what is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The model's structure.
    pub clip: &'a Clip,
    /// Its original parameters.
    pub parameters: &'a Parameters,
    /// Every class text.
    pub class_texts: &'a Corpus,
    /// Their embeddings under the original model `[classes, d]`.
    pub classes: &'a Tensor,
    /// The validation images; where no layer of the vision tower is searched, none need be there.
    pub validation: Option<&'a Corpus>,
    /// Their embeddings under the original model `[n, d]`.
    pub validation_images: &'a Tensor,
    /// Their classes.
    pub validation_labels: &'a [u32],
    /// Tokens that a pass takes as quickly as a few: steps that may be asked for later are looked at beforehand up to here.
    pub spare_tokens: i64,
}

/// Comparisons of scores, and values of edited layers, that are held at one time for steps that may never be asked for: some 2 GB each.
const COMPARED: i64 = 1 << 27;
const EDITED: i64 = 1 << 26;

impl Ground<'_> {
    /// How many steps on a layer are looked at in one pass when each costs so many tokens, and so many comparisons of scores.
    fn together(&self, layer: ParameterId, tokens: i64, comparisons: i64) -> i64 {
        let values: i64 = self.clip.architecture().spec(layer).shape.iter().product();
        (self.spare_tokens / tokens.max(1)).min(COMPARED / comparisons.max(1)).min(EDITED / values.max(1)).max(1)
    }
}

/// One concept: its forget images and the class they must no longer be found in.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Index of the class.
    pub class: u32,
    /// The forget images; where no layer of the vision tower is searched, none need be there.
    pub images: Option<&'a Corpus>,
    /// Their embeddings under the original model `[n, d]`.
    pub embedded: &'a Tensor,
}

impl Subject<'_> {
    /// Number of forget images.
    pub fn len(&self) -> usize {
        self.embedded.size()[0] as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Images under an edit of the vision tower.
fn see(images: Option<&Corpus>, ground: Ground<'_>, edited: &Weights, layer: ParameterId) -> Result<Tensor, Error> {
    let images = images.ok_or_else(|| Error::Tensor { tensor: "pixels".into(), problem: "are not at hand".into() })?;
    images.embed(ground.clip, &ground.parameters.weights(), edited, Some(layer))
}

/// A layer on a Pareto front with its scores and the direction of its edit.
#[derive(Debug)]
pub struct FrontLayer<'a> {
    /// The layer.
    pub id: ParameterId,
    /// Its scores.
    pub scores: Scores,
    /// g_f,l, float32 in the layer's shape.
    pub gradient: &'a Tensor,
}

/// What one layer's search found: the smallest step that forgot.
#[derive(Debug)]
pub struct Found<'a> {
    /// The layer.
    pub id: ParameterId,
    /// Its name.
    pub name: &'a str,
    /// Its tower.
    pub tower: Tower,
    /// g_f,l, float32 in the layer's shape.
    pub gradient: &'a Tensor,
    /// λ.
    pub step: f64,
    /// λ / R.
    pub relative_step: f64,
    /// Forget accuracies there.
    pub accuracy: Accuracy,
    /// Hits per class on the validation images there, where the search told them: on a layer of the text tower.
    pub validation: Option<Hits>,
}

/// θ_l + λ g_f,l, computed in float64 and rounded to the type the layer is stored in: what a release will hold.
///
/// # Errors
/// When libtorch refuses.
pub fn edited_layer(parameters: &Parameters, layer: ParameterId, gradient: &Tensor, step: f64) -> Result<Tensor, Error> {
    Ok(edited_layers(parameters, layer, gradient, &[step])?.f_squeeze_dim(0)?)
}

/// The same for several steps: `[steps, …]` in the layer's shape.
///
/// # Errors
/// When libtorch refuses.
pub fn edited_layers(parameters: &Parameters, layer: ParameterId, gradient: &Tensor, steps: &[f64]) -> Result<Tensor, Error> {
    let mut shape = vec![1; gradient.dim() + 1];
    shape[0] = steps.len() as i64;
    let steps = Tensor::f_from_slice(steps)?.f_to(gradient.device())?.f_view(&shape[..])?;
    let change = gradient.f_to_kind(Kind::Double)?.f_mul(&steps)?;
    let moved = parameters.get(layer).f_to_kind(Kind::Double)?.f_add(&change)?;
    let stored = kind_of(parameters.storage(layer)).unwrap_or(Kind::Float);
    Ok(moved.f_to_kind(stored)?.f_to_kind(Kind::Float)?)
}

/// Searches one layer. Returns every trial, and the answer if a step forgot.
///
/// Forgetting is judged on the forget images alone; no step depends on the validation images, which only [`choose`](super::choice::choose)
/// looks at. Where `witnesses` prove a step of a text layer, the other class texts are embedded once, at the answer.
///
/// # Errors
/// When libtorch refuses. A step that takes the model out of range is a trial that did not forget.
pub fn search_layer<'a>(
    ground: Ground<'a>,
    subject: &Subject<'_>,
    layer: &FrontLayer<'a>,
    method: &MethodSettings,
    witnesses: Option<&Witnesses>,
) -> Result<(Vec<Trial>, Option<Found<'a>>), Error> {
    let Some(unit) = layer.scores.unit_step() else { return Ok((Vec::new(), None)) };
    let spec = ground.clip.architecture().spec(layer.id);
    let original = ground.parameters.weights();
    let forget_labels = corpus::labels(&vec![subject.class; subject.len()], ground.parameters.device())?;
    let mut search = StepSearch::new(unit, method.search_evaluations, method.search_tolerance);
    let mut trials = Vec::new();
    let texts = |edited: &Weights| ground.class_texts.embed(ground.clip, &original, edited, Some(layer.id));
    let judged = |images: &Tensor, classes: &Tensor| match zero_shot::ranks(images, classes, &forget_labels) {
        Ok(ranks) => Ok(zero_shot::accuracy(&ranks)),
        Err(Error::Tensor { .. }) => Ok(Accuracy { fa1: 1.0, fa5: 1.0 }),
        Err(other) => Err(other),
    };
    let proven = |witnesses: &Witnesses, edited: &Tensor| -> Result<bool, Error> {
        let accuracies = witnesses.accuracies(ground, subject, &original, layer.id, &edited.f_unsqueeze(0)?)?;
        Ok(accuracies.iter().all(|accuracy| accuracy.fa5 == 0.0))
    };
    // At the best step so far: accuracy, the edited weights, the class embeddings where they changed and are known.
    let mut best: Option<(Accuracy, Weights, Option<Tensor>)> = None;
    while let Some(step) = search.next() {
        let tensor = edited_layer(ground.parameters, layer.id, layer.gradient, step)?;
        let weights = original.with(layer.id, tensor.shallow_clone());
        // The towers are independent: an edit in one leaves the other's embeddings as they were.
        let (accuracy, classes) = match (spec.tower, witnesses) {
            (Some(Tower::Text), Some(witnesses)) if proven(witnesses, &tensor)? => (Accuracy { fa1: 0.0, fa5: 0.0 }, None),
            (Some(Tower::Text), _) => {
                let classes = texts(&weights)?;
                (judged(subject.embedded, &classes)?, Some(classes))
            }
            _ => {
                let images = see(subject.images, ground, &weights, layer.id)?;
                (judged(&images, ground.classes)?, None)
            }
        };
        let forgotten = match method.stop {
            Stop::Fa1 => accuracy.fa1 == 0.0,
            Stop::Fa5 => accuracy.fa5 == 0.0,
        };
        trials.push(Trial { layer: spec.name.clone(), step, fa1: accuracy.fa1, fa5: accuracy.fa5, forgotten, utility: None });
        if forgotten {
            best = Some((accuracy, weights, classes));
        }
        search.record(forgotten);
    }
    let (Some(step), Some((accuracy, edited, classes))) = (search.answer(), best) else { return Ok((trials, None)) };
    let classes = match (spec.tower, classes) {
        (Some(Tower::Text), None) => {
            let classes = texts(&edited)?;
            if judged(subject.embedded, &classes)? != accuracy {
                // Some other text is out of range: the witnesses did not see it.
                return search_layer(ground, subject, layer, method, None);
            }
            Some(classes)
        }
        (_, classes) => classes,
    };
    let validation = match &classes {
        Some(classes) => Some(validated(ground, ground.validation_images, classes)?),
        None => None,
    };
    let tower = spec.tower.unwrap_or(Tower::Text);
    let gradient = layer.gradient;
    let found = Found { id: layer.id, name: &spec.name, tower, gradient, step, relative_step: step / unit, accuracy, validation };
    Ok((trials, Some(found)))
}

/// Hits on the validation images, embedded so, among classes that are embedded so.
fn validated(ground: Ground<'_>, images: &Tensor, classes: &Tensor) -> Result<Hits, Error> {
    if ground.validation_labels.is_empty() {
        // Nothing to look at: utility cannot tell answers apart.
        return Ok(Hits::default());
    }
    let labels = corpus::labels(ground.validation_labels, ground.parameters.device())?;
    Ok(zero_shot::hits(&zero_shot::ranks(images, classes, &labels)?, ground.validation_labels))
}

/// Relative growth of a step that forgot by its own text alone and not yet in the whole class list.
const PUSH: f64 = 1.05;
/// Such pushes at most.
const PUSHES: usize = 12;

/// Searches the step along a corrected direction on one layer. Returns every trial, and the answer if a step forgot.
///
/// A corrected direction hardly moves other texts. So on a text layer the search looks at the concept's own text
/// (`own_text`, one item) among the others' original embeddings; the step it finds is then judged, and if need be pushed, with
/// the class texts embedded anew: the `witnesses` until they prove it, where there are any, and then every one. Steps on a vision layer
/// move forget images only, and are exact throughout.
///
/// # Errors
/// When libtorch refuses.
pub fn search_direction(
    ground: Ground<'_>,
    subject: &Subject<'_>,
    own_text: &Corpus,
    witnesses: Option<&Witnesses>,
    layer: ParameterId,
    direction: &Tensor,
    method: &MethodSettings,
) -> Result<(Vec<Trial>, Option<Answer>), Error> {
    let length = direction.f_norm()?.f_double_value(&[])?;
    if !(length.is_finite() && length > 0.0) {
        return Ok((Vec::new(), None));
    }
    let unit = ground.parameters.get(layer).f_norm()?.f_double_value(&[])? / length;
    let spec = ground.clip.architecture().spec(layer);
    let tower = spec.tower.unwrap_or(Tower::Text);
    let original = ground.parameters.weights();
    let device = ground.parameters.device();
    let forget_labels = corpus::labels(&vec![subject.class; subject.len()], device)?;
    let forgotten = |accuracy: Accuracy| match method.stop {
        Stop::Fa1 => accuracy.fa1 == 0.0,
        Stop::Fa5 => accuracy.fa5 == 0.0,
    };
    let edited =
        |step: f64| -> Result<Weights, Error> { Ok(original.with(layer, edited_layer(ground.parameters, layer, direction, step)?)) };
    let judged = |images: &Tensor, classes: &Tensor| match zero_shot::ranks(images, classes, &forget_labels) {
        Ok(ranks) => Ok(zero_shot::accuracy(&ranks)),
        Err(Error::Tensor { .. }) => Ok(Accuracy { fa1: 1.0, fa5: 1.0 }),
        Err(other) => Err(other),
    };
    let trial = |step: f64, accuracy: Accuracy| Trial {
        layer: spec.name.clone(),
        step,
        fa1: accuracy.fa1,
        fa5: accuracy.fa5,
        forgotten: forgotten(accuracy),
        utility: None,
    };

    // What must stay hardly notices a corrected direction, so that steps are of the layer's own length: the first one too.
    let mut search = StepSearch::new(10.0 * unit, method.search_evaluations, method.search_tolerance);
    let mut trials = Vec::new();
    let scores = if tower == Tower::Text { Some(zero_shot::scores(subject.embedded, ground.classes)?) } else { None };
    let comparisons = |classes: i64| subject.len() as i64 * classes;
    // The steps that so many evaluations may ask for are one less than a power of two.
    let ahead = (ground.together(layer, own_text.tokens(ground.clip), comparisons(ground.classes.size()[0])) + 1).ilog2();
    let mut known: Vec<(f64, Accuracy)> = Vec::new();
    while let Some(step) = search.next() {
        let accuracy = match &scores {
            Some(scores) => match known.iter().find(|(looked, _)| *looked == step) {
                Some(&(_, accuracy)) => accuracy,
                None => {
                    let steps = search.ahead(ahead);
                    let layers = edited_layers(ground.parameters, layer, direction, &steps)?;
                    let own = own_text.embed_trials(ground.clip, &original, layer, &layers)?.f_select(1, 0)?;
                    let ranks = zero_shot::ranks_of(subject.embedded, scores, &own, subject.class)?;
                    known = steps.into_iter().zip(ranks.iter().map(|ranks| zero_shot::accuracy(ranks))).collect();
                    known.first().map_or(Accuracy { fa1: 1.0, fa5: 1.0 }, |&(_, accuracy)| accuracy)
                }
            },
            None => judged(&see(subject.images, ground, &edited(step)?, layer)?, ground.classes)?,
        };
        trials.push(trial(step, accuracy));
        search.record(forgotten(accuracy));
    }
    let Some(mut step) = search.answer() else { return Ok((trials, None)) };

    let mut witnessed: Vec<Accuracy> = Vec::new();
    for push in 0..=PUSHES {
        if let (Tower::Text, Some(witnesses), true) = (tower, witnesses, push < PUSHES) {
            if witnessed.is_empty() {
                let together = ground.together(layer, witnesses.tokens(ground), comparisons(witnesses.count())).min((PUSHES - push) as i64);
                let steps: Vec<f64> = std::iter::successors(Some(step), |step| Some(step * PUSH)).take(together as usize).collect();
                let layers = edited_layers(ground.parameters, layer, direction, &steps)?;
                witnessed = witnesses.accuracies(ground, subject, &original, layer, &layers)?;
                witnessed.reverse();
            }
            if let Some(accuracy) = witnessed.pop().filter(|accuracy| !forgotten(*accuracy)) {
                trials.push(trial(step, accuracy));
                step *= PUSH;
                continue;
            }
        }
        let weights = edited(step)?;
        let (accuracy, classes) = match tower {
            Tower::Text => {
                let classes = ground.class_texts.embed(ground.clip, &original, &weights, Some(layer))?;
                (judged(subject.embedded, &classes)?, classes)
            }
            Tower::Vision => {
                let images = see(subject.images, ground, &weights, layer)?;
                (judged(&images, ground.classes)?, ground.classes.shallow_clone())
            }
        };
        let mut whole = trial(step, accuracy);
        if !whole.forgotten {
            trials.push(whole);
            step *= PUSH;
            continue;
        }
        let validation = match tower {
            Tower::Text => validated(ground, ground.validation_images, &classes)?,
            // Nothing to look at.
            Tower::Vision if ground.validation_labels.is_empty() => Hits::default(),
            Tower::Vision => validated(ground, &see(ground.validation, ground, &weights, layer)?, &classes)?,
        };
        let utility = validation.mean_top1(|class| class != subject.class);
        whole.utility = Some(utility);
        match trials.iter_mut().find(|trial| trial.step == step) {
            Some(tried) if push == 0 => *tried = whole,
            _ => trials.push(whole),
        }
        let summary = LayerAnswer {
            layer: spec.name.clone(),
            tower,
            step,
            relative_step: step / unit,
            fa1: accuracy.fa1,
            fa5: accuracy.fa5,
            utility,
        };
        return Ok((trials, Some(Answer { id: layer, summary, validation })));
    }
    Ok((trials, None))
}

//! The types that the search on one layer and the choice among layers share: what a trial is
//! evaluated on, and what it results in.

use lethe_shared::measurement::{Accuracy, Hits, LayerAnswer};
use lethe_shared::vocabulary::{Stop, Tower};
use tch::{Device, Kind, Tensor};

use super::ranking::Scores;
use crate::corpus::{self, Corpus};
use crate::model::weights::kind_of;
use crate::model::{Clip, Error, NotFinite, ParameterId, Parameters};
use crate::zero_shot;

/// The model and the evaluation data that the searches of all concepts share.
#[derive(Debug, Clone, Copy)]
pub struct EvaluationContext<'a> {
    /// Structure of the model.
    pub clip: &'a Clip,
    /// Original parameters of the model.
    pub parameters: &'a Parameters,
    /// The text of every class.
    pub class_texts: &'a Corpus,
    /// Embeddings of the class texts under the original model `[classes, d]`.
    pub class_embeddings: &'a Tensor,
    /// The validation images; may be `None` when no layer of the vision tower is searched.
    pub validation_images: Option<&'a Corpus>,
    /// Embeddings of the validation images under the original model `[n, d]`.
    pub validation_embeddings: &'a Tensor,
    /// Classes of the validation images.
    pub validation_labels: &'a [u32],
    /// Number of tokens up to which a pass takes no longer than for a few tokens. Steps that the
    /// search may need later are evaluated in advance within this limit; 0 disables it.
    pub spare_tokens: i64,
}

/// The most score comparisons held at a time for steps that are evaluated in advance: about 2 GB.
const MAX_COMPARISONS: i64 = 1 << 27;
/// The most values of edited layers held at a time for steps that are evaluated in advance: about 2
/// GB.
const MAX_EDITED_VALUES: i64 = 1 << 26;

impl EvaluationContext<'_> {
    /// Returns how many steps on a layer to evaluate in one pass, at least 1, when each step needs
    /// this many tokens and score comparisons.
    pub(super) fn steps_per_pass(&self, layer: ParameterId, tokens: i64, comparisons: i64) -> i64 {
        let values: i64 = self.clip.architecture().spec(layer).shape.iter().product();
        (self.spare_tokens / tokens.max(1))
            .min(MAX_COMPARISONS / comparisons.max(1))
            .min(MAX_EDITED_VALUES / values.max(1))
            .max(1)
    }
}

/// The forget images of one concept, and the class that the model must no longer find in them.
#[derive(Debug)]
pub struct ForgetSet<'a> {
    /// Index of the class.
    pub class: u32,
    /// The forget images; may be `None` when no layer of the vision tower is searched.
    pub images: Option<&'a Corpus>,
    /// Embeddings of the forget images under the original model `[n, d]`.
    pub embeddings: &'a Tensor,
}

impl ForgetSet<'_> {
    /// Returns the number of forget images.
    pub fn len(&self) -> usize {
        self.embeddings.size()[0] as usize
    }

    /// Returns whether there are no forget images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the class of every forget image `[n]`, int64.
    pub(super) fn labels(&self, device: Device) -> Result<Tensor, Error> {
        corpus::labels(&vec![self.class; self.len()], device)
    }
}

/// What one step does to the forget set.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutcome {
    /// Forget accuracies after the step.
    Measured(Accuracy),
    /// The step drives the model out of range. It is refused: no rank follows from values that are
    /// not finite, and so no claim that anything was forgotten.
    Refused(NotFinite),
}

impl StepOutcome {
    /// Classifies images `[n, d]` among classes `[c, d]`, given as unit embeddings, and compares
    /// with `labels` `[n]`.
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error. Scores that are not finite give
    /// [`StepOutcome::Refused`] instead.
    pub(super) fn measure(
        images: &Tensor,
        classes: &Tensor,
        labels: &Tensor,
    ) -> Result<Self, Error> {
        match zero_shot::ranks(images, classes, labels) {
            Ok(ranks) => Ok(Self::of_ranks(Ok(ranks))),
            Err(Error::NotFinite(problem)) => Ok(Self::Refused(problem)),
            Err(other) => Err(other),
        }
    }

    /// The outcome that follows from the ranks of the forget images.
    pub(super) fn of_ranks(ranks: Result<Vec<i64>, NotFinite>) -> Self {
        match ranks {
            Ok(ranks) => Self::Measured(zero_shot::accuracy(&ranks)),
            Err(problem) => Self::Refused(problem),
        }
    }

    /// Returns whether the concept counts as forgotten. It never does after a refused step.
    pub fn is_forgotten(&self, stop: Stop) -> bool {
        match (self, stop) {
            (Self::Measured(accuracy), Stop::Fa1) => accuracy.fa1 == 0.0,
            (Self::Measured(accuracy), Stop::Fa5) => accuracy.fa5 == 0.0,
            // Tasks with a step search refuse this measure.
            (Self::Measured(_), Stop::Rank(_)) => false,
            (Self::Refused(_), _) => false,
        }
    }

    /// Returns the accuracies to record. A refused step is recorded as one that forgot nothing.
    pub fn recorded_accuracy(&self) -> Accuracy {
        match self {
            Self::Measured(accuracy) => *accuracy,
            Self::Refused(_) => Accuracy { fa1: 1.0, fa5: 1.0 },
        }
    }
}

/// A layer on a Pareto front, with its scores and the direction of its edit.
#[derive(Debug)]
pub struct FrontLayer<'a> {
    /// The layer.
    pub id: ParameterId,
    /// Scores of the layer.
    pub scores: Scores,
    /// The forget gradient g_f,l: float32, in the layer's shape.
    pub gradient: &'a Tensor,
}

/// The result of a successful search on one layer: the smallest step that forgot.
#[derive(Debug)]
pub struct CandidateEdit<'a> {
    /// The layer.
    pub id: ParameterId,
    /// Name of the layer.
    pub name: &'a str,
    /// Tower of the layer.
    pub tower: Tower,
    /// The forget gradient g_f,l: float32, in the layer's shape.
    pub gradient: &'a Tensor,
    /// Step size λ.
    pub step: f64,
    /// Relative step size λ / R.
    pub relative_step: f64,
    /// Forget accuracies at this step.
    pub accuracy: Accuracy,
    /// Hits per class on the validation images at this step. The search on a text layer measures
    /// them, the search on a vision layer does not.
    pub validation: Option<Hits>,
}

/// The edit that was selected for a concept.
#[derive(Debug)]
pub struct SelectedEdit {
    /// The layer.
    pub id: ParameterId,
    /// Step size, accuracies and utility.
    pub summary: LayerAnswer,
    /// Hits per class on the validation images with this edit alone.
    pub validation: Hits,
}

/// Computes θ_l + λ g_f,l in float64 and rounds it to the type in which the checkpoint stores the
/// layer, as a release does.
///
/// # Errors
/// When libtorch returns an error.
pub fn edited_layer(
    parameters: &Parameters,
    layer: ParameterId,
    gradient: &Tensor,
    step: f64,
) -> Result<Tensor, Error> {
    Ok(edited_layers(parameters, layer, gradient, &[step])?.f_squeeze_dim(0)?)
}

/// Computes the edited layer for several steps: `[steps, …]`, each in the layer's shape.
///
/// # Errors
/// When libtorch returns an error.
pub fn edited_layers(
    parameters: &Parameters,
    layer: ParameterId,
    gradient: &Tensor,
    steps: &[f64],
) -> Result<Tensor, Error> {
    let mut shape = vec![1; gradient.dim() + 1];
    shape[0] = steps.len() as i64;
    let steps = Tensor::f_from_slice(steps)?.f_to(gradient.device())?.f_view(&shape[..])?;
    let change = gradient.f_to_kind(Kind::Double)?.f_mul(&steps)?;
    let moved = parameters.get(layer).f_to_kind(Kind::Double)?.f_add(&change)?;
    let stored = kind_of(parameters.storage(layer)).unwrap_or(Kind::Float);
    Ok(moved.f_to_kind(stored)?.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_finite_refuse_a_step_and_wrong_shapes_are_errors() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 2]);
        let (images, classes) = (rows(&[1., 0.]), rows(&[1., 0., 0., 1.]));
        let labels = Tensor::from_slice(&[1i64]);
        let measured = StepOutcome::measure(&images, &classes, &labels).unwrap();
        assert_eq!(measured, StepOutcome::Measured(Accuracy { fa1: 0.0, fa5: 1.0 }));
        assert!(measured.is_forgotten(Stop::Fa1) && !measured.is_forgotten(Stop::Fa5));
        let refused =
            StepOutcome::measure(&images, &rows(&[1., f32::NAN, 0., 1.]), &labels).unwrap();
        assert!(matches!(refused, StepOutcome::Refused(_)), "{refused:?}");
        assert!(!refused.is_forgotten(Stop::Fa1) && !refused.is_forgotten(Stop::Fa5));
        assert_eq!(refused.recorded_accuracy(), Accuracy { fa1: 1.0, fa5: 1.0 });
        let wrong_shape = StepOutcome::measure(&images, &classes.view([-1, 4]), &labels);
        assert!(matches!(wrong_shape, Err(Error::Torch(_))), "{wrong_shape:?}");
    }
}

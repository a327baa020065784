//! Evaluation of trial edits of one layer on the forget set and the validation images.

use lethe_shared::measurement::{Hits, Trial};
use lethe_shared::vocabulary::{Stop, Tower};
use tch::Tensor;

use super::trial::{EvaluationContext, ForgetSet, StepOutcome, edited_layer};
use crate::corpus::{self, Corpus};
use crate::model::{Error, ParameterId, Weights};
use crate::zero_shot;

/// Evaluates edits of one layer for one concept.
#[derive(Debug)]
pub(super) struct LayerEvaluator<'a> {
    pub(super) context: EvaluationContext<'a>,
    pub(super) forget_set: &'a ForgetSet<'a>,
    pub(super) layer: ParameterId,
    /// Name of the layer.
    pub(super) name: &'a str,
    /// Tower of the layer. The towers are independent: an edit of one leaves the embeddings of the
    /// other unchanged.
    pub(super) tower: Tower,
    /// The unedited parameters.
    pub(super) original: Weights,
    stop: Stop,
    forget_labels: Tensor,
}

impl<'a> LayerEvaluator<'a> {
    /// Creates the evaluator of a layer of either tower.
    pub(super) fn new(
        context: EvaluationContext<'a>,
        forget_set: &'a ForgetSet<'a>,
        layer: ParameterId,
        stop: Stop,
    ) -> Result<Self, Error> {
        let spec = context.clip.architecture().spec(layer);
        let outside = || Error::Tensor {
            tensor: spec.name.clone(),
            problem: "belongs to neither tower and cannot be edited".into(),
        };
        let tower = spec.tower.ok_or_else(outside)?;
        let forget_labels = forget_set.labels(context.parameters.device())?;
        Ok(Self {
            context,
            forget_set,
            layer,
            name: &spec.name,
            tower,
            original: context.parameters.weights(),
            stop,
            forget_labels,
        })
    }

    /// Returns the model's weights with the layer moved by `step` along `direction`.
    pub(super) fn edited(&self, direction: &Tensor, step: f64) -> Result<Weights, Error> {
        let tensor = edited_layer(self.context.parameters, self.layer, direction, step)?;
        Ok(self.original.with(self.layer, tensor))
    }

    /// Embeds every class text under an edit of the layer.
    pub(super) fn class_embeddings(&self, edited: &Weights) -> Result<Tensor, Error> {
        self.context.class_texts.embed(self.context.clip, &self.original, edited, Some(self.layer))
    }

    /// Embeds images under an edit of the layer.
    pub(super) fn image_embeddings(
        &self,
        images: Option<&Corpus>,
        edited: &Weights,
    ) -> Result<Tensor, Error> {
        let missing = || Error::Tensor {
            tensor: "pixels".into(),
            problem: "were not loaded, but an edit of the vision tower needs them".into(),
        };
        images.ok_or_else(missing)?.embed(
            self.context.clip,
            &self.original,
            edited,
            Some(self.layer),
        )
    }

    /// Measures the forget accuracies of forget images among classes, given as unit embeddings.
    pub(super) fn measure(
        &self,
        forget_images: &Tensor,
        classes: &Tensor,
    ) -> Result<StepOutcome, Error> {
        StepOutcome::measure(forget_images, classes, &self.forget_labels)
    }

    /// Returns whether the concept counts as forgotten.
    pub(super) fn is_forgotten(&self, outcome: &StepOutcome) -> bool {
        outcome.is_forgotten(self.stop)
    }

    /// Creates the record of a step, without its utility.
    pub(super) fn trial(&self, step: f64, outcome: &StepOutcome) -> Trial {
        let accuracy = outcome.recorded_accuracy();
        let (layer, forgotten) = (self.name.to_owned(), self.is_forgotten(outcome));
        Trial { layer, step, fa1: accuracy.fa1, fa5: accuracy.fa5, forgotten, utility: None }
    }

    /// Counts hits per class on the validation images, given their embeddings and those of the
    /// classes.
    pub(super) fn validation_hits(&self, images: &Tensor, classes: &Tensor) -> Result<Hits, Error> {
        let labels = self.context.validation_labels;
        // Without validation images utility cannot distinguish edits.
        if labels.is_empty() {
            return Ok(Hits::default());
        }
        let ranks = zero_shot::ranks(
            images,
            classes,
            &corpus::labels(labels, self.context.parameters.device())?,
        )?;
        Ok(zero_shot::hits(&ranks, labels))
    }
}

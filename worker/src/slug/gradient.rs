//! Gradients of the two losses, taken once at the original weights.
//!
//! Each batch starts from nothing; what is kept is a sum in float64 in batch order, so that the result does not
//! depend on who computed which batch.

use tch::{Kind, Tensor};

use super::loss;
use crate::model::clip::Input;
use crate::model::{Clip, Error, ParameterId, TokenBatch, Weights};

/// Which loss a batch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// [`loss::forget`]; a batch counts by its pairs.
    Forget,
    /// [`loss::retain`]; every batch counts once.
    Retain,
}

/// A sum of batch gradients.
#[derive(Debug)]
pub struct GradientSum {
    layers: Vec<ParameterId>,
    sums: Vec<Option<Tensor>>,
    weight: f64,
    loss: f64,
}

impl GradientSum {
    /// An empty sum over these layers.
    pub fn new(layers: Vec<ParameterId>) -> Self {
        let sums = layers.iter().map(|_| None).collect();
        Self { layers, sums, weight: 0.0, loss: 0.0 }
    }

    /// Adds the gradient of one batch of pairs: `pixels` `[n, 3, s, s]` and the texts in the same order.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the loss or a gradient is not finite; otherwise when libtorch refuses.
    pub fn add(&mut self, kind: Loss, clip: &Clip, weights: &Weights, pixels: &Tensor, texts: &TokenBatch) -> Result<(), Error> {
        let (graph, leaves) = weights.with_leaves(&self.layers)?;
        let images = clip.embed(&graph, Input::Images(pixels))?;
        let texts = clip.embed(&graph, Input::Texts(texts))?;
        let (loss, weight) = match kind {
            Loss::Forget => (loss::forget(&images, &texts)?, pixels.size()[0] as f64),
            Loss::Retain => (loss::retain(&images, &texts, &clip.scale(&graph)?)?, 1.0),
        };
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(Error::Tensor { tensor: "loss".into(), problem: format!("is {value}; weights or pixels are out of range") });
        }
        let gradients = Tensor::f_run_backward(&[&loss], &leaves, false, false)?;
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            // A layer that this batch does not reach has gradient zero.
            if !gradient.defined() {
                continue;
            }
            let scaled = gradient.f_to_kind(Kind::Double)?.f_mul_scalar(weight)?;
            match sum {
                None => *sum = Some(scaled),
                Some(sum) => drop(sum.f_add_(&scaled)?),
            }
        }
        self.weight += weight;
        self.loss += weight * value;
        Ok(())
    }

    /// What the batches weigh together: pairs for L_f, batches for L_r.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Mean loss; NaN when nothing was added.
    pub fn loss(&self) -> f64 {
        self.loss / self.weight
    }

    /// The sum as float32, one tensor per layer, in the layers' shapes.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn sum(&self, weights: &Weights) -> Result<Vec<(ParameterId, Tensor)>, Error> {
        self.scaled(weights, 1.0)
    }

    /// The mean as float32, one tensor per layer, in the layers' shapes.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a gradient is not finite.
    pub fn mean(&self, weights: &Weights) -> Result<Vec<(ParameterId, Tensor)>, Error> {
        self.scaled(weights, 1.0 / self.weight)
    }

    fn scaled(&self, weights: &Weights, factor: f64) -> Result<Vec<(ParameterId, Tensor)>, Error> {
        let mut result = Vec::with_capacity(self.layers.len());
        for (&layer, sum) in self.layers.iter().zip(&self.sums) {
            let tensor = match sum {
                Some(sum) => sum.f_mul_scalar(factor)?.f_to_kind(Kind::Float)?,
                None => weights.get(layer).f_zeros_like()?,
            };
            result.push((layer, tensor));
        }
        Ok(result)
    }
}

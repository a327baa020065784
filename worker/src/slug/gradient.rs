//! Gradients of the two losses, taken once at the original weights.
//!
//! Batch gradients are added in float64 and in batch order, so results do not depend on which
//! worker computes which batch.
//!
//! A batch that is too large for one pass is embedded in micro-batches without an autograd graph.
//! The loss is computed over all of its embeddings, and its gradient with respect to each embedding
//! is propagated through the towers micro-batch by micro-batch (gradient caching, arXiv
//! 2101.06983). The loss is the same and the gradient differs only by the order of summation.

use tch::{Kind, Tensor};

use super::loss;
use crate::micro_batch::MicroBatch;
use crate::model::{Clip, Error, Input, NotFinite, ParameterId, TokenBatch, Weights};

/// The loss of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// [`loss::forget`]; the weight of a batch is its number of pairs.
    Forget,
    /// [`loss::retain`], or [`loss::retain_sigmoid`] of a SigLIP; every batch has weight 1.
    Retain,
}

impl Loss {
    /// Computes the loss over unit embeddings `[n, d]`; a scalar tensor.
    fn over(
        self,
        images: &Tensor,
        texts: &Tensor,
        clip: &Clip,
        weights: &Weights,
    ) -> Result<Tensor, Error> {
        match self {
            Self::Forget => loss::forget(images, texts),
            Self::Retain => {
                let scale = clip.scale(weights)?;
                match clip.logit_bias(weights) {
                    None => loss::retain(images, texts, &scale),
                    Some(bias) => loss::retain_sigmoid(images, texts, &scale, bias),
                }
            }
        }
    }

    /// Returns the weight of a batch of this many pairs.
    fn weight(self, pairs: i64) -> f64 {
        match self {
            Self::Forget => pairs as f64,
            Self::Retain => 1.0,
        }
    }
}

/// The images of a batch.
#[derive(Debug, Clone, Copy)]
pub enum Images<'a> {
    /// Preprocessed images `[n, 3, s, s]`, to be embedded by the vision tower.
    Pixels(&'a Tensor),
    /// Embeddings `[n, d]` by the original vision tower, for gradients of layers outside that
    /// tower.
    Embedded(&'a Tensor),
}

impl Images<'_> {
    fn items(self) -> i64 {
        match self {
            Self::Pixels(tensor) | Self::Embedded(tensor) => tensor.size()[0],
        }
    }
}

/// A weighted sum of batch gradients.
#[derive(Debug)]
pub struct GradientSum {
    layers: Vec<ParameterId>,
    sums: Vec<Option<Tensor>>,
    weight: f64,
    loss: f64,
    micro_batch: MicroBatch,
}

impl GradientSum {
    /// Creates an empty sum for some layers.
    pub fn new(layers: Vec<ParameterId>, micro_batch: MicroBatch) -> Self {
        let sums = layers.iter().map(|_| None).collect();
        Self { layers, sums, weight: 0.0, loss: 0.0, micro_batch }
    }

    /// Adds the gradient of one batch of pairs: images, and their texts in the same order. After an
    /// error the sum must not be used.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the loss is not finite, [`Error::Memory`] when a micro-batch does
    /// not fit the device's memory; otherwise when libtorch returns an error.
    pub fn add(
        &mut self,
        kind: Loss,
        clip: &Clip,
        weights: &Weights,
        images: Images<'_>,
        texts: &TokenBatch,
    ) -> Result<(), Error> {
        let pairs = images.items();
        let weight = kind.weight(pairs);
        let (graph, leaves) = weights.with_leaves(&self.layers)?;
        let already_embedded = matches!(images, Images::Embedded(_));
        let micro_batch = self.micro_batch.for_item_bytes(clip.pair_bytes(
            &self.layers,
            texts.ids.size()[1],
            already_embedded,
        ));
        let texts = Input::Texts(texts);
        let value = if micro_batch.clamp(pairs) == pairs {
            micro_batch.run(pairs, || {
                let images = match images {
                    Images::Pixels(pixels) => clip.embed(&graph, Input::Images(pixels))?,
                    Images::Embedded(embedded) => embedded.shallow_clone(),
                };
                let loss = kind.over(&images, &clip.embed(&graph, texts)?, clip, &graph)?;
                let value = finite_value(&loss)?;
                self.accumulate(Tensor::f_run_backward(&[&loss], &leaves, false, false)?, weight)?;
                Ok(value)
            })?
        } else {
            let inputs = match images {
                Images::Pixels(pixels) => vec![texts, Input::Images(pixels)],
                Images::Embedded(_) => vec![texts],
            };
            let embedded = inputs
                .iter()
                .map(|&input| embed_detached(clip, weights, input, micro_batch))
                .collect::<Result<Vec<_>, Error>>()?;
            let image_embeddings = match images {
                Images::Pixels(_) => &embedded[1],
                Images::Embedded(known) => known,
            };
            let loss = kind.over(image_embeddings, &embedded[0], clip, &graph)?;
            let value = finite_value(&loss)?;
            let sources: Vec<&Tensor> = embedded.iter().chain(&leaves).collect();
            let mut gradients = Tensor::f_run_backward(&[&loss], &sources, false, false)?;
            // Gradients that do not pass through an embedding: that of the factor on cosines, if it
            // is among the layers.
            self.accumulate(gradients.split_off(embedded.len()), weight)?;
            for (input, output_gradient) in inputs.into_iter().zip(&gradients) {
                for (start, count) in micro_batch.passes(pairs) {
                    micro_batch.run(count, || {
                        let embedded = clip.embed(&graph, input.narrow(start, count)?.input())?;
                        // False when none of the layers is in this tower.
                        if embedded.requires_grad() {
                            let projected = embedded
                                .f_mul(&output_gradient.f_narrow(0, start, count)?)?
                                .f_sum(Kind::Float)?;
                            self.accumulate(
                                Tensor::f_run_backward(&[&projected], &leaves, false, false)?,
                                weight,
                            )?;
                        }
                        Ok(())
                    })?;
                }
            }
            value
        };
        self.weight += weight;
        self.loss += weight * value;
        Ok(())
    }

    /// Adds the weighted gradients of the layers in float64.
    fn accumulate(&mut self, gradients: Vec<Tensor>, weight: f64) -> Result<(), Error> {
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            // The gradient of a layer that does not affect this batch is undefined, which means
            // zero.
            if !gradient.defined() {
                continue;
            }
            let scaled = gradient.f_to_kind(Kind::Double)?.f_mul_scalar(weight)?;
            match sum {
                None => *sum = Some(scaled),
                Some(sum) => drop(sum.f_add_(&scaled)?),
            }
        }
        Ok(())
    }

    /// Returns the total weight: the number of pairs for L_f, of batches for L_r.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Returns the mean loss; NaN when the sum is empty.
    pub fn loss(&self) -> f64 {
        self.loss / self.weight
    }

    /// Returns the sum as float32, one tensor per layer, in the layers' shapes.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn sum(&self, weights: &Weights) -> Result<Vec<(ParameterId, Tensor)>, Error> {
        self.scaled(weights, 1.0)
    }

    /// Returns the mean as float32, one tensor per layer, in the layers' shapes.
    ///
    /// # Errors
    /// When libtorch returns an error.
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

/// Embeds a whole batch, detached from the weights; the embeddings are leaves of a new autograd
/// graph.
fn embed_detached(
    clip: &Clip,
    weights: &Weights,
    input: Input<'_>,
    micro_batch: MicroBatch,
) -> Result<Tensor, Error> {
    let embedded = {
        let _guard = tch::no_grad_guard();
        let pass = |(start, count)| {
            micro_batch.run(count, || clip.embed(weights, input.narrow(start, count)?.input()))
        };
        Tensor::f_cat(
            &micro_batch.passes(input.items()).map(pass).collect::<Result<Vec<_>, Error>>()?,
            0,
        )?
    };
    Ok(embedded.f_set_requires_grad(true)?)
}

fn finite_value(loss: &Tensor) -> Result<f64, Error> {
    let value = loss.f_double_value(&[])?;
    if value.is_finite() { Ok(value) } else { Err(NotFinite::new("values of the loss").into()) }
}

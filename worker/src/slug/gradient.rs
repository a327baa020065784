//! Gradients of the two losses, taken once at the original weights.
//!
//! Each batch starts from nothing; what is kept is a sum in float64 in batch order, so that the result does not
//! depend on who computed which batch.
//!
//! A batch that one pass does not hold is embedded in micro-batches without a graph; the loss is taken over all of its
//! embeddings, and the loss's gradient with respect to each of them is carried back through the towers micro-batch by
//! micro-batch (gradient caching, arXiv 2101.06983). That is the same loss and, but for the order of sums, the same gradient.

use tch::{Kind, Tensor};

use super::loss;
use crate::micro_batch::MicroBatch;
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

impl Loss {
    /// The loss over unit embeddings `[n, d]`; a scalar tensor.
    fn over(self, images: &Tensor, texts: &Tensor, clip: &Clip, weights: &Weights) -> Result<Tensor, Error> {
        match self {
            Self::Forget => loss::forget(images, texts),
            Self::Retain => loss::retain(images, texts, &clip.scale(weights)?),
        }
    }

    /// What a batch of `pairs` counts.
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
    /// Preprocessed `[n, 3, s, s]`, to go through the vision tower.
    Pixels(&'a Tensor),
    /// As the original vision tower embeds them `[n, d]`, where none of its layers is wanted: nothing there depends on a layer.
    Embedded(&'a Tensor),
}

impl Images<'_> {
    fn items(self) -> i64 {
        match self {
            Self::Pixels(tensor) | Self::Embedded(tensor) => tensor.size()[0],
        }
    }
}

/// A sum of batch gradients.
#[derive(Debug)]
pub struct GradientSum {
    layers: Vec<ParameterId>,
    sums: Vec<Option<Tensor>>,
    weight: f64,
    loss: f64,
    micro_batch: MicroBatch,
}

impl GradientSum {
    /// An empty sum over these layers.
    pub fn new(layers: Vec<ParameterId>, micro_batch: MicroBatch) -> Self {
        let sums = layers.iter().map(|_| None).collect();
        Self { layers, sums, weight: 0.0, loss: 0.0, micro_batch }
    }

    /// Adds the gradient of one batch of pairs: images, and the texts in the same order. After an error the sum is of no use.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the loss is not finite, [`Error::Memory`] when a micro-batch is too large for the device;
    /// otherwise when libtorch refuses.
    pub fn add(&mut self, kind: Loss, clip: &Clip, weights: &Weights, images: Images<'_>, texts: &TokenBatch) -> Result<(), Error> {
        let pairs = images.items();
        let weight = kind.weight(pairs);
        let (graph, leaves) = weights.with_leaves(&self.layers)?;
        let seen = matches!(images, Images::Embedded(_));
        let micro_batch = self.micro_batch.for_items_of(clip.pair_bytes(&self.layers, texts.ids.size()[1], seen));
        let texts = Input::Texts(texts);
        let value = if micro_batch.at_most(pairs) == pairs {
            micro_batch.pass(pairs, || {
                let images = match images {
                    Images::Pixels(pixels) => clip.embed(&graph, Input::Images(pixels))?,
                    Images::Embedded(embedded) => embedded.shallow_clone(),
                };
                let loss = kind.over(&images, &clip.embed(&graph, texts)?, clip, &graph)?;
                let value = finite(&loss)?;
                self.take(Tensor::f_run_backward(&[&loss], &leaves, false, false)?, weight)?;
                Ok(value)
            })?
        } else {
            let inputs = match images {
                Images::Pixels(pixels) => vec![texts, Input::Images(pixels)],
                Images::Embedded(_) => vec![texts],
            };
            let embedded = inputs.iter().map(|&input| embed_apart(clip, weights, input, micro_batch)).collect::<Result<Vec<_>, Error>>()?;
            let seen = match images {
                Images::Pixels(_) => &embedded[1],
                Images::Embedded(known) => known,
            };
            let loss = kind.over(seen, &embedded[0], clip, &graph)?;
            let value = finite(&loss)?;
            let wanted: Vec<&Tensor> = embedded.iter().chain(&leaves).collect();
            let mut gradients = Tensor::f_run_backward(&[&loss], &wanted, false, false)?;
            // What does not go through an embedding: the factor on cosines, where it is among the layers.
            self.take(gradients.split_off(embedded.len()), weight)?;
            for (input, pull) in inputs.into_iter().zip(&gradients) {
                for (start, count) in micro_batch.cut(pairs) {
                    micro_batch.pass(count, || {
                        let embedded = clip.embed(&graph, input.narrow(start, count)?.input())?;
                        // None of the layers may be in this tower.
                        if embedded.requires_grad() {
                            let pulled = embedded.f_mul(&pull.f_narrow(0, start, count)?)?.f_sum(Kind::Float)?;
                            self.take(Tensor::f_run_backward(&[&pulled], &leaves, false, false)?, weight)?;
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

    /// Adds gradients of the layers, weighed, in float64.
    fn take(&mut self, gradients: Vec<Tensor>, weight: f64) -> Result<(), Error> {
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

/// Unit embeddings of a whole batch, cut loose from the weights, as leaves of a graph of their own.
fn embed_apart(clip: &Clip, weights: &Weights, input: Input<'_>, micro_batch: MicroBatch) -> Result<Tensor, Error> {
    let embedded = {
        let _guard = tch::no_grad_guard();
        let pass = |(start, count)| micro_batch.pass(count, || clip.embed(weights, input.narrow(start, count)?.input()));
        Tensor::f_cat(&micro_batch.cut(input.items()).map(pass).collect::<Result<Vec<_>, Error>>()?, 0)?
    };
    Ok(embedded.f_set_requires_grad(true)?)
}

fn finite(loss: &Tensor) -> Result<f64, Error> {
    let value = loss.f_double_value(&[])?;
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::Tensor { tensor: "loss".into(), problem: format!("is {value}; weights or pixels are out of range") })
    }
}

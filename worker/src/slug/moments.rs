//! Second moments of what goes into a layer, over what must stay.
//!
//! For a linear layer with inputs x_t and output gradients δ_t (t runs over items and tokens) the change Δ of its weight
//! moves the embedding, seen along a random unit direction, by Σ δ_tᵀ Δ x_t. Over random directions its mean square is
//! about tr(Δ C Δᵀ) with **C = Σ ‖δ_t‖² x_t x_tᵀ** (a Gauss-Newton factor; the outputs' own factor is left at the
//! identity). So C says which changes what must stay would notice. No labels are needed: any texts serve a text layer,
//! any images a vision layer.

use lethe_shared::draws::Draws;
use tch::{Kind, Tensor};

use crate::micro_batch::MicroBatch;
use crate::model::clip::Input;
use crate::model::{Batch, Clip, Error, ParameterId, Tapped, Weights};

/// Random directions of the embedding per item.
const PROBES: usize = 2;

/// Sums of second moments by layer, of two halves of the items.
#[derive(Debug)]
pub struct MomentSum {
    layers: Vec<ParameterId>,
    sums: Vec<[Option<Tensor>; 2]>,
    draws: Draws,
    items: u64,
    micro_batch: MicroBatch,
}

impl MomentSum {
    /// An empty sum over these layers, all of one tower; `draws` are what random directions come from.
    pub fn new(layers: Vec<ParameterId>, draws: Draws, micro_batch: MicroBatch) -> Self {
        let sums = layers.iter().map(|_| [None, None]).collect();
        Self { layers, sums, draws, items: 0, micro_batch }
    }

    /// Adds a batch; `halves[i]` says which half item i belongs to.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a moment is not finite, [`Error::Memory`] when a micro-batch is too large for the device;
    /// otherwise when libtorch refuses.
    pub fn add(&mut self, clip: &Clip, weights: &Weights, input: Input<'_>, halves: &[bool]) -> Result<(), Error> {
        // Drawn for the whole batch, so that an item's directions do not depend on how the batch is cut.
        let probes =
            (0..PROBES).map(|_| directions(&mut self.draws, input.items(), clip.config().embedding)).collect::<Result<Vec<_>, _>>()?;
        let micro_batch = self.micro_batch;
        for (start, count) in micro_batch.cut(input.items()) {
            micro_batch.pass(count, || {
                let probes = probes.iter().map(|probe| probe.f_narrow(0, start, count)).collect::<Result<Vec<_>, _>>()?;
                self.add_piece(clip, weights, &input.narrow(start, count)?, &probes, &halves[start as usize..(start + count) as usize])
            })?;
        }
        self.items += halves.len() as u64;
        Ok(())
    }

    fn add_piece(&mut self, clip: &Clip, weights: &Weights, batch: &Batch, probes: &[Tensor], halves: &[bool]) -> Result<(), Error> {
        let graph = weights.with_taps(&self.layers)?;
        let embedded = clip.embed(&graph, batch.input())?;
        let tapped = graph.tapped();
        let outputs: Vec<&Tensor> = tapped.iter().map(|tap| &tap.output).collect();
        // Mean of ‖δ_t‖² over the probes, per layer `[items, …, 1]`.
        let mut sensitivities: Vec<Option<Tensor>> = tapped.iter().map(|_| None).collect();
        for (number, directions) in (1..).zip(probes) {
            let seen = embedded.f_mul(&directions.f_to(embedded.device())?)?.f_sum(Kind::Float)?;
            let gradients = Tensor::f_run_backward(&[&seen], &outputs, number < probes.len(), false)?;
            for (sensitivity, gradient) in sensitivities.iter_mut().zip(&gradients) {
                let square = gradient.f_square()?.f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?.f_div_scalar(PROBES as f64)?;
                match sensitivity {
                    None => *sensitivity = Some(square),
                    Some(sum) => drop(sum.f_add_(&square)?),
                }
            }
        }
        let _guard = tch::no_grad_guard();
        for (tap, sensitivity) in tapped.iter().zip(sensitivities) {
            if let Some(sensitivity) = sensitivity {
                self.add_layer(tap, &sensitivity, halves)?;
            }
        }
        Ok(())
    }

    fn add_layer(&mut self, tap: &Tapped, sensitivity: &Tensor, halves: &[bool]) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&layer| layer == tap.layer) else { return Ok(()) };
        for (half, sum) in self.sums[position].iter_mut().enumerate() {
            let items: Vec<i64> = (0..).zip(halves).filter(|&(_, &second)| second == (half == 1)).map(|(item, _)| item).collect();
            if items.is_empty() {
                continue;
            }
            let items = Tensor::f_from_slice(&items)?.f_to(tap.input.device())?;
            let rows = |t: &Tensor| -> Result<Tensor, Error> {
                Ok(t.f_index_select(0, &items)?.f_reshape([-1, t.size().last().copied().unwrap_or(1)])?)
            };
            // What comes after a text's pooled token moves nothing, and need not be multiplied.
            let (inputs, squares) = (rows(&tap.input)?, rows(sensitivity)?);
            let moving = squares.f_squeeze_dim(1)?.f_nonzero()?.f_squeeze_dim(1)?;
            let weighed = inputs.f_index_select(0, &moving)?.f_mul(&squares.f_index_select(0, &moving)?.f_sqrt()?)?;
            let moment = weighed.f_transpose(0, 1)?.f_matmul(&weighed)?.f_to_kind(Kind::Double)?;
            if !moment.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
                return Err(Error::Tensor {
                    tensor: "moments".into(),
                    problem: "are not finite; weights or inputs are out of range".into(),
                });
            }
            match sum {
                None => *sum = Some(moment),
                Some(sum) => drop(sum.f_add_(&moment)?),
            }
        }
        Ok(())
    }

    /// Items added.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// The sums of both halves, float32 `[inputs, inputs]`, by layer.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn sums(&self, weights: &Weights) -> Result<Vec<(ParameterId, [Tensor; 2])>, Error> {
        let one = |layer: ParameterId, sum: &Option<Tensor>| -> Result<Tensor, Error> {
            Ok(match sum {
                Some(sum) => sum.f_to_kind(Kind::Float)?,
                None => {
                    let inputs = weights.get(layer).size().last().copied().unwrap_or(1);
                    Tensor::f_zeros([inputs, inputs], (Kind::Float, weights.get(layer).device()))?
                }
            })
        };
        self.layers.iter().zip(&self.sums).map(|(&layer, [first, second])| Ok((layer, [one(layer, first)?, one(layer, second)?]))).collect()
    }
}

/// Unit vectors `[n, d]`, evenly spread.
fn directions(draws: &mut Draws, n: i64, d: i64) -> Result<Tensor, Error> {
    let values: Vec<f32> = (0..n * d).map(|_| draws.normal()).collect();
    let values = Tensor::f_from_slice(&values)?.f_view([n, d])?;
    Ok(values.f_div(&values.f_norm_scalaropt_dim(2, [1].as_slice(), true)?)?)
}

/// Which half of the data a caption belongs to. Captions that begin alike, up to the first punctuation mark, stay
/// together: judging a direction on other words of the same thing would flatter it.
pub fn half_of(caption: &str) -> bool {
    let start = caption.trim().split([',', '.', ';', ':', '(', '!', '?']).next().unwrap_or_default().trim().to_lowercase();
    lethe_shared::digest::Digest::of(start.as_bytes()).as_bytes()[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use lethe_shared::digest::Digest;

    use super::*;

    #[test]
    fn directions_are_unit_vectors_and_the_same_every_time() {
        let drawn = |seed: &[u8]| directions(&mut Draws::seeded(Digest::of(seed)), 500, 24).unwrap();
        let directions = drawn(b"7");
        let lengths = directions.norm_scalaropt_dim(2, [1].as_slice(), false);
        assert!(f64::try_from((lengths - 1.0).abs().max()).unwrap() < 1e-5);
        // Evenly spread: the mean of 500 is near 0.
        assert!(f64::try_from(directions.mean_dim([0].as_slice(), false, Kind::Float).norm()).unwrap() < 0.1);
        assert_eq!(directions, drawn(b"7"));
    }

    #[test]
    fn captions_of_one_thing_stay_together() {
        assert_eq!(half_of("Paw prints, animals nature"), half_of("paw prints"));
        assert_eq!(half_of("paw prints. On snow"), half_of("paw prints"));
        let second = (0..1000).filter(|i| half_of(&format!("thing {i}"))).count();
        assert!((400..600).contains(&second), "{second}");
    }
}

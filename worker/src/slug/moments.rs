//! Second moments of what goes into a layer and of the gradients that come back to it, over what must stay.
//!
//! For a linear layer with inputs x_t and output gradients δ_t (t runs over items and tokens) the change Δ of its weight
//! moves the embedding, seen along a random unit direction, by Σ δ_tᵀ Δ x_t. Over random directions its mean square is
//! about tr(M Δ C Δᵀ) / tr(M), with the two factors **C = Σ ‖δ_t‖² x_t x_tᵀ** and **M = Σ δ_t δ_tᵀ** (a Gauss-Newton
//! matrix as a Kronecker product, as K-FAC takes it, arXiv 1503.05671). So they say which changes what must stay would
//! notice: C on the side of the inputs, M on that of the outputs. No labels are needed: any texts serve a text layer, any
//! images a vision layer.

use lethe_shared::draws::Draws;
use tch::{Device, Kind, Tensor};

use crate::micro_batch::MicroBatch;
use crate::model::clip::Input;
use crate::model::{Batch, Clip, Error, ParameterId, Tapped, Weights};

/// Random directions of the embedding per item.
const PROBES: usize = 2;

/// Sums of second moments by layer, of two halves of the items.
#[derive(Debug)]
pub struct MomentSum {
    layers: Vec<ParameterId>,
    sums: Vec<[Sums; 2]>,
    draws: Draws,
    items: u64,
    micro_batch: MicroBatch,
}

/// What one half of the items comes to at one layer, float64; nothing without items.
#[derive(Debug, Default)]
struct Sums {
    inputs: Option<Tensor>,
    outputs: Option<Tensor>,
}

/// The moments of one half of the items at one layer, float32.
#[derive(Debug)]
pub struct LayerMoments {
    /// C `[inputs, inputs]`.
    pub inputs: Tensor,
    /// M `[outputs, outputs]`.
    pub outputs: Tensor,
}

impl MomentSum {
    /// An empty sum over these layers, all of one tower; `draws` are what random directions come from.
    pub fn new(layers: Vec<ParameterId>, draws: Draws, micro_batch: MicroBatch) -> Self {
        let sums = layers.iter().map(|_| Default::default()).collect();
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
        let micro_batch = self.micro_batch.for_items_of(clip.pass_bytes(input.tower(), input.tokens(clip.config()), true));
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
            let _guard = tch::no_grad_guard();
            let gradients = gradients.iter().map(|gradient| gradient.f_to_kind(Kind::Float)).collect::<Result<Vec<_>, _>>()?;
            for (tap, (sensitivity, gradient)) in tapped.iter().zip(sensitivities.iter_mut().zip(&gradients)) {
                self.add_outputs(tap.layer, gradient, halves)?;
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
                self.add_inputs(tap, &sensitivity, halves)?;
            }
        }
        Ok(())
    }

    fn add_outputs(&mut self, layer: ParameterId, gradient: &Tensor, halves: &[bool]) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&other| other == layer) else { return Ok(()) };
        for (half, sums) in self.sums[position].iter_mut().enumerate() {
            if let Some(items) = items_of(half, halves, gradient)? {
                let gradients = rows(gradient, &items)?;
                let moment = gradients.f_transpose(0, 1)?.f_matmul(&gradients)?.f_to_kind(Kind::Double)?.f_div_scalar(PROBES as f64)?;
                add(&mut sums.outputs, moment)?;
            }
        }
        Ok(())
    }

    fn add_inputs(&mut self, tap: &Tapped, sensitivity: &Tensor, halves: &[bool]) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&layer| layer == tap.layer) else { return Ok(()) };
        for (half, sums) in self.sums[position].iter_mut().enumerate() {
            let Some(items) = items_of(half, halves, &tap.input)? else { continue };
            // What comes after a text's pooled token moves nothing, and need not be multiplied.
            let (inputs, squares) = (rows(&tap.input, &items)?, rows(sensitivity, &items)?);
            let moving = squares.f_squeeze_dim(1)?.f_nonzero()?.f_squeeze_dim(1)?;
            let weighed = inputs.f_index_select(0, &moving)?.f_mul(&squares.f_index_select(0, &moving)?.f_sqrt()?)?;
            add(&mut sums.inputs, weighed.f_transpose(0, 1)?.f_matmul(&weighed)?.f_to_kind(Kind::Double)?)?;
        }
        Ok(())
    }

    /// Items added.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// The sums of both halves by layer; zeros for a half without items.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn sums(&self, weights: &Weights) -> Result<Vec<(ParameterId, [LayerMoments; 2])>, Error> {
        let one = |sum: &Option<Tensor>, side: i64, device: Device| -> Result<Tensor, Error> {
            Ok(match sum {
                Some(sum) => sum.f_to_kind(Kind::Float)?,
                None => Tensor::f_zeros([side, side], (Kind::Float, device))?,
            })
        };
        let both = |layer: ParameterId, sums: &Sums| -> Result<LayerMoments, Error> {
            let (shape, device) = (weights.get(layer).size(), weights.get(layer).device());
            let (outputs, inputs) = (shape.first().copied().unwrap_or(1), shape.last().copied().unwrap_or(1));
            Ok(LayerMoments { inputs: one(&sums.inputs, inputs, device)?, outputs: one(&sums.outputs, outputs, device)? })
        };
        let layers = self.layers.iter().zip(&self.sums);
        layers.map(|(&layer, [first, second])| Ok((layer, [both(layer, first)?, both(layer, second)?]))).collect()
    }
}

/// The items of one half, on the device of `like`; `None` when there are none.
fn items_of(half: usize, halves: &[bool], like: &Tensor) -> Result<Option<Tensor>, Error> {
    let items: Vec<i64> = (0..).zip(halves).filter(|&(_, &second)| second == (half == 1)).map(|(item, _)| item).collect();
    Ok(if items.is_empty() { None } else { Some(Tensor::f_from_slice(&items)?.f_to(like.device())?) })
}

/// The vectors of these items, `[items · tokens, width]`.
fn rows(values: &Tensor, items: &Tensor) -> Result<Tensor, Error> {
    Ok(values.f_index_select(0, items)?.f_reshape([-1, values.size().last().copied().unwrap_or(1)])?)
}

fn add(sum: &mut Option<Tensor>, moment: Tensor) -> Result<(), Error> {
    if !moment.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
        let problem = "are not finite; weights or inputs are out of range".into();
        return Err(Error::Tensor { tensor: "moments".into(), problem });
    }
    match sum {
        None => *sum = Some(moment),
        Some(sum) => drop(sum.f_add_(&moment)?),
    }
    Ok(())
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

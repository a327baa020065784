//! Second moments of a layer's inputs and output gradients over retained data.
//!
//! Consider a linear layer with inputs x_t and output gradients δ_t, where t runs over items and
//! tokens. A change Δ of its weight moves the embedding, projected on a random unit direction, by Σ
//! δ_tᵀ Δ x_t. The mean square of that over random directions is approximately tr(M Δ C Δᵀ) /
//! tr(M), with the factors **C = Σ ‖δ_t‖² x_t x_tᵀ** and **M = Σ δ_t δ_tᵀ**. This is the Kronecker
//! approximation of the Gauss-Newton matrix that K-FAC uses (arXiv 1503.05671). The factors tell to
//! which changes the retained data is sensitive: C on the input side, M on the output side. No
//! labels are needed: any texts serve for a text layer, any images for a vision layer.

use lethe_shared::draws::Draws;
use lethe_shared::task::Tokens;
use tch::{Device, Kind, Tensor};

use crate::micro_batch::MicroBatch;
use crate::model::{Batch, Clip, Error, Input, NotFinite, ParameterId, Tapped, Weights};

/// Number of random directions in embedding space per item.
pub const PROBES: usize = 2;

/// Sums of second moments by layer, separately for two halves of the items (for cross-fitting).
#[derive(Debug)]
pub struct MomentSum {
    layers: Vec<ParameterId>,
    sums: Vec<[Sums; 2]>,
    tokens: Tokens,
    draws: Draws,
    items: u64,
    micro_batch: MicroBatch,
}

/// The sums of one half of the items at one layer, float64; `None` without items.
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
    /// Creates an empty sum for some layers, all of one tower. Random directions are taken from
    /// `draws`.
    pub fn new(
        layers: Vec<ParameterId>,
        tokens: Tokens,
        draws: Draws,
        micro_batch: MicroBatch,
    ) -> Self {
        let sums = layers.iter().map(|_| Default::default()).collect();
        Self { layers, sums, tokens, draws, items: 0, micro_batch }
    }

    /// Adds a batch. `halves[i]` is the half to which item i belongs: `true` for the second one.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a moment is not finite, [`Error::Memory`] when a micro-batch does
    /// not fit the device's memory; otherwise when libtorch returns an error.
    pub fn add(
        &mut self,
        clip: &Clip,
        weights: &Weights,
        input: Input<'_>,
        halves: &[bool],
    ) -> Result<(), Error> {
        // Drawn for the whole batch, so that an item's directions do not depend on the sizes of
        // micro-batches.
        let probes = (0..PROBES)
            .map(|_| directions(&mut self.draws, input.items(), clip.config().embedding))
            .collect::<Result<Vec<_>, _>>()?;
        let micro_batch = self.micro_batch.for_item_bytes(clip.pass_bytes(
            input.tower(),
            input.tokens(clip.config()),
            true,
        ));
        for (start, count) in micro_batch.passes(input.items()) {
            micro_batch.run(count, || {
                let probes = probes
                    .iter()
                    .map(|probe| probe.f_narrow(0, start, count))
                    .collect::<Result<Vec<_>, _>>()?;
                self.add_micro_batch(
                    clip,
                    weights,
                    &input.narrow(start, count)?,
                    &probes,
                    &halves[start as usize..(start + count) as usize],
                )
            })?;
        }
        self.items += halves.len() as u64;
        Ok(())
    }

    fn add_micro_batch(
        &mut self,
        clip: &Clip,
        weights: &Weights,
        batch: &Batch,
        probes: &[Tensor],
        halves: &[bool],
    ) -> Result<(), Error> {
        let graph = weights.with_taps(&self.layers)?;
        let embedded = clip.embed(&graph, batch.input())?;
        let tapped = graph.tapped();
        let outputs: Vec<&Tensor> = tapped.iter().map(|tap| &tap.output).collect();
        // Mean of ‖δ_t‖² over the probes, per layer `[items, …, 1]`.
        let mut sensitivities: Vec<Option<Tensor>> = tapped.iter().map(|_| None).collect();
        for (number, directions) in (1..).zip(probes) {
            let projected =
                embedded.f_mul(&directions.f_to(embedded.device())?)?.f_sum(Kind::Float)?;
            let gradients =
                Tensor::f_run_backward(&[&projected], &outputs, number < probes.len(), false)?;
            let _guard = tch::no_grad_guard();
            let gradients = gradients
                .iter()
                .map(|gradient| gradient.f_to_kind(Kind::Float))
                .collect::<Result<Vec<_>, _>>()?;
            for (tap, (sensitivity, gradient)) in
                tapped.iter().zip(sensitivities.iter_mut().zip(&gradients))
            {
                if self.tokens == Tokens::Together {
                    self.add_together(tap, gradient, halves)?;
                    continue;
                }
                self.add_outputs(tap.layer, gradient, halves)?;
                let square = gradient
                    .f_square()?
                    .f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?
                    .f_div_scalar(PROBES as f64)?;
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

    /// Adds GᵀG and G Gᵀ of each item, without forming G: with δ `[tokens, outputs]` and x
    /// `[tokens, inputs]` of an item, GᵀG = xᵀ (δδᵀ) x and G Gᵀ = δᵀ (x xᵀ) δ.
    fn add_together(
        &mut self,
        tap: &Tapped,
        gradient: &Tensor,
        halves: &[bool],
    ) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&other| other == tap.layer) else {
            return Ok(());
        };
        let flat = |tensor: &Tensor| -> Result<Tensor, Error> {
            Ok(tensor.f_reshape([-1, tensor.size().last().copied().unwrap_or(1)])?)
        };
        let product = |values: &Tensor, by: &Tensor| -> Result<Tensor, Error> {
            let gram = by.f_matmul(&by.f_transpose(1, 2)?)?;
            Ok(flat(values)?
                .f_transpose(0, 1)?
                .f_matmul(&flat(&gram.f_matmul(values)?)?)?
                .f_to_kind(Kind::Double)?
                .f_div_scalar(PROBES as f64)?)
        };
        for (half, sums) in self.sums[position].iter_mut().enumerate() {
            let Some(items) = items_of(half, halves, gradient)? else { continue };
            // The last block of a tower has one vector per item.
            let per_token = |tensor: &Tensor| -> Result<Tensor, Error> {
                let chosen = tensor.f_index_select(0, &items)?;
                Ok(if chosen.dim() == 2 { chosen.f_unsqueeze(1)? } else { chosen })
            };
            let (delta, x) = (per_token(gradient)?, per_token(&tap.input)?);
            add(&mut sums.inputs, product(&x, &delta)?)?;
            add(&mut sums.outputs, product(&delta, &x)?)?;
        }
        Ok(())
    }

    fn add_outputs(
        &mut self,
        layer: ParameterId,
        gradient: &Tensor,
        halves: &[bool],
    ) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&other| other == layer) else {
            return Ok(());
        };
        for (half, sums) in self.sums[position].iter_mut().enumerate() {
            if let Some(items) = items_of(half, halves, gradient)? {
                let gradients = rows(gradient, &items)?;
                let moment = gradients
                    .f_transpose(0, 1)?
                    .f_matmul(&gradients)?
                    .f_to_kind(Kind::Double)?
                    .f_div_scalar(PROBES as f64)?;
                add(&mut sums.outputs, moment)?;
            }
        }
        Ok(())
    }

    fn add_inputs(
        &mut self,
        tap: &Tapped,
        sensitivity: &Tensor,
        halves: &[bool],
    ) -> Result<(), Error> {
        let Some(position) = self.layers.iter().position(|&layer| layer == tap.layer) else {
            return Ok(());
        };
        for (half, sums) in self.sums[position].iter_mut().enumerate() {
            let Some(items) = items_of(half, halves, &tap.input)? else { continue };
            // Tokens after a text's pooled token have no effect on the embedding and are left out.
            let (inputs, squares) = (rows(&tap.input, &items)?, rows(sensitivity, &items)?);
            let effective = squares.f_squeeze_dim(1)?.f_nonzero()?.f_squeeze_dim(1)?;
            let weighted = inputs
                .f_index_select(0, &effective)?
                .f_mul(&squares.f_index_select(0, &effective)?.f_sqrt()?)?;
            add(
                &mut sums.inputs,
                weighted.f_transpose(0, 1)?.f_matmul(&weighted)?.f_to_kind(Kind::Double)?,
            )?;
        }
        Ok(())
    }

    /// Returns the number of items added.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Returns the sums of both halves by layer; zeros for a half without items.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn sums(&self, weights: &Weights) -> Result<Vec<(ParameterId, [LayerMoments; 2])>, Error> {
        let one = |sum: &Option<Tensor>, side: i64, device: Device| -> Result<Tensor, Error> {
            Ok(match sum {
                Some(sum) => sum.f_to_kind(Kind::Float)?,
                None => Tensor::f_zeros([side, side], (Kind::Float, device))?,
            })
        };
        let both = |layer: ParameterId, sums: &Sums| -> Result<LayerMoments, Error> {
            let (shape, device) = (weights.get(layer).size(), weights.get(layer).device());
            let (outputs, inputs) =
                (shape.first().copied().unwrap_or(1), shape.last().copied().unwrap_or(1));
            Ok(LayerMoments {
                inputs: one(&sums.inputs, inputs, device)?,
                outputs: one(&sums.outputs, outputs, device)?,
            })
        };
        let layers = self.layers.iter().zip(&self.sums);
        layers
            .map(|(&layer, [first, second])| {
                Ok((layer, [both(layer, first)?, both(layer, second)?]))
            })
            .collect()
    }
}

/// Returns the indices of the items of one half, on the device of `like`; `None` when there are
/// none.
fn items_of(half: usize, halves: &[bool], like: &Tensor) -> Result<Option<Tensor>, Error> {
    let items: Vec<i64> = (0..)
        .zip(halves)
        .filter(|&(_, &second)| second == (half == 1))
        .map(|(item, _)| item)
        .collect();
    Ok(if items.is_empty() {
        None
    } else {
        Some(Tensor::f_from_slice(&items)?.f_to(like.device())?)
    })
}

/// Returns the vectors of some items: `[items · tokens, width]`.
fn rows(values: &Tensor, items: &Tensor) -> Result<Tensor, Error> {
    Ok(values
        .f_index_select(0, items)?
        .f_reshape([-1, values.size().last().copied().unwrap_or(1)])?)
}

fn add(sum: &mut Option<Tensor>, moment: Tensor) -> Result<(), Error> {
    if !moment.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
        return Err(NotFinite::new("second moments").into());
    }
    match sum {
        None => *sum = Some(moment),
        Some(sum) => drop(sum.f_add_(&moment)?),
    }
    Ok(())
}

/// Draws unit vectors `[n, d]`, uniformly distributed.
///
/// # Errors
/// When libtorch returns an error.
pub fn directions(draws: &mut Draws, n: i64, d: i64) -> Result<Tensor, Error> {
    let values: Vec<f32> = (0..n * d).map(|_| draws.normal()).collect();
    let values = Tensor::f_from_slice(&values)?.f_view([n, d])?;
    Ok(values.f_div(&values.f_norm_scalaropt_dim(2, [1].as_slice(), true)?)?)
}

/// Returns to which half of the data a caption belongs: `true` for the second one. Captions with
/// the same text up to the first punctuation mark belong to the same half. Otherwise a direction
/// would be evaluated on descriptions of things that shaped it, and look too good.
pub fn half_of(caption: &str) -> bool {
    let start = caption
        .trim()
        .split([',', '.', ';', ':', '(', '!', '?'])
        .next()
        .unwrap_or_default()
        .trim()
        .to_lowercase();
    lethe_shared::digest::Digest::of(start.as_bytes()).as_bytes()[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use lethe_shared::digest::Digest;

    use super::*;

    #[test]
    fn directions_are_unit_vectors_and_reproducible() {
        let drawn =
            |seed: &[u8]| directions(&mut Draws::seeded(Digest::of(seed)), 500, 24).unwrap();
        let directions = drawn(b"7");
        let lengths = directions.norm_scalaropt_dim(2, [1].as_slice(), false);
        assert!(f64::try_from((lengths - 1.0).abs().max()).unwrap() < 1e-5);
        // Uniformly distributed: the mean of 500 is near 0.
        assert!(
            f64::try_from(directions.mean_dim([0].as_slice(), false, Kind::Float).norm()).unwrap()
                < 0.1
        );
        assert_eq!(directions, drawn(b"7"));
    }

    #[test]
    fn captions_with_the_same_beginning_are_in_the_same_half() {
        assert_eq!(half_of("Paw prints, animals nature"), half_of("paw prints"));
        assert_eq!(half_of("paw prints. On snow"), half_of("paw prints"));
        let second = (0..1000).filter(|i| half_of(&format!("thing {i}"))).count();
        assert!((400..600).contains(&second), "{second}");
    }
}

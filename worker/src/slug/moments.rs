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

use super::symmetric::SymmetricSum;
use crate::micro_batch::MicroBatch;
use crate::model::{Batch, Clip, Error, Input, ParameterId, Tapped, Weights};

/// Number of random directions in embedding space per item.
pub const PROBES: usize = 2;

/// The most tokens of a pass on a CPU. Larger passes take more memory and leave the processor's
/// cache; smaller ones spend more time on adding matrices of a layer's size.
const CPU_PASS_TOKENS: i64 = 1024;

/// Sums of second moments by layer, for all items together or separately for two halves of them.
#[derive(Debug)]
pub struct MomentSum {
    layers: Vec<LayerSums>,
    tokens: Tokens,
    draws: Draws,
    items: u64,
    micro_batch: MicroBatch,
}

/// The sums of one layer.
#[derive(Debug)]
pub struct LayerSums {
    /// The layer.
    pub layer: ParameterId,
    /// One sum over all items, or one per half.
    pub parts: Vec<Moments>,
}

/// The moments of some items at one layer.
#[derive(Debug)]
pub struct Moments {
    /// C `[inputs, inputs]`.
    pub inputs: SymmetricSum,
    /// M `[outputs, outputs]`.
    pub outputs: SymmetricSum,
}

impl MomentSum {
    /// Creates an empty sum for some layers, all of one tower, with one part for each half of the
    /// items when it is for cross-fitting. Random directions are taken from `draws`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn new(
        weights: &Weights,
        layers: Vec<ParameterId>,
        tokens: Tokens,
        cross_fit: bool,
        draws: Draws,
        micro_batch: MicroBatch,
    ) -> Result<Self, Error> {
        let empty = |layer: ParameterId| {
            let weight = weights.get(layer);
            let (outputs, inputs) = weight.size2()?;
            let part = |_| {
                Ok(Moments {
                    inputs: SymmetricSum::zeros(inputs, weight.device())?,
                    outputs: SymmetricSum::zeros(outputs, weight.device())?,
                })
            };
            let parts = (0..if cross_fit { 2 } else { 1 }).map(part);
            Ok(LayerSums { layer, parts: parts.collect::<Result<_, Error>>()? })
        };
        let layers = layers.into_iter().map(empty).collect::<Result<_, Error>>()?;
        Ok(Self { layers, tokens, draws, items: 0, micro_batch })
    }

    /// Adds a batch, which is not a prefix tree. `halves[i]` is the half to which item i belongs:
    /// `true` for the second one.
    ///
    /// # Errors
    /// [`Error::Memory`] when a micro-batch does not fit the device's memory; otherwise when
    /// libtorch returns an error.
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
        let tokens = input.tokens(clip.config());
        let mut micro_batch =
            self.micro_batch.for_item_bytes(clip.pass_bytes(input.tower(), tokens, true));
        if weights.device() == Device::Cpu {
            micro_batch = micro_batch.and_limited_to((CPU_PASS_TOKENS / tokens.max(1)).max(1));
        }
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
        let layers: Vec<ParameterId> = self.layers.iter().map(|sums| sums.layer).collect();
        let graph = weights.with_taps(&layers)?;
        let embedded = clip.embed(&graph, batch.input())?;
        let tapped = graph.tapped();
        let outputs: Vec<&Tensor> = tapped.iter().map(|tap| &tap.output).collect();
        // δ by layer and probe.
        let mut deltas: Vec<Vec<Tensor>> = tapped.iter().map(|_| Vec::new()).collect();
        for (number, directions) in (1..).zip(probes) {
            let projected =
                embedded.f_mul(&directions.f_to(embedded.device())?)?.f_sum(Kind::Float)?;
            let gradients =
                Tensor::f_run_backward(&[&projected], &outputs, number < probes.len(), false)?;
            let _guard = tch::no_grad_guard();
            for (deltas, gradient) in deltas.iter_mut().zip(gradients) {
                deltas.push(gradient.f_to_kind(Kind::Float)?);
            }
        }
        drop((outputs, embedded));
        let _guard = tch::no_grad_guard();
        let parts = match self.layers.first() {
            Some(LayerSums { parts, .. }) if parts.len() > 1 => {
                let half = |second: bool| {
                    (0..halves.len()).filter(|&item| halves[item] == second).collect()
                };
                vec![half(false), half(true)]
            }
            _ => vec![(0..halves.len()).collect::<Vec<_>>()],
        };
        let texts = TextTokens::of(batch, clip.config().text.is_causal)?;
        for (tap, deltas) in tapped.into_iter().zip(deltas) {
            let Some(sums) = self.layers.iter_mut().find(|sums| sums.layer == tap.layer) else {
                continue;
            };
            let activations = Activations::new(tap, deltas)?;
            let weighted = activations.weighted_inputs(self.tokens)?;
            for (items, sums) in parts.iter().zip(&mut sums.parts) {
                if items.is_empty() {
                    continue;
                }
                activations.add_inputs(&weighted, items, texts.as_ref(), &mut sums.inputs)?;
                activations.add_outputs(self.tokens, items, &mut sums.outputs)?;
            }
        }
        Ok(())
    }

    /// Returns the number of items added.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// Returns the sums by layer.
    pub fn into_layers(self) -> Vec<LayerSums> {
        self.layers
    }
}

/// The tokens of a micro-batch of texts.
struct TextTokens {
    /// Number of tokens of each text up to the pooled one. Where attention is causal, tokens after it
    /// have no effect on the embedding: their gradients are zero.
    lengths: Vec<i64>,
    /// Whether all texts begin with the same token and attention is causal: then its activations are
    /// the same in all texts.
    same_beginning: bool,
}

impl TextTokens {
    /// Returns the tokens of a batch of texts; `None` for images.
    fn of(batch: &Batch, is_causal: bool) -> Result<Option<Self>, Error> {
        let Batch::Texts(texts) = batch else { return Ok(None) };
        let host = |tensor: &Tensor| -> Result<Vec<i64>, Error> {
            Ok(Vec::<i64>::try_from(tensor.f_to_device(Device::Cpu)?)?)
        };
        let first = host(&texts.ids.f_select(1, 0)?)?;
        Ok(Some(Self {
            lengths: host(&texts.pooled)?.into_iter().map(|pooled| pooled + 1).collect(),
            same_beginning: is_causal && first.windows(2).all(|pair| pair[0] == pair[1]),
        }))
    }
}

/// The inputs and output gradients of one layer in a micro-batch.
struct Activations {
    /// x `[items, tokens, inputs]`, float32.
    inputs: Tensor,
    /// δ of each probe `[items, tokens, outputs]`, float32.
    deltas: Vec<Tensor>,
}

impl Activations {
    fn new(tap: Tapped, deltas: Vec<Tensor>) -> Result<Self, Error> {
        // The last block of a tower has one vector per item.
        let per_token = |tensor: Tensor| -> Result<Tensor, Error> {
            Ok(if tensor.dim() == 2 { tensor.f_unsqueeze(1)? } else { tensor })
        };
        Ok(Self {
            inputs: per_token(tap.input)?,
            deltas: deltas.into_iter().map(per_token).collect::<Result<_, _>>()?,
        })
    }

    /// Returns z `[items, tokens, inputs]` for which C = Σ x zᵀ over items and tokens.
    ///
    /// Tokens apart, z is x times the mean of ‖δ‖² over the probes. Together, GᵀG = xᵀ (δδᵀ) x for
    /// δ `[tokens, outputs]` and x `[tokens, inputs]` of an item, so z is the mean of δδᵀ times x:
    /// the gradients G are not formed, and all probes take one product of the layer's size.
    fn weighted_inputs(&self, tokens: Tokens) -> Result<Tensor, Error> {
        let mut weights: Option<Tensor> = None;
        for delta in &self.deltas {
            let weight = match tokens {
                Tokens::Apart => {
                    delta.f_square()?.f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?
                }
                Tokens::Together => delta.f_matmul(&delta.f_transpose(1, 2)?)?,
            };
            match &mut weights {
                None => weights = Some(weight),
                Some(sum) => drop(sum.f_add_(&weight)?),
            }
        }
        let Some(weights) = weights else { return Ok(self.inputs.f_zeros_like()?) };
        let weights = weights.f_div_scalar(PROBES as f64)?;
        Ok(match tokens {
            Tokens::Apart => self.inputs.f_mul(&weights)?,
            Tokens::Together => weights.f_matmul(&self.inputs)?,
        })
    }

    /// Adds C of some items.
    fn add_inputs(
        &self,
        weighted: &Tensor,
        items: &[usize],
        texts: Option<&TextTokens>,
        sum: &mut SymmetricSum,
    ) -> Result<(), Error> {
        let tokens = self.inputs.size()[1];
        let Some(texts) = texts.filter(|_| tokens > 1) else {
            let rows = |tensor: &Tensor| rows(tensor, items);
            return sum.add_product(&rows(&self.inputs)?, &rows(weighted)?);
        };
        // The texts' first tokens are one row where they are the same.
        let skipped = i64::from(texts.same_beginning);
        let mut chosen: Vec<i64> =
            items.iter().take(skipped as usize).map(|&item| item as i64 * tokens).collect();
        for &item in items {
            let start = item as i64 * tokens;
            chosen.extend(start + skipped..start + texts.lengths[item].min(tokens));
        }
        let chosen = Tensor::f_from_slice(&chosen)?.f_to(self.inputs.device())?;
        let pick = |tensor: &Tensor| -> Result<Tensor, Error> {
            Ok(tensor.f_flatten(0, 1)?.f_index_select(0, &chosen)?)
        };
        let right = pick(weighted)?;
        if texts.same_beginning {
            let beginnings = rows(&weighted.f_narrow(1, 0, 1)?, items)?;
            right.f_select(0, 0)?.f_copy_(&beginnings.f_sum_dim_intlist(
                [0].as_slice(),
                false,
                Kind::Float,
            )?)?;
        }
        sum.add_product(&pick(&self.inputs)?, &right)
    }

    /// Adds M of some items, its mean over the probes. Tokens apart, it is Σ δδᵀ. Together, it is
    /// G Gᵀ = δᵀ (x xᵀ) δ of each item.
    fn add_outputs(
        &self,
        tokens: Tokens,
        items: &[usize],
        sum: &mut SymmetricSum,
    ) -> Result<(), Error> {
        let gram = match tokens {
            Tokens::Apart => None,
            Tokens::Together => Some(self.inputs.f_matmul(&self.inputs.f_transpose(1, 2)?)?),
        };
        for delta in &self.deltas {
            let weighted = match &gram {
                None => delta.shallow_clone(),
                Some(gram) => gram.f_matmul(delta)?,
            };
            let weighted = weighted.f_div_scalar(PROBES as f64)?;
            sum.add_product(&rows(delta, items)?, &rows(&weighted, items)?)?;
        }
        Ok(())
    }
}

/// Returns the vectors of some items, in ascending order, of `[items, tokens, width]`: one row per
/// item and token.
fn rows(values: &Tensor, items: &[usize]) -> Result<Tensor, Error> {
    if items.len() as i64 == values.size()[0] {
        return Ok(values.f_flatten(0, 1)?);
    }
    let items: Vec<i64> = items.iter().map(|&item| item as i64).collect();
    let items = Tensor::f_from_slice(&items)?.f_to(values.device())?;
    Ok(values.f_index_select(0, &items)?.f_flatten(0, 1)?)
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

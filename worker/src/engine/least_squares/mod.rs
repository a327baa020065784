//! Composition by least squares: the states of removed texts are mapped to those of a mean text
//! (`docs/composition.md`, "`least-squares`").
//!
//! | file | contents |
//! |---|---|
//! | `key_moments.rs` | second moments of a layer's inputs over retained texts |
//! | `keys.rs` | the keys and residuals of one concept |
//! | `solve.rs` | the edits of all concepts |

mod key_moments;
mod keys;
mod solve;

use std::sync::Arc;

use lethe_shared::digest::Digest;
use lethe_shared::edit;
use lethe_shared::reference::{ArtifactRef, ModelSpec};
use lethe_shared::vocabulary::{TextTokens, Tower};
use safetensors::SafeTensors;
use tch::{Kind, Tensor};

use super::class_list::ClassList;
use super::error::Error;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use super::moments::Matrices;
use super::shared_values::SharedValue;
use crate::model::weights::{tensor_from_bytes, tensor_to_bytes};
use crate::model::{BlockStates, Input, ParameterId, Weights};
use crate::shared_tensor::SharedTensor;

/// Names of the factors of a concept.
const KEYS: &str = "keys";
const RESIDUALS: &str = "residuals";
/// Most class texts that the mean text is the mean of.
const MEAN_TEXTS: usize = 512;
/// Most tokens of a pass.
const PASS_TOKENS: i64 = 4096;

/// What passes through the tower.
struct Pass<'a> {
    model: &'a LoadedModel,
    weights: &'a Weights,
    padding: Option<u32>,
    tokens: TextTokens,
}

/// Passes texts through the tower, some at a time: padded to the whole context, or where only one
/// token of each is read, as a prefix tree if attention is causal. Texts with a common beginning
/// should follow each other.
fn for_each_pass(
    context: JobContext<'_>,
    pass: &Pass<'_>,
    texts: &[String],
    mut act: impl FnMut(Input<'_>) -> Result<(), crate::model::Error>,
) -> Result<(), Error> {
    let Pass { model, padding, tokens, .. } = *pass;
    let clip = &model.clip;
    let encoded = model.encode(texts)?;
    let length = match tokens {
        TextTokens::All => clip.config().context_length,
        TextTokens::Read => encoded.iter().map(Vec::len).max().unwrap_or_default() as i64,
    };
    let micro_batch = context
        .micro_batch
        .for_item_bytes(clip.pass_bytes(Tower::Text, length, false))
        .and_limited_to((PASS_TOKENS / length.max(1)).max(1));
    let _guard = tch::no_grad_guard();
    for (start, count) in micro_batch.passes(encoded.len() as i64) {
        context.check_cancelled()?;
        let part = &encoded[start as usize..(start + count) as usize];
        micro_batch.run(count, || {
            let device = model.parameters.device();
            match tokens {
                TextTokens::All => act(Input::Texts(&clip.whole_batch(part, padding, device)?)),
                TextTokens::Read => act(clip.text_batch(part, device)?.input()),
            }
        })?;
    }
    Ok(())
}

impl Pass<'_> {
    /// Calls `act` with the place of each of these layers, front to back, and with what its block does
    /// at every token.
    fn each_block(
        &self,
        texts: Input<'_>,
        layers: &[ParameterId],
        act: impl FnMut(usize, BlockStates) -> Result<(), crate::model::Error>,
    ) -> Result<(), crate::model::Error> {
        self.model.clip.each_block(self.weights, texts, layers, act)
    }

    /// Takes the states that are mapped from those of all tokens: all of them `[texts, tokens,
    /// width]`, or those of the tokens that are read `[texts, width]`.
    fn mapped(&self, texts: Input<'_>, states: &Tensor) -> Result<Tensor, crate::model::Error> {
        match (self.tokens, texts) {
            (TextTokens::Read, Input::PrefixTree(tree)) => tree.at_pooled(states),
            (TextTokens::Read, Input::Texts(batch)) => batch.at_pooled(states),
            _ => Ok(states.shallow_clone()),
        }
    }
}

/// The state after the block of a layer in a mean text, by the unedited model: the mean over the
/// class texts at each token `[tokens, width]`, or at their ends `[width]`; float64.
#[derive(Debug)]
struct MeanStates(SharedTensor);

impl SharedValue for MeanStates {
    /// Model, class list, layer, padding, tokens.
    type Key = (ModelSpec, Digest, String, Option<u32>, TextTokens);
}

impl MeanStates {
    fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        classes: &ClassList,
        layer: &str,
        padding: Option<u32>,
        tokens: TextTokens,
    ) -> Result<Arc<Self>, Error> {
        let key = (context.job.model, classes.digest, layer.to_owned(), padding, tokens);
        context.shared(key, || {
            let prompts: Vec<String> = classes.texts.prompts().collect();
            let most = MEAN_TEXTS.min(prompts.len());
            let chosen: Vec<String> =
                (0..most).map(|place| prompts[place * prompts.len() / most].clone()).collect();
            let mut sum: Option<Tensor> = None;
            let (layer, weights) = (model.layer(layer)?, model.parameters.weights());
            let pass = Pass { model, weights: &weights, padding, tokens };
            for_each_pass(context, &pass, &chosen, |texts| {
                pass.each_block(texts, &[layer], |_, states| {
                    let states = pass.mapped(texts, &states.outputs)?;
                    let part = states.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?;
                    match &mut sum {
                        None => sum = Some(part),
                        Some(sum) => drop(sum.f_add_(&part)?),
                    }
                    Ok(())
                })
            })?;
            let sum = sum.ok_or_else(|| Error::Input("the class list is empty".into()))?;
            Ok(Self(SharedTensor::new(sum.f_div_scalar(most as f64)?)))
        })
    }
}

/// The preconditioner of a layer's inputs (C/s + ρI)⁻¹ `[inputs, inputs]`, and s, the mean diagonal
/// of C.
fn preconditioner(inverses: &Matrices, layer: &str) -> Result<(Tensor, f64), Error> {
    let part = |side: &str| {
        inverses.get(&format!("{layer}.{side}")).ok_or_else(|| {
            Error::Input(format!("there are no second moments of the inputs of layer `{layer}`"))
        })
    };
    let scale = part("sensitivity")?.f_double_value(&[0])?;
    if scale.is_finite() && scale > 0.0 {
        Ok((part("inputs")?, scale))
    } else {
        Err(Error::Input(format!("the inputs of layer `{layer}` are zero on all retained texts")))
    }
}

/// Stores named matrices, float32.
fn put(context: JobContext<'_>, parts: &[(&str, &Tensor)]) -> Result<ArtifactRef, Error> {
    let mut bytes = Vec::with_capacity(parts.len());
    for (name, tensor) in parts {
        let tensor = tensor.f_to_kind(Kind::Float)?.f_contiguous()?;
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        bytes.push((*name, shape, tensor_to_bytes(&tensor)?));
    }
    let file = edit::encode_tensors(
        bytes.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())),
    );
    context.put(file.map_err(Error::Input)?)
}

/// Reads the keys and residuals of a concept: `[rows, inputs]` and `[rows, outputs]`, float64.
fn read(context: JobContext<'_>, artifact: &ArtifactRef) -> Result<(Tensor, Tensor), Error> {
    let damaged =
        |problem: String| Error::Input(format!("the artifact of keys is damaged: {problem}"));
    let bytes = context.get(artifact)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let one = |name: &str| -> Result<Tensor, Error> {
        let view = file.tensor(name).map_err(|error| damaged(error.to_string()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(damaged)?;
        Ok(tensor.f_to(context.device())?.f_to_kind(Kind::Double)?)
    };
    let (keys, residuals) = (one(KEYS)?, one(RESIDUALS)?);
    match (keys.size().as_slice(), residuals.size().as_slice()) {
        ([rows, _], [others, _]) if rows == others => Ok((keys, residuals)),
        (keys, residuals) => Err(damaged(format!("{keys:?} keys and {residuals:?} residuals"))),
    }
}

//! The inputs that protected texts cause in the run's layers, and preconditioners that leave the
//! outputs for these inputs unchanged.

use std::collections::HashMap;

use lethe_shared::task::{Protect, ProtectOutput};
use lethe_shared::vocabulary::Tower;
use tch::{Kind, Tensor};

use super::error::Error;
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::moments::{Matrices, put};
use crate::model::{Input, ParameterId, Tapped, Weights};
use crate::slug::protect::protect_inputs;

/// Number of texts per batch.
const BATCH: usize = 64;

/// The distinct input vectors of one layer.
#[derive(Debug, Default)]
struct Inputs {
    /// Index of the vector at a token, by the tokens that it depends on and its position.
    known: HashMap<(Vec<u32>, i64), i32>,
    vectors: Vec<Tensor>,
    /// Length of the layer's output for each vector.
    output_lengths: Vec<Tensor>,
    /// Text of each (text, vector) pair.
    pair_texts: Vec<i32>,
    /// Vector of each (text, vector) pair.
    pair_vectors: Vec<i32>,
}

impl Perform for Protect {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<ProtectOutput, Error> {
        protect(context, self, stages)
    }
}

fn protect(
    context: JobContext<'_>,
    task: &Protect,
    stages: &mut StageTimes,
) -> Result<ProtectOutput, Error> {
    let model = stages.time("model", || LoadedModel::of(context))?;
    let inverses = stages.time("moments", || Matrices::of(context, &task.inverses))?;
    let weights = model.parameters.weights();
    let ids = task.layers.iter().map(|name| model.layer(name)).collect::<Result<Vec<_>, _>>()?;
    let texts: Vec<String> =
        serde_json::from_slice(&context.get(&task.texts)?).map_err(|error| {
            Error::Input(format!("the list of protected texts is damaged: {error}"))
        })?;
    let _guard = tch::no_grad_guard();
    let inputs =
        stages.time("inputs", || collect_inputs(context, &model, &weights, &ids, &texts))?;
    let (mut file, mut inverse, mut max_vectors) = (Vec::new(), Vec::new(), 0);
    for (name, inputs) in task.layers.iter().zip(&inputs) {
        context.check_cancelled()?;
        let vectors = Tensor::f_cat(&inputs.vectors, 0)?;
        let output_lengths = Tensor::f_cat(&inputs.output_lengths, 0)?;
        let (count, width) = (vectors.size()[0], vectors.size()[1]);
        if count > width / 2 {
            return Err(Error::Input(format!(
                "the texts of data.protect cause {count} distinct input vectors of layer `{name}`, which has {width} inputs; more than half \
                 as many leave too little room for edits. Protect fewer texts, or protect them approximately by data.retain_texts"
            )));
        }
        let key = format!("{name}.inputs");
        let unconstrained = inverses
            .get(&key)
            .ok_or_else(|| Error::Input(format!("there are no moments of layer `{name}`")))?;
        // Scaled so that equal relative changes of outputs count equally.
        let scaled = vectors
            .f_div(&output_lengths.f_unsqueeze(1)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
        inverse.push((
            key.clone(),
            stages.time("invert", || {
                Ok(protect_inputs(&unconstrained, &scaled)?.f_to_kind(Kind::Float)?)
            })?,
        ));
        file.push((key, vectors));
        file.push((format!("{name}.outputs"), output_lengths));
        file.push((format!("{name}.texts"), Tensor::f_from_slice(&inputs.pair_texts)?));
        file.push((format!("{name}.vectors"), Tensor::f_from_slice(&inputs.pair_vectors)?));
        max_vectors = max_vectors.max(count as u64);
    }
    stages.time("store", || {
        Ok(ProtectOutput {
            inputs: put(context, &file)?,
            inverse: put(context, &inverse)?,
            vectors: max_vectors,
        })
    })
}

/// Collects the inputs of each layer for each text, at every token up to the pooled one (SigLIP: at
/// every token of the context).
fn collect_inputs(
    context: JobContext<'_>,
    model: &LoadedModel,
    weights: &Weights,
    layers: &[ParameterId],
    texts: &[String],
) -> Result<Vec<Inputs>, Error> {
    let mut inputs: Vec<Inputs> = layers.iter().map(|_| Inputs::default()).collect();
    for (number, chunk) in texts.chunks(BATCH).enumerate() {
        context.check_cancelled()?;
        let ids = model.encode(chunk)?;
        let batch = model.clip.token_batch(&ids, model.parameters.device())?;
        let micro_batch = context.micro_batch.for_item_bytes(model.clip.pass_bytes(
            Tower::Text,
            batch.ids.size()[1],
            true,
        ));
        for (start, count) in micro_batch.passes(chunk.len() as i64) {
            let tapped = micro_batch.run(count, || {
                let graph = weights.with_taps(layers)?;
                let piece = Input::Texts(&batch).narrow(start, count)?;
                let _ = model.clip.embed(&graph, piece.input())?;
                Ok(graph.tapped())
            })?;
            let pooled = Vec::<i64>::try_from(
                batch.pooled.f_narrow(0, start, count)?.f_to_device(tch::Device::Cpu)?,
            )?;
            let first = number * BATCH + start as usize;
            for tap in tapped {
                let Some(position) = layers.iter().position(|&layer| layer == tap.layer) else {
                    continue;
                };
                let ids = &ids[start as usize..][..count as usize];
                let is_causal = model.clip.config().text.is_causal;
                inputs[position].add(&tap, ids, &pooled, first, is_causal)?;
            }
        }
    }
    Ok(inputs)
}

impl Inputs {
    /// Adds a pass over some texts, where `first` is the index of the first one. With causal attention
    /// a layer's input at a token depends only on the tokens up to it, and texts with a common prefix
    /// share vectors.
    fn add(
        &mut self,
        tap: &Tapped,
        ids: &[Vec<u32>],
        pooled: &[i64],
        first: usize,
        is_causal: bool,
    ) -> Result<(), Error> {
        let lengths = tap.output.f_detach()?.f_to_kind(Kind::Float)?.f_norm_scalaropt_dim(
            2,
            [-1].as_slice(),
            false,
        )?;
        for (item, (ids, &pooled)) in ids.iter().zip(pooled).enumerate() {
            let (inputs, lengths) = (tap.input.f_get(item as i64)?, lengths.f_get(item as i64)?);
            // The last block computes the pooled token only.
            let has_all_tokens = inputs.dim() == 2;
            for token in if has_all_tokens { 0..=pooled } else { pooled..=pooled } {
                let seen = match is_causal {
                    true => ids.get(..=token as usize).unwrap_or(ids),
                    false => ids,
                };
                let at = (seen.to_vec(), token);
                let vector = match self.known.get(&at) {
                    Some(&vector) => vector,
                    None => {
                        let vector = self.vectors.len() as i32;
                        self.known.insert(at, vector);
                        let row = |of: &Tensor| {
                            if has_all_tokens {
                                of.f_narrow(0, token, 1)
                            } else {
                                of.f_unsqueeze(0)
                            }
                        };
                        self.vectors.push(row(&inputs)?.f_detach_copy()?);
                        self.output_lengths.push(row(&lengths)?.f_detach_copy()?);
                        vector
                    }
                };
                self.pair_texts.push((first + item) as i32);
                self.pair_vectors.push(vector);
            }
        }
        Ok(())
    }
}

//! What texts that must not change put into the layers of a run, and directions' correction turned aside from it.

use std::collections::HashMap;

use lethe_shared::job::{ModelRef, ProtectTask};
use lethe_shared::outcome::{ProtectResult, Tower};
use tch::{Kind, Tensor};

use super::direction::layer;
use super::model::Model;
use super::moments::{Matrices, put};
use super::{Error, Scope, Stages};
use crate::model::clip::Input;
use crate::model::{ParameterId, Tapped, Weights};
use crate::slug::protect::spared;

/// Texts per pass.
const BATCH: usize = 64;

/// The distinct inputs of one layer.
#[derive(Debug, Default)]
struct Inputs {
    /// Which vector belongs to which beginning of a text.
    known: HashMap<Vec<u32>, i32>,
    vectors: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// Which text has which vector.
    texts: Vec<i32>,
    of: Vec<i32>,
}

pub(super) fn protect(scope: Scope<'_>, reference: &ModelRef, task: &ProtectTask, stages: &mut Stages) -> Result<ProtectResult, Error> {
    let model = stages.time("model", || Model::of(scope, reference))?;
    let inverses = stages.time("moments", || Matrices::of(scope, &task.inverses))?;
    let (weights, architecture) = (model.parameters.weights(), model.clip.architecture());
    let ids = task.layers.iter().map(|name| layer(architecture, name)).collect::<Result<Vec<_>, _>>()?;
    let texts: Vec<String> = serde_json::from_slice(&scope.get(&task.texts)?)
        .map_err(|error| Error::Input(format!("the list of texts that must not change is damaged: {error}")))?;
    let _guard = tch::no_grad_guard();
    let inputs = stages.time("inputs", || gather(scope, &model, &weights, &ids, &texts))?;
    let (mut file, mut inverse, mut most) = (Vec::new(), Vec::new(), 0);
    for (name, inputs) in task.layers.iter().zip(&inputs) {
        scope.check()?;
        let vectors = Tensor::f_cat(&inputs.vectors, 0)?;
        let outputs = Tensor::f_cat(&inputs.outputs, 0)?;
        let (count, width) = (vectors.size()[0], vectors.size()[1]);
        if count > width / 2 {
            return Err(Error::Input(format!(
                "the texts of data.protect put {count} distinct vectors into `{name}`, which reads {width} values: an edit that moves none \
                 of them could hardly be found; protect fewer (at most half as many vectors), or more roughly by data.retain_texts"
            )));
        }
        let key = format!("{name}.inputs");
        let before = inverses.get(&key).ok_or_else(|| Error::Input(format!("there are no moments of layer `{name}`")))?;
        // What moves an output as much, against that output, counts as much.
        let sized = vectors.f_div(&outputs.f_unsqueeze(1)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
        inverse.push((key.clone(), stages.time("invert", || Ok(spared(&before, &sized)?.f_to_kind(Kind::Float)?))?));
        file.push((key, vectors));
        file.push((format!("{name}.outputs"), outputs));
        file.push((format!("{name}.texts"), Tensor::f_from_slice(&inputs.texts)?));
        file.push((format!("{name}.vectors"), Tensor::f_from_slice(&inputs.of)?));
        most = most.max(count as u64);
    }
    stages.time("store", || Ok(ProtectResult { inputs: put(scope, &file)?, inverse: put(scope, &inverse)?, vectors: most }))
}

/// What each text puts into each layer, at every token up to the one that is read.
fn gather(scope: Scope<'_>, model: &Model, weights: &Weights, layers: &[ParameterId], texts: &[String]) -> Result<Vec<Inputs>, Error> {
    let mut inputs: Vec<Inputs> = layers.iter().map(|_| Inputs::default()).collect();
    for (number, chunk) in texts.chunks(BATCH).enumerate() {
        scope.check()?;
        let ids = model.encode(chunk)?;
        let batch = model.clip.token_batch(&ids, model.parameters.device())?;
        let micro_batch = scope.micro_batch.for_items_of(model.clip.pass_bytes(Tower::Text, batch.ids.size()[1], true));
        for (start, count) in micro_batch.cut(chunk.len() as i64) {
            let tapped = micro_batch.pass(count, || {
                let graph = weights.with_taps(layers)?;
                let piece = Input::Texts(&batch).narrow(start, count)?;
                let _ = model.clip.embed(&graph, piece.input())?;
                Ok(graph.tapped())
            })?;
            let pooled = Vec::<i64>::try_from(batch.pooled.f_narrow(0, start, count)?.f_to_device(tch::Device::Cpu)?)?;
            let first = number * BATCH + start as usize;
            for tap in tapped {
                let Some(position) = layers.iter().position(|&layer| layer == tap.layer) else { continue };
                let ids = &ids[start as usize..][..count as usize];
                inputs[position].add(&tap, ids, &pooled, first)?;
            }
        }
    }
    Ok(inputs)
}

impl Inputs {
    /// Adds a pass over texts of which the first has this number. A text tower looks backwards alone: what a token puts into a layer
    /// depends on the tokens up to it, so that texts which begin alike share vectors.
    fn add(&mut self, tap: &Tapped, ids: &[Vec<u32>], pooled: &[i64], first: usize) -> Result<(), Error> {
        let sizes = tap.output.f_detach()?.f_to_kind(Kind::Float)?.f_norm_scalaropt_dim(2, [-1].as_slice(), false)?;
        for (item, (ids, &read)) in ids.iter().zip(pooled).enumerate() {
            let (inputs, sizes) = (tap.input.f_get(item as i64)?, sizes.f_get(item as i64)?);
            // The last block computes the token alone that is read.
            let whole = inputs.dim() == 2;
            for token in if whole { 0..=read } else { read..=read } {
                let beginning = ids.get(..=token as usize).unwrap_or(ids);
                let vector = match self.known.get(beginning) {
                    Some(&vector) => vector,
                    None => {
                        let vector = self.vectors.len() as i32;
                        self.known.insert(beginning.to_vec(), vector);
                        let row = |of: &Tensor| if whole { of.f_narrow(0, token, 1) } else { of.f_unsqueeze(0) };
                        self.vectors.push(row(&inputs)?.f_detach_copy()?);
                        self.outputs.push(row(&sizes)?.f_detach_copy()?);
                        vector
                    }
                };
                self.texts.push((first + item) as i32);
                self.of.push(vector);
            }
        }
        Ok(())
    }
}

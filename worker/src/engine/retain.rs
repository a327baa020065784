//! The retain gradient: a sum for each shard, then their mean.

use std::collections::HashMap;
use std::sync::Arc;

use lethe_shared::edit;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{self, RetainGradientOutput, RetainReduce, RetainReduceOutput};
use safetensors::{Dtype, SafeTensors};
use tch::Tensor;

use super::data;
use super::error::Error;
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::shared_values::SharedValue;
use crate::model::weights::{tensor_from_bytes, tensor_to_bytes};
use crate::model::{Architecture, ParameterId};
use crate::shared_tensor::SharedTensor;
use crate::slug::gradient::{GradientSum, Images, Loss};

/// The retain gradient g_r by layer.
#[derive(Debug)]
pub(super) struct RetainGradient {
    layers: HashMap<String, SharedTensor>,
}

impl SharedValue for RetainGradient {
    type Key = ArtifactRef;
}

impl RetainGradient {
    /// Reads the gradient from an artifact, unless it is in memory.
    pub(super) fn of(context: JobContext<'_>, artifact: &ArtifactRef) -> Result<Arc<Self>, Error> {
        context.shared(*artifact, || {
            let bytes = context.get(artifact)?;
            let file = parse(&bytes)?;
            let mut layers = HashMap::new();
            for (name, view) in file.tensors() {
                let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
                let tensor =
                    tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(Error::Input)?;
                layers.insert(name, SharedTensor::new(tensor.f_to(context.device())?));
            }
            Ok(Self { layers })
        })
    }

    /// Returns the retain gradient of a layer.
    pub(super) fn layer(&self, name: &str) -> Result<Tensor, Error> {
        self.layers.get(name).map(SharedTensor::get).ok_or_else(|| {
            Error::Input(format!("the retain gradient does not contain layer `{name}`"))
        })
    }
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, Error> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Input(format!("the artifact of a gradient is damaged: {error}")))
}

/// Sums the gradient over a shard's full batches, for every weight of the towers that a manifest
/// may make a candidate.
impl Perform for task::RetainGradient {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<RetainGradientOutput, Error> {
        sum(context, self, stages)
    }
}

/// Adds the sums in the given order, in float64, and divides by the number of batches.
impl Perform for RetainReduce {
    fn perform(
        &self,
        context: JobContext<'_>,
        _: &mut StageTimes,
    ) -> Result<RetainReduceOutput, Error> {
        reduce(context, self)
    }
}

fn sum(
    context: JobContext<'_>,
    task: &task::RetainGradient,
    stages: &mut StageTimes,
) -> Result<RetainGradientOutput, Error> {
    let model = stages.time("model", || LoadedModel::of(context))?;
    let pairs = stages.time("data", || data::load(context, &model, &task.shard))?;
    let weights = model.parameters.weights();
    let mut sum = GradientSum::new(model.candidates(task.towers, true), context.micro_batch);
    let batch = task.batch_size as usize;
    for (number, captions) in pairs.captions.chunks_exact(batch).enumerate() {
        context.check_cancelled()?;
        stages.time("gradient", || {
            let texts = model.batch(captions)?;
            let pixels = pairs.pixels.f_narrow(0, (number * batch) as i64, batch as i64)?;
            Ok(sum.add(Loss::Retain, &model.clip, &weights, Images::Pixels(&pixels), &texts)?)
        })?;
    }
    let batches = (pairs.captions.len() / batch) as u64;
    let loss_sum = if batches == 0 { 0.0 } else { sum.loss() * sum.weight() };
    let artifact = stages
        .time("store", || context.put(encode(model.clip.architecture(), &sum.sum(&weights)?)?))?;
    Ok(RetainGradientOutput {
        sum: artifact,
        batches,
        dropped_pairs: (pairs.captions.len() % batch) as u64,
        loss_sum,
    })
}

fn encode(architecture: &Architecture, layers: &[(ParameterId, Tensor)]) -> Result<Vec<u8>, Error> {
    let mut parts = Vec::with_capacity(layers.len());
    for (id, tensor) in layers {
        let spec = architecture.spec(*id);
        let shape: Vec<usize> = spec.shape.iter().map(|&n| n as usize).collect();
        parts.push((spec.name.as_str(), shape, tensor_to_bytes(tensor)?));
    }
    edit::encode_tensors(
        parts.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())),
    )
    .map_err(Error::Input)
}

fn reduce(context: JobContext<'_>, task: &RetainReduce) -> Result<RetainReduceOutput, Error> {
    let parts = &task.parts;
    let batches: u64 = parts.iter().map(|part| part.batches).sum();
    if batches == 0 {
        return Err(Error::Input(
            "no retain shard contains a full batch; use larger shards or a smaller batch_size"
                .into(),
        ));
    }
    let files = parts.iter().map(|part| context.get(&part.sum)).collect::<Result<Vec<_>, _>>()?;
    let files = files.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<_>, _>>()?;
    let first = files.first().ok_or_else(|| Error::Input("there is no retain shard".into()))?;
    let mut means = Vec::new();
    for name in first.names() {
        context.check_cancelled()?;
        let mut shape: Option<Vec<usize>> = None;
        let mut total: Vec<f64> = Vec::new();
        for file in &files {
            let view = file.tensor(name).map_err(|_| {
                Error::Input(format!("a retain gradient does not contain layer `{name}`"))
            })?;
            let values = edit::widen(name, view.data(), view.dtype())
                .map_err(|error| Error::Input(error.to_string()))?;
            match &shape {
                None => (shape, total) = (Some(view.shape().to_vec()), values),
                Some(shape) if shape == view.shape() => {
                    total.iter_mut().zip(values).for_each(|(sum, value)| *sum += value)
                }
                Some(_) => {
                    return Err(Error::Input(format!(
                        "retain gradients differ in the shape of layer `{name}`"
                    )));
                }
            }
        }
        total.iter_mut().for_each(|value| *value /= batches as f64);
        let mean = edit::narrow(name, &total, Dtype::F32)
            .map_err(|error| Error::Input(error.to_string()))?;
        means.push((name, shape.unwrap_or_default(), mean));
    }
    let file = edit::encode_tensors(
        means.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())),
    );
    let loss = parts.iter().map(|part| part.loss_sum).sum::<f64>() / batches as f64;
    Ok(RetainReduceOutput { gradient: context.put(file.map_err(Error::Input)?)?, batches, loss })
}

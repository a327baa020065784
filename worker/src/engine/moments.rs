//! Second moments of layer inputs and output gradients over retained data: sums by shard and layer,
//! then the preconditioners of directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use lethe_shared::draws::Draws;
use lethe_shared::edit;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{
    self, Correction, MomentSource, MomentsOutput, MomentsPart, MomentsReduce, MomentsReduceOutput,
};
use lethe_shared::vocabulary::Tower;
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

use super::data;
use super::error::Error;
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::shared_values::SharedValue;
use crate::model::Input;
use crate::model::weights::{tensor_from_bytes, tensor_to_bytes};
use crate::shared_tensor::SharedTensor;
use crate::slug::moments::{MomentSum, half_of};
use crate::slug::symmetric::UpperTriangle;

/// Number of items per batch.
const BATCH: usize = 256;

/// Sums the moments over one source of items.
impl Perform for task::Moments {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MomentsOutput, Error> {
        sum(context, self, stages)
    }
}

fn sum(
    context: JobContext<'_>,
    task: &task::Moments,
    stages: &mut StageTimes,
) -> Result<MomentsOutput, Error> {
    let source = &task.source;
    let model = stages.time("model", || LoadedModel::of(context))?;
    let weights = model.parameters.weights();
    let (tower, seed) = match source {
        MomentSource::Captions(shard) => (Tower::Text, shard.digest),
        MomentSource::Images(shard) => (Tower::Vision, shard.digest),
        MomentSource::Texts(texts) => (Tower::Text, texts.digest),
        MomentSource::ImagesAlone(shard) => (Tower::Vision, shard.digest),
    };
    let mut sum = MomentSum::new(
        &weights,
        model.clip.fc2_layers(tower),
        task.tokens,
        task.cross_fit,
        Draws::seeded(seed),
        context.micro_batch,
    )?;
    match source {
        MomentSource::Images(shard) | MomentSource::ImagesAlone(shard) => {
            let (pixels, names) = stages.time("data", || match source {
                MomentSource::Images(_) => {
                    data::load(context, &model, shard).map(|pairs| (pairs.pixels, pairs.captions))
                }
                _ => data::load_images(context, &model, shard),
            })?;
            for (number, names) in names.chunks(BATCH).enumerate() {
                context.check_cancelled()?;
                let pixels = pixels.f_narrow(0, (number * BATCH) as i64, names.len() as i64)?;
                let halves: Vec<bool> = names.iter().map(|name| half_of(name)).collect();
                stages.time("moments", || {
                    Ok(sum.add(&model.clip, &weights, Input::Images(&pixels), &halves)?)
                })?;
            }
        }
        MomentSource::Captions(_) | MomentSource::Texts(_) => {
            let texts = stages.time("data", || texts(context, source))?;
            for chunk in texts.chunks(BATCH) {
                context.check_cancelled()?;
                let batch = model.batch(chunk)?;
                let halves: Vec<bool> = chunk.iter().map(|caption| half_of(caption)).collect();
                stages.time("moments", || {
                    Ok(sum.add(&model.clip, &weights, Input::Texts(&batch), &halves)?)
                })?;
            }
        }
    }
    let (items, mut layers) = (sum.items(), BTreeMap::new());
    for sums in sum.into_layers() {
        let name = &model.clip.architecture().spec(sums.layer).name;
        let mut file = Vec::new();
        for (part, moments) in sums.parts.iter().enumerate() {
            file.push((tensor_name(name, Side::Inputs, part), moments.inputs.packed()?));
            file.push((tensor_name(name, Side::Outputs, part), moments.outputs.packed()?));
        }
        layers.insert(name.clone(), stages.time("store", || put(context, &file))?);
    }
    Ok(MomentsOutput { layers, items })
}

/// Returns the name of a packed matrix in the artifact of a sum.
pub(super) fn tensor_name(layer: &str, side: Side, part: usize) -> String {
    format!("{layer}.{}.{part}", side.name())
}

/// Returns the texts of a source, sorted by length, because padding takes as much time as words.
pub(super) fn texts(context: JobContext<'_>, source: &MomentSource) -> Result<Vec<String>, Error> {
    let mut texts: Vec<String> = match source {
        MomentSource::Captions(shard) => data::captions(context, shard)?,
        MomentSource::Texts(artifact) => serde_json::from_slice(&context.get(artifact)?)
            .map_err(|error| Error::Input(format!("the list of texts is damaged: {error}")))?,
        MomentSource::Images(_) | MomentSource::ImagesAlone(_) => Vec::new(),
    };
    texts.sort_by_key(String::len);
    Ok(texts)
}

/// Writes named tensors as an artifact.
pub(super) fn put(
    context: JobContext<'_>,
    tensors: &[(String, Tensor)],
) -> Result<ArtifactRef, Error> {
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        parts.push((name.as_str(), shape, tensor_to_bytes(tensor)?));
    }
    let file = edit::encode_tensors(
        parts.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())),
    );
    context.put(file.map_err(Error::Input)?)
}

/// Combines the sums of a layer and computes its preconditioners from them. Sums run in float64 in
/// the given order.
impl Perform for MomentsReduce {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MomentsReduceOutput, Error> {
        reduce(context, self, stages)
    }
}

fn reduce(
    context: JobContext<'_>,
    task: &MomentsReduce,
    stages: &mut StageTimes,
) -> Result<MomentsReduceOutput, Error> {
    let layer = &task.layer;
    let [paired, unlabelled] = stages.time("store", || {
        Ok([total(context, task, &task.paired)?, total(context, task, &task.unlabelled)?])
    })?;
    let paired = paired
        .ok_or_else(|| Error::Input("there is no retain shard to compute moments from".into()))?;
    let unlabelled = unlabelled.map_or([None, None], |sides| sides.map(Some));
    let count = |parts: &[MomentsPart]| parts.iter().map(|part| part.items).sum::<u64>();
    let weight = task.unlabelled_weight;
    let (mut inverses, mut cross_fit) = (Vec::new(), Vec::new());
    for (paired, unlabelled) in paired.into_iter().zip(unlabelled) {
        context.check_cancelled()?;
        let side = paired.side;
        let name = format!("{layer}.{}", side.name());
        let preconditioner = side.preconditioner(task.correction);
        stages.time("invert", || {
            if let (Some(preconditioner), [first, second]) = (preconditioner, &paired.parts[..]) {
                let mixed = mix(first, unlabelled.as_ref().map(|sums| &sums.parts[0]), weight)?;
                cross_fit.push((format!("{name}.inverse"), preconditioner.compute(mixed)?));
                // C is taken per item, so that the efficiencies of layers and towers are
                // comparable. Only the proportions of M matter.
                let evaluation = match side {
                    Side::Inputs => second.times(1.0 / count(&task.paired).max(1) as f64)?,
                    Side::Outputs => scaled(second)?,
                };
                let evaluation = evaluation.whole()?.f_to_kind(Kind::Float)?;
                cross_fit.push((format!("{name}.moment"), evaluation));
            }
            let paired = paired.whole()?;
            let unlabelled = unlabelled.map(SideSums::whole).transpose()?;
            if side == Side::Inputs {
                let sensitivity = sensitivity(&paired, unlabelled.as_ref(), task, count)?;
                inverses.push((format!("{layer}.sensitivity"), sensitivity));
            }
            if let Some(preconditioner) = preconditioner {
                let mixed = mix(&paired, unlabelled.as_ref(), weight)?;
                drop((paired, unlabelled));
                inverses.push((name, preconditioner.compute(mixed)?));
            }
            Ok(())
        })?;
    }
    stages.time("store", || {
        Ok(MomentsReduceOutput {
            inverse: put(context, &inverses)?,
            cross_fit: if task.cross_fit { Some(put(context, &cross_fit)?) } else { None },
            paired: count(&task.paired),
            unlabelled: count(&task.unlabelled),
        })
    })
}

/// Returns the sensitivity of a layer, `[1]`: the mean diagonal of C per item before it is scaled,
/// mixed as C is, times the cost of the tower.
fn sensitivity(
    paired: &UpperTriangle,
    unlabelled: Option<&UpperTriangle>,
    task: &MomentsReduce,
    count: impl Fn(&[MomentsPart]) -> u64,
) -> Result<Tensor, Error> {
    let per_item = |sum: &UpperTriangle, parts: &[MomentsPart]| -> Result<f64, Error> {
        Ok(sum.mean_diagonal()? / count(parts).max(1) as f64)
    };
    let paired = per_item(paired, &task.paired)?;
    let mixed = match unlabelled {
        None => paired,
        Some(unlabelled) => {
            let weight = task.unlabelled_weight;
            (paired + weight * per_item(unlabelled, &task.unlabelled)?) / (1.0 + weight)
        }
    };
    Ok(Tensor::f_from_slice(&[(mixed * task.cost) as f32])?)
}

/// The two sides of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Inputs,
    Outputs,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
        }
    }

    /// Returns the kind of preconditioner of this side; `None` when the side is not preconditioned.
    fn preconditioner(self, correction: Correction) -> Option<Preconditioner> {
        match (self, correction) {
            (Self::Inputs, Correction::Ridge { inputs: ridge, .. })
            | (Self::Outputs, Correction::Ridge { outputs: ridge, .. }) => {
                Some(Preconditioner::Inverse { ridge })
            }
            (Self::Inputs, Correction::NullSpace(energy)) => {
                Some(Preconditioner::NullSpace { energy })
            }
            (Self::Outputs, Correction::NullSpace(_)) => None,
        }
    }
}

/// The sums of one side of a layer: over all items, or over each half of them.
struct SideSums {
    side: Side,
    parts: Vec<UpperTriangle>,
}

impl SideSums {
    /// Returns the sum over all items.
    fn whole(mut self) -> Result<UpperTriangle, Error> {
        let mut sum = self.parts.remove(0);
        for part in &self.parts {
            sum.add(part, 1.0)?;
        }
        Ok(sum)
    }
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, Error> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Input(format!("the artifact of moments is damaged: {error}")))
}

/// Sums the moments of a layer over several artifacts, of which one at a time is in memory; `None`
/// without artifacts.
fn total(
    context: JobContext<'_>,
    task: &MomentsReduce,
    artifacts: &[MomentsPart],
) -> Result<Option<[SideSums; 2]>, Error> {
    let mut totals: Option<[SideSums; 2]> = None;
    for artifact in artifacts {
        context.check_cancelled()?;
        let bytes = context.get(&artifact.sum)?;
        let file = parse(&bytes)?;
        let read = |side: Side| -> Result<SideSums, Error> {
            let parts = (0..if task.cross_fit { 2 } else { 1 })
                .map(|part| triangle(context, &file, &tensor_name(&task.layer, side, part)));
            Ok(SideSums { side, parts: parts.collect::<Result<_, _>>()? })
        };
        let sums = [read(Side::Inputs)?, read(Side::Outputs)?];
        let Some(totals) = &mut totals else {
            totals = Some(sums);
            continue;
        };
        for (total, sum) in totals.iter_mut().zip(&sums) {
            for (total, part) in total.parts.iter_mut().zip(&sum.parts) {
                if total.side() != part.side() {
                    return Err(Error::Input(format!(
                        "artifacts of moments differ in the size of the {} of layer `{}`",
                        sum.side.name(),
                        task.layer
                    )));
                }
                total.add(part, 1.0)?;
            }
        }
    }
    Ok(totals)
}

/// Reads a packed matrix onto the device.
fn triangle(
    context: JobContext<'_>,
    file: &SafeTensors<'_>,
    name: &str,
) -> Result<UpperTriangle, Error> {
    let view = file
        .tensor(name)
        .map_err(|_| Error::Input(format!("the artifact of moments does not contain `{name}`")))?;
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    let packed = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(Error::Input)?;
    UpperTriangle::from_packed(&packed.f_to(context.device())?)?.ok_or_else(|| {
        Error::Input(format!("`{name}` in the artifact of moments is no triangle of a matrix"))
    })
}

/// Scales a moment to a mean diagonal of 1.
fn scaled(moment: &UpperTriangle) -> Result<UpperTriangle, Error> {
    let mean = moment.mean_diagonal()?;
    Ok(moment.times(if mean > 0.0 { 1.0 / mean } else { 1.0 })?)
}

/// Computes (P + w·U) / (1 + w), where P and U are scaled to a mean diagonal of 1.
fn mix(
    paired: &UpperTriangle,
    unlabelled: Option<&UpperTriangle>,
    weight: f64,
) -> Result<UpperTriangle, Error> {
    let mut mixed = scaled(paired)?;
    if let Some(unlabelled) = unlabelled {
        mixed.add(&scaled(unlabelled)?, weight)?;
        mixed = mixed.times(1.0 / (1.0 + weight))?;
    }
    Ok(mixed)
}

/// The kind of matrix by which a gradient is multiplied on one side.
#[derive(Debug, Clone, Copy)]
enum Preconditioner {
    /// (moment + ridge · I)⁻¹.
    Inverse { ridge: f64 },
    /// The projection onto the eigenvectors that hold at most this share of the moment's trace.
    NullSpace { energy: f64 },
}

impl Preconditioner {
    /// Computes the matrix of a moment; float32.
    fn compute(self, moment: UpperTriangle) -> Result<Tensor, Error> {
        let matrix = match self {
            Self::Inverse { ridge } => moment.ridge_inverse(ridge)?,
            Self::NullSpace { energy } => null_space(&moment.upper()?, energy)?,
        };
        Ok(matrix.f_to_kind(Kind::Float)?)
    }
}

/// Returns the projection onto the eigenvectors of a symmetric matrix, of which the upper triangle
/// is read, with the smallest eigenvalues: as many as together hold at most the share `energy` of its trace, but at least one.
fn null_space(moment: &Tensor, energy: f64) -> Result<Tensor, Error> {
    // Eigenvalues are in ascending order.
    let (values, vectors) = moment.f_linalg_eigh("U")?;
    let values = Vec::<f64>::try_from(values.f_to_device(Device::Cpu)?)?;
    let most = energy * values.iter().sum::<f64>();
    let mut held = 0.0;
    let count = values
        .iter()
        .take_while(|&&value| {
            held += value.max(0.0);
            held <= most
        })
        .count();
    let basis = vectors.f_narrow(1, 0, count.max(1) as i64)?;
    Ok(basis.f_matmul(&basis.f_transpose(0, 1)?)?)
}

/// The matrices of one or more artifacts, by name.
#[derive(Debug)]
pub(super) struct Matrices(BTreeMap<String, SharedTensor>);

impl SharedValue for Matrices {
    type Key = Vec<ArtifactRef>;
}

impl Matrices {
    /// Reads the matrices of some artifacts, unless they are in memory.
    pub(super) fn of(
        context: JobContext<'_>,
        artifacts: &[ArtifactRef],
    ) -> Result<Arc<Self>, Error> {
        context.shared(artifacts.to_vec(), || {
            let mut matrices = BTreeMap::new();
            for artifact in artifacts {
                let bytes = context.get(artifact)?;
                for (name, view) in parse(&bytes)?.tensors() {
                    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
                    let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape)
                        .map_err(Error::Input)?;
                    matrices.insert(name, SharedTensor::new(tensor.f_to(context.device())?));
                }
            }
            Ok(Self(matrices))
        })
    }

    /// Returns the matrix of this name.
    pub(super) fn get(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).map(SharedTensor::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_space_holds_the_smallest_eigenvalues() {
        let diagonal = |values: [f64; 4]| Tensor::from_slice(&values).diag(0);
        let moment = diagonal([100.0, 1.0, 0.5, 0.001]);
        for (energy, kept) in [
            (0.015, [0.0, 1.0, 1.0, 1.0]),
            (0.001, [0.0, 0.0, 0.0, 1.0]),
            (1e-9, [0.0, 0.0, 0.0, 1.0]),
        ] {
            let off = (null_space(&moment, energy).unwrap() - diagonal(kept)).abs().max();
            assert!(off.double_value(&[]) < 1e-12, "{energy}");
        }
    }
}

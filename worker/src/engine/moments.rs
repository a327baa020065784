//! Second moments of layer inputs and output gradients over retained data: sums by shard, then the
//! preconditioners of directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lethe_shared::draws::Draws;
use lethe_shared::edit;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{
    self, Correction, MomentSource, MomentsPart, MomentsReduce, MomentsReduceOutput,
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

/// Number of items per batch.
const BATCH: usize = 256;

/// Sums the moments over one source of items.
impl Perform for task::Moments {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MomentsPart, Error> {
        sum(context, self, stages)
    }
}

fn sum(
    context: JobContext<'_>,
    task: &task::Moments,
    stages: &mut StageTimes,
) -> Result<MomentsPart, Error> {
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
        model.clip.fc2_layers(tower),
        task.tokens,
        Draws::seeded(seed),
        context.micro_batch,
    );
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
    let mut file = Vec::new();
    for (layer, halves) in sum.sums(&weights)? {
        let name = &model.clip.architecture().spec(layer).name;
        for (half, moments) in halves.iter().enumerate() {
            file.push((format!("{name}.inputs.{half}"), moments.inputs.shallow_clone()));
            file.push((format!("{name}.outputs.{half}"), moments.outputs.shallow_clone()));
        }
    }
    let artifact = stages.time("store", || put(context, &file))?;
    Ok(MomentsPart { sum: artifact, items: sum.items() })
}

/// Returns the texts of a source, sorted by length, because padding takes as much time as words.
fn texts(context: JobContext<'_>, source: &MomentSource) -> Result<Vec<String>, Error> {
    let mut texts: Vec<String> = match source {
        MomentSource::Captions(shard) => {
            let path = context.fetch(shard)?;
            crate::input::load_captions(&path)
                .map_err(|problem| context.unusable(shard, &path, &problem))?
        }
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

/// Combines the sums and computes the preconditioners from them, layer by layer. Sums run in
/// float64 in the given order.
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
    let files = |parts: &[MomentsPart]| {
        parts.iter().map(|part| context.get(&part.sum)).collect::<Result<Vec<_>, _>>()
    };
    let (paired, unlabelled) =
        stages.time("store", || Ok((files(&task.paired)?, files(&task.unlabelled)?)))?;
    let first = paired
        .first()
        .ok_or_else(|| Error::Input("there is no retain shard to compute moments from".into()))?;
    let names = parse(first)?;
    let mut layers: Vec<&str> =
        names.names().into_iter().filter_map(|name| name.strip_suffix(".inputs.0")).collect();
    layers.sort_unstable();
    let count = |parts: &[MomentsPart]| parts.iter().map(|part| part.items).sum::<u64>();
    let (mut inverses, mut cross_fit) = (Vec::new(), Vec::new());
    for layer in layers {
        context.check_cancelled()?;
        for side in Side::BOTH {
            let name = format!("{layer}.{}", side.name());
            let moments = SideMoments::of(context, &paired, &unlabelled, &name)?;
            // C is taken per item, so that the efficiencies of layers and towers are comparable.
            // Only the proportions of M matter.
            let evaluation = match side {
                Side::Inputs => moments.paired[1].f_div_scalar(count(&task.paired).max(1) as f64)?,
                Side::Outputs => scaled(&moments.paired[1])?,
            };
            if side == Side::Inputs {
                let sensitivity = sensitivity(&moments, task, count)?;
                inverses.push((format!("{layer}.sensitivity"), sensitivity));
            }
            let Some(preconditioner) = side.preconditioner(task.correction) else { continue };
            stages.time("invert", || {
                let weight = task.unlabelled_weight;
                let whole = moments
                    .unlabelled
                    .as_ref()
                    .map(|[first, second]| first.f_add(second))
                    .transpose()?;
                inverses.push((
                    name.clone(),
                    preconditioner.compute(&mix(
                        &moments.paired[0].f_add(&moments.paired[1])?,
                        whole.as_ref(),
                        weight,
                    )?)?,
                ));
                let first_half = mix(
                    &moments.paired[0],
                    moments.unlabelled.as_ref().map(|[first, _]| first),
                    weight,
                )?;
                cross_fit.push((format!("{name}.inverse"), preconditioner.compute(&first_half)?));
                cross_fit.push((format!("{name}.moment"), evaluation.f_to_kind(Kind::Float)?));
                Ok(())
            })?;
        }
    }
    stages.time("store", || {
        Ok(MomentsReduceOutput {
            inverse: put(context, &inverses)?,
            cross_fit: put(context, &cross_fit)?,
            paired: count(&task.paired),
            unlabelled: count(&task.unlabelled),
        })
    })
}

/// Returns the sensitivity of a layer, `[1]`: the mean diagonal of C per item before it is scaled,
/// mixed as C is, times the cost of the tower.
fn sensitivity(
    inputs: &SideMoments,
    task: &MomentsReduce,
    count: impl Fn(&[MomentsPart]) -> u64,
) -> Result<Tensor, Error> {
    let per_item = |[first, second]: &[Tensor; 2], parts: &[MomentsPart]| -> Result<f64, Error> {
        let trace = first.f_trace()?.f_double_value(&[])? + second.f_trace()?.f_double_value(&[])?;
        Ok(trace / first.size()[0] as f64 / count(parts).max(1) as f64)
    };
    let paired = per_item(&inputs.paired, &task.paired)?;
    let mixed = match &inputs.unlabelled {
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
enum Side {
    Inputs,
    Outputs,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Inputs, Self::Outputs];

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

/// The moments of one side of a layer, float64, separately for the two halves of the data.
struct SideMoments {
    paired: [Tensor; 2],
    unlabelled: Option<[Tensor; 2]>,
}

impl SideMoments {
    fn of(
        context: JobContext<'_>,
        paired: &[Bytes],
        unlabelled: &[Bytes],
        name: &str,
    ) -> Result<Self, Error> {
        let halves = |files: &[Bytes]| -> Result<Option<[Tensor; 2]>, Error> {
            Ok(
                match (
                    total(context, files, &format!("{name}.0"))?,
                    total(context, files, &format!("{name}.1"))?,
                ) {
                    (Some(first), Some(second)) => Some([first, second]),
                    _ => None,
                },
            )
        };
        let paired = halves(paired)?
            .ok_or_else(|| Error::Input(format!("the moments do not contain `{name}`")))?;
        Ok(Self { paired, unlabelled: halves(unlabelled)? })
    }
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, Error> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Input(format!("the artifact of moments is damaged: {error}")))
}

/// Sums one matrix over several files: float64, on the device; `None` without files.
fn total(context: JobContext<'_>, files: &[Bytes], name: &str) -> Result<Option<Tensor>, Error> {
    let mut total: Option<Tensor> = None;
    for bytes in files {
        let file = parse(bytes)?;
        let view = file.tensor(name).map_err(|_| {
            Error::Input(format!("the artifact of moments does not contain `{name}`"))
        })?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let matrix = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(Error::Input)?;
        let matrix = matrix.f_to(context.device())?.f_to_kind(Kind::Double)?;
        match &mut total {
            None => total = Some(matrix),
            Some(sum) if sum.size() == matrix.size() => drop(sum.f_add_(&matrix)?),
            Some(_) => {
                return Err(Error::Input(format!(
                    "artifacts of moments differ in the size of `{name}`"
                )));
            }
        }
    }
    Ok(total)
}

/// Scales a moment to a mean diagonal of 1.
fn scaled(moment: &Tensor) -> Result<Tensor, Error> {
    let mean = moment.f_trace()?.f_double_value(&[])? / moment.size()[0] as f64;
    Ok(if mean > 0.0 { moment.f_div_scalar(mean)? } else { moment.shallow_clone() })
}

/// Computes (P + w·U) / (1 + w), where P and U are scaled to a mean diagonal of 1.
fn mix(paired: &Tensor, unlabelled: Option<&Tensor>, weight: f64) -> Result<Tensor, Error> {
    let paired = scaled(paired)?;
    Ok(match unlabelled {
        None => paired,
        Some(unlabelled) => {
            paired.f_add(&scaled(unlabelled)?.f_mul_scalar(weight)?)?.f_div_scalar(1.0 + weight)?
        }
    })
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
    fn compute(self, moment: &Tensor) -> Result<Tensor, Error> {
        let matrix = match self {
            Self::Inverse { ridge } => {
                let identity = Tensor::f_eye(moment.size()[0], (Kind::Double, moment.device()))?;
                moment.f_add(&identity.f_mul_scalar(ridge)?)?.f_inverse()?
            }
            Self::NullSpace { energy } => null_space(moment, energy)?,
        };
        Ok(matrix.f_to_kind(Kind::Float)?)
    }
}

/// Returns the projection onto the eigenvectors of a symmetric matrix with the smallest
/// eigenvalues: as many as together hold at most the share `energy` of its trace, but at least one.
fn null_space(moment: &Tensor, energy: f64) -> Result<Tensor, Error> {
    // Eigenvalues are in ascending order.
    let (values, vectors) = moment.f_linalg_eigh("L")?;
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

//! Second moments of layer inputs over what must stay: sums by shard, then what directions are corrected by.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lethe_shared::draws::Draws;
use lethe_shared::edit;
use lethe_shared::job::{ArtifactRef, Correction, ModelRef, MomentSource, MomentsPart, MomentsReduceTask};
use lethe_shared::outcome::{MomentsResult, Tower};
use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

use super::model::Model;
use super::{Error, Scope, Stages, data};
use crate::handle::SharedTensor;
use crate::model::clip::Input;
use crate::model::weights::{tensor_from_bytes, tensor_to_bytes};
use crate::slug::moments::{MomentSum, half_of};

/// Items per pass.
const BATCH: usize = 256;

/// Sums the moments over one source.
pub(super) fn sum(scope: Scope<'_>, model: &ModelRef, source: &MomentSource, stages: &mut Stages) -> Result<MomentsPart, Error> {
    let model = stages.time("model", || Model::of(scope, model))?;
    let weights = model.parameters.weights();
    let (tower, seed) = match source {
        MomentSource::Captions(shard) => (Tower::Text, shard.digest),
        MomentSource::Images(shard) => (Tower::Vision, shard.digest),
        MomentSource::Texts(texts) => (Tower::Text, texts.digest),
        MomentSource::ImagesAlone(shard) => (Tower::Vision, shard.digest),
    };
    let mut sum = MomentSum::new(model.clip.mlp_ends(tower), Draws::seeded(seed), scope.micro_batch);
    match source {
        MomentSource::Images(shard) | MomentSource::ImagesAlone(shard) => {
            let (pixels, names) = stages.time("data", || match source {
                MomentSource::Images(_) => data::load(scope, &model, shard).map(|pairs| (pairs.pixels, pairs.captions)),
                _ => data::load_images(scope, &model, shard),
            })?;
            for (number, names) in names.chunks(BATCH).enumerate() {
                scope.check()?;
                let pixels = pixels.f_narrow(0, (number * BATCH) as i64, names.len() as i64)?;
                let halves: Vec<bool> = names.iter().map(|name| half_of(name)).collect();
                stages.time("moments", || Ok(sum.add(&model.clip, &weights, Input::Images(&pixels), &halves)?))?;
            }
        }
        MomentSource::Captions(_) | MomentSource::Texts(_) => {
            let texts = stages.time("data", || texts(scope, source))?;
            for chunk in texts.chunks(BATCH) {
                scope.check()?;
                let batch = model.batch(chunk)?;
                let halves: Vec<bool> = chunk.iter().map(|caption| half_of(caption)).collect();
                stages.time("moments", || Ok(sum.add(&model.clip, &weights, Input::Texts(&batch), &halves)?))?;
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
    let artifact = stages.time("store", || put(scope, &file))?;
    Ok(MomentsPart { sum: artifact, items: sum.items() })
}

/// The texts of a source, shortest first within what one pass takes: padding costs as much as words.
fn texts(scope: Scope<'_>, source: &MomentSource) -> Result<Vec<String>, Error> {
    let mut texts: Vec<String> = match source {
        MomentSource::Captions(shard) => {
            let path = scope.fetch(&shard.address, shard.digest, shard.bytes)?;
            crate::input::load_captions(&path)?
        }
        MomentSource::Texts(artifact) => {
            serde_json::from_slice(&scope.get(artifact)?).map_err(|error| Error::Input(format!("a list of texts is damaged: {error}")))?
        }
        MomentSource::Images(_) | MomentSource::ImagesAlone(_) => Vec::new(),
    };
    texts.sort_by_key(String::len);
    Ok(texts)
}

pub(super) fn put(scope: Scope<'_>, tensors: &[(String, Tensor)]) -> Result<ArtifactRef, Error> {
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        parts.push((name.as_str(), shape, tensor_to_bytes(tensor)?));
    }
    let file = edit::encode_tensors(parts.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())));
    scope.put(file.map_err(Error::Input)?)
}

/// Weighs the sums and inverts them, layer by layer; sums in float64 in the order given.
pub(super) fn reduce(scope: Scope<'_>, task: &MomentsReduceTask, stages: &mut Stages) -> Result<MomentsResult, Error> {
    let files = |parts: &[MomentsPart]| parts.iter().map(|part| scope.get(&part.sum)).collect::<Result<Vec<_>, _>>();
    let (paired, unlabelled) = stages.time("store", || Ok((files(&task.paired)?, files(&task.unlabelled)?)))?;
    let first = paired.first().ok_or_else(|| Error::Input("there is no retain shard to take moments from".into()))?;
    let names = parse(first)?;
    let mut layers: Vec<&str> = names.names().into_iter().filter_map(|name| name.strip_suffix(".inputs.0")).collect();
    layers.sort_unstable();
    let count = |parts: &[MomentsPart]| parts.iter().map(|part| part.items).sum::<u64>();
    let (mut inverses, mut folds) = (Vec::new(), Vec::new());
    for layer in layers {
        scope.check()?;
        for side in Side::BOTH {
            let name = format!("{layer}.{}", side.name());
            let moments = SideMoments::of(scope, &paired, &unlabelled, &name)?;
            // Per item, so that efficiencies of layers and towers compare; M is a matter of proportions.
            let judged = match side {
                Side::Inputs => moments.paired[1].f_div_scalar(count(&task.paired).max(1) as f64)?,
                Side::Outputs => scaled(&moments.paired[1])?,
            };
            let Some(correct) = side.correction(task.correction) else { continue };
            stages.time("invert", || {
                let weight = task.unlabelled_weight;
                let whole = moments.unlabelled.as_ref().map(|[first, second]| first.f_add(second)).transpose()?;
                inverses.push((name.clone(), correct.of(&mix(&moments.paired[0].f_add(&moments.paired[1])?, whole.as_ref(), weight)?)?));
                let fold = mix(&moments.paired[0], moments.unlabelled.as_ref().map(|[first, _]| first), weight)?;
                folds.push((format!("{name}.inverse"), correct.of(&fold)?));
                folds.push((format!("{name}.moment"), judged.f_to_kind(Kind::Float)?));
                Ok(())
            })?;
        }
    }
    stages.time("store", || {
        Ok(MomentsResult {
            inverse: put(scope, &inverses)?,
            folds: put(scope, &folds)?,
            paired: count(&task.paired),
            unlabelled: count(&task.unlabelled),
        })
    })
}

/// The two sides of a layer.
#[derive(Debug, Clone, Copy)]
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

    /// What is made of this side's moments, where a correction makes something of them.
    fn correction(self, correction: Correction) -> Option<Corrected> {
        match (self, correction) {
            (Self::Inputs, Correction::Ridge { inputs: ridge, .. }) | (Self::Outputs, Correction::Ridge { outputs: ridge, .. }) => {
                Some(Corrected::Inverse { ridge })
            }
            (Self::Inputs, Correction::NullSpace(energy)) => Some(Corrected::NullSpace { energy }),
            (Self::Outputs, Correction::NullSpace(_)) => None,
        }
    }
}

/// The moments of one side of a layer, float64, of two halves of the data each.
struct SideMoments {
    paired: [Tensor; 2],
    unlabelled: Option<[Tensor; 2]>,
}

impl SideMoments {
    fn of(scope: Scope<'_>, paired: &[Bytes], unlabelled: &[Bytes], name: &str) -> Result<Self, Error> {
        let halves = |files: &[Bytes]| -> Result<Option<[Tensor; 2]>, Error> {
            Ok(match (total(scope, files, &format!("{name}.0"))?, total(scope, files, &format!("{name}.1"))?) {
                (Some(first), Some(second)) => Some([first, second]),
                _ => None,
            })
        };
        let paired = halves(paired)?.ok_or_else(|| Error::Input(format!("the moments lack `{name}`")))?;
        Ok(Self { paired, unlabelled: halves(unlabelled)? })
    }
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, Error> {
    SafeTensors::deserialize(bytes).map_err(|error| Error::Input(format!("an artifact of moments is damaged: {error}")))
}

/// The sum of one matrix over several files, float64, on the device; `None` without files.
fn total(scope: Scope<'_>, files: &[Bytes], name: &str) -> Result<Option<Tensor>, Error> {
    let mut total: Option<Tensor> = None;
    for bytes in files {
        let file = parse(bytes)?;
        let view = file.tensor(name).map_err(|_| Error::Input(format!("an artifact of moments lacks `{name}`")))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let matrix = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(Error::Input)?;
        let matrix = matrix.f_to(scope.device())?.f_to_kind(Kind::Double)?;
        match &mut total {
            None => total = Some(matrix),
            Some(sum) if sum.size() == matrix.size() => drop(sum.f_add_(&matrix)?),
            Some(_) => return Err(Error::Input(format!("moments disagree about the size of `{name}`"))),
        }
    }
    Ok(total)
}

/// Moments with a mean diagonal of 1.
fn scaled(moment: &Tensor) -> Result<Tensor, Error> {
    let mean = moment.f_trace()?.f_double_value(&[])? / moment.size()[0] as f64;
    Ok(if mean > 0.0 { moment.f_div_scalar(mean)? } else { moment.shallow_clone() })
}

/// (P + w·U) / (1 + w), both scaled to a mean diagonal of 1.
fn mix(paired: &Tensor, unlabelled: Option<&Tensor>, weight: f64) -> Result<Tensor, Error> {
    let paired = scaled(paired)?;
    Ok(match unlabelled {
        None => paired,
        Some(unlabelled) => paired.f_add(&scaled(unlabelled)?.f_mul_scalar(weight)?)?.f_div_scalar(1.0 + weight)?,
    })
}

/// What a gradient is multiplied by on one side.
#[derive(Debug, Clone, Copy)]
enum Corrected {
    Inverse { ridge: f64 },
    NullSpace { energy: f64 },
}

impl Corrected {
    /// Of a moment; float32.
    fn of(self, moment: &Tensor) -> Result<Tensor, Error> {
        let corrected = match self {
            Self::Inverse { ridge } => {
                let identity = Tensor::f_eye(moment.size()[0], (Kind::Double, moment.device()))?;
                moment.f_add(&identity.f_mul_scalar(ridge)?)?.f_inverse()?
            }
            Self::NullSpace { energy } => null_space(moment, energy)?,
        };
        Ok(corrected.f_to_kind(Kind::Float)?)
    }
}

/// The projection onto the eigenvectors of a symmetric matrix with the smallest eigenvalues, as many as hold at most `energy` of its
/// trace; the smallest one in any case.
fn null_space(moment: &Tensor, energy: f64) -> Result<Tensor, Error> {
    // In ascending order.
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

/// The matrices of several artifacts, by name.
#[derive(Debug)]
pub(super) struct Matrices(BTreeMap<String, SharedTensor>);

impl Matrices {
    pub(super) fn of(scope: Scope<'_>, artifacts: &[ArtifactRef]) -> Result<Arc<Self>, Error> {
        scope.engine.matrices.get(artifacts.to_vec(), || {
            let mut matrices = BTreeMap::new();
            for artifact in artifacts {
                let bytes = scope.get(artifact)?;
                for (name, view) in parse(&bytes)?.tensors() {
                    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
                    let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(Error::Input)?;
                    matrices.insert(name, SharedTensor::new(tensor.f_to(scope.device())?));
                }
            }
            Ok(Self(matrices))
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Tensor> {
        self.0.get(name).map(SharedTensor::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_space_is_where_what_stays_hardly_reaches() {
        let diagonal = |values: [f64; 4]| Tensor::from_slice(&values).diag(0);
        let moment = diagonal([100.0, 1.0, 0.5, 0.001]);
        for (energy, kept) in [(0.015, [0.0, 1.0, 1.0, 1.0]), (0.001, [0.0, 0.0, 0.0, 1.0]), (1e-9, [0.0, 0.0, 0.0, 1.0])] {
            let off = (null_space(&moment, energy).unwrap() - diagonal(kept)).abs().max();
            assert!(off.double_value(&[]) < 1e-12, "{energy}");
        }
    }
}

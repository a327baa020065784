//! Parameters on a device, and cheap views of them in which individual tensors are replaced.

use std::cell::RefCell;
use std::rc::Rc;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::vocabulary::Precision;
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

use super::architecture::{Architecture, ParameterId};
use super::error::Error;
use crate::shared_tensor::SharedTensor;

/// The parameters of a model: float32, on one device, read-only.
///
/// Threads share them: [`Parameters::weights`] returns shallow clones, and nothing in this crate
/// writes to them.
#[derive(Debug)]
pub struct Parameters {
    tensors: Vec<SharedTensor>,
    storage: Vec<Dtype>,
    device: Device,
    /// The type to which operands of matrix products are rounded, and every parameter rounded to
    /// it.
    rounding: Option<(Kind, Vec<SharedTensor>)>,
}

impl Parameters {
    /// Wraps tensors in the order of [`Architecture::parameters`]; `storage` holds their types in
    /// the checkpoint.
    pub fn new(tensors: Vec<Tensor>, storage: Vec<Dtype>, device: Device) -> Self {
        Self {
            tensors: tensors.into_iter().map(SharedTensor::new).collect(),
            storage,
            device,
            rounding: None,
        }
    }

    /// Prepares the parameters for matrix products in this precision. TF32 needs no preparation: it
    /// is a setting of the device, see [`matmul_precision`](crate::matmul_precision).
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn in_precision(self, precision: Precision) -> Result<Self, Error> {
        let rounding = match precision {
            Precision::Float32 | Precision::Tf32 => None,
            Precision::Bfloat16 => {
                let round = |tensor: &SharedTensor| {
                    Ok(SharedTensor::new(tensor.get().f_to_kind(Kind::BFloat16)?))
                };
                Some((
                    Kind::BFloat16,
                    self.tensors.iter().map(round).collect::<Result<_, Error>>()?,
                ))
            }
        };
        Ok(Self { rounding, ..self })
    }

    /// Reads every parameter of `architecture` from a checkpoint onto `device`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a tensor is missing, has a different shape, or is not of a
    /// floating-point type.
    pub fn read(
        architecture: &Architecture,
        checkpoint: &Checkpoint,
        device: Device,
    ) -> Result<Self, Error> {
        let mut tensors = Vec::with_capacity(architecture.parameters().len());
        let mut storage = Vec::with_capacity(tensors.capacity());
        for spec in architecture.parameters() {
            let wrong = |problem: String| Error::Tensor { tensor: spec.name.clone(), problem };
            let info = checkpoint
                .tensors()
                .get(&spec.name)
                .ok_or_else(|| wrong("is missing from the checkpoint; check that config.json belongs to these weights".into()))?;
            let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
            // Both libraries store logit_scale as []; some converters store it as [1].
            if shape != spec.shape && !(spec.shape.is_empty() && shape == [1]) {
                return Err(wrong(format!(
                    "has shape {shape:?}, but the configuration requires {:?}",
                    spec.shape
                )));
            }
            let bytes = checkpoint.bytes(&spec.name).map_err(|e| wrong(e.to_string()))?;
            tensors.push(
                tensor_from_bytes(&bytes, info.dtype, &spec.shape).map_err(&wrong)?.f_to(device)?,
            );
            storage.push(info.dtype);
        }
        Ok(Self::new(tensors, storage, device))
    }

    /// Returns the device that holds all tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns a view of all parameters.
    pub fn weights(&self) -> Weights {
        let handles = |tensors: &[SharedTensor]| {
            Rc::new(tensors.iter().map(SharedTensor::get).collect::<Vec<_>>())
        };
        let rounding = self.rounding.as_ref().map(|(kind, rounded)| (*kind, handles(rounded)));
        Weights { base: handles(&self.tensors), rounding, replaced: Vec::new(), taps: None }
    }

    /// Returns one parameter.
    pub fn get(&self, id: ParameterId) -> Tensor {
        self.tensors[id.0].get()
    }

    /// Returns the type in which the checkpoint stores a parameter. Edited layers are rounded to it
    /// before they are evaluated.
    pub fn storage(&self, id: ParameterId) -> Dtype {
        self.storage[id.0]
    }
}

/// A view of a model's parameters in which some may be replaced.
#[derive(Debug)]
pub struct Weights {
    base: Rc<Vec<Tensor>>,
    /// The type to which operands of matrix products are rounded, and the base rounded to it.
    rounding: Option<(Kind, Rc<Vec<Tensor>>)>,
    /// Replacements by parameter; may be shorter than the base.
    replaced: Vec<Option<Tensor>>,
    taps: Option<Taps>,
}

/// Records the inputs and outputs of some linear layers during a forward pass.
#[derive(Debug, Default)]
struct Taps {
    layers: Vec<ParameterId>,
    recorded: RefCell<Vec<Tapped>>,
}

/// The input and output of a linear layer in one forward pass.
#[derive(Debug)]
pub struct Tapped {
    /// The layer's weight.
    pub layer: ParameterId,
    /// Its input `[items, …, inputs]`, float32.
    pub input: Tensor,
    /// Its output `[items, …, outputs]`, part of the autograd graph.
    pub output: Tensor,
}

impl Weights {
    /// Creates a view of tensors in the order of [`Architecture::parameters`].
    pub fn from_tensors(tensors: Vec<Tensor>) -> Self {
        Self { base: Rc::new(tensors), rounding: None, replaced: Vec::new(), taps: None }
    }

    /// Returns the device that holds the parameters.
    pub fn device(&self) -> Device {
        self.base.first().map_or(Device::Cpu, Tensor::device)
    }

    /// Returns the tensor of a parameter, or its replacement.
    pub fn get(&self, id: ParameterId) -> &Tensor {
        self.replacement(id).unwrap_or(&self.base[id.0])
    }

    fn replacement(&self, id: ParameterId) -> Option<&Tensor> {
        self.replaced.get(id.0)?.as_ref()
    }

    /// Copies the view, without taps.
    fn view(&self) -> Self {
        let replaced =
            self.replaced.iter().map(|tensor| tensor.as_ref().map(Tensor::shallow_clone)).collect();
        let rounding = self.rounding.as_ref().map(|(kind, rounded)| (*kind, Rc::clone(rounded)));
        Self { base: Rc::clone(&self.base), rounding, replaced, taps: None }
    }

    fn replace(&mut self, id: ParameterId, tensor: Tensor) {
        while self.replaced.len() <= id.0 {
            self.replaced.push(None);
        }
        self.replaced[id.0] = Some(tensor);
    }

    /// Returns a copy of the view in which `tensor` replaces one parameter.
    #[must_use]
    pub fn with(&self, id: ParameterId, tensor: Tensor) -> Self {
        let mut view = self.view();
        view.replace(id, tensor);
        view
    }

    /// Returns a view that records the inputs and outputs of `layers` in its next forward pass,
    /// within an autograd graph. [`tapped`](Self::tapped) returns them.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn with_taps(&self, layers: &[ParameterId]) -> Result<Self, Error> {
        let (mut graph, _) = self.with_leaves(layers)?;
        graph.taps = Some(Taps { layers: layers.to_vec(), recorded: RefCell::default() });
        Ok(graph)
    }

    /// Takes the recorded inputs and outputs, in the order of the forward pass.
    pub fn tapped(&self) -> Vec<Tapped> {
        self.taps.as_ref().map(|taps| taps.recorded.take()).unwrap_or_default()
    }

    /// Computes x Wᵀ + b in the configured precision, from `x` `[items, …, inputs]` and operands
    /// that [`operand`](Self::operand) returned.
    ///
    /// When a stack of weights `[trials, outputs, inputs]` replaces the parameter, `x` must hold
    /// that many groups of items, one after another. Each group is multiplied by its own weight.
    pub(super) fn linear(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let x = self.rounded(x)?;
        let [trials, outputs, inputs] = weight.size()[..] else {
            return Ok(x.f_linear(weight, bias)?);
        };
        let mut shape = x.size();
        let grouped = x.f_reshape([trials, -1, inputs])?.f_matmul(&weight.f_transpose(1, 2)?)?;
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        let product = grouped.f_reshape(shape)?;
        Ok(match bias {
            Some(bias) => product.f_add(bias)?,
            None => product,
        })
    }

    /// Returns a parameter in the precision of matrix products.
    pub(super) fn operand(&self, id: ParameterId) -> Result<Tensor, Error> {
        Ok(match (&self.rounding, self.replacement(id)) {
            (Some((_, rounded)), None) => rounded[id.0].shallow_clone(),
            _ => self.rounded(self.get(id))?,
        })
    }

    fn rounded(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        Ok(match &self.rounding {
            Some((kind, _)) => tensor.f_to_kind(*kind)?,
            None => tensor.shallow_clone(),
        })
    }

    /// Records a layer's input and output if the layer is tapped.
    pub(super) fn record(
        &self,
        layer: ParameterId,
        input: &Tensor,
        output: &Tensor,
    ) -> Result<(), Error> {
        if let Some(taps) = self.taps.as_ref().filter(|taps| taps.layers.contains(&layer)) {
            let input = input.f_detach()?.f_to_kind(Kind::Float)?;
            taps.recorded.borrow_mut().push(Tapped {
                layer,
                input,
                output: output.shallow_clone(),
            });
        }
        Ok(())
    }

    /// Returns a view in which `ids` are leaves of a new autograd graph (same memory, gradients
    /// enabled), and those leaves.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn with_leaves(&self, ids: &[ParameterId]) -> Result<(Self, Vec<Tensor>), Error> {
        let mut view = self.view();
        let mut leaves = Vec::with_capacity(ids.len());
        for id in ids {
            let leaf = self.get(*id).f_detach()?.f_set_requires_grad(true)?;
            leaves.push(leaf.shallow_clone());
            view.replace(*id, leaf);
        }
        Ok((view, leaves))
    }
}

/// Returns libtorch's kind for a stored floating-point type; `None` for other types.
pub fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

/// Creates a float32 tensor from little-endian bytes of a floating-point type.
///
/// # Errors
/// A message when the type is not a floating-point type, or the number of bytes does not match the
/// shape.
pub fn tensor_from_bytes(bytes: &[u8], dtype: Dtype, shape: &[i64]) -> Result<Tensor, String> {
    let kind = kind_of(dtype)
        .ok_or_else(|| format!("is stored as {dtype:?}; weights must be F32, F16, BF16 or F64"))?;
    let expected = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
    if bytes.len() != expected {
        return Err(format!(
            "has {} bytes, but shape {shape:?} of {dtype:?} needs {expected}",
            bytes.len()
        ));
    }
    let tensor = Tensor::f_from_data_size(bytes, shape, kind).map_err(|e| e.to_string())?;
    tensor.f_to_kind(Kind::Float).map_err(|e| e.to_string())
}

/// Returns the values of a tensor as little-endian float32 bytes.
///
/// # Errors
/// When libtorch returns an error.
pub fn tensor_to_bytes(tensor: &Tensor) -> Result<Vec<u8>, Error> {
    // libtorch supports little-endian machines only.
    const { assert!(cfg!(target_endian = "little")) }
    let host = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let raw = host.f_reshape([-1])?.f_view_dtype(Kind::Uint8)?;
    let mut bytes = vec![0u8; raw.numel()];
    raw.f_copy_data(&mut bytes, raw.numel())?;
    Ok(bytes)
}

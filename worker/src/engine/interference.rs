//! What each concept's edit does to the forget loss of each concept, to first order: ⟨g_i, D_j⟩ at the layer of j.

use std::collections::BTreeMap;

use lethe_shared::edit;
use lethe_shared::job::InterferencePart;
use lethe_shared::outcome::InterferenceResult;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::{Error, Scope, Stages};
use crate::model::weights::tensor_from_bytes;

/// The direction of one concept.
struct Member {
    /// The concept's place.
    column: usize,
    /// `[outputs, rank]`.
    up: Tensor,
    /// `[inputs, rank]`.
    down: Tensor,
}

/// Works out the matrix of effects, float64 `[concepts, concepts]`.
///
/// Each pair for itself: what two concepts do to each other must be the same bits whoever else is there, so that a concept can be
/// left out later as if it had never been. (One product over all of them may sum in another order.)
pub(super) fn effects(scope: Scope<'_>, concepts: &[InterferencePart], stages: &mut Stages) -> Result<InterferenceResult, Error> {
    let _guard = tch::no_grad_guard();
    let mut by_layer: BTreeMap<&str, Vec<Member>> = BTreeMap::new();
    for (column, concept) in concepts.iter().enumerate() {
        scope.check()?;
        let (up, down) = stages.time("store", || factors(scope, &scope.get(&concept.direction)?, &concept.layer))?;
        by_layer.entry(&concept.layer).or_default().push(Member { column, up, down: down.f_transpose(0, 1)?.f_contiguous()? });
    }
    let side = concepts.len();
    let mut effect = vec![0.0f64; side * side];
    for (row, concept) in concepts.iter().enumerate() {
        scope.check()?;
        let file = stages.time("store", || scope.get(&concept.gradients))?;
        stages.time("products", || {
            for (layer, members) in &by_layer {
                let (up, down) = factors(scope, &file, layer)?;
                let up = up.f_transpose(0, 1)?.f_contiguous()?;
                // ⟨A B, U V⟩ is the sum over (AᵀU) ∘ (B Vᵀ): nothing of a layer's size is ever formed.
                let product = |member: &Member| up.f_matmul(&member.up)?.f_mul(&down.f_matmul(&member.down)?)?.f_sum(Kind::Double);
                let sums = members.iter().map(product).collect::<Result<Vec<_>, _>>()?;
                let values = Vec::<f64>::try_from(Tensor::f_stack(&sums, 0)?.f_to_device(tch::Device::Cpu)?)?;
                for (member, value) in members.iter().zip(values) {
                    effect[row * side + member.column] = value;
                }
            }
            Ok(())
        })?;
    }
    if effect.iter().any(|value| !value.is_finite()) {
        return Err(Error::Input("an effect of one concept on another is not finite".into()));
    }
    let bytes: Vec<u8> = effect.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![side, side], &bytes).map_err(|error| Error::Input(error.to_string()))?;
    let file = safetensors::serialize([("effect", view)], None).map_err(|error| Error::Input(error.to_string()))?;
    Ok(InterferenceResult { effect: scope.put(file)? })
}

/// The factors of one layer, float64.
fn factors(scope: Scope<'_>, file: &[u8], layer: &str) -> Result<(Tensor, Tensor), Error> {
    let damaged = |problem: String| Error::Input(format!("an artifact of factors is damaged: {problem}"));
    let parsed = SafeTensors::deserialize(file).map_err(|error| damaged(error.to_string()))?;
    let one = |name: &str| -> Result<Tensor, Error> {
        let view = parsed.tensor(name).map_err(|error| damaged(error.to_string()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(damaged)?;
        Ok(tensor.f_to(scope.device())?.f_to_kind(Kind::Double)?)
    };
    let (up_name, down_name) = edit::factor_names(layer);
    let (up, down) = (one(&up_name)?, one(&down_name)?);
    match (up.size().as_slice(), down.size().as_slice()) {
        ([_, rank], [other, _]) if rank == other => Ok((up, down)),
        (up, down) => Err(damaged(format!("factors of `{layer}` are {up:?} and {down:?}"))),
    }
}

//! The effect of each concept's edit on the forget loss of each concept, to first order: ⟨g_i, D_j⟩
//! at the layer of j.

use std::collections::BTreeMap;

use lethe_shared::edit;
use lethe_shared::task::{Effects, EffectsOutput};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::error::Error;
use super::job_context::{JobContext, Perform, StageTimes};
use crate::model::weights::tensor_from_bytes;

/// The factorized direction of one concept.
struct ConceptDirection {
    /// Index of the concept.
    column: usize,
    /// `[outputs, rank]`.
    up: Tensor,
    /// `[inputs, rank]`.
    down: Tensor,
}

/// Computes the effect matrix: float64, `[concepts, concepts]`.
///
/// Entries stay 0 where a concept has no gradient at the layer of an edit.
///
/// Each pair is computed separately, because the effect of one concept on another must not depend
/// on which other concepts there are, to the last bit. Then removing a concept later gives the same
/// release as never having had it. A single product over all concepts might sum in a different
/// order.
impl Perform for Effects {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<EffectsOutput, Error> {
        effects(context, self, stages)
    }
}

fn effects(
    context: JobContext<'_>,
    task: &Effects,
    stages: &mut StageTimes,
) -> Result<EffectsOutput, Error> {
    let concepts = &task.concepts;
    let _guard = tch::no_grad_guard();
    let mut by_layer: BTreeMap<&str, Vec<ConceptDirection>> = BTreeMap::new();
    for (column, concept) in concepts.iter().enumerate() {
        context.check_cancelled()?;
        let (up, down) = stages.time("store", || {
            factors(context, &context.get(&concept.direction)?, &concept.layer)
        })?;
        by_layer.entry(&concept.layer).or_default().push(ConceptDirection {
            column,
            up,
            down: down.f_transpose(0, 1)?.f_contiguous()?,
        });
    }
    let side = concepts.len();
    let mut effect = vec![0.0f64; side * side];
    for (row, concept) in concepts.iter().enumerate() {
        context.check_cancelled()?;
        let file = stages.time("store", || context.get(&concept.gradients))?;
        stages.time("products", || {
            for (&layer, directions) in &by_layer {
                if layer != concept.layer && !task.layers.iter().any(|known| known == layer) {
                    continue;
                }
                let (up, down) = factors(context, &file, layer)?;
                let up = up.f_transpose(0, 1)?.f_contiguous()?;
                // ⟨A B, U V⟩ is the sum over (AᵀU) ∘ (B Vᵀ), which avoids matrices of the layer's
                // size.
                let product = |direction: &ConceptDirection| {
                    up.f_matmul(&direction.up)?
                        .f_mul(&down.f_matmul(&direction.down)?)?
                        .f_sum(Kind::Double)
                };
                let sums = directions.iter().map(product).collect::<Result<Vec<_>, _>>()?;
                let values = Vec::<f64>::try_from(
                    Tensor::f_stack(&sums, 0)?.f_to_device(tch::Device::Cpu)?,
                )?;
                for (direction, value) in directions.iter().zip(values) {
                    effect[row * side + direction.column] = value;
                }
            }
            Ok(())
        })?;
    }
    if effect.iter().any(|value| !value.is_finite()) {
        return Err(Error::Input(
            "the effect of one concept on another is not finite; check the directions and gradients of the concepts".into(),
        ));
    }
    let bytes: Vec<u8> = effect.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![side, side], &bytes)
        .map_err(|error| Error::Input(error.to_string()))?;
    let file = safetensors::serialize([("effect", view)], None)
        .map_err(|error| Error::Input(error.to_string()))?;
    Ok(EffectsOutput { effect: context.put(file)? })
}

/// Reads the factors of one layer from an artifact; float64.
fn factors(context: JobContext<'_>, file: &[u8], layer: &str) -> Result<(Tensor, Tensor), Error> {
    let damaged =
        |problem: String| Error::Input(format!("the artifact of factors is damaged: {problem}"));
    let parsed = SafeTensors::deserialize(file).map_err(|error| damaged(error.to_string()))?;
    let one = |name: &str| -> Result<Tensor, Error> {
        let view = parsed.tensor(name).map_err(|error| damaged(error.to_string()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(damaged)?;
        Ok(tensor.f_to(context.device())?.f_to_kind(Kind::Double)?)
    };
    let (up_name, down_name) = edit::factor_names(layer);
    let (up, down) = (one(&up_name)?, one(&down_name)?);
    match (up.size().as_slice(), down.size().as_slice()) {
        ([_, rank], [other, _]) if rank == other => Ok((up, down)),
        (up, down) => Err(damaged(format!(
            "the factors of layer `{layer}` have shapes {up:?} and {down:?}, which do not match"
        ))),
    }
}

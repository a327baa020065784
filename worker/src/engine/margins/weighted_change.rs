//! The change of the model that follows from a coefficient per constraint.

use lethe_shared::edit;
use lethe_shared::task::{WeightedChange, WeightedChangeOutput};
use tch::{Kind, Tensor};

use super::{metric, read};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments::Matrices;
use crate::model::weights::tensor_to_bytes;

/// Adds Mρ⁻¹ (Σ a_i G_i) Cρ⁻¹ to each layer: gradients are summed in the order of concepts, and the
/// metric is applied once. This is the change for the rounds of a run; the release is composed of
/// the condensed directions.
impl Perform for WeightedChange {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<WeightedChangeOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let _guard = tch::no_grad_guard();
        let mut sums: Vec<Option<Tensor>> = self.layers.iter().map(|_| None).collect();
        for concept in &self.concepts {
            if concept.coefficients.iter().all(|&a| a == 0.0) {
                continue;
            }
            context.check_cancelled()?;
            let file = stages.time("store", || context.get(&concept.factors))?;
            stages.time("products", || {
                for (layer, sum) in self.layers.iter().zip(&mut sums) {
                    let gradients = read(context, &file, layer)?;
                    let weighted =
                        gradients.rows.up.f_mul(&gradients.weights(&concept.coefficients)?)?;
                    let product = weighted.f_transpose(0, 1)?.f_matmul(&gradients.rows.down)?;
                    match sum {
                        None => *sum = Some(product),
                        Some(sum) => drop(sum.f_add_(&product)?),
                    }
                }
                Ok(())
            })?;
        }
        let (mut tensors, mut moved, mut whole) = (Vec::new(), 0.0, 0.0);
        for (layer, sum) in self.layers.iter().zip(sums) {
            let Some(sum) = sum else { continue };
            let before = model.parameters.get(model.layer(layer)?).f_to_kind(Kind::Double)?;
            let change = metric(&inverses, layer)?.whole_direction(&sum)?;
            let square = |tensor: &Tensor| -> Result<f64, Error> {
                Ok(tensor.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
            };
            moved += square(&change)?;
            whole += square(&before)?;
            let after = before.f_add(&change)?.f_to_kind(Kind::Float)?;
            let shape: Vec<usize> = after.size().iter().map(|&n| n as usize).collect();
            tensors.push((layer.as_str(), shape, tensor_to_bytes(&after)?));
        }
        let file = edit::encode_tensors(
            tensors.iter().map(|(name, shape, bytes)| (*name, shape.as_slice(), bytes.as_slice())),
        );
        let change = stages.time("store", || context.put(file.map_err(Error::Input)?))?;
        Ok(WeightedChangeOutput {
            change,
            size: (moved / f64::max(whole, f64::MIN_POSITIVE)).sqrt(),
        })
    }
}

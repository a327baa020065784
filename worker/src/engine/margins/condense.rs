//! One direction per layer for a concept, from the coefficients of its constraints.

use lethe_shared::edit;
use lethe_shared::task::{Condense, CondenseOutput};
use tch::{Kind, Tensor};

use super::{metric, read};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments::Matrices;
use crate::model::weights::tensor_to_bytes;
use crate::slug::margin::Rows;

/// Relative error at which a direction needs no more rows.
const TOLERANCE: f64 = 1e-6;

impl Perform for Condense {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<CondenseOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let _guard = tch::no_grad_guard();
        let file = stages.time("store", || context.get(&self.factors))?;
        let (mut tensors, mut sizes) = (Vec::new(), Vec::new());
        let (mut rank, mut total, mut lost) = (0, 0.0, 0.0);
        stages.time("factors", || {
            for (layer, &most) in self.layers.iter().zip(&self.ranks) {
                let metric = metric(&inverses, layer)?;
                let gradients = read(context, &file, layer)?;
                let weights = gradients.weights(&self.coefficients)?;
                let sum = Rows {
                    up: gradients.rows.up.f_mul(&weights)?,
                    down: gradients.rows.down.shallow_clone(),
                };
                let reduced = metric.reduce(&sum, TOLERANCE, i64::from(most))?;
                total += reduced.total;
                lost += reduced.lost;
                rank = rank.max(reduced.rows.count());
                let direction = metric.direction(&reduced.rows)?;
                let up = direction.up.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?;
                let down = direction.down.f_to_kind(Kind::Float)?.f_contiguous()?;
                let weight = model.parameters.get(model.layer(layer)?);
                let size = |tensor: &Tensor| tensor.f_norm()?.f_double_value(&[]);
                sizes.push(size(&up.f_matmul(&down)?)? / size(&weight)?.max(f64::MIN_POSITIVE));
                let (up_name, down_name) = edit::factor_names(layer);
                for (name, tensor) in [(up_name, up), (down_name, down)] {
                    let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
                    tensors.push((name, shape, tensor_to_bytes(&tensor)?));
                }
            }
            Ok(())
        })?;
        let file = edit::encode_tensors(
            tensors
                .iter()
                .map(|(name, shape, bytes)| (name.as_str(), shape.as_slice(), bytes.as_slice())),
        );
        let direction = stages.time("store", || context.put(file.map_err(Error::Input)?))?;
        let residual = (lost / f64::max(total, f64::MIN_POSITIVE)).sqrt();
        Ok(CondenseOutput { direction, rank: rank as u32, residual, sizes })
    }
}

//! The edits of all concepts, by least squares.

use lethe_shared::edit;
use lethe_shared::task::{LeastSquares, LeastSquaresEdit, LeastSquaresOutput};
use tch::{Kind, Tensor};

use super::{preconditioner, put, read};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments::Matrices;
use crate::slug::margin::{Metric, Rows, wide_product};

/// Relative error at which a direction needs no more rows.
const TOLERANCE: f64 = 1e-6;

/// With K and R the rows of all concepts, P the preconditioner and s the scale of C:
///
/// ```text
/// Δ = Aᵀ K P / (w s)      A = (I + K P Kᵀ / (w s))⁻¹ R
/// ```
///
/// so that only a matrix with a row per key is factorised. The edit of a concept is the part of its
/// own rows.
impl Perform for LeastSquares {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<LeastSquaresOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let _guard = tch::no_grad_guard();
        let (inputs, scale) = preconditioner(&inverses, &self.layer)?;
        let (mut keys, mut residuals) = (Vec::new(), Vec::new());
        for concept in &self.concepts {
            context.check_cancelled()?;
            let (own, off) = stages.time("store", || read(context, &concept.factors))?;
            keys.push(own);
            residuals.push(off.f_mul_scalar(concept.overshoot)?);
        }
        let counts: Vec<i64> = keys.iter().map(|keys| keys.size()[0]).collect();
        let factor = 1.0 / (self.retain_weight * scale);
        let coefficients =
            stages.time("solve", || coefficients(&keys, &residuals, &inputs, factor))?;

        let layer = model.parameters.get(model.layer(&self.layer)?);
        let (outputs, _) = layer.size2()?;
        let norm = layer.f_to_kind(Kind::Double)?.f_norm()?.f_double_value(&[])?;
        // All outputs cost the same.
        let eye = Tensor::f_eye(outputs, (Kind::Double, layer.device()))?;
        let metric = Metric::new(&eye, &inputs, 1.0)?;
        let (mut edits, mut start) = (Vec::with_capacity(counts.len()), 0);
        for (own, count) in keys.iter().zip(counts) {
            context.check_cancelled()?;
            let rows = Rows {
                up: coefficients.f_narrow(0, start, count)?,
                down: own.f_mul_scalar(factor)?,
            };
            start += count;
            let reduced = metric.reduce(&rows, TOLERANCE, i64::from(self.rank))?;
            let direction = metric.direction(&reduced.rows)?;
            let up = direction.up.f_transpose(0, 1)?;
            let size = up.f_matmul(&direction.down)?.f_norm()?.f_double_value(&[])?;
            let (up_name, down_name) = edit::factor_names(&self.layer);
            let parts = [(up_name.as_str(), &up), (down_name.as_str(), &direction.down)];
            edits.push(LeastSquaresEdit {
                direction: stages.time("store", || put(context, &parts))?,
                rank: reduced.rows.count() as u32,
                residual: (reduced.lost / reduced.total.max(f64::MIN_POSITIVE)).sqrt(),
                size: size / norm.max(f64::MIN_POSITIVE),
            });
        }
        Ok(LeastSquaresOutput { edits })
    }
}

/// Solves (I + f K P Kᵀ) A = R: `[rows, outputs]`.
fn coefficients(
    keys: &[Tensor],
    residuals: &[Tensor],
    preconditioner: &Tensor,
    factor: f64,
) -> Result<Tensor, Error> {
    let (keys, residuals) = (Tensor::f_cat(keys, 0)?, Tensor::f_cat(residuals, 0)?);
    let gram = wide_product(&keys, preconditioner)?.f_matmul(&keys.f_transpose(0, 1)?)?;
    // Symmetric but for rounding errors.
    let gram = gram.f_add(&gram.f_transpose(0, 1)?)?.f_mul_scalar(0.5 * factor)?;
    let _ = gram.f_diagonal(0, 0, 1)?.f_add_scalar_(1.0)?;
    let root = gram.f_linalg_cholesky(false)?;
    Ok(residuals.f_cholesky_solve(&root, false)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_solution_is_that_of_the_whole_problem() {
        tch::manual_seed(2);
        let random = |rows, columns| Tensor::randn([rows, columns], (Kind::Double, Device::Cpu));
        let (keys, residuals) = ([random(3, 8), random(2, 8)], [random(3, 4), random(2, 4)]);
        let half = random(8, 20);
        let moment = half.matmul(&half.transpose(0, 1)) / 20.0;
        let weight = 3.0;
        let found = coefficients(&keys, &residuals, &moment.inverse(), 1.0 / weight).unwrap();
        let (all, wanted) = (Tensor::cat(&keys, 0), Tensor::cat(&residuals, 0));
        let edit = found.transpose(0, 1).matmul(&all.matmul(&moment.inverse())) / weight;
        // The gradient of Σ ‖K Δᵀ − R‖² + w tr(Δ C Δᵀ) vanishes there.
        let off = all.matmul(&edit.transpose(0, 1)) - &wanted;
        let gradient = off.transpose(0, 1).matmul(&all) + edit.matmul(&moment) * weight;
        assert!(gradient.abs().max().double_value(&[]) < 1e-9);
    }
}

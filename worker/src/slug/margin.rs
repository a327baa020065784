//! Margin constraints: the gradient of each forget image's margin, as factors, in the metric that
//! prices changes (`docs/composition.md`, "`margins`").
//!
//! The margin of an image is the score of its own class minus that of a competitor. To first order,
//! an edit Δ of a layer lowers the margin of image i by ⟨G_i, Δ⟩, where G_i is the gradient of L_i,
//! the negative margin. G_i is a sum over tokens of outer products, so it is kept as two factors
//! with one row per token, and then with as few rows as keep it.

use tch::{Kind, Tensor};

use crate::micro_batch::MicroBatch;
use crate::model::{Clip, Error, Input, ParameterId, Weights};

/// A matrix of a layer's shape as `upᵀ · down`, float64.
#[derive(Debug)]
pub struct Rows {
    /// `[rows, outputs]`.
    pub up: Tensor,
    /// `[rows, inputs]`.
    pub down: Tensor,
}

impl Rows {
    /// Returns the number of rows.
    pub fn count(&self) -> i64 {
        self.up.size()[0]
    }
}

/// Computes the gradient of L_i = −⟨z_i, w_i⟩ for each item i, at each layer: `[layers][items]`.
///
/// z_i is the unit embedding of the item, and `toward` `[items, d]` holds w_i. For a text, w_i is
/// an image embedding, so L_i is the negative score. For an image, w_i is the text of its own class
/// minus the mean text of its competitors.
///
/// # Errors
/// [`Error::Memory`] when a micro-batch does not fit the device's memory; otherwise when libtorch
/// returns an error.
pub fn gradients(
    clip: &Clip,
    weights: &Weights,
    layers: &[ParameterId],
    input: Input<'_>,
    toward: &Tensor,
    micro_batch: MicroBatch,
) -> Result<Vec<Vec<Rows>>, Error> {
    let mut found: Vec<Vec<Rows>> = layers.iter().map(|_| Vec::new()).collect();
    let micro_batch = micro_batch.for_item_bytes(clip.pass_bytes(
        input.tower(),
        input.tokens(clip.config()),
        true,
    ));
    for (start, count) in micro_batch.passes(input.items()) {
        micro_batch.run(count, || {
            let graph = weights.with_taps(layers)?;
            let embedded = clip.embed(&graph, input.narrow(start, count)?.input())?;
            let tapped = graph.tapped();
            let outputs: Vec<&Tensor> = tapped.iter().map(|tap| &tap.output).collect();
            let loss = embedded
                .f_mul(&toward.f_narrow(0, start, count)?.f_to(embedded.device())?)?
                .f_sum(Kind::Float)?
                .f_neg()?;
            let deltas = Tensor::f_run_backward(&[&loss], &outputs, false, false)?;
            let _guard = tch::no_grad_guard();
            for (tap, delta) in tapped.iter().zip(&deltas) {
                let Some(layer) = layers.iter().position(|&layer| layer == tap.layer) else {
                    continue;
                };
                for item in 0..count {
                    found[layer]
                        .push(Rows { up: rows(delta, item)?, down: rows(&tap.input, item)? });
                }
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// Returns the rows of one item of `[items, …, width]`, float64: one per token.
fn rows(activations: &Tensor, item: i64) -> Result<Tensor, Error> {
    let width = activations.size().last().copied().unwrap_or(1);
    Ok(activations.f_select(0, item)?.f_reshape([-1, width])?.f_to_kind(Kind::Double)?)
}

/// The metric of a layer: a change Δ costs tr(Mρ Δ Cρ Δᵀ), with Mρ and Cρ the second moments plus
/// their ridges. Gradients are measured by its inverse.
#[derive(Debug)]
pub struct Metric {
    /// Mρ⁻¹ `[outputs, outputs]`, divided by the sensitivity of the layer; float64.
    outputs: Tensor,
    /// Cρ⁻¹ `[inputs, inputs]`, in the precision in which it is stored. Products with it are
    /// float64.
    inputs: Tensor,
}

/// A gradient as factors with few rows.
#[derive(Debug)]
pub struct Reduced {
    /// The factors.
    pub rows: Rows,
    /// Square of the norm of the gradient.
    pub total: f64,
    /// Square of the norm of the error.
    pub lost: f64,
}

/// Eigenvalues below this share of the largest are rounding errors.
const MIN_EIGENVALUE: f64 = 1e-13;

impl Metric {
    /// Creates the metric from the two preconditioners and the sensitivity of the layer: the mean
    /// diagonal of C before it is scaled. With it, costs at different layers are comparable.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn new(outputs: &Tensor, inputs: &Tensor, sensitivity: f64) -> Result<Self, Error> {
        let outputs = outputs.f_to_kind(Kind::Double)?.f_div_scalar(sensitivity)?;
        Ok(Self { outputs, inputs: inputs.shallow_clone() })
    }

    /// Converts the metric to float64 for many products, which takes twice its memory.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn for_many_products(self) -> Result<Self, Error> {
        Ok(Self { inputs: self.inputs.f_to_kind(Kind::Double)?, ..self })
    }

    /// Applies the metric's inverse to both factors: the direction of a gradient.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn direction(&self, gradient: &Rows) -> Result<Rows, Error> {
        Ok(Rows {
            up: gradient.up.f_matmul(&self.outputs)?,
            down: wide_product(&gradient.down, &self.inputs)?,
        })
    }

    /// Applies the metric's inverse to a whole matrix `[outputs, inputs]`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn whole_direction(&self, gradient: &Tensor) -> Result<Tensor, Error> {
        wide_product(&self.outputs.f_matmul(gradient)?, &self.inputs)
    }

    /// Returns the factors with the fewest rows, at most `most`, whose error is at most `tolerance`
    /// relative to the gradient. Norms are those of the metric's inverse, so that the error is that
    /// of the cost.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn reduce(&self, gradient: &Rows, tolerance: f64, most: i64) -> Result<Reduced, Error> {
        let product = wide_product(&gradient.down, &self.inputs)?;
        self.reduce_one(gradient, &product, tolerance, most)
    }

    /// Reduces several gradients, each by itself.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn reduce_all(
        &self,
        gradients: &[Rows],
        tolerance: f64,
        most: i64,
    ) -> Result<Vec<Reduced>, Error> {
        if gradients.is_empty() {
            return Ok(Vec::new());
        }
        // The whole metric is read once for all gradients.
        let down: Vec<&Tensor> = gradients.iter().map(|gradient| &gradient.down).collect();
        let products = wide_product(&Tensor::f_cat(&down, 0)?, &self.inputs)?;
        let mut start = 0;
        let mut reduced = Vec::with_capacity(gradients.len());
        for gradient in gradients {
            let product = products.f_narrow(0, start, gradient.count())?;
            start += gradient.count();
            reduced.push(self.reduce_one(gradient, &product, tolerance, most)?);
        }
        Ok(reduced)
    }

    /// Reduces one gradient. `product` is `down · Cρ⁻¹`.
    fn reduce_one(
        &self,
        gradient: &Rows,
        product: &Tensor,
        tolerance: f64,
        most: i64,
    ) -> Result<Reduced, Error> {
        // With Ũ = up · Mρ^(-1/2) and Ṽ = down · Cρ^(-1/2), only the small matrices ŨŨᵀ and ṼṼᵀ are
        // formed: Ũ = L_u Q_uᵀ with orthonormal Q_u, and ŨᵀṼ = Q_u (L_uᵀ L_v) Q_vᵀ.
        let (left, to_left) = root(&gradient.up, &gradient.up.f_matmul(&self.outputs)?)?;
        let (right, to_right) = root(&gradient.down, product)?;
        let (u, values, v) = left.f_transpose(0, 1)?.f_matmul(&right)?.f_svd(true, true)?;
        let squares: Vec<f64> =
            Vec::<f64>::try_from(values.f_square()?.f_to_device(tch::Device::Cpu)?)?;
        let total: f64 = squares.iter().sum();
        let (mut kept, mut held) = (0usize, 0.0);
        while kept < squares.len()
            && (kept as i64) < most
            && total - held > tolerance * tolerance * total
        {
            held += squares[kept];
            kept += 1;
        }
        let lost: f64 = squares[kept..].iter().sum();
        let roots = values.f_narrow(0, 0, kept as i64)?.f_sqrt()?;
        let side = |to: &Tensor, basis: &Tensor, rows: &Tensor| -> Result<Tensor, Error> {
            let combined = to.f_matmul(&basis.f_narrow(1, 0, kept as i64)?)?.f_mul(&roots)?;
            Ok(combined.f_transpose(0, 1)?.f_matmul(rows)?)
        };
        let rows = Rows {
            up: side(&to_left, &u, &gradient.up)?,
            down: side(&to_right, &v, &gradient.down)?,
        };
        Ok(Reduced { rows, total, lost })
    }
}

/// Number of rows of a float32 matrix that are converted to float64 at a time. Those of a matrix of
/// 3,072 columns fit a processor's cache.
const CONVERTED: i64 = 128;

/// Computes `rows · matrix` in float64. `rows` are float64; the matrix may be float32.
pub fn wide_product(rows: &Tensor, matrix: &Tensor) -> Result<Tensor, Error> {
    if matrix.kind() == Kind::Double {
        return Ok(rows.f_matmul(matrix)?);
    }
    let (inner, columns) = matrix.size2()?;
    let mut sum = Tensor::f_zeros([rows.size()[0], columns], (Kind::Double, matrix.device()))?;
    for start in (0..inner).step_by(CONVERTED as usize) {
        let count = CONVERTED.min(inner - start);
        let converted = matrix.f_narrow(0, start, count)?.f_to_kind(Kind::Double)?;
        let _ = sum.f_add_(&rows.f_narrow(1, start, count)?.f_matmul(&converted)?)?;
    }
    Ok(sum)
}

/// Decomposes X A Xᵀ = L Lᵀ for rows X, their `product` X A, and a positive definite A. Returns L
/// `[rows, k]`, and the matrix T `[rows, k]` for which Tᵀ X A^(1/2) has orthonormal rows.
fn root(rows: &Tensor, product: &Tensor) -> Result<(Tensor, Tensor), Error> {
    let gram = product.f_matmul(&rows.f_transpose(0, 1)?)?;
    // Symmetric but for rounding errors.
    let gram = gram.f_add(&gram.f_transpose(0, 1)?)?.f_div_scalar(2.0)?;
    // Eigenvalues are in ascending order.
    let (values, vectors) = gram.f_linalg_eigh("L")?;
    let known = Vec::<f64>::try_from(values.f_to_device(tch::Device::Cpu)?)?;
    let least = MIN_EIGENVALUE * known.last().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let first = known.partition_point(|&value| value <= least) as i64;
    let count = known.len() as i64 - first;
    let roots = values.f_narrow(0, first, count)?.f_sqrt()?;
    let vectors = vectors.f_narrow(1, first, count)?;
    Ok((vectors.f_mul(&roots)?, vectors.f_div(&roots)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(rows: i64, columns: i64) -> Tensor {
        Tensor::randn([rows, columns], (Kind::Double, Device::Cpu))
    }

    fn metric(outputs: i64, inputs: i64) -> Metric {
        let positive = |side: i64| {
            let half = random(side, 2 * side);
            half.matmul(&half.transpose(0, 1)) / side as f64
        };
        Metric::new(&positive(outputs), &positive(inputs), 2.0).unwrap()
    }

    fn product(rows: &Rows) -> Tensor {
        rows.up.transpose(0, 1).matmul(&rows.down)
    }

    fn reduce(metric: &Metric, gradient: &Rows, tolerance: f64, most: i64) -> (Rows, f64, f64) {
        let Reduced { rows, total, lost } = metric.reduce(gradient, tolerance, most).unwrap();
        (rows, total, lost)
    }

    /// ⟨A, Mρ⁻¹ B Cρ⁻¹⟩ from whole matrices.
    fn inner(metric: &Metric, a: &Tensor, b: &Tensor) -> f64 {
        (a * metric.whole_direction(b).unwrap()).sum(Kind::Double).double_value(&[])
    }

    #[test]
    fn reduced_factors_are_the_same_matrix() {
        tch::manual_seed(1);
        let metric = metric(6, 9);
        // Twelve tokens, of which the inputs span four dimensions.
        let gradient = Rows { up: random(12, 6), down: random(12, 4).matmul(&random(4, 9)) };
        let (rows, total, lost) = reduce(&metric, &gradient, 1e-9, 100);
        assert_eq!(rows.count(), 4);
        let (whole, small) = (product(&gradient), product(&rows));
        assert!((&whole - &small).norm().double_value(&[]) < 1e-9 * whole.norm().double_value(&[]));
        assert!((total - inner(&metric, &whole, &whole)).abs() < 1e-9 * total);
        assert!(lost < 1e-15 * total);
    }

    #[test]
    fn what_is_cut_off_is_what_is_told() {
        tch::manual_seed(2);
        let metric = metric(8, 8);
        let gradient = Rows { up: random(20, 8), down: random(20, 8) };
        let whole = product(&gradient);
        let mut before = f64::INFINITY;
        for most in 1..=8 {
            let (rows, total, lost) = reduce(&metric, &gradient, 0.0, most);
            assert_eq!(rows.count(), most);
            let off = &whole - product(&rows);
            let error = inner(&metric, &off, &off);
            assert!((error - lost).abs() < 1e-9 * total, "{error} instead of {lost}");
            assert!(lost < before);
            before = lost;
        }
    }

    #[test]
    fn a_direction_is_that_of_the_whole_matrix() {
        tch::manual_seed(3);
        let metric = metric(5, 7);
        let gradient = Rows { up: random(3, 5), down: random(3, 7) };
        let off = product(&metric.direction(&gradient).unwrap())
            - metric.whole_direction(&product(&gradient)).unwrap();
        assert!(off.norm().double_value(&[]) < 1e-12);
    }

    #[test]
    fn a_zero_gradient_has_no_rows() {
        let metric = metric(5, 7);
        let zero = Tensor::zeros([4, 5], (Kind::Double, Device::Cpu));
        let gradient = Rows { up: zero, down: random(4, 7) };
        let (rows, total, lost) = reduce(&metric, &gradient, 1e-3, 10);
        assert_eq!((rows.count(), total, lost), (0, 0.0, 0.0));
    }

    #[test]
    fn gradients_are_reduced_together_as_alone() {
        tch::manual_seed(4);
        let metric = metric(5, 7);
        let gradients =
            [2, 4, 3].map(|tokens| Rows { up: random(tokens, 5), down: random(tokens, 7) });
        let together = metric.reduce_all(&gradients, 0.1, 3).unwrap();
        assert_eq!(together.len(), gradients.len());
        for (ours, gradient) in together.iter().zip(&gradients) {
            let (alone, total, lost) = reduce(&metric, gradient, 0.1, 3);
            let off = product(&ours.rows) - product(&alone);
            assert!(off.norm().double_value(&[]) < 1e-12);
            assert!((ours.total - total).abs() + (ours.lost - lost).abs() < 1e-12 * total);
        }
        assert!(metric.reduce_all(&[], 0.1, 3).unwrap().is_empty());
    }

    #[test]
    fn a_float32_matrix_is_multiplied_in_float64() {
        tch::manual_seed(5);
        let matrix = random(2 * CONVERTED + 3, 9).to_kind(Kind::Float);
        let rows = random(4, 2 * CONVERTED + 3);
        let expected = rows.matmul(&matrix.to_kind(Kind::Double));
        let off = wide_product(&rows, &matrix).unwrap() - &expected;
        assert!(off.abs().max().double_value(&[]) < 1e-12);
        assert_eq!(wide_product(&rows, &matrix.to_kind(Kind::Double)).unwrap(), expected);
    }
}

//! Low-rank factorization of gradients: a forget gradient is a sum over the tokens of a few pairs,
//! so its rank is low.
//!
//! The singular value decomposition of a 768 × 3,072 layer takes seconds on one core. Therefore the
//! columns are first combined by a random matrix into a small sketch. Its columns span the whole
//! matrix when the rank is smaller than the sketch (Halko, Martinsson, Tropp, arXiv 0909.4061), and
//! only a matrix of that size remains to be decomposed. The part that the sketch misses is
//! measured, and a larger sketch is used when it is too large.

use std::sync::{Mutex, PoisonError};

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use tch::{Device, Kind, Tensor};

use crate::model::Error;
use crate::shared_tensor::SharedTensor;

/// Singular values below this share of the largest are dropped.
const MIN_SINGULAR_VALUE: f64 = 1e-6;
/// Share of a matrix that a sketch may miss. Rounding errors of float32 sums in a low-rank matrix
/// are smaller.
const MAX_MISSED: f64 = 1e-6;
/// Number of columns of the first sketch. Each further attempt has four times as many.
const SKETCH_COLUMNS: i64 = 64;

/// A matrix as the product `up · down`.
#[derive(Debug)]
pub struct Factors {
    /// `[outputs, rank]`, float32.
    pub up: Tensor,
    /// `[rank, inputs]`, float32.
    pub down: Tensor,
    /// ‖g − up · down‖ / ‖g‖, or an upper bound of it.
    pub residual: f64,
}

impl Factors {
    /// Factorizes a matrix `[outputs, inputs]` by its singular value decomposition. A zero matrix
    /// has rank 0.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn svd(matrix: &Tensor) -> Result<Self, Error> {
        let wide = matrix.f_to_kind(Kind::Double)?;
        let length = wide.f_norm()?.f_double_value(&[])?;
        let (u, s, v) = match column_basis(&wide, length)? {
            Some(basis) => {
                let (u, s, v) = basis.f_transpose(0, 1)?.f_matmul(&wide)?.f_svd(true, true)?;
                (basis.f_matmul(&u)?, s, v)
            }
            None => wide.f_svd(true, true)?,
        };
        let values = Vec::<f64>::try_from(s.f_to_device(tch::Device::Cpu)?)?;
        let largest = values.first().copied().unwrap_or(0.0);
        let rank =
            values.iter().take_while(|&&value| value > MIN_SINGULAR_VALUE * largest).count() as i64;
        // Both factors take the square root of the singular values, which keeps them within
        // float32's range.
        let root = s.f_narrow(0, 0, rank)?.f_sqrt()?;
        let up = u.f_narrow(1, 0, rank)?.f_mul(&root)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let down = v
            .f_narrow(1, 0, rank)?
            .f_mul(&root)?
            .f_transpose(0, 1)?
            .f_to_kind(Kind::Float)?
            .f_contiguous()?;
        let factors = Self { up, down, residual: 0.0 };
        let off = wide.f_sub(&factors.product()?)?.f_norm()?.f_double_value(&[])?;
        Ok(Self { residual: if length > 0.0 { off / length } else { 0.0 }, ..factors })
    }

    /// Factorizes a matrix `[outputs, inputs]` by its sketch alone. Cheaper than [`svd`](Self::svd)
    /// and as accurate. The rows of a sketch outnumber the rank, so they are turned into their
    /// principal directions, and those without length are dropped.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn sketch(matrix: &Tensor) -> Result<Self, Error> {
        let wide = matrix.f_to_kind(Kind::Double)?;
        let Some(basis) = column_basis(&wide, wide.f_norm()?.f_double_value(&[])?)? else {
            return Self::svd(matrix);
        };
        let down = basis.f_transpose(0, 1)?.f_matmul(&wide)?;
        // Eigenvalues are in ascending order, and squares of the singular values.
        let (values, vectors) = down.f_matmul(&down.f_transpose(0, 1)?)?.f_linalg_eigh("U")?;
        let values = Vec::<f64>::try_from(values.f_to_device(Device::Cpu)?)?;
        let least = MIN_SINGULAR_VALUE.powi(2) * values.last().copied().unwrap_or(0.0);
        let rank = values.iter().rev().take_while(|&&value| value > least).count().max(1) as i64;
        let main = vectors.f_narrow(1, values.len() as i64 - rank, rank)?;
        let down = main.f_transpose(0, 1)?.f_matmul(&down)?.f_to_kind(Kind::Float)?;
        let up = basis.f_matmul(&main)?.f_to_kind(Kind::Float)?;
        Ok(Self { up, down, residual: MAX_MISSED })
    }

    /// Computes ⟨g, L g R⟩ and tr(A L g R B (L g R)ᵀ) for this matrix g, without multiplying the
    /// factors: the gain of the forget loss along the preconditioned gradient L g R, and its cost
    /// for retained data.
    ///
    /// `outputs` is (L, A), where `None` stands for two identity matrices, and `inputs` is (R, B).
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error.
    pub fn gain_and_cost(
        &self,
        outputs: Option<(&Tensor, &Tensor)>,
        inputs: (&Tensor, &Tensor),
    ) -> Result<(f64, f64), Error> {
        let (right, input_moment) = inputs;
        let down = self.down.f_matmul(right)?;
        let (up, weighted_up) = match outputs {
            Some((left, output_moment)) => {
                let up = left.f_matmul(&self.up)?;
                let weighted_up = output_moment.f_matmul(&up)?;
                (up, weighted_up)
            }
            None => (self.up.shallow_clone(), self.up.shallow_clone()),
        };
        // The trace of a product of two small square matrices, one of each side.
        let trace = |outputs: Tensor, inputs: Tensor| -> Result<f64, Error> {
            Ok(outputs.f_mul(&inputs)?.f_sum(Kind::Double)?.f_double_value(&[])?)
        };
        let transposed = |t: &Tensor| t.f_transpose(0, 1);
        let gain =
            trace(transposed(&self.up)?.f_matmul(&up)?, self.down.f_matmul(&transposed(&down)?)?)?;
        let cost = trace(
            transposed(&weighted_up)?.f_matmul(&up)?,
            down.f_matmul(input_moment)?.f_matmul(&transposed(&down)?)?,
        )?;
        Ok((gain, cost))
    }

    /// Multiplies the factors; float64.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn product(&self) -> Result<Tensor, Error> {
        Ok(self.up.f_to_kind(Kind::Double)?.f_matmul(&self.down.f_to_kind(Kind::Double)?)?)
    }

    /// Returns the number of columns of `up` and rows of `down`.
    pub fn rank(&self) -> i64 {
        self.down.size()[0]
    }
}

/// Finds a few orthonormal columns that span a matrix; `None` when decomposing the whole matrix
/// costs no more.
fn column_basis(matrix: &Tensor, length: f64) -> Result<Option<Tensor>, Error> {
    let (outputs, inputs) = matrix.size2()?;
    let mut columns = SKETCH_COLUMNS;
    while 2 * columns <= outputs.min(inputs) {
        let (basis, _) = Tensor::f_linalg_qr(
            &matrix.f_matmul(&random_projection([inputs, columns], matrix.device())?)?,
            "reduced",
        )?;
        let held = basis.f_transpose(0, 1)?.f_matmul(matrix)?.f_norm()?.f_double_value(&[])?;
        if length * length - held * held <= (MAX_MISSED * length).powi(2) {
            return Ok(Some(basis));
        }
        columns *= 4;
    }
    Ok(None)
}

/// Random matrices drawn so far. A model has few widths, and drawing a matrix costs more than
/// decomposing a sketch.
static PROJECTIONS: Mutex<Vec<([i64; 2], Device, SharedTensor)>> = Mutex::new(Vec::new());
/// The most random matrices to keep.
const MAX_PROJECTIONS: usize = 32;

/// Returns the random matrix of a shape, float64; always the same one.
fn random_projection(shape: [i64; 2], device: Device) -> Result<Tensor, Error> {
    let drawn = || PROJECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((.., known)) =
        drawn().iter().find(|(size, place, _)| (*size, *place) == (shape, device))
    {
        return Ok(known.get());
    }
    let mut draws = Draws::seeded(Digest::of(b"sketch"));
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| draws.normal()).collect();
    let projection =
        Tensor::f_from_slice(&values)?.f_view(shape)?.f_to(device)?.f_to_kind(Kind::Double)?;
    let mut kept = drawn();
    if kept.len() == MAX_PROJECTIONS {
        kept.remove(0);
    }
    kept.push((shape, device, SharedTensor::new(projection.shallow_clone())));
    Ok(projection)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reproducible, so that the tests are not flaky.
    fn random(rows: i64, columns: i64) -> Tensor {
        let mut draws = Draws::seeded(Digest::of(format!("{rows} by {columns}").as_bytes()));
        Tensor::from_slice(&(0..rows * columns).map(|_| draws.normal()).collect::<Vec<f32>>())
            .view([rows, columns])
    }

    #[test]
    fn sketched_and_full_decompositions_agree() {
        for (rank, sketched) in [(30, true), (100, false), (300, false)] {
            let matrix = random(300, rank).matmul(&random(rank, 400)) * 1e-4;
            let wide = matrix.to_kind(Kind::Double);
            let basis = column_basis(&wide, wide.norm().double_value(&[])).unwrap();
            assert_eq!(basis.is_some(), sketched, "rank {rank}");
            let factors = Factors::svd(&matrix).unwrap();
            assert!(factors.residual < 1e-6, "{} at rank {rank}", factors.residual);
            assert!(
                (rank..rank + 30).contains(&factors.rank()),
                "{} instead of {rank}",
                factors.rank()
            );
            let values = |factors: &Factors| {
                let squares =
                    factors.up.square().sum_dim_intlist([0].as_slice(), false, Kind::Double);
                Vec::<f64>::try_from(squares.narrow(0, 0, rank)).unwrap()
            };
            let sketched_factors = Factors::sketch(&matrix).unwrap();
            if sketched {
                let rank_of_sketch = sketched_factors.rank();
                assert!((rank..rank + 10).contains(&rank_of_sketch), "{rank_of_sketch}");
            }
            assert!(
                (sketched_factors.product().unwrap() - &wide).norm().double_value(&[])
                    < 1e-6 * wide.norm().double_value(&[]),
                "rank {rank}"
            );
            let (_, expected, _) = wide.svd(true, true);
            for (ours, theirs) in
                values(&factors).iter().zip(Vec::<f64>::try_from(expected).unwrap())
            {
                assert!((ours - theirs).abs() < 1e-5 * theirs, "{ours} instead of {theirs}");
            }
        }
    }

    #[test]
    fn gain_and_cost_equal_those_of_the_whole_matrix() {
        let square = |n: i64, inner: i64| {
            let half = random(n, inner);
            half.matmul(&half.transpose(0, 1))
        };
        let matrix = random(20, 3).matmul(&random(3, 30));
        let factors = Factors::svd(&matrix).unwrap();
        let (left, right, over, under) =
            (square(20, 20), square(30, 30), square(20, 25), square(30, 35));
        let near = |what: &str, ours: f64, theirs: &Tensor| {
            let theirs = theirs.sum(Kind::Double).double_value(&[]);
            assert!(
                (ours - theirs).abs() < 1e-4 * theirs.abs(),
                "{what}: {ours} instead of {theirs}"
            );
        };
        let whole = left.matmul(&matrix).matmul(&right);
        let (gain, cost) = factors.gain_and_cost(Some((&left, &over)), (&right, &under)).unwrap();
        near("gain", gain, &(&whole * &matrix));
        near("cost", cost, &(over.matmul(&whole).matmul(&under) * &whole));
        let half = matrix.matmul(&right);
        let (gain, cost) = factors.gain_and_cost(None, (&right, &under)).unwrap();
        near("gain", gain, &(&half * &matrix));
        near("cost", cost, &(half.matmul(&under) * &half));
    }

    #[test]
    fn a_low_rank_matrix_has_small_factors() {
        let matrix = Tensor::randn([40, 3], (Kind::Float, tch::Device::Cpu))
            .matmul(&Tensor::randn([3, 90], (Kind::Float, tch::Device::Cpu)));
        let factors = Factors::svd(&matrix).unwrap();
        assert!((3..=6).contains(&factors.rank()), "rank {}", factors.rank());
        assert!(factors.residual < 1e-6);
        let off =
            (factors.product().unwrap().to_kind(Kind::Float) - &matrix).norm() / matrix.norm();
        assert!(f64::try_from(off).unwrap() < 1e-5);
    }

    #[test]
    fn zeros_have_rank_zero() {
        let factors =
            Factors::svd(&Tensor::zeros([4, 6], (Kind::Float, tch::Device::Cpu))).unwrap();
        assert_eq!((factors.rank(), factors.residual), (0, 0.0));
        assert_eq!(factors.product().unwrap().size(), [4, 6]);
    }
}

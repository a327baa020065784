//! Matrices of low rank as factors: a forget gradient is a sum over the tokens of a few pairs.
//!
//! Singular values of a layer of 768 by 3,072 take seconds on a core. So the columns are first brought together by a random
//! matrix: what they span is all of a matrix whose rank is smaller (Halko, Martinsson, Tropp, arXiv 0909.4061), and what is left to
//! decompose is as small as the rank. Whether anything was missed is measured, not hoped.

use std::sync::{Mutex, PoisonError};

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use tch::{Device, Kind, Tensor};

use crate::handle::SharedTensor;
use crate::model::Error;

/// Singular values below this share of the largest are dropped.
const DROPPED: f64 = 1e-6;
/// Share of a matrix that a sketch may miss: what float32 sums leave of a matrix of low rank is less.
const MISSED: f64 = 1e-6;
/// Columns of the first sketch; four times as many where they miss something.
const SKETCH: i64 = 64;

/// A matrix `up · down`.
#[derive(Debug)]
pub struct Factors {
    /// `[outputs, rank]`, float32.
    pub up: Tensor,
    /// `[rank, inputs]`, float32.
    pub down: Tensor,
    /// ‖g − up · down‖ / ‖g‖, or a bound on it.
    pub residual: f64,
}

impl Factors {
    /// Factors a matrix `[outputs, inputs]` by its singular values; rank 0 for a matrix of zeros.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn of(matrix: &Tensor) -> Result<Self, Error> {
        let wide = matrix.f_to_kind(Kind::Double)?;
        let length = wide.f_norm()?.f_double_value(&[])?;
        let (u, s, v) = match span(&wide, length)? {
            Some(basis) => {
                let (u, s, v) = basis.f_transpose(0, 1)?.f_matmul(&wide)?.f_svd(true, true)?;
                (basis.f_matmul(&u)?, s, v)
            }
            None => wide.f_svd(true, true)?,
        };
        let values = Vec::<f64>::try_from(s.f_to_device(tch::Device::Cpu)?)?;
        let largest = values.first().copied().unwrap_or(0.0);
        let rank = values.iter().take_while(|&&value| value > DROPPED * largest).count() as i64;
        // The square root on both sides keeps both factors in float32's range.
        let root = s.f_narrow(0, 0, rank)?.f_sqrt()?;
        let up = u.f_narrow(1, 0, rank)?.f_mul(&root)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let down = v.f_narrow(1, 0, rank)?.f_mul(&root)?.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let factors = Self { up, down, residual: 0.0 };
        let off = wide.f_sub(&factors.product()?)?.f_norm()?.f_double_value(&[])?;
        Ok(Self { residual: if length > 0.0 { off / length } else { 0.0 }, ..factors })
    }

    /// Some factors of a matrix `[outputs, inputs]`: as good for products as those of [`of`](Self::of) and cheaper, for their rank is not
    /// the least.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn spanning(matrix: &Tensor) -> Result<Self, Error> {
        let wide = matrix.f_to_kind(Kind::Double)?;
        let Some(basis) = span(&wide, wide.f_norm()?.f_double_value(&[])?)? else { return Self::of(matrix) };
        let down = basis.f_transpose(0, 1)?.f_matmul(&wide)?.f_to_kind(Kind::Float)?;
        Ok(Self { up: basis.f_to_kind(Kind::Float)?, down, residual: MISSED })
    }

    /// ⟨g, L g R⟩ and tr(A L g R B (L g R)ᵀ) of this matrix g, without multiplying it out; a matrix that is not given is the
    /// identity.
    ///
    /// # Errors
    /// When shapes do not fit or libtorch refuses.
    pub fn gained_and_moved(&self, outputs: Option<(&Tensor, &Tensor)>, inputs: (&Tensor, &Tensor)) -> Result<(f64, f64), Error> {
        let (right, judging) = inputs;
        let down = self.down.f_matmul(right)?;
        let (up, judged) = match outputs {
            Some((left, judging)) => {
                let up = left.f_matmul(&self.up)?;
                let judged = judging.f_matmul(&up)?;
                (up, judged)
            }
            None => (self.up.shallow_clone(), self.up.shallow_clone()),
        };
        // Traces of products of two small squares, one on each side.
        let trace = |outputs: Tensor, inputs: Tensor| -> Result<f64, Error> {
            Ok(outputs.f_mul(&inputs)?.f_sum(Kind::Double)?.f_double_value(&[])?)
        };
        let turned = |t: &Tensor| t.f_transpose(0, 1);
        let gained = trace(turned(&self.up)?.f_matmul(&up)?, self.down.f_matmul(&turned(&down)?)?)?;
        let moved = trace(turned(&judged)?.f_matmul(&up)?, down.f_matmul(judging)?.f_matmul(&turned(&down)?)?)?;
        Ok((gained, moved))
    }

    /// The matrix, float64.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn product(&self) -> Result<Tensor, Error> {
        Ok(self.up.f_to_kind(Kind::Double)?.f_matmul(&self.down.f_to_kind(Kind::Double)?)?)
    }

    /// Number of columns of the one factor and rows of the other.
    pub fn rank(&self) -> i64 {
        self.down.size()[0]
    }
}

/// Orthonormal columns that span a matrix, where few do; `None` where decomposing it whole is no dearer.
fn span(matrix: &Tensor, length: f64) -> Result<Option<Tensor>, Error> {
    let (outputs, inputs) = matrix.size2()?;
    let mut columns = SKETCH;
    while 2 * columns <= outputs.min(inputs) {
        let (basis, _) = Tensor::f_linalg_qr(&matrix.f_matmul(&mixing([inputs, columns], matrix.device())?)?, "reduced")?;
        let held = basis.f_transpose(0, 1)?.f_matmul(matrix)?.f_norm()?.f_double_value(&[])?;
        if length * length - held * held <= (MISSED * length).powi(2) {
            return Ok(Some(basis));
        }
        columns *= 4;
    }
    Ok(None)
}

/// Mixing matrices that this process has drawn: a model has few widths, and drawing costs more than decomposing what was mixed.
static DRAWN: Mutex<Vec<([i64; 2], Device, SharedTensor)>> = Mutex::new(Vec::new());
/// How many are kept.
const KEPT: usize = 32;

/// The random matrix of this shape, float64; the same every time.
fn mixing(shape: [i64; 2], device: Device) -> Result<Tensor, Error> {
    let drawn = || DRAWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((.., known)) = drawn().iter().find(|(size, place, _)| (*size, *place) == (shape, device)) {
        return Ok(known.get());
    }
    let mut draws = Draws::seeded(Digest::of(b"sketch"));
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| draws.normal()).collect();
    let mixing = Tensor::f_from_slice(&values)?.f_view(shape)?.f_to(device)?.f_to_kind(Kind::Double)?;
    let mut kept = drawn();
    if kept.len() == KEPT {
        kept.remove(0);
    }
    kept.push((shape, device, SharedTensor::new(mixing.shallow_clone())));
    Ok(mixing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same every time: a test that draws anew fails once in a while.
    fn random(rows: i64, columns: i64) -> Tensor {
        let mut draws = Draws::seeded(Digest::of(format!("{rows} by {columns}").as_bytes()));
        Tensor::from_slice(&(0..rows * columns).map(|_| draws.normal()).collect::<Vec<f32>>()).view([rows, columns])
    }

    #[test]
    fn sketched_and_whole_give_the_same_matrix() {
        for (rank, sketched) in [(30, true), (100, false), (300, false)] {
            let matrix = random(300, rank).matmul(&random(rank, 400)) * 1e-4;
            let wide = matrix.to_kind(Kind::Double);
            let basis = span(&wide, wide.norm().double_value(&[])).unwrap();
            assert_eq!(basis.is_some(), sketched, "rank {rank}");
            let factors = Factors::of(&matrix).unwrap();
            assert!(factors.residual < 1e-6, "{} at rank {rank}", factors.residual);
            assert!((rank..rank + 30).contains(&factors.rank()), "{} instead of {rank}", factors.rank());
            let values = |factors: &Factors| {
                let squares = factors.up.square().sum_dim_intlist([0].as_slice(), false, Kind::Double);
                Vec::<f64>::try_from(squares.narrow(0, 0, rank)).unwrap()
            };
            let spanning = Factors::spanning(&matrix).unwrap();
            assert!((spanning.product().unwrap() - &wide).norm().double_value(&[]) < 1e-6 * wide.norm().double_value(&[]), "rank {rank}");
            let (_, expected, _) = wide.svd(true, true);
            for (ours, theirs) in values(&factors).iter().zip(Vec::<f64>::try_from(expected).unwrap()) {
                assert!((ours - theirs).abs() < 1e-5 * theirs, "{ours} instead of {theirs}");
            }
        }
    }

    #[test]
    fn what_is_gained_and_moved_needs_no_product() {
        let square = |n: i64, inner: i64| {
            let half = random(n, inner);
            half.matmul(&half.transpose(0, 1))
        };
        let matrix = random(20, 3).matmul(&random(3, 30));
        let factors = Factors::of(&matrix).unwrap();
        let (left, right, over, under) = (square(20, 20), square(30, 30), square(20, 25), square(30, 35));
        let near = |what: &str, ours: f64, theirs: &Tensor| {
            let theirs = theirs.sum(Kind::Double).double_value(&[]);
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs(), "{what}: {ours} instead of {theirs}");
        };
        let whole = left.matmul(&matrix).matmul(&right);
        let (gained, moved) = factors.gained_and_moved(Some((&left, &over)), (&right, &under)).unwrap();
        near("gained", gained, &(&whole * &matrix));
        near("moved", moved, &(over.matmul(&whole).matmul(&under) * &whole));
        let half = matrix.matmul(&right);
        let (gained, moved) = factors.gained_and_moved(None, (&right, &under)).unwrap();
        near("gained", gained, &(&half * &matrix));
        near("moved", moved, &(half.matmul(&under) * &half));
    }

    #[test]
    fn a_matrix_of_low_rank_has_small_factors() {
        let matrix =
            Tensor::randn([40, 3], (Kind::Float, tch::Device::Cpu)).matmul(&Tensor::randn([3, 90], (Kind::Float, tch::Device::Cpu)));
        let factors = Factors::of(&matrix).unwrap();
        assert!((3..=6).contains(&factors.rank()), "rank {}", factors.rank());
        assert!(factors.residual < 1e-6);
        let off = (factors.product().unwrap().to_kind(Kind::Float) - &matrix).norm() / matrix.norm();
        assert!(f64::try_from(off).unwrap() < 1e-5);
    }

    #[test]
    fn zeros_have_rank_zero() {
        let factors = Factors::of(&Tensor::zeros([4, 6], (Kind::Float, tch::Device::Cpu))).unwrap();
        assert_eq!((factors.rank(), factors.residual), (0, 0.0));
        assert_eq!(factors.product().unwrap().size(), [4, 6]);
    }
}

//! Matrices of low rank as factors: a forget gradient is a sum over the tokens of a few pairs.

use tch::{Kind, Tensor};

use crate::model::Error;

/// Singular values below this share of the largest are dropped.
const DROPPED: f64 = 1e-6;

/// A matrix `up · down`.
#[derive(Debug)]
pub struct Factors {
    /// `[outputs, rank]`, float32.
    pub up: Tensor,
    /// `[rank, inputs]`, float32.
    pub down: Tensor,
    /// ‖g − up · down‖ / ‖g‖.
    pub residual: f64,
}

impl Factors {
    /// Factors a matrix `[outputs, inputs]` by its singular values; rank 0 for a matrix of zeros.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn of(matrix: &Tensor) -> Result<Self, Error> {
        let wide = matrix.f_to_kind(Kind::Double)?;
        let (u, s, v) = wide.f_svd(true, true)?;
        let values = Vec::<f64>::try_from(s.f_to_device(tch::Device::Cpu)?)?;
        let largest = values.first().copied().unwrap_or(0.0);
        let rank = values.iter().take_while(|&&value| value > DROPPED * largest).count() as i64;
        // The square root on both sides keeps both factors in float32's range.
        let root = s.f_narrow(0, 0, rank)?.f_sqrt()?;
        let up = u.f_narrow(1, 0, rank)?.f_mul(&root)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let down = v.f_narrow(1, 0, rank)?.f_mul(&root)?.f_transpose(0, 1)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let length = wide.f_norm()?.f_double_value(&[])?;
        let factors = Self { up, down, residual: 0.0 };
        let off = wide.f_sub(&factors.product()?)?.f_norm()?.f_double_value(&[])?;
        Ok(Self { residual: if length > 0.0 { off / length } else { 0.0 }, ..factors })
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

#[cfg(test)]
mod tests {
    use super::*;

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

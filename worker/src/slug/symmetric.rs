//! Sums of symmetric matrices, of which only the upper triangle is computed and stored.
//!
//! A sum over items is formed by [`SymmetricSum`], one matrix product per block of rows.
//! [`UpperTriangle`] is the form in which sums are stored and combined.

use tch::{Device, Kind, Tensor};

use crate::model::{Error, NotFinite};

/// Number of rows per block. Smaller blocks compute less below the diagonal; larger ones multiply
/// faster. The float64 values of a block of 3,072 columns fit a processor's cache.
const BLOCK: i64 = 256;

/// A sum of symmetric matrices `[side, side]`, float64.
#[derive(Debug)]
pub struct SymmetricSum {
    side: i64,
    /// For each block of rows, the columns from its first row on.
    blocks: Vec<Tensor>,
}

impl SymmetricSum {
    /// Creates an empty sum.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn zeros(side: i64, device: Device) -> Result<Self, Error> {
        let block = |(start, rows): (i64, i64)| {
            Ok(Tensor::f_zeros([rows, side - start], (Kind::Double, device))?)
        };
        Ok(Self { side, blocks: blocks(side).map(block).collect::<Result<_, Error>>()? })
    }

    /// Adds `leftᵀ right`, which must be symmetric; both are `[rows, side]`. The product is in the
    /// precision of the factors, the sum in float64.
    ///
    /// # Errors
    /// When shapes do not match or libtorch returns an error.
    pub fn add_product(&mut self, left: &Tensor, right: &Tensor) -> Result<(), Error> {
        let turned = left.f_transpose(0, 1)?;
        for ((start, rows), sum) in blocks(self.side).zip(&mut self.blocks) {
            let product = turned.f_narrow(0, start, rows)?.f_matmul(&right.f_narrow(
                1,
                start,
                self.side - start,
            )?)?;
            let _ = sum.f_add_(&product.f_to_kind(Kind::Double)?)?;
        }
        Ok(())
    }

    /// Returns the upper triangle, row by row: `[side · (side + 1) / 2]`, float32.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when a value is not finite; otherwise when libtorch returns an error.
    pub fn packed(&self) -> Result<Tensor, Error> {
        let row_by_row = |block: &Tensor| -> Result<Tensor, Error> {
            let block = block.f_to_kind(Kind::Float)?;
            Ok(block.f_masked_select(&upper(&block)?)?)
        };
        let packed = self.blocks.iter().map(row_by_row).collect::<Result<Vec<_>, _>>()?;
        let packed = Tensor::f_cat(&packed, 0)?;
        // A sum of finite float32 values is finite in float64.
        if packed.f_sum(Kind::Double)?.f_double_value(&[])?.is_finite() {
            Ok(packed)
        } else {
            Err(NotFinite::new("second moments").into())
        }
    }
}

/// Divides the rows of a matrix into blocks: the first row of each, and the number of rows.
fn blocks(side: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..side).step_by(BLOCK as usize).map(move |start| (start, BLOCK.min(side - start)))
}

/// Returns the mask of the values on and above the diagonal of a matrix.
fn upper(like: &Tensor) -> Result<Tensor, Error> {
    Ok(Tensor::f_ones(like.size(), (Kind::Bool, like.device()))?.f_triu(0)?)
}

/// The upper triangle of a symmetric matrix `[side, side]`, row by row, float64.
#[derive(Debug)]
pub struct UpperTriangle {
    side: i64,
    values: Tensor,
}

impl UpperTriangle {
    /// Takes packed values `[side · (side + 1) / 2]`; `None` when no matrix has this many.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn from_packed(values: &Tensor) -> Result<Option<Self>, Error> {
        let count = values.numel() as i64;
        let side = (((8.0 * count as f64 + 1.0).sqrt() - 1.0) / 2.0).round() as i64;
        Ok(if values.dim() == 1 && count == packed_length(side) {
            Some(Self { side, values: values.f_to_kind(Kind::Double)? })
        } else {
            None
        })
    }

    /// Returns the number of rows and columns.
    pub fn side(&self) -> i64 {
        self.side
    }

    /// Adds another matrix of the same size, multiplied by a factor.
    ///
    /// # Errors
    /// When sizes differ or libtorch returns an error.
    pub fn add(&mut self, other: &Self, factor: f64) -> Result<(), Error> {
        let other = if factor == 1.0 {
            other.values.shallow_clone()
        } else {
            other.values.f_mul_scalar(factor)?
        };
        drop(self.values.f_add_(&other)?);
        Ok(())
    }

    /// Adds another matrix of the same size and returns the sum; neither changes.
    ///
    /// # Errors
    /// When sizes differ or libtorch returns an error.
    pub fn plus(&self, other: &Self) -> Result<Self, Error> {
        Ok(Self { side: self.side, values: self.values.f_add(&other.values)? })
    }

    /// Multiplies the matrix by a factor.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn times(&self, factor: f64) -> Result<Self, Error> {
        Ok(Self { side: self.side, values: self.values.f_mul_scalar(factor)? })
    }

    /// Returns the mean of the diagonal.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn mean_diagonal(&self) -> Result<f64, Error> {
        // Row r starts after the r rows above it, the first of which has `side` values.
        let diagonal: Vec<i64> =
            (0..self.side).map(|row| row * self.side - row * (row - 1) / 2).collect();
        let diagonal = Tensor::f_from_slice(&diagonal)?.f_to(self.values.device())?;
        let trace = self.values.f_index_select(0, &diagonal)?.f_sum(Kind::Double)?;
        Ok(trace.f_double_value(&[])? / self.side as f64)
    }

    /// Returns the matrix with zeros below its diagonal.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn upper(&self) -> Result<Tensor, Error> {
        let mut matrix = Tensor::f_zeros([self.side, self.side], self.like())?;
        let mask = upper(&matrix)?;
        Ok(matrix.f_masked_scatter_(&mask, &self.values)?)
    }

    /// Returns the whole matrix.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn whole(&self) -> Result<Tensor, Error> {
        let mut matrix = self.upper()?;
        let below = matrix.f_triu(1)?;
        Ok(matrix.f_add_(&below.f_transpose(0, 1)?)?)
    }

    fn like(&self) -> (Kind, Device) {
        (Kind::Double, self.values.device())
    }

    /// Computes (A + ridge · I)⁻¹ of this matrix A, which is positive semidefinite but for rounding
    /// errors; symmetric, float64.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn ridge_inverse(self, ridge: f64) -> Result<Tensor, Error> {
        let matrix = self.upper()?;
        drop(self);
        let _ = matrix.f_diagonal(0, 0, 1)?.f_add_scalar_(ridge)?;
        let (root, failed) = matrix.f_linalg_cholesky_ex(true, false)?;
        if failed.f_int64_value(&[])? == 0 {
            drop(matrix);
            return Ok(root.f_cholesky_inverse(true)?);
        }
        // The ridge is smaller than the rounding errors of the smallest eigenvalues, which are then
        // taken as zero. Many times slower than the Cholesky decomposition.
        drop(root);
        let (values, vectors) = matrix.f_linalg_eigh("U")?;
        let scaled = vectors.f_div(&values.f_clamp_min(ridge)?)?;
        let inverse = scaled.f_matmul(&vectors.f_transpose(0, 1)?)?;
        Ok(inverse.f_add(&inverse.f_transpose(0, 1)?)?.f_div_scalar(2.0)?)
    }
}

fn packed_length(side: i64) -> i64 {
    side * (side + 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: i64, columns: i64) -> Tensor {
        Tensor::randn([rows, columns], (Kind::Double, Device::Cpu))
    }

    fn largest(tensor: &Tensor) -> f64 {
        tensor.abs().max().double_value(&[])
    }

    /// Sums products of random factors, and the same by whole products.
    fn sums(side: i64) -> (SymmetricSum, Tensor) {
        let mut sum = SymmetricSum::zeros(side, Device::Cpu).unwrap();
        let mut expected = Tensor::zeros([side, side], (Kind::Double, Device::Cpu));
        for rows in [3, 40] {
            let (x, half) = (random(rows, side), random(rows, rows));
            let weighted = half.matmul(&half.transpose(0, 1)).matmul(&x);
            sum.add_product(&x, &weighted).unwrap();
            expected += x.transpose(0, 1).matmul(&weighted);
        }
        (sum, expected)
    }

    #[test]
    fn block_products_are_the_whole_product() {
        tch::manual_seed(1);
        // One block, exactly one block, several blocks with a smaller last one.
        for side in [1, 5, BLOCK, 2 * BLOCK + 7] {
            let (sum, expected) = sums(side);
            let packed = sum.packed().unwrap();
            assert_eq!(
                (packed.size1().unwrap(), packed.kind()),
                (packed_length(side), Kind::Float)
            );
            let read = UpperTriangle::from_packed(&packed).unwrap().unwrap();
            assert_eq!(read.side(), side);
            let whole = read.whole().unwrap();
            assert_eq!(whole, whole.transpose(0, 1));
            assert_eq!(read.upper().unwrap(), whole.triu(0));
            assert!(largest(&(&whole - &expected)) < 1e-6 * largest(&expected), "side {side}");
            let trace = expected.trace().double_value(&[]) / side as f64;
            assert!((read.mean_diagonal().unwrap() - trace).abs() < 1e-6 * trace);
        }
    }

    #[test]
    fn triangles_are_combined_value_by_value() {
        tch::manual_seed(2);
        let read =
            |side| UpperTriangle::from_packed(&sums(side).0.packed().unwrap()).unwrap().unwrap();
        let (mut a, b) = (read(6), read(6));
        let expected = a.whole().unwrap() + b.whole().unwrap() * 0.5;
        assert_eq!(a.plus(&b.times(0.5).unwrap()).unwrap().whole().unwrap(), expected);
        a.add(&b, 0.5).unwrap();
        assert_eq!(a.whole().unwrap(), expected);
        assert!(a.add(&read(7), 1.0).is_err());
    }

    #[test]
    fn a_length_that_is_no_triangle_is_refused() {
        let of = |length| {
            let values = Tensor::zeros([length], (Kind::Float, Device::Cpu));
            UpperTriangle::from_packed(&values).unwrap().map(|triangle| triangle.side())
        };
        assert_eq!([1, 3, 6, 4_720_128].map(of), [Some(1), Some(2), Some(3), Some(3072)]);
        assert_eq!([2, 4, 5, 4_720_127].map(of), [None; 4]);
        let square = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert!(UpperTriangle::from_packed(&square).unwrap().is_none());
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let mut sum = SymmetricSum::zeros(2, Device::Cpu).unwrap();
        let large = Tensor::from_slice(&[1e30f32, 1.0]).view([1, 2]);
        sum.add_product(&large, &large).unwrap();
        assert!(matches!(sum.packed(), Err(Error::NotFinite(_))));
    }

    #[test]
    fn an_inverse_is_symmetric_and_needs_no_positive_definite_matrix() {
        tch::manual_seed(3);
        let whole = |matrix: &Tensor| {
            let packed = matrix.masked_select(&upper(matrix).unwrap());
            UpperTriangle::from_packed(&packed).unwrap().unwrap()
        };
        let half = random(20, 12);
        let matrix = half.matmul(&half.transpose(0, 1));
        let inverse = whole(&matrix).ridge_inverse(0.01).unwrap();
        let identity = Tensor::eye(20, (Kind::Double, Device::Cpu));
        let off = (&matrix + &identity * 0.01).matmul(&inverse) - &identity;
        assert!(largest(&off) < 1e-9);
        assert_eq!(inverse, inverse.transpose(0, 1));
        // An eigenvalue is below minus the ridge by a rounding error.
        let rounded = Tensor::from_slice(&[4.0, 1.0, -1e-3]).diag(0);
        let expected = Tensor::from_slice(&[1.0 / 4.0001, 1.0 / 1.0001, 1e4]).diag(0);
        let inverse = whole(&rounded).ridge_inverse(1e-4).unwrap();
        assert!(largest(&(inverse - expected)) < 1e-9 * 1e4);
    }
}

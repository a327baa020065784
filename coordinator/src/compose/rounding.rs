//! A checkpoint rounded to another type, as it is before it is served. Pure.

use clap::ValueEnum;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit;
use safetensors::Dtype;

use super::apply::Change;
use crate::failure::Failure;

/// What weights are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rounding {
    /// Every tensor to float16.
    Float16,
    /// Every tensor to bfloat16.
    Bfloat16,
    /// Every matrix to 8-bit integers, with one scale per row (output channel): w ≈ s·q with s =
    /// max|w|/127 and q from −127 to 127. Vectors stay as they are.
    Int8,
}

impl Rounding {
    /// Returns its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
        }
    }

    /// Rounds one tensor; `columns` is the number of values per row.
    fn apply(self, tensor: &str, values: &mut [f64], columns: usize) -> Result<(), edit::Error> {
        let through = |values: &mut [f64], dtype: Dtype| -> Result<(), edit::Error> {
            let narrow = edit::narrow(tensor, values, dtype)?;
            values.copy_from_slice(&edit::widen(tensor, &narrow, dtype)?);
            Ok(())
        };
        match self {
            Self::Float16 => through(values, Dtype::F16),
            Self::Bfloat16 => through(values, Dtype::BF16),
            Self::Int8 => {
                for row in values.chunks_mut(columns.max(1)) {
                    let scale =
                        row.iter().fold(0.0f64, |most, value| most.max(value.abs())) / 127.0;
                    if scale > 0.0 {
                        row.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
                    }
                }
                Ok(())
            }
        }
    }
}

/// Returns the tensors of a checkpoint that rounding changes, rounded, in the types in which they
/// are stored.
///
/// # Errors
/// [`Failure`] when the checkpoint cannot be read.
pub fn rounded(checkpoint: &Checkpoint, rounding: Rounding) -> Result<Change, Failure> {
    let mut change = Change::new();
    for (name, info) in checkpoint.tensors() {
        let is_float = matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !is_float || (rounding == Rounding::Int8 && info.shape.len() < 2) {
            continue;
        }
        let stored = checkpoint.bytes(name)?;
        let mut values = edit::widen(name, &stored, info.dtype)?;
        let columns = info.shape.iter().skip(1).product();
        rounding.apply(name, &mut values, columns)?;
        let bytes = edit::narrow(name, &values, info.dtype)?;
        if bytes != *stored {
            change.insert(name.clone(), bytes);
        }
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_scales_of_their_own() {
        let mut values = [127.0, -63.4, 0.4, 0.0, 1.27, -0.634, 0.004, 0.0, 0.0, 0.0, 0.0, 0.0];
        Rounding::Int8.apply("t", &mut values, 4).unwrap();
        let expected = [127.0, -63.0, 0.0, 0.0, 1.27, -0.63, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(values.iter().zip(&expected).all(near), "{values:?}");
    }

    #[test]
    fn short_types_keep_what_they_can_hold() {
        let of = |rounding: Rounding, value: f64| {
            let mut values = [value];
            rounding.apply("t", &mut values, 1).unwrap();
            values[0]
        };
        assert_eq!(of(Rounding::Float16, 1.0 + 1.0 / 4096.0), 1.0);
        assert_eq!(of(Rounding::Float16, 1.0 + 1.0 / 1024.0), 1.0 + 1.0 / 1024.0);
        assert_eq!(of(Rounding::Bfloat16, 1.0 + 1.0 / 1024.0), 1.0);
        assert_eq!(of(Rounding::Float16, 1e9), f64::INFINITY);
    }
}

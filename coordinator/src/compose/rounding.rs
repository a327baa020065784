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
    /// Every matrix to 8-bit integers, with one scale for all of it. Vectors stay as they are.
    Int8Tensor,
    /// Every matrix to 4-bit integers, with one scale per group of 32 values of a row: w ≈ s·q with
    /// s = max|w|/7 and q from −7 to 7. Vectors stay as they are.
    Int4,
}

/// Values of a row that share a scale in [`Rounding::Int4`].
const INT4_GROUP: usize = 32;

impl Rounding {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Float16, Self::Bfloat16, Self::Int8, Self::Int8Tensor, Self::Int4];

    /// Returns its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
            Self::Int8Tensor => "int8-tensor",
            Self::Int4 => "int4",
        }
    }

    /// Returns whether vectors stay as they are.
    const fn spares_vectors(self) -> bool {
        matches!(self, Self::Int8 | Self::Int8Tensor | Self::Int4)
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
                values.chunks_mut(columns.max(1)).for_each(|row| to_steps(row, 127.0));
                Ok(())
            }
            Self::Int8Tensor => {
                to_steps(values, 127.0);
                Ok(())
            }
            Self::Int4 => {
                let groups =
                    values.chunks_mut(columns.max(1)).flat_map(|row| row.chunks_mut(INT4_GROUP));
                groups.for_each(|group| to_steps(group, 7.0));
                Ok(())
            }
        }
    }
}

/// Rounds values to multiples of max|w| / `steps`.
fn to_steps(values: &mut [f64], steps: f64) {
    let scale = values.iter().fold(0.0f64, |most, value| most.max(value.abs())) / steps;
    if scale > 0.0 {
        values.iter_mut().for_each(|value| *value = (*value / scale).round() * scale);
    }
}

/// Returns what becomes of a checkpoint under a change when its tensors are rounded: the change
/// from the checkpoint to the rounded model, in the types in which tensors are stored.
///
/// # Errors
/// [`Failure`] when the checkpoint cannot be read.
pub fn rounded(
    checkpoint: &Checkpoint,
    change: &Change,
    rounding: Rounding,
) -> Result<Change, Failure> {
    let mut rounded = change.clone();
    for (name, info) in checkpoint.tensors() {
        let is_float = matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !is_float || (rounding.spares_vectors() && info.shape.len() < 2) {
            continue;
        }
        let base = checkpoint.bytes(name)?;
        let stored = change.get(name).map_or(&*base, Vec::as_slice);
        let mut values = edit::widen(name, stored, info.dtype)?;
        let columns = info.shape.iter().skip(1).product();
        rounding.apply(name, &mut values, columns)?;
        let bytes = edit::narrow(name, &values, info.dtype)?;
        if bytes != stored {
            rounded.insert(name.clone(), bytes);
        }
    }
    Ok(rounded)
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
    fn a_tensor_has_one_scale_for_all_its_rows() {
        let mut values = [127.0, -63.4, 0.4, 0.0, 1.27, -0.634, 0.004, 0.0];
        Rounding::Int8Tensor.apply("t", &mut values, 4).unwrap();
        assert_eq!(values, [127.0, -63.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn groups_of_a_row_have_scales_of_their_own() {
        let mut values = [0.0; 66];
        (values[0], values[1], values[32], values[33], values[65]) = (7.0, 3.4, 0.7, 0.34, 0.3);
        Rounding::Int4.apply("t", &mut values, 66).unwrap();
        let found = [values[0], values[1], values[32], values[33], values[65]];
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(found.iter().zip(&[7.0, 3.0, 0.7, 0.3, 0.3]).all(near), "{found:?}");
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

//! Float64 values as a layer stores them: widened, rounded once, checked.

use half::{bf16, f16};
use safetensors::Dtype;

use super::error::Error;

/// Stored values as float64.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn widen(layer: &str, bytes: &[u8], dtype: Dtype) -> Result<Vec<f64>, Error> {
    Ok(match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|w| f64::from(f32::from_le_bytes([w[0], w[1], w[2], w[3]])))
            .collect(),
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|w| f16::from_le_bytes([w[0], w[1]]).to_f64()).collect()
        }
        Dtype::BF16 => {
            bytes.chunks_exact(2).map(|w| bf16::from_le_bytes([w[0], w[1]]).to_f64()).collect()
        }
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|w| f64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]))
            .collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

/// Float64 values rounded to the stored type, half of them by way of float32 as libtorch rounds
/// them.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn narrow(layer: &str, values: &[f64], dtype: Dtype) -> Result<Vec<u8>, Error> {
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v as f32).to_le_bytes()).collect(),
        Dtype::BF16 => {
            values.iter().flat_map(|&v| bf16::from_f32(v as f32).to_le_bytes()).collect()
        }
        Dtype::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

/// Stored values that are NaN or infinite; 0 for a type that has none.
pub fn non_finite(bytes: &[u8], dtype: Dtype) -> usize {
    // A number is not finite when all bits of its exponent are set: one pass that the compiler
    // vectorises.
    fn count<const N: usize>(bytes: &[u8], is: impl Fn([u8; N]) -> bool) -> usize {
        bytes.as_chunks::<N>().0.iter().map(|&word| usize::from(is(word))).sum()
    }
    match dtype {
        Dtype::F16 => count(bytes, |word| u16::from_le_bytes(word) & 0x7c00 == 0x7c00),
        Dtype::BF16 => count(bytes, |word| u16::from_le_bytes(word) & 0x7f80 == 0x7f80),
        Dtype::F32 => count(bytes, |word| u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F64 => count(bytes, |word| {
            u64::from_le_bytes(word) & 0x7ff0_0000_0000_0000 == 0x7ff0_0000_0000_0000
        }),
        _ => 0,
    }
}

/// The edited values of a layer as they are stored; `base` is the layer as it is stored now.
///
/// # Errors
/// [`Error::Range`] when a value is not finite in the stored type, [`Error::Base`] when the layer
/// held such values before, and [`Error::Type`] when the type is no floating-point type.
pub fn store(layer: &str, base: &[u8], edited: &[f64], dtype: Dtype) -> Result<Vec<u8>, Error> {
    let stored = narrow(layer, edited, dtype)?;
    let count = non_finite(&stored, dtype);
    if count == 0 {
        return Ok(stored);
    }
    let (layer, values) = (layer.to_owned(), edited.len());
    Err(match non_finite(base, dtype) {
        0 => {
            let largest = edited.iter().map(|value| value.abs()).fold(0.0, f64::max);
            Error::Range { layer, dtype, count, values, largest }
        }
        count => Error::Base { layer, count, values },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_types_widen_and_narrow_without_loss() {
        let values = [0.0, 1.5, -2.25, 65504.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::F64] {
            assert_eq!(widen("l", &narrow("l", &values, dtype).unwrap(), dtype).unwrap(), values);
        }
        assert_eq!(
            widen("l", &narrow("l", &[1.5, -2.25], Dtype::BF16).unwrap(), Dtype::BF16).unwrap(),
            [1.5, -2.25]
        );
        assert!(
            narrow("l", &values, Dtype::I32).is_err() && widen("l", &[0; 4], Dtype::I32).is_err()
        );
    }

    #[test]
    fn values_that_are_not_finite_are_counted_in_every_type() {
        let values = [0.0, -1.5, f64::NAN, 3.0, f64::INFINITY, f64::NEG_INFINITY, -0.0];
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
            assert_eq!(non_finite(&narrow("l", &values, dtype).unwrap(), dtype), 3, "{dtype:?}");
            assert_eq!(
                non_finite(&narrow("l", &[1.0, -65504.0, 6e-8], dtype).unwrap(), dtype),
                0,
                "{dtype:?}"
            );
        }
    }

    #[test]
    fn an_edit_out_of_range_is_an_error_and_stores_nothing() {
        let base = narrow("l", &[1.0, 2.0, 3.0], Dtype::F16).unwrap();
        let stored = store("l", &base, &[65504.0, -2.0, 0.0], Dtype::F16).unwrap();
        assert_eq!(widen("l", &stored, Dtype::F16).unwrap(), [65504.0, -2.0, 0.0]);
        let error = store("text.l", &base, &[70000.0, 2.0, -123_456.0], Dtype::F16)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("layer `text.l`: 2 of 3 values are not finite in F16 once it is edited"),
            "{error}"
        );
        assert!(
            error.contains("the largest magnitude is 1.2346e5, the type holds up to 6.5504e4"),
            "{error}"
        );
        assert!(
            error.contains("lower the strength")
                && error.contains("composition.tolerance")
                && error.contains("wider type"),
            "{error}"
        );
        // The same values fit into a wider type.
        assert!(store("l", &[0; 12], &[70000.0, 2.0, -123_456.0], Dtype::F32).is_ok());
        let error =
            store("l", &[0; 12], &[f64::NAN, 2.0, -1.0], Dtype::F32).unwrap_err().to_string();
        assert!(
            error.contains("1 of 3 values")
                && error.contains("the largest of the others is 2.0000e0"),
            "{error}"
        );
        // What was wrong before is named as such.
        let base = narrow("l", &[f64::NAN, 2.0, 3.0], Dtype::F16).unwrap();
        let error =
            store("l", &base, &[f64::NAN, 2.0, 70000.0], Dtype::F16).unwrap_err().to_string();
        assert!(
            error.contains(
                "layer `l`: 1 of 3 values are NaN or infinite in the model that is to be edited"
            ),
            "{error}"
        );
    }
}

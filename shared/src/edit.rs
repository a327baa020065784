//! Edits and how they act on stored weights: `θ_l + Σ α·λ·g`, in float64, rounded once to the stored type.

use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::job::ArtifactRef;

/// What can be wrong with an edit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The direction's file is not what an edit's direction looks like.
    #[error("direction of `{layer}`: {problem}")]
    Direction {
        /// The layer.
        layer: String,
        /// What is wrong.
        problem: String,
    },
    /// The layer is stored in a type that no edit can act on.
    #[error("layer `{layer}` is stored as {dtype:?}; edits act on F32, F16, BF16 and F64")]
    Type {
        /// The layer.
        layer: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// One concept's single-layer change with the strength it is applied at.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The concept's id.
    pub concept: String,
    /// The layer it changes.
    pub layer: String,
    /// Step size λ.
    pub step: f64,
    /// Strength α: 1 as found, 0 not applied.
    pub strength: f64,
    /// g_f of that layer, float32.
    pub direction: ArtifactRef,
}

/// A direction as a safetensors file: one float32 tensor named as the layer.
///
/// # Errors
/// [`Error::Direction`] when bytes and shape do not fit.
pub fn encode_direction(layer: &str, shape: &[usize], float32: &[u8]) -> Result<Vec<u8>, Error> {
    encode_tensors([(layer, shape, float32)]).map_err(|problem| Error::Direction { layer: layer.to_owned(), problem })
}

/// Float32 tensors as a safetensors file: names, shapes, little-endian bytes. Equal tensors give equal bytes.
///
/// # Errors
/// A sentence when bytes and a shape do not fit.
pub fn encode_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [u8])>) -> Result<Vec<u8>, String> {
    let mut views = HashMap::new();
    for (name, shape, bytes) in tensors {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(|error| format!("`{name}`: {error}"))?;
        views.insert(name, view);
    }
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// Reads a direction's values.
///
/// # Errors
/// [`Error::Direction`] when the file holds anything but one finite float32 tensor of this name and number of values.
pub fn decode_direction(layer: &str, values: usize, file: &[u8]) -> Result<Vec<f32>, Error> {
    let wrong = |problem: String| Error::Direction { layer: layer.to_owned(), problem };
    let parsed = SafeTensors::deserialize(file).map_err(|error| wrong(format!("not a safetensors file: {error}")))?;
    let view = parsed.tensor(layer).map_err(|_| wrong("the file holds another layer".to_owned()))?;
    if parsed.len() != 1 || view.dtype() != Dtype::F32 || view.data().len() != 4 * values {
        return Err(wrong(format!("expected one float32 tensor of {values} values, found {:?} {:?}", view.dtype(), view.shape())));
    }
    let decoded: Vec<f32> = view.data().chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    if decoded.iter().all(|value| value.is_finite()) { Ok(decoded) } else { Err(wrong("holds values that are not finite".to_owned())) }
}

/// Stored values as float64.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn widen(layer: &str, bytes: &[u8], dtype: Dtype) -> Result<Vec<f64>, Error> {
    Ok(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|w| f64::from(f32::from_le_bytes([w[0], w[1], w[2], w[3]]))).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|w| f16::from_le_bytes([w[0], w[1]]).to_f64()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|w| bf16::from_le_bytes([w[0], w[1]]).to_f64()).collect(),
        Dtype::F64 => bytes.chunks_exact(8).map(|w| f64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]])).collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

/// Float64 values rounded to the stored type, half of them by way of float32 as libtorch rounds them.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn narrow(layer: &str, values: &[f64], dtype: Dtype) -> Result<Vec<u8>, Error> {
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v as f32).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v as f32).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

/// Adds `factor · direction` to float64 values.
///
/// # Panics
/// When lengths differ; [`decode_direction`] has checked them.
pub fn accumulate(values: &mut [f64], factor: f64, direction: &[f32]) {
    assert_eq!(values.len(), direction.len(), "a direction has as many values as its layer");
    for (value, &change) in values.iter_mut().zip(direction) {
        *value += factor * f64::from(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn directions_survive_their_file() {
        let file = encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap();
        assert_eq!(decode_direction("l.weight", 4, &file).unwrap(), [1.0, -2.0, 3.5, 0.0]);
        assert_eq!(file, encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap());
    }

    #[test]
    fn refuses_files_that_are_no_direction() {
        let file = encode_direction("l", &[2], &bytes(&[1.0, 2.0])).unwrap();
        assert!(decode_direction("other", 2, &file).is_err());
        assert!(decode_direction("l", 3, &file).is_err());
        assert!(decode_direction("l", 2, &file[..file.len() - 1]).is_err());
        assert!(decode_direction("l", 1, &encode_direction("l", &[1], &bytes(&[f32::NAN])).unwrap()).is_err());
        assert!(encode_direction("l", &[3], &bytes(&[1.0])).is_err());
    }

    #[test]
    fn stored_types_widen_and_narrow_without_loss() {
        let values = [0.0, 1.5, -2.25, 65504.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::F64] {
            assert_eq!(widen("l", &narrow("l", &values, dtype).unwrap(), dtype).unwrap(), values);
        }
        assert_eq!(widen("l", &narrow("l", &[1.5, -2.25], Dtype::BF16).unwrap(), Dtype::BF16).unwrap(), [1.5, -2.25]);
        assert!(narrow("l", &values, Dtype::I32).is_err() && widen("l", &[0; 4], Dtype::I32).is_err());
    }
}

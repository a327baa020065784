//! Why an edit cannot be read or applied.

use half::{bf16, f16};
use safetensors::Dtype;

/// Why an edit cannot be read or applied.
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
    /// Edited values leave the range of the type that the layer is stored in.
    #[error(
        "layer `{layer}`: {count} of {values} values are not finite in {dtype:?} once it is edited; {}; lower the strength of its \
         concepts, raise composition.tolerance, or start from a model that is stored in a wider type",
        magnitude(*.largest, *.dtype)
    )]
    Range {
        /// The layer.
        layer: String,
        /// Its type.
        dtype: Dtype,
        /// Values that are not finite.
        count: usize,
        /// Values of the layer.
        values: usize,
        /// Largest magnitude among the edited values before they are rounded.
        largest: f64,
    },
    /// The layer was not finite before it was edited.
    #[error(
        "layer `{layer}`: {count} of {values} values are NaN or infinite in the model that is to be edited; no edit of this layer can be \
         used: export the model again, or leave out the concepts whose edits change this layer"
    )]
    Base {
        /// The layer.
        layer: String,
        /// Values that are not finite.
        count: usize,
        /// Values of the layer.
        values: usize,
    },
}

/// Describes values that leave the range of a type.
fn magnitude(largest: f64, dtype: Dtype) -> String {
    let range = match dtype {
        Dtype::F16 => f16::MAX.to_f64(),
        Dtype::BF16 => bf16::MAX.to_f64(),
        Dtype::F32 => f64::from(f32::MAX),
        _ => f64::MAX,
    };
    if largest.is_finite() && largest <= range {
        format!("the largest of the others is {largest:.4e}")
    } else {
        format!("the largest magnitude is {largest:.4e}, the type holds up to {range:.4e}")
    }
}

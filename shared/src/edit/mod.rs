//! Edits and how they act on stored weights: `θ_l + Σ α·a·λ·D`, in float64, rounded once to the
//! stored type.
//!
//! | file | content |
//! |---|---|
//! | `direction.rs` | the direction of an edit, added to a layer's float64 values |
//! | `file.rs` | directions as safetensors files |
//! | `stored.rs` | float64 values as a layer stores them |
//! | `error.rs` | why an edit cannot be read or applied |

mod direction;
mod error;
mod file;
mod stored;

pub use self::direction::{Direction, accumulate, inner_product};
pub use self::error::Error;
pub use self::file::{
    decode_direction, encode_direction, encode_tensors, factor_names, read_direction,
};
pub use self::stored::{narrow, non_finite, store, widen};
use crate::reference::ArtifactRef;

/// One concept's change of one layer with the strength it is applied at.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The concept's id.
    pub concept: String,
    /// The layer it changes.
    pub layer: String,
    /// Whether the concept has edits on other layers too.
    pub spread: bool,
    /// Step size λ.
    pub step: f64,
    /// Strength α: 1 as found, 0 not applied.
    pub strength: f64,
    /// The coefficient of the edit (`dose` in records); 1 when coefficients are not solved.
    pub coefficient: f64,
    /// Its direction on that layer: [`Direction`] as a file.
    pub direction: ArtifactRef,
}

impl Edit {
    /// Returns the factor of the direction: α · coefficient · λ.
    pub fn factor(&self) -> f64 {
        self.strength * self.coefficient * self.step
    }

    /// Returns the name of its direction in a release: the concept's id, with the layer where a
    /// concept has several.
    pub fn name(&self) -> String {
        edit_name(&self.concept, &self.layer, self.spread)
    }
}

/// Returns the name of an edit's direction in a release; see [`Edit::name`].
pub fn edit_name(concept: &str, layer: &str, spread: bool) -> String {
    if spread { format!("{concept}@{layer}") } else { concept.to_owned() }
}

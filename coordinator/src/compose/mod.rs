//! Composition: merges edits into one change per layer, and computes the effects of that change.
//! Pure: no IO, no libtorch.
//!
//! | file | content |
//! |---|---|
//! | [`bootstrap`] | a measure over concepts: mean with an interval, worst |
//! | [`recipe`] | the parts of a composition, and the edits that follow from them |
//! | [`effect_matrix`] | effects of edits on concepts, and the steps solved from them |
//! | [`margins`] | coefficients of forget images by margin constraints |
//! | [`layers`] | selection of the edited layers |
//! | [`apply`], [`merge`] | many edits into one change per layer |
//! | [`near_duplicates`] | concepts with nearly the same edits |
//! | [`protected`] | protected texts, and how far their outputs move |
//! | [`measure`] | forgetting and utility |
//! | [`rounding`] | a checkpoint rounded to another type |
//! | [`controls`] | half of a change, and a random one of its size |
//! | [`wording`] | other ways to write a name |
//! | [`gate_rules`] | whether a record meets its gates |

pub mod apply;
pub mod bootstrap;
pub mod controls;
pub mod effect_matrix;
pub mod gate_rules;
pub mod layers;
pub mod margins;
pub mod measure;
pub mod merge;
pub mod near_duplicates;
pub mod protected;
pub mod recipe;
pub mod rounding;
pub mod wording;

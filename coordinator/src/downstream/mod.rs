//! Targets: models that contain one of CLIP's towers and get a release's edits too
//! (`docs/targets.md`).
//!
//! Edits are made for a CLIP model. Here the edited layers are located in another model's files by
//! the function of each tensor, not by its name. The other model must hold the same weights: the
//! effect of an edit on a different CLIP model would be unknown.
//!
//! | file | content |
//! |---|---|
//! | `target.rs` | a target: locates its tower, and compares it with the base's |
//! | `encoder.rs` | one tower of a target |
//! | `locate.rs` | finds a tower in a folder of the target |
//! | `sweep.rs` | the other files: edits further copies of the tower, and leaves out what cannot be edited |
//! | `kinds.rs` | kinds of files, by their names |
//! | `folder.rs` | a target's files, local or remote |
//! | `padding.rs` | the token with which a pipeline pads prompts |
//! | `pipeline.rs`, `vision_language.rs` | the towers in a target of each kind, and the layers that it uses |
//! | `same.rs`, `settings.rs` | compare a target's tower with the base's: its weights, and the settings that it computes with |
//! | `layers.rs` | restricts edits to layers that have an effect in every target |
//! | `apply.rs` | applies edits to its tensors |
//! | `stage.rs` | its files in the release |

mod apply;
mod encoder;
mod folder;
mod kinds;
pub mod layers;
mod locate;
mod padding;
mod pipeline;
mod same;
mod settings;
mod stage;
mod sweep;
mod target;
mod vision_language;

pub use self::apply::Edited;
pub use self::encoder::{Encoder, Reach};
pub use self::folder::Folder;
pub use self::settings::has_causal_text;
pub use self::stage::{Staged, stage};
pub use self::target::{Target, TowerSummary, kind_of};

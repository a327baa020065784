//! Texts about a run or a release, made from its record without IO.
//!
//! | file | content |
//! |---|---|
//! | [`run_summary`] | the summary of a run: the table that `lethe run` prints, and its JSON |
//! | [`answers`] | is it gone, can it come back, what did it cost |
//! | [`card`] | the model card of a release |
//! | `front_matter.rs` | what model hubs read of a card |
//! | [`report`] | the report of a release, one HTML page |

pub mod answers;
pub mod card;
mod front_matter;
pub mod report;
pub mod run_summary;

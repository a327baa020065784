//! Texts about a run or a release, made from its record without IO.
//!
//! | file | content |
//! |---|---|
//! | [`run_summary`] | the summary of a run: the table that `lethe run` prints, and its JSON |
//! | [`answers`] | is it gone, can it come back, what did it cost |
//! | [`card`] | the model card of a release |
//! | [`report`] | the report of a release, one HTML page |

pub mod answers;
pub mod card;
pub mod report;
pub mod run_summary;

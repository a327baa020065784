//! Lethe's coordinator: from a manifest to a release.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | reads and checks the manifest and everything it names |
//! | [`coverage`] | which classes retain statistics have seen anything of |
//! | [`jobs`] | the jobs of each phase, from plan and earlier outcomes |
//! | [`dispatch`], [`patience`] | publishes jobs, waits for outcomes, and for what cannot be reached |
//! | [`run`] | the phases of a run |
//! | [`layers`] | which layers edits go to |
//! | [`dosing`] | how far each edit goes when all act together |
//! | [`lease`] | one coordinator a run |
//! | [`recipe`] | what a composition is made of, and the edits that follow |
//! | [`protected`] | texts that must not change, and by how much they move |
//! | [`compose`] | many edits into one change per layer |
//! | [`measure`] | what was forgotten, what was lost |
//! | [`recompose`] | a new release from what an old one stored |
//! | [`curate`] | from names and shards of pairs to everything a manifest names |
//! | [`run_manifest`], [`evaluate`] | where a run's data is, and numbers for what was composed of its edits |
//! | [`gates`] | whether a release keeps the bounds set for it |
//! | [`release`], [`card`], [`report`] | what a run leaves behind |
//! | [`attest`] | provenance, removal receipts, signatures |
//! | [`target`] | other models that get the edits too |
//! | [`summary`], [`progress`], [`board`] | what a person sees |
//! | [`serve`], [`submission`] | the long-lived coordinator, and what it is given |
//! | [`command`] | the command line |
//!
//! Nothing here names libtorch; only the feature `embedded` links the workers, so that one process does it all.

pub mod attest;
pub mod board;
pub mod card;
pub mod clusters;
pub mod command;
pub mod compose;
pub mod coverage;
pub mod curate;
pub mod dispatch;
pub mod dosing;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod evaluate;
pub mod failure;
pub mod gates;
pub mod jobs;
pub mod layers;
pub mod lease;
pub mod measure;
pub mod merge;
pub mod patience;
pub mod plan;
pub mod progress;
pub mod protected;
pub mod recipe;
pub mod recompose;
pub mod release;
pub mod report;
pub mod run;
pub mod run_manifest;
pub mod serve;
pub mod submission;
pub mod summary;
pub mod target;

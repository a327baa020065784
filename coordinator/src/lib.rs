//! Lethe's coordinator: from a manifest to a release.
//!
//! The table lists the top-level modules from top to bottom. A file uses its own top-level module
//! and those below it; `tests/layers.rs` checks the order.
//!
//! | module | content |
//! |---|---|
//! | [`cli`] | the command line: arguments and output |
//! | [`serve`] | the long-lived coordinator: submissions, status page, API |
//! | [`curate`] | from names and shards of pairs to all files that a manifest names |
//! | [`inspect`] | what an input is, and how it is read |
//! | [`run`] | the phases of a run, and new compositions from the stored results of a run |
//! | [`release`] | releases: writing, reading, checks, signatures, numbers |
//! | [`present`] | texts for people about a run or a release |
//! | [`exec`] | execution of jobs: publication, and the wait for outcomes |
//! | [`intake`] | from a manifest, and all files that it names, to a plan |
//! | [`downstream`] | other models that contain an edited tower |
//! | [`attest`] | provenance, removal receipts, signatures |
//! | [`compose`] | from edits to one change per layer |
//! | [`probe`] | commands of the operator that measure a release |
//! | [`lease`] | one active coordinator per run; a superseded one publishes nothing |
//! | [`progress`] | progress of a run |
//! | [`layout`], [`retry`], [`failure`] | file names of a release; retried calls; failures of commands |
//!
//! The coordinator does not use libtorch. Only the feature `embedded` links the workers, so that
//! one process can do all steps.

pub mod attest;
pub mod cli;
pub mod compose;
pub mod curate;
pub mod downstream;
pub mod exec;
pub mod failure;
pub mod inspect;
pub mod intake;
pub mod layout;
pub mod lease;
pub mod present;
pub mod probe;
pub mod progress;
pub mod release;
pub mod retry;
pub mod run;
pub mod serve;

//! Releases: writing, reading, checks, signatures, numbers.
//!
//! | file | content |
//! |---|---|
//! | [`write`](mod@write) | writes a release, `composition.json` last |
//! | [`read`] | an existing release: its record, and files checked against it |
//! | [`verify`] | verifies that a release is unchanged |
//! | [`signing`] | signatures on a release |
//! | [`gates`] | gate files, and the signatures that gates require |
//! | [`policy`] | whether a release removes the concepts that a manifest requires |
//! | [`evaluation`] | measurements of a release after it was written |
//! | [`probes`] | results of probes on a release |
//! | [`publish`] | a release's number |
//! | [`channels`] | names that point to a number |
//! | [`export`] | a release as a repository of a model hub |
//! | [`lookup`] | releases as people name them |
//! | [`leftovers`] | objects of publications that never finished |

pub mod channels;
mod edits;
pub mod evaluation;
pub mod export;
pub mod gates;
pub mod leftovers;
pub mod lookup;
pub mod policy;
pub mod probes;
pub mod publish;
pub mod read;
pub mod signing;
pub mod verify;
pub mod write;

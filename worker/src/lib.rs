//! Everything of Lethe that touches tensors on a device: model towers, data loading, gradient, ranking, step search,
//! evaluation, and the loop that takes jobs.
//!
//! | module | what |
//! |---|---|
//! | [`service`] | takes jobs from a queue, keeps them alive, writes their outcomes |
//! | [`engine`] | executes a job |
//! | [`slug`] | the method: gradients, ranking, step search, choice |
//! | [`corpus`], [`zero_shot`] | embedding the same items under edit after edit, and what they are taken for |
//! | [`micro_batch`] | how much of a batch goes through a tower at a time |
//! | [`model`] | CLIP on libtorch |
//! | [`input`] | shards, images, texts |
//! | [`command`] | the command line |
//! | [`device`], [`memory`], [`handle`], [`multiplying`] | where tensors live, and in what a GPU multiplies them |
//! | [`doctor`] | whether libtorch and device are fit for work |
//!
//! A worker knows one job at a time and nothing of the run it belongs to.

pub mod command;
pub mod corpus;
pub mod device;
pub mod doctor;
pub mod engine;
pub mod handle;
pub mod input;
pub mod memory;
pub mod micro_batch;
pub mod model;
pub mod multiplying;
pub mod service;
pub mod slug;
pub mod zero_shot;

//! The vocabulary and the data formats that all Lethe processes share.
//!
//! Data flows one way. A [`manifest`] names a model, data and concepts. The coordinator plans
//! [`job`]s from it and publishes them on a queue (`lethe-queue`); workers write the [`outcome`] of
//! each job into the object store (`lethe-store`); the coordinator composes the [`edit`]s into a
//! release, and writes its [`record`].
//!
//! The store is the truth: its objects are immutable, artifacts are named by their [`digest`], and
//! an outcome is written once under the id of its job, before the message is acknowledged.
//!
//! | layer | modules |
//! |---|---|
//! | leaves | [`address`], [`digest`], [`draws`], [`exit`], [`hub`], [`json`], [`printable`], [`retry`], [`words`], [`phrases`], [`vocabulary`] |
//! | references and measurements | [`reference`](mod@reference), [`measurement`], [`fault`], [`finding`] |
//! | input files | [`manifest`], [`shard`], [`webdataset`], [`image_file`], [`texts`], [`checkpoint`] |
//! | work | [`task`], [`outcome`], [`job`], [`message`], [`codec`] |
//! | results | [`edit`], [`record`] |
//!
//! *Architecture invariant:* imports between modules form no circle. This crate links no libtorch,
//! NATS client, object store or HTTP server, and decides no policy.
//!
//! # Example
//! ```
//! use std::path::Path;
//!
//! use lethe_shared::manifest::Manifest;
//! use lethe_shared::vocabulary::Stop;
//!
//! let text = r#"{
//!   "version": 1,
//!   "name": "two-concepts",
//!   "model": { "uri": "model" },
//!   "data": { "retain": ["retain-*.tar"], "classes": "classes.txt" },
//!   "concepts": { "table": "concepts.csv" }
//! }"#;
//! let manifest = Manifest::from_json(text, Path::new("/data/manifest.json"))?;
//! assert_eq!(manifest.method.stop, Stop::Fa5);
//! assert_eq!(manifest.address("model.uri", &manifest.model.uri)?.to_string(), "/data/model");
//! # Ok::<(), lethe_shared::manifest::Error>(())
//! ```

pub mod address;
mod binary;
pub mod checkpoint;
pub mod codec;
pub mod digest;
pub mod draws;
pub mod edit;
mod entities;
pub mod exit;
pub mod fault;
pub mod finding;
pub mod hub;
pub mod image_file;
pub mod job;
mod jpeg;
pub mod json;
pub mod manifest;
pub mod measurement;
pub mod message;
pub mod outcome;
pub mod phrases;
pub mod placeholder;
pub mod printable;
pub mod record;
pub mod reference;
pub mod retry;
pub mod shard;
pub mod task;
pub mod texts;
pub mod vocabulary;
pub mod webdataset;
pub mod words;

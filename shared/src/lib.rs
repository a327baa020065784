//! The words every Lethe process speaks.
//!
//! A run goes one way: a [`manifest`] names a model, data and concepts; the coordinator plans [`job`]s from it and
//! publishes them on a [`queue`]; workers write each job's [`outcome`] into the [`store`]; the coordinator composes the
//! [`edit`]s into a release and writes its [`record`].
//!
//! The store is the truth: every object in it is immutable, artifacts are named by their [`digest`], and an outcome is
//! written once under its job's id before the message that asked for it is acknowledged. Nothing here links libtorch
//! or decides policy.

pub mod address;
pub mod checkpoint;
pub mod codec;
pub mod control;
pub mod digest;
pub mod doctor;
pub mod draws;
pub mod edit;
pub mod exit;
pub mod job;
pub mod manifest;
pub mod outcome;
pub mod phrases;
pub mod queue;
pub mod record;
pub mod shard;
pub mod store;
pub mod telemetry;
pub mod texts;
pub mod words;

//! Execution of jobs: publication, and the wait until each job has an outcome.
//!
//! | file | content |
//! |---|---|
//! | [`jobs`] | the jobs of each phase, from plan and earlier outcomes |
//! | [`probe_jobs`] | the jobs of built-in probes |
//! | [`dispatch`] | publishes jobs and waits for their outcomes |
//! | [`pending`] | the unfinished jobs, and where each one is |
//! | [`batch`] | jobs and their outputs by kind of task |
//! | [`workforce`] | whether fit workers are left |
//! | [`embedded`] | workers in this process (feature `embedded`) |

pub mod batch;
pub mod dispatch;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod jobs;
pub mod pending;
pub mod probe_jobs;
pub mod workforce;

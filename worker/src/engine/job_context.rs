//! The context of a job: the job itself, the resources of the process, and how a task is performed
//! with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::fault::Fault;
use lethe_shared::job::Job;
use lethe_shared::reference::{ArtifactRef, FileSpec};
use lethe_shared::task::Task;
use lethe_store as store;
use lethe_store::Store;
use serde::Deserialize;
use tch::Device;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::options::Options;
use super::shared_values::{SharedValue, SharedValues};
use crate::corpus::ActivationBudget;
use crate::input;
use crate::micro_batch::MicroBatch;

/// The resources that the jobs of a process share.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) options: Options,
    pub(super) store: Store,
    /// The runtime on which IO runs.
    pub(super) runtime: Handle,
    pub(super) budget: ActivationBudget,
    pub(super) shared_values: SharedValues,
}

/// A job and everything that it needs from the process.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobContext<'a> {
    pub(super) resources: &'a Resources,
    pub(super) job: &'a Job,
    pub(super) cancel: &'a CancellationToken,
    pub(super) micro_batch: MicroBatch,
}

impl JobContext<'_> {
    /// Returns the device to compute on.
    pub(super) fn device(&self) -> Device {
        self.resources.options.device
    }

    /// Returns a shared value, which `create` creates unless it exists.
    pub(super) fn shared<V: SharedValue>(
        &self,
        key: V::Key,
        create: impl FnOnce() -> Result<V, Error>,
    ) -> Result<Arc<V>, Error> {
        self.resources.shared_values.get(key, create)
    }

    /// Ends the job with [`Error::Cancelled`] when the process is stopping.
    pub(super) fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Reads an artifact from the store.
    pub(super) fn get(&self, artifact: &ArtifactRef) -> Result<Bytes, Error> {
        Ok(self.resources.runtime.block_on(self.resources.store.get_artifact(artifact))?)
    }

    /// Writes an artifact to the store.
    pub(super) fn put(&self, bytes: Vec<u8>) -> Result<ArtifactRef, Error> {
        Ok(self
            .resources
            .runtime
            .block_on(self.resources.store.put_artifact(Bytes::from(bytes)))?)
    }

    /// Returns the path of a local copy of one of the job's files, which is downloaded if
    /// necessary.
    pub(super) fn fetch(&self, file: &FileSpec) -> Result<PathBuf, Error> {
        let unknown = || {
            Error::Fault(Fault::input(format!(
                "the job does not name the address of file {}",
                file.digest
            )))
        };
        let address = self.job.locations.files.get(&file.digest).ok_or_else(unknown)?;
        let expected = Some((file.digest, file.bytes));
        Ok(self.resources.runtime.block_on(store::fetch_file(
            address,
            &self.resources.options.cache,
            expected,
        ))?)
    }

    /// Returns the address of one of the job's files, for messages.
    pub(super) fn name(&self, file: &FileSpec) -> String {
        self.job.locations.name(file)
    }

    /// Classifies a problem with a file: the input is unusable if the file still has the planned
    /// digest. Otherwise it changed or disappeared while it was read.
    pub(super) fn unusable(&self, file: &FileSpec, path: &Path, problem: &input::Error) -> Error {
        match std::fs::File::open(path).and_then(Digest::of_reader) {
            Ok(digest) if digest == file.digest => Error::Input(problem.to_string()),
            Ok(_) => Error::environment(format!(
                "{} changed while it was read: {problem}",
                self.name(file)
            )),
            Err(error) => {
                Error::environment(format!("{} can no longer be read: {error}", self.name(file)))
            }
        }
    }
}

/// Wall-clock seconds by stage of a job.
#[derive(Debug, Default)]
pub(super) struct StageTimes {
    pub(super) seconds: BTreeMap<String, f64>,
}

impl StageTimes {
    /// Runs `act` and adds the time that it takes to a stage.
    pub(super) fn time<T>(
        &mut self,
        stage: &str,
        act: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let result = act();
        *self.seconds.entry(stage.to_owned()).or_default() += began.elapsed().as_secs_f64();
        result
    }
}

/// A kind of task that this worker can perform.
pub(super) trait Perform: Task {
    /// Performs the task.
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<Self::Output, Error>;
}

/// Performs a task and returns its output as JSON.
pub(super) fn perform<T: Perform>(
    task: &T,
    context: JobContext<'_>,
    stages: &mut StageTimes,
) -> Result<serde_json::Value, Error> {
    let output = task.perform(context, stages)?;
    let invalid = |problem: &dyn std::fmt::Display| {
        Error::Fault(Fault::computation(format!(
            "the output of a {} job is invalid: {problem}",
            T::KIND
        )))
    };
    let value = serde_json::to_value(&output).map_err(|error| invalid(&error))?;
    // JSON cannot represent numbers that are not finite and would silently lose them.
    match T::Output::deserialize(&value) {
        Ok(read) if read == output => Ok(value),
        _ => Err(invalid(&"it contains a number that is not finite")),
    }
}

//! Outcomes: the result of a job. Numbers are in the outcome, tensors are artifacts that it names
//! by digest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reference::JobId;
use crate::task::kind::Task;

/// The outcome of one job, written once under the job's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The job.
    pub job: JobId,
    /// Name of its kind.
    pub kind: String,
    /// The output, [`Task::Output`] as JSON; determined by model and spec alone.
    pub output: serde_json::Value,
    /// How it was executed; differs between executions.
    pub execution: Execution,
}

impl Outcome {
    /// Creates the outcome of a job of kind `T`.
    ///
    /// # Errors
    /// When the output has no JSON form.
    pub fn of<T: Task>(
        job: JobId,
        output: &T::Output,
        execution: Execution,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self { job, kind: T::KIND.to_owned(), output: serde_json::to_value(output)?, execution })
    }

    /// Returns the output of a job of kind `T`.
    ///
    /// # Errors
    /// When it is the output of another kind of job.
    pub fn output<T: Task>(&self) -> Result<T::Output, serde_json::Error> {
        if self.kind != T::KIND {
            let kind = self.kind.chars().take(64).collect::<String>();
            return Err(serde::de::Error::custom(format!(
                "it is the outcome of a {kind} job, not of a {} job",
                T::KIND
            )));
        }
        T::Output::deserialize(&self.output)
    }
}

/// How a job was executed. Nothing in a release depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// Name of the worker.
    pub worker: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Wall-clock seconds per stage of the job, where it has stages.
    pub stages: BTreeMap<String, f64>,
    /// Largest resident set of the worker process when the job ended, bytes.
    pub peak_memory_bytes: u64,
    /// Name of the CPU or GPU.
    pub device: String,
    /// The arithmetic class: machines of one class give bit-identical results.
    pub arithmetic: String,
}

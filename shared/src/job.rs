//! Jobs: self-contained units of work. The id of a job is the digest of everything that determines
//! its result.

use crate::reference::{JobId, Locations, ModelSpec};
use crate::task::{AnyTask, Task};

/// The libtorch that workers compute with: `tch` is built for this one, and its build refuses every
/// other.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// A job as it is published on the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The run that it belongs to. Not a part of its id, so that runs share outcomes.
    pub run: String,
    /// The id of its concept, for messages. Not a part of its id: the same data under another name
    /// gives the same result.
    pub concept: Option<String>,
    /// The model.
    pub model: ModelSpec,
    /// The task.
    pub task: AnyTask,
    /// Where its inputs are found.
    pub locations: Locations,
    /// The arithmetic class that its worker must have, see
    /// [`Execution::arithmetic`](crate::outcome::Execution::arithmetic); `None`: any. No part of
    /// its id.
    pub arithmetic: Option<String>,
}

impl Job {
    /// Returns the id: the digest of the kind, its version, the model and the spec.
    pub fn id(&self) -> JobId {
        self.task.id(&self.model)
    }

    /// Returns the name of its kind, as in subjects and tables.
    pub fn kind(&self) -> &'static str {
        self.task.kind()
    }

    /// Returns its display name: the id of the concept when there is one.
    pub fn label(&self) -> String {
        self.task.label(self.concept.as_deref(), &self.locations)
    }
}

/// A job whose kind is known at compile time.
#[derive(Debug, Clone, PartialEq)]
pub struct TypedJob<T> {
    job: Job,
    kind: std::marker::PhantomData<T>,
}

impl<T: Task + Into<AnyTask>> TypedJob<T> {
    /// Creates a job for a task.
    pub fn new(
        run: &str,
        concept: Option<&str>,
        model: ModelSpec,
        task: T,
        locations: Locations,
    ) -> Self {
        let (run, concept) = (run.to_owned(), concept.map(str::to_owned));
        Self {
            job: Job { run, concept, model, task: task.into(), locations, arithmetic: None },
            kind: std::marker::PhantomData,
        }
    }
}

impl<T> TypedJob<T> {
    /// Returns the job without its compile-time kind.
    pub fn job(&self) -> &Job {
        &self.job
    }
}

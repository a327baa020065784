//! Errors of jobs, and the faults that they become.

use lethe_shared::fault::Fault;
use lethe_store as store;

use crate::micro_batch::is_out_of_memory;
use crate::model;

/// The reason why an execution has no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped {
    /// The attempt failed.
    Fault(Fault),
    /// The process is stopping.
    Cancelled,
}

/// An error inside a job. [`Engine::execute`](super::Engine::execute) turns it into a [`Fault`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The job's input is unusable although it has the planned digests.
    #[error("{0}")]
    Input(String),
    /// Any other fault, with its class.
    #[error("{0}")]
    Fault(Fault),
    /// The device's memory is too small for a pass over this many items. The engine repeats the job
    /// with smaller passes.
    #[error("{problem}")]
    Memory {
        /// Number of items in the pass.
        items: i64,
        /// The message of libtorch.
        problem: String,
    },
    /// The process is stopping.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A fault of this machine or its surroundings.
    pub(super) fn environment(problem: impl ToString) -> Self {
        Self::Fault(Fault::environment(problem))
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Self::Fault(error.fault())
    }
}

impl From<model::Error> for Error {
    fn from(error: model::Error) -> Self {
        match error {
            model::Error::Torch(error) => error.into(),
            model::Error::Memory { items, .. } => {
                Self::Memory { items, problem: error.to_string() }
            }
            other => Self::Input(other.to_string()),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        let message = format!("libtorch: {error}");
        // Lack of memory is a fault of this machine. For any other error, a single machine cannot
        // tell whether the job is at fault.
        Self::Fault(if is_out_of_memory(&error) {
            Fault::environment(message)
        } else {
            Fault::computation(message)
        })
    }
}

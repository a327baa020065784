//! What a person's command asks of a long-lived coordinator, and its answer. Carried by the queue's network, in the same
//! [envelope](crate::codec) as jobs; nothing here lasts, what does is in the store.

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Take a run.
    Submit {
        /// The submission, as JSON.
        submission: String,
    },
    /// Say how runs are.
    Status {
        /// One run, or all that the coordinator knows.
        run: Option<String>,
    },
    /// Stop a run; what is finished stays.
    Cancel {
        /// The run.
        run: String,
    },
    /// Go on with a run that has ended without being complete.
    Resume {
        /// The run.
        run: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for, as JSON.
    Done {
        /// A JSON document.
        json: String,
    },
    /// It cannot be done.
    Refused {
        /// The exit code that the command ends with.
        exit_code: u8,
        /// A sentence.
        problem: String,
    },
}

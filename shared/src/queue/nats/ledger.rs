//! How the deliveries of one message ended, so that only failures count against a job.
//!
//! The server counts deliveries, and a worker that is drained takes part in them. Whoever gets a job for the second time
//! looks here: deliveries that neither failed nor were handed back ended in silence.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::DirectGetErrorKind;
use serde::{Deserialize, Serialize};

use super::super::Error;
use super::names;
use super::publish::{Message, publish};
use crate::job::JobId;

/// The ledger of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// The message's sequence: of another publication of the same job, nothing is held against this one.
    pub(super) sequence: u64,
    /// Attempts that failed.
    pub(super) failures: u32,
    /// Deliveries that a worker handed back.
    pub(super) returned: u32,
    /// The last error.
    pub(super) error: String,
}

/// Reads the ledger of a message.
pub(super) async fn read(context: &Context, run: &str, job: JobId, sequence: u64) -> Result<Ledger, Error> {
    let fresh = Ledger { sequence, ..Ledger::default() };
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("stream {}: {error}", names::LEDGER));
    let stream = context.get_stream_no_info(names::LEDGER).await.map_err(|error| failed(&error))?;
    match stream.direct_get_last_for_subject(names::ledger(run, job)).await {
        // What cannot be read is no evidence.
        Ok(message) => {
            Ok(serde_json::from_slice(&message.payload).ok().filter(|ledger: &Ledger| ledger.sequence == sequence).unwrap_or(fresh))
        }
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(fresh),
        Err(error) => Err(failed(&error)),
    }
}

/// Writes the ledger of a message; only whoever has the job in hand does.
pub(super) async fn write(context: &Context, run: &str, job: JobId, ledger: &Ledger) -> Result<(), Error> {
    let body = serde_json::to_vec(ledger).map_err(|error| Error::Unavailable(error.to_string()))?;
    publish(context, Message { subject: names::ledger(run, job), body, ..Message::default() }).await.map(drop)
}

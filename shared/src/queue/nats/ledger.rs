//! How the deliveries of one message ended, so that only failures count against a job.
//!
//! The server counts deliveries, and a worker that is drained takes part in them. Whoever gets a job for the second time
//! looks here: deliveries that neither failed nor were handed back ended in silence.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
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

impl Ledger {
    /// Nothing against a message.
    pub(super) fn fresh(sequence: u64) -> Self {
        Self { sequence, ..Self::default() }
    }

    /// As it was written of this message. What cannot be read, or is of another, is no evidence.
    fn parse(body: &[u8], sequence: u64) -> Self {
        serde_json::from_slice(body).ok().filter(|ledger: &Self| ledger.sequence == sequence).unwrap_or_else(|| Self::fresh(sequence))
    }
}

/// Reads the ledger of a message.
pub(super) async fn read(context: &Context, run: &str, job: JobId, sequence: u64) -> Result<Ledger, Error> {
    let stream = context.get_stream_no_info(names::LEDGER).await.map_err(|error| failed(&error))?;
    match stream.direct_get_last_for_subject(names::ledger(run, job)).await {
        Ok(message) => Ok(Ledger::parse(&message.payload, sequence)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(Ledger::fresh(sequence)),
        Err(error) => Err(failed(&error)),
    }
}

/// The ledger of a message of which only the subject is known, in the way that coordinators are permitted to read.
pub(super) async fn of_message(context: &Context, subject: &str, sequence: u64) -> Result<Ledger, Error> {
    let Some(subject) = names::ledger_of(subject) else { return Ok(Ledger::fresh(sequence)) };
    let stream = context.get_stream_no_info(names::LEDGER).await.map_err(|error| failed(&error))?;
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(Ledger::parse(&message.payload, sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Ledger::fresh(sequence)),
        Err(error) => Err(failed(&error)),
    }
}

/// Writes the ledger of a message; only whoever has the job in hand does.
pub(super) async fn write(context: &Context, run: &str, job: JobId, ledger: &Ledger) -> Result<(), Error> {
    let body = serde_json::to_vec(ledger).map_err(|error| Error::Unavailable(error.to_string()))?;
    publish(context, Message { subject: names::ledger(run, job), body, ..Message::default() }).await.map(drop)
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("stream {}: {error}", names::LEDGER))
}

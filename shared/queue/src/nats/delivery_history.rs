//! The delivery history: how the deliveries of one message ended, so that only failures count against a job.
//!
//! The server counts all deliveries alike. A worker that gets a job for the second time reads its
//! history from the delivery history: a delivery that neither failed nor was released ended with a missed
//! heartbeat.

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use lethe_shared::fault::History;
use serde::{Deserialize, Serialize};

use super::names;
use super::publish::{Message, publish};
use crate::error::Error;

/// The delivery history of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeliveryHistory {
    /// Sequence of the message. A delivery history of an earlier publication of the same job does not apply.
    pub(super) sequence: u64,
    /// How deliveries ended.
    #[serde(default)]
    pub(super) history: History,
}

impl DeliveryHistory {
    /// Returns the delivery history of a message that was delivered once at most.
    pub(super) fn fresh(sequence: u64) -> Self {
        Self { sequence, ..Self::default() }
    }

    /// Parses the delivery history of a message. One that cannot be read, or belongs to another message,
    /// counts as empty.
    fn parse(body: &[u8], sequence: u64) -> Self {
        serde_json::from_slice(body)
            .ok()
            .filter(|deliveries: &Self| deliveries.sequence == sequence)
            .unwrap_or_else(|| Self::fresh(sequence))
    }
}

/// Reads the delivery history of the message under a job's subject.
pub(super) async fn read(
    context: &Context,
    subject: &str,
    sequence: u64,
) -> Result<DeliveryHistory, Error> {
    let Some(subject) = names::ledger_of(subject) else {
        return Ok(DeliveryHistory::fresh(sequence));
    };
    let stream = context.get_stream_no_info(names::LEDGER).await.map_err(|error| failed(&error))?;
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(DeliveryHistory::parse(&message.payload, sequence)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => {
            Ok(DeliveryHistory::fresh(sequence))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Like [`read`], with the request that the permissions of coordinators allow.
pub(super) async fn of_message(
    context: &Context,
    subject: &str,
    sequence: u64,
) -> Result<DeliveryHistory, Error> {
    let Some(subject) = names::ledger_of(subject) else {
        return Ok(DeliveryHistory::fresh(sequence));
    };
    let stream = context.get_stream_no_info(names::LEDGER).await.map_err(|error| failed(&error))?;
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(DeliveryHistory::parse(&message.payload, sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Ok(DeliveryHistory::fresh(sequence))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Writes the delivery history of the message under a job's subject. Only the worker that has the
/// job writes it.
pub(super) async fn write(
    context: &Context,
    subject: &str,
    deliveries: &DeliveryHistory,
) -> Result<(), Error> {
    let Some(subject) = names::ledger_of(subject) else { return Ok(()) };
    let body =
        serde_json::to_vec(deliveries).map_err(|error| Error::Unavailable(error.to_string()))?;
    publish(context, Message { subject, body, ..Message::default() }).await.map(drop)
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("stream {}: {error}", names::LEDGER))
}

//! Consumer repair: finds jobs in the stream that the consumer will never deliver, and makes it
//! deliver them.
//!
//! The only evidence is what the server reports: which messages the stream holds, how far the
//! consumer has come, and how many messages wait or are delivered.
//!
//! | observation | cause | repair |
//! |---|---|---|
//! | a message below the consumer's floor that, by its delivery history, reached the delivery limit | the server gave it up, and its advisory was lost | dead letter |
//! | a message below the floor, while others wait or are delivered | the consumer skipped it | the message is published again |
//! | no message waits, and the stream holds more than are delivered; or the consumer is beyond the end of the stream | the consumer skipped some or all messages, for example after a disk lost its last writes | the consumer is recreated, and starts at the first message |
//! | the stream counts messages, but none can be read | the server cannot find what it has stored, and its consumer would skip to the end | the stream is purged and the consumer recreated; coordinators republish jobs without an outcome |
//!
//! The last three repairs need the same observation in two consecutive checks without a delivery in
//! between. By then, a job that was just published waits or is delivered, and a job that was just
//! acknowledged is gone. A wrong repair would only run jobs twice, which is harmless. (Delivered
//! messages prove little: nats-server 2.9.10 keeps trying to deliver messages that its disk has
//! lost.)

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::{
    ConsumerErrorKind, DeleteMessageErrorKind, RawMessageErrorKind, State, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use lethe_shared::fault::Limits;
use tracing::{debug, warn};

use super::names::{self, TRACEPARENT};
use super::publish::{Message, publish};
use super::{delivery_history, setup};
use crate::error::Error;

/// Messages that one check reads; the next check reads more.
const AT_ONCE: usize = 1024;

/// What a check observed that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Observation {
    /// Messages below the consumer's floor, while it delivers others.
    Skipped(BTreeSet<u64>),
    /// The consumer has nothing to deliver, although the stream holds messages.
    Standstill {
        /// When the consumer was created: another coordinator may have recreated it.
        made: i128,
        /// Deliveries since then.
        deliveries: u64,
        /// The first message that can be read.
        first: Option<u64>,
    },
}

/// The state of the repair in one coordinator, between two checks.
#[derive(Debug)]
pub(super) struct ConsumerRepair {
    context: Context,
    limits: Limits,
    observed: Option<Observation>,
}

impl ConsumerRepair {
    pub(super) fn new(context: Context, limits: Limits) -> Self {
        Self { context, limits, observed: None }
    }

    /// Forgets the last observation: it does not apply to a server that was restarted since.
    pub(super) fn forget(&mut self) {
        self.observed = None;
    }

    /// Checks the consumer, and repairs what was observed twice. Returns the sequences of messages
    /// that reached the delivery limit; the caller makes dead letters of them.
    pub(super) async fn check(&mut self) -> Result<Vec<u64>, Error> {
        let before = self.observed.take();
        let stream =
            self.context.get_stream_no_info(names::JOBS).await.map_err(|error| failed(&error))?;
        // The consumer is read first: changes meanwhile cannot make it appear to be ahead of the
        // stream.
        let consumer =
            stream.consumer_info(names::CONSUMER).await.map_err(|error| failed(&error))?;
        let state = stream.get_info().await.map_err(|error| failed(&error))?.state;
        if state.messages == 0 {
            return Ok(Vec::new());
        }
        // Messages that wait for redelivery count as delivered, and the server does not report
        // which ones they are. While there are any, only messages below the floor are certain.
        let floor =
            if consumer.num_ack_pending == 0 { &consumer.delivered } else { &consumer.ack_floor };
        let (mut given_up, mut skipped) = (Vec::new(), BTreeSet::new());
        for (sequence, subject) in
            waiting(&stream, "lethe.jobs.>", floor.stream_sequence, AT_ONCE).await?
        {
            if self.was_given_up(&consumer, &subject, sequence).await? {
                given_up.push(sequence);
            } else {
                skipped.insert(sequence);
            }
        }
        if !given_up.is_empty() {
            return Ok(given_up);
        }
        self.observed = self.observation(&stream, &consumer, &state, skipped).await?;
        match (before, &self.observed) {
            (Some(Observation::Skipped(before)), Some(Observation::Skipped(now))) => {
                let twice: Vec<u64> = before.intersection(now).copied().collect();
                for &sequence in &twice {
                    self.republish(&stream, sequence).await?;
                }
                if !twice.is_empty() {
                    warn!(jobs = twice.len(), "the consumer skipped jobs; they were republished");
                }
            }
            (Some(before), Some(now @ Observation::Standstill { first, .. })) if before == *now => {
                let unreadable = first.is_none();
                self.observed = None;
                self.recreate_consumer(&stream, unreadable).await?;
                warn!(
                    messages = state.messages,
                    unreadable, "jobs were stuck in the stream; the consumer was recreated"
                );
            }
            _ => {}
        }
        Ok(Vec::new())
    }

    /// Returns whether a message reached the delivery limit. Workers make a dead letter of a job
    /// with too many failures or missed heartbeats, so only a job whose delivery history shows many releases
    /// gets that far.
    async fn was_given_up(
        &self,
        consumer: &Info,
        subject: &str,
        sequence: u64,
    ) -> Result<bool, Error> {
        let Limits { missed_heartbeats, deliveries, .. } = self.limits;
        if consumer.delivered.consumer_sequence < u64::from(deliveries) {
            return Ok(false);
        }
        let known = delivery_history::of_message(&self.context, subject, sequence).await?;
        let (failures, released) = (known.history.failures, known.history.released);
        Ok(u64::from(failures) + u64::from(released) + u64::from(missed_heartbeats)
            >= u64::from(deliveries))
    }

    async fn observation(
        &self,
        stream: &Stream<()>,
        consumer: &Info,
        state: &State,
        skipped: BTreeSet<u64>,
    ) -> Result<Option<Observation>, Error> {
        let first = waiting(stream, ">", u64::MAX, 1).await?.first().map(|&(sequence, _)| sequence);
        let (made, deliveries) =
            (consumer.created.unix_timestamp_nanos(), consumer.delivered.consumer_sequence);
        let standstill = Observation::Standstill { made, deliveries, first };
        let in_hand = consumer.num_ack_pending as u64;
        let gives_nothing = consumer.num_pending == 0 && state.messages > in_hand;
        let beyond_the_end = consumer.delivered.stream_sequence > state.last_sequence;
        Ok(if first.is_none() || beyond_the_end || (gives_nothing && in_hand == 0) {
            Some(standstill)
        } else if !skipped.is_empty() {
            Some(Observation::Skipped(skipped))
        } else {
            gives_nothing.then_some(standstill)
        })
    }

    /// Publishes a message again, under a sequence that the consumer has not reached.
    async fn republish(&self, stream: &Stream<()>, sequence: u64) -> Result<(), Error> {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        // The other headers belong to the first publication.
        let mut headers = HeaderMap::new();
        if let Some(trace) = message.headers.get(TRACEPARENT) {
            headers.insert(TRACEPARENT, trace.clone());
        }
        let (subject, body) = (message.subject.to_string(), message.payload.to_vec());
        debug!(%subject, sequence, "republished");
        // When another coordinator was faster, its message takes the place of this one.
        publish(&self.context, Message { subject, headers, body, id: None, after: Some(sequence) })
            .await?;
        delete(stream, sequence).await
    }

    /// Recreates the consumer, which then starts at the first message of the stream; purges the
    /// stream before, when `unreadable`.
    async fn recreate_consumer(&self, stream: &Stream<()>, unreadable: bool) -> Result<(), Error> {
        let denied = |needed: &str, error: &dyn std::fmt::Display| {
            failed(&format!(
                "jobs are stuck in the stream; to recreate the consumer, a coordinator needs permission for \
                 {needed} (docs/security.md): {error}"
            ))
        };
        if unreadable {
            let needed = format!("$JS.API.STREAM.PURGE.{}", names::JOBS);
            stream.purge().await.map_err(|error| denied(&needed, &error))?;
        }
        match stream.delete_consumer(names::CONSUMER).await {
            Ok(_) => {}
            Err(error) => match error.kind() {
                ConsumerErrorKind::JetStream(inner)
                    if inner.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {}
                kind => {
                    return Err(denied(
                        &format!("$JS.API.CONSUMER.DELETE.{}.{}", names::JOBS, names::CONSUMER),
                        &kind,
                    ));
                }
            },
        }
        setup::ensure_consumer(&self.context, &self.limits).await
    }
}

/// Returns sequences and subjects of the messages under a subject, up to sequence `last` and at
/// most `most` of them.
pub(super) async fn waiting(
    stream: &Stream<()>,
    subject: &str,
    last: u64,
    most: usize,
) -> Result<Vec<(u64, String)>, Error> {
    let (mut found, mut next) = (Vec::new(), 1);
    while next <= last && found.len() < most {
        match stream.raw_message_builder().next_by_subject(subject).sequence(next).send().await {
            Ok(message) if message.sequence <= last => {
                next = message.sequence + 1;
                found.push((message.sequence, message.subject.to_string()));
            }
            Ok(_) => break,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
            Err(error) => return Err(failed(&error)),
        }
    }
    Ok(found)
}

/// Deletes a message from the stream; one that does not exist is no error.
pub(super) async fn delete(stream: &Stream<()>, sequence: u64) -> Result<(), Error> {
    match stream.delete_message(sequence).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), DeleteMessageErrorKind::JetStream(_)) => {
            debug!(sequence, %error, "gone already");
            Ok(())
        }
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("stream {}: {error}", names::JOBS))
}

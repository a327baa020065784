//! Jobs that no delivery will come of: coordinators see them, judge them and put them right.
//!
//! All there is to go by is the server's word on what lies in the stream, how far its consumer has come, and what waits or is in hand.
//!
//! | seen | what happened | what is done |
//! |---|---|---|
//! | under the consumer's floor, and by its ledger delivered as often as a job may be | the server gave it up, and its word about it was lost | a dead letter |
//! | under the floor, while others wait or are in hand | it was passed over | published anew |
//! | nothing waits, and more is there than is in hand; or the consumer is beyond the stream's end | some or all are passed over, as after a disk that lost what was written last | the consumer is made anew, and begins at the first |
//! | there are messages, and none can be read | the server does not find what it has stored, and its consumer goes on to the end | the stream is emptied too, and dispatchers publish again what has no outcome |
//!
//! The last three are done when two looks in a row saw the same, with no delivery in between: a job that was just published waits or
//! is in hand by then, whoever pauses the consumer has jobs that wait, and one that was just answered is gone. Were it all the same a
//! mistake, jobs would be done twice, which is harmless. (What is in hand by a server's word may be long gone: 2.9.10 goes on trying
//! to deliver what its disk lost. So that something is in hand says little.)

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::stream::{ConsumerErrorKind, DeleteMessageErrorKind, RawMessageErrorKind, State, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use tracing::{debug, warn};

use super::super::{Error, Limits};
use super::publish::{Message, publish};
use super::{TRACEPARENT, ledger, names, setup};

/// Messages that one look goes through; more come in the next.
const AT_ONCE: usize = 1024;

/// What a look saw that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sighting {
    /// Messages under the consumer's floor, while it works.
    PassedOver(BTreeSet<u64>),
    /// A consumer that has nothing to give, over a stream that has.
    Standstill {
        /// When the consumer was made: another coordinator may have made it anew.
        made: i128,
        /// Deliveries of its life.
        deliveries: u64,
        /// The first message that can be read.
        first: Option<u64>,
    },
}

/// What one coordinator remembers from look to look.
#[derive(Debug)]
pub(super) struct Stranded {
    context: Context,
    limits: Limits,
    seen: Option<Sighting>,
}

impl Stranded {
    pub(super) fn new(context: Context, limits: Limits) -> Self {
        Self { context, limits, seen: None }
    }

    /// What was seen says nothing of a server that was restarted since.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// Looks, and puts right what was seen twice. Sequences of messages that the server gave up: the caller buries them.
    pub(super) async fn look(&mut self) -> Result<Vec<u64>, Error> {
        let before = self.seen.take();
        let stream = self.context.get_stream_no_info(names::JOBS).await.map_err(|error| failed(&error))?;
        // The consumer first: what comes and goes meanwhile cannot make it look further than the stream.
        let consumer = stream.consumer_info(names::CONSUMER).await.map_err(|error| failed(&error))?;
        let state = stream.get_info().await.map_err(|error| failed(&error))?.state;
        if state.messages == 0 {
            return Ok(Vec::new());
        }
        // What waits for another delivery counts as in hand. Which ones are is not told: while there are any, only what lies
        // under the floor is beyond doubt.
        let floor = if consumer.num_ack_pending == 0 { &consumer.delivered } else { &consumer.ack_floor };
        let (mut given_up, mut passed_over) = (Vec::new(), BTreeSet::new());
        for (sequence, subject) in waiting(&stream, "lethe.jobs.>", floor.stream_sequence, AT_ONCE).await? {
            if self.was_given_up(&consumer, &subject, sequence).await? {
                given_up.push(sequence);
            } else {
                passed_over.insert(sequence);
            }
        }
        if !given_up.is_empty() {
            return Ok(given_up);
        }
        self.seen = self.sighting(&stream, &consumer, &state, passed_over).await?;
        match (before, &self.seen) {
            (Some(Sighting::PassedOver(before)), Some(Sighting::PassedOver(now))) => {
                let twice: Vec<u64> = before.intersection(now).copied().collect();
                for &sequence in &twice {
                    self.publish_anew(&stream, sequence).await?;
                }
                if !twice.is_empty() {
                    warn!(jobs = twice.len(), "the queue's consumer had passed over jobs; they are published anew");
                }
            }
            (Some(before), Some(now @ Sighting::Standstill { first, .. })) if before == *now => {
                let unreadable = first.is_none();
                self.seen = None;
                self.begin_anew(&stream, unreadable).await?;
                warn!(
                    messages = state.messages,
                    unreadable, "jobs lay on the queue and the server gave them to nobody; its consumer is made anew"
                );
            }
            _ => {}
        }
        Ok(Vec::new())
    }

    /// Whether a message was delivered as often as it may be. Workers bury what met with silence or failure too often: only
    /// what they handed back again and again, in writing, gets that far.
    async fn was_given_up(&self, consumer: &Info, subject: &str, sequence: u64) -> Result<bool, Error> {
        let Limits { silences, deliveries, .. } = self.limits;
        if consumer.delivered.consumer_sequence < u64::from(deliveries) {
            return Ok(false);
        }
        let ledger = ledger::of_message(&self.context, subject, sequence).await?;
        Ok(u64::from(ledger.failures) + u64::from(ledger.returned) + u64::from(silences) >= u64::from(deliveries))
    }

    async fn sighting(
        &self,
        stream: &Stream<()>,
        consumer: &Info,
        state: &State,
        passed_over: BTreeSet<u64>,
    ) -> Result<Option<Sighting>, Error> {
        let first = waiting(stream, ">", u64::MAX, 1).await?.first().map(|&(sequence, _)| sequence);
        let (made, deliveries) = (consumer.created.unix_timestamp_nanos(), consumer.delivered.consumer_sequence);
        let standstill = Sighting::Standstill { made, deliveries, first };
        let in_hand = consumer.num_ack_pending as u64;
        let gives_nothing = consumer.num_pending == 0 && state.messages > in_hand;
        let beyond_the_end = consumer.delivered.stream_sequence > state.last_sequence;
        Ok(if first.is_none() || beyond_the_end || (gives_nothing && in_hand == 0) {
            Some(standstill)
        } else if !passed_over.is_empty() {
            Some(Sighting::PassedOver(passed_over))
        } else {
            gives_nothing.then_some(standstill)
        })
    }

    /// Gives a message a sequence that the consumer will come to.
    async fn publish_anew(&self, stream: &Stream<()>, sequence: u64) -> Result<(), Error> {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
            Err(error) => return Err(failed(&error)),
        };
        // Its other headers were for the first publication.
        let mut headers = HeaderMap::new();
        if let Some(trace) = message.headers.get(TRACEPARENT) {
            headers.insert(TRACEPARENT, trace.clone());
        }
        let (subject, body) = (message.subject.to_string(), message.payload.to_vec());
        debug!(%subject, sequence, "published anew");
        // Whether it is stored or another coordinator was faster: there is one that comes later.
        publish(&self.context, Message { subject, headers, body, id: None, after: Some(sequence) }).await?;
        delete(stream, sequence).await
    }

    /// A consumer that begins at the stream's first message, or at the next one of an empty stream.
    async fn begin_anew(&self, stream: &Stream<()>, empty: bool) -> Result<(), Error> {
        let denied = |needed: &str, error: &dyn std::fmt::Display| {
            failed(&format!(
                "jobs lie on the queue and the server gives them to nobody; to put that right a coordinator needs \
                 {needed} (docs/security.md): {error}"
            ))
        };
        if empty {
            let needed = format!("$JS.API.STREAM.PURGE.{}", names::JOBS);
            stream.purge().await.map_err(|error| denied(&needed, &error))?;
        }
        match stream.delete_consumer(names::CONSUMER).await {
            Ok(_) => {}
            Err(error) => match error.kind() {
                ConsumerErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::CONSUMER_NOT_FOUND => {}
                kind => return Err(denied(&format!("$JS.API.CONSUMER.DELETE.{}.{}", names::JOBS, names::CONSUMER), &kind)),
            },
        }
        setup::ensure_consumer(&self.context, &self.limits).await
    }
}

/// Sequences and subjects of the messages under a subject, up to a sequence, and so many at most.
pub(super) async fn waiting(stream: &Stream<()>, subject: &str, last: u64, most: usize) -> Result<Vec<(u64, String)>, Error> {
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

/// Takes a message out of the stream; one that is gone already is as good.
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

//! Publishing to streams with confirmation and retries.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, HeaderMap};
use lethe_shared::codec;
use lethe_shared::message::Notice;
use lethe_shared::retry::{GiveUp, RetryPolicy};

use super::names;
use crate::error::Error;

/// Attempts before the caller has to decide.
const PUBLICATIONS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(200),
    most: Duration::from_millis(1600),
    give_up: GiveUp::Attempts(5),
};

/// The result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// The stream stored it under this sequence.
    Stored(u64),
    /// The last message of the subject is not the expected one.
    Overtaken,
}

/// A message for a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// The server stores publications with the same id once.
    pub(super) id: Option<String>,
    /// Expected sequence of the last message of the subject; 0 when there must be none.
    pub(super) after: Option<u64>,
}

/// Publishes a message and waits for the confirmation; retries when none comes.
pub(super) async fn publish(context: &Context, message: Message) -> Result<Published, Error> {
    let mut attempts = PUBLICATIONS.attempts();
    loop {
        let error = match once(context, &message).await {
            Ok(sequence) => return Ok(Published::Stored(sequence)),
            Err(error) => error,
        };
        let pause = match error.kind() {
            PublishErrorKind::WrongLastSequence => return Ok(Published::Overtaken),
            PublishErrorKind::MaxPayloadExceeded => {
                return Err(Error::Refused(format!(
                    "a message of {} bytes is larger than the server's max_payload",
                    message.body.len()
                )));
            }
            PublishErrorKind::TimedOut
            | PublishErrorKind::StreamNotFound
            | PublishErrorKind::BrokenPipe => attempts.failed(),
            _ => None,
        };
        let Some(pause) = pause else {
            return Err(Error::Unavailable(format!("{}: {error}", message.subject)));
        };
        tokio::time::sleep(pause).await;
    }
}

async fn once(context: &Context, message: &Message) -> Result<u64, PublishError> {
    let mut publish = PublishMessage::build()
        .payload(message.body.clone().into())
        .headers(message.headers.clone());
    if let Some(id) = &message.id {
        publish = publish.message_id(id);
    }
    if let Some(sequence) = message.after {
        publish = publish.expected_last_subject_sequence(sequence);
    }
    Ok(context.send_publish(message.subject.clone(), publish).await?.await?.sequence)
}

/// Sends a notice to the subscribers of its run.
pub(super) async fn announce(client: &Client, notice: &Notice) -> Result<(), Error> {
    let sent =
        client.publish(names::notices(&notice.run), codec::encode_notice(notice)?.into()).await;
    sent.map_err(|error| Error::Unavailable(format!("a notice could not be sent: {error}")))
}

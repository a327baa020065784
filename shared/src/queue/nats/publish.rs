//! Publishing with an answer, again until there is one.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;

use super::super::Error;

/// Attempts before the caller has to decide.
const ATTEMPTS: u32 = 5;

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It is in the stream, under this sequence.
    Stored(u64),
    /// The subject's last message is not the one that was expected.
    Overtaken,
}

/// A message for a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// Publications with one id are one.
    pub(super) id: Option<String>,
    /// The sequence of the subject's last message; 0: there is none.
    pub(super) after: Option<u64>,
}

/// Publishes and waits for the stream's word, trying again when none comes.
pub(super) async fn publish(context: &Context, message: Message) -> Result<Published, Error> {
    let mut attempt = 1;
    loop {
        let error = match once(context, &message).await {
            Ok(sequence) => return Ok(Published::Stored(sequence)),
            Err(error) => error,
        };
        match error.kind() {
            PublishErrorKind::WrongLastSequence => return Ok(Published::Overtaken),
            PublishErrorKind::TimedOut | PublishErrorKind::StreamNotFound | PublishErrorKind::BrokenPipe if attempt < ATTEMPTS => {}
            PublishErrorKind::MaxPayloadExceeded => {
                return Err(Error::Refused(format!("a message of {} bytes is larger than the server's max_payload", message.body.len())));
            }
            _ => return Err(Error::Unavailable(format!("{}: {error}", message.subject))),
        }
        tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
        attempt += 1;
    }
}

async fn once(context: &Context, message: &Message) -> Result<u64, PublishError> {
    let mut publish = PublishMessage::build().payload(message.body.clone().into()).headers(message.headers.clone());
    if let Some(id) = &message.id {
        publish = publish.message_id(id);
    }
    if let Some(sequence) = message.after {
        publish = publish.expected_last_subject_sequence(sequence);
    }
    Ok(context.send_publish(message.subject.clone(), publish).await?.await?.sequence)
}

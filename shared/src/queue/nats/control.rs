//! Questions to a long-lived coordinator, and their answers: plain requests, answered by one coordinator of all that listen.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, RequestErrorKind, Subscriber};
use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::super::Error;
use super::{JetStreamQueue, names};
use crate::codec;
use crate::control::{Reply, Request};

/// One try at an answer.
const TRY: Duration = Duration::from_secs(10);
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(250);

/// Questions as they come.
pub type Requests = std::pin::Pin<Box<dyn Stream<Item = Asked> + Send>>;

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is asked, or why it cannot be read.
    pub request: Result<Request, codec::Error>,
    client: Client,
    message: Message,
}

impl Asked {
    /// Answers.
    ///
    /// # Errors
    /// When the answer is too large or the queue cannot be reached.
    pub async fn reply(&self, reply: &Reply) -> Result<(), Error> {
        // Nobody waits for an answer to a message without an address.
        let Some(to) = self.message.reply.clone() else { return Ok(()) };
        let sent = self.client.publish(to, codec::encode_reply(reply)?.into()).await;
        sent.map_err(|error| Error::Unavailable(format!("an answer could not be sent: {error}")))
    }
}

impl JetStreamQueue {
    /// Questions to coordinators; each goes to one of those who listen.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn requests(&self) -> Result<Requests, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("requests cannot be heard: {error}"));
        let client = self.shared.client.clone();
        let heard: Subscriber =
            client.queue_subscribe(names::CONTROL, names::CONTROL_GROUP.to_owned()).await.map_err(|error| failed(&error))?;
        // Once the server has answered, it has heard what we listen to.
        client.flush().await.map_err(|error| failed(&error))?;
        let asked = move |message: Message| Asked { request: codec::decode_request(&message.payload), client: client.clone(), message };
        Ok(Box::pin(heard.map(asked)))
    }

    /// Whether the server is connected right now; asks nobody.
    ///
    /// # Errors
    /// When it is not.
    pub fn reached(&self) -> Result<(), Error> {
        match self.shared.client.connection_state() {
            State::Connected => Ok(()),
            State::Pending | State::Disconnected => Err(Error::Unavailable("the connection is lost, and made anew".to_owned())),
        }
    }

    /// How many dead letters there are, and a number that changes with them: cheaper than reading them.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn dead_letter_count(&self) -> Result<(u64, u64), Error> {
        let stream = self.shared.context.get_stream(names::DEAD).await;
        let stream = stream.map_err(|error| Error::Unavailable(format!("dead letters: {error}")))?;
        let state = &stream.cached_info().state;
        Ok((state.messages, state.last_sequence))
    }

    /// Asks a coordinator. One that is just starting is waited for.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none answers within `patience`.
    pub async fn ask(&self, request: &Request, patience: Duration) -> Result<Reply, Error> {
        let bytes = codec::encode_request(request)?;
        let deadline = Instant::now() + patience;
        loop {
            let question = async_nats::Request::new().payload(bytes.clone().into()).timeout(Some(TRY));
            let problem = match self.shared.client.send_request(names::CONTROL, question).await {
                Ok(message) => return Ok(codec::decode_reply(&message.payload)?),
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    "no coordinator listens there; start one with `lethe serve`".to_owned()
                }
                Err(error) if error.kind() == RequestErrorKind::TimedOut => "the coordinator does not answer".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(Error::Unavailable(problem));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

//! Requests to a long-lived coordinator over NATS request-reply. One of the coordinators that
//! listen replies.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, RequestErrorKind, Subscriber};
use futures::{Stream, StreamExt};
use lethe_shared::codec;
use lethe_shared::message::{Reply, Request};
use lethe_shared::retry::{GiveUp, RetryPolicy};

use super::names;
use super::queue::JetStreamQueue;
use crate::error::Error;

/// Timeout of one attempt.
const TRY: Duration = Duration::from_secs(10);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// A stream of incoming requests.
pub type Requests = std::pin::Pin<Box<dyn Stream<Item = Asked> + Send>>;

/// An incoming request that waits for its reply.
#[derive(Debug)]
pub struct Asked {
    /// The request, or why it cannot be read.
    pub request: Result<Request, codec::Error>,
    client: Client,
    message: Message,
}

impl Asked {
    /// Sends the reply.
    ///
    /// # Cancel safety
    /// A cancelled call may have sent the reply.
    ///
    /// # Errors
    /// When the reply is too large or the queue cannot be reached.
    pub async fn reply(&self, reply: &Reply) -> Result<(), Error> {
        // A message without a reply address expects no reply.
        let Some(to) = self.message.reply.clone() else { return Ok(()) };
        let sent = self.client.publish(to, codec::encode_reply(reply)?.into()).await;
        sent.map_err(|error| Error::Unavailable(format!("a reply could not be sent: {error}")))
    }
}

impl JetStreamQueue {
    /// Subscribes to the requests to coordinators. Each request goes to one of the subscribers.
    ///
    /// # Cancel safety
    /// A cancelled call leaves no subscription behind.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn requests(&self) -> Result<Requests, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Unavailable(format!("cannot subscribe to requests: {error}"))
        };
        let client = self.shared.client.clone();
        let heard: Subscriber = client
            .queue_subscribe(names::CONTROL, names::CONTROL_GROUP.to_owned())
            .await
            .map_err(|error| failed(&error))?;
        // After the flush, the server has processed the subscription.
        client.flush().await.map_err(|error| failed(&error))?;
        let asked = move |message: Message| Asked {
            request: codec::decode_request(&message.payload),
            client: client.clone(),
            message,
        };
        Ok(Box::pin(heard.map(asked)))
    }

    /// Checks the state of the connection, without a request to the server.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not connected.
    pub fn reached(&self) -> Result<(), Error> {
        match self.shared.client.connection_state() {
            State::Connected => Ok(()),
            State::Pending | State::Disconnected => {
                Err(Error::Unavailable("the connection was lost; reconnecting".to_owned()))
            }
        }
    }

    /// Returns the number of dead letters, and a sequence number that changes with them; cheaper
    /// than reading them.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn dead_letter_count(&self) -> Result<(u64, u64), Error> {
        let stream = self.shared.context.get_stream(names::DEAD).await;
        let stream =
            stream.map_err(|error| Error::Unavailable(format!("dead letters: {error}")))?;
        let state = &stream.cached_info().state;
        Ok((state.messages, state.last_sequence))
    }

    /// Sends a request to a coordinator and returns its reply; waits for a coordinator that is
    /// starting.
    ///
    /// # Cancel safety
    /// A cancelled call may have sent the request, and a coordinator may carry it out.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none answers within `timeout`.
    pub async fn ask(&self, request: &Request, timeout: Duration) -> Result<Reply, Error> {
        let bytes = codec::encode_request(request)?;
        let attempt = || async {
            let question =
                async_nats::Request::new().payload(bytes.clone().into()).timeout(Some(TRY));
            let problem = match self.shared.client.send_request(names::CONTROL, question).await {
                Ok(message) => return Ok(codec::decode_reply(&message.payload)?),
                Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                    "no coordinator is listening; start one with `lethe serve`".to_owned()
                }
                Err(error) if error.kind() == RequestErrorKind::TimedOut => {
                    "the coordinator does not answer".to_owned()
                }
                Err(error) => error.to_string(),
            };
            Err(Error::Unavailable(problem))
        };
        RetryPolicy { first: PAUSE, most: PAUSE, give_up: GiveUp::After(timeout) }
            .run(attempt)
            .await
    }
}

//! Pull requests for one job.
//!
//! They do not use the consumer of async-nats: a cancelled call must release a job that still
//! arrives, a waiting call must notice a lost connection, and a worker should need no other
//! permission than for the request.

use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Context};
use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::connect::Connections;
use super::names;
use crate::error::Error;

/// Extra time for the server to report that there is no job.
const GRACE: Duration = Duration::from_secs(2);
/// How long a cancelled call waits for a job that may still arrive.
const LINGER: Duration = Duration::from_secs(2);

/// An open pull request. When it is dropped, a job that still arrives is released for redelivery.
struct PullRequest {
    answers: Option<Subscriber>,
    context: Context,
}

impl Drop for PullRequest {
    fn drop(&mut self) {
        let Some(mut answers) = self.answers.take() else { return };
        // Outside a runtime the process is ending: the job is delivered again after the ack wait.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let context = self.context.clone();
        runtime.spawn(async move {
            // The subscription is kept for a moment: unsubscribing at once would lose a message
            // that is on its way.
            match tokio::time::timeout(LINGER, answers.next()).await {
                Ok(Some(message)) if message.status.is_none() => {
                    // Not answered, it is delivered again after the ack wait.
                    let _ = Acker::new(context.clone(), message.reply)
                        .ack_with(AckKind::Nak(None))
                        .await;
                }
                // The server reported that there is no job, or has sent none yet.
                _ => {}
            }
        });
    }
}

/// Requests one message and waits for it. Returns `None` when there was none, or when the
/// connection was replaced.
pub(super) async fn one(
    context: &Context,
    connections: &mut Connections,
    wait: Duration,
) -> Result<Option<Message>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Unavailable(format!("no job could be requested: {error}"))
    };
    let client = context.client();
    connections.mark_unchanged();
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let mut open_request = PullRequest { answers: Some(answers), context: context.clone() };
    let request = match wait.as_nanos() {
        0 => r#"{"batch":1,"no_wait":true}"#.to_owned(),
        nanos => format!(r#"{{"batch":1,"expires":{nanos}}}"#),
    };
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", names::JOBS, names::CONSUMER);
    client
        .publish_with_reply(subject, inbox, request.into())
        .await
        .map_err(|error| failed(&error))?;
    let deadline = Instant::now() + wait + GRACE;
    loop {
        let Some(answers) = open_request.answers.as_mut() else { return Ok(None) };
        let answer = tokio::select! {
            answer = answers.next() => answer,
            // The server no longer knows the request.
            _ = connections.changed() => return Ok(None),
            () = sleep_until(deadline) => return if wait.is_zero() { Err(failed(&"no answer")) } else { Ok(None) },
        };
        let Some(message) = answer else { return Err(failed(&"the connection is closed")) };
        match message.status {
            None => {
                open_request.answers = None;
                return Ok(Some(message));
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => return Ok(None),
            Some(StatusCode::NO_RESPONDERS) => {
                return Err(Error::Unavailable(
                    "the job stream does not exist yet; a coordinator creates it".to_owned(),
                ));
            }
            Some(status) => {
                let why = message.description.unwrap_or_else(|| status.to_string());
                return Err(failed(&why));
            }
        }
    }
}

/// A message that is not yet answered. When it is dropped, the message is released for redelivery.
pub(super) struct Undecided(Option<Acker>);

impl Undecided {
    pub(super) fn new(acker: Acker) -> Self {
        Self(Some(acker))
    }

    /// Returns the means to answer, and leaves the answer to the caller.
    pub(super) fn decide(mut self) -> Option<Acker> {
        self.0.take()
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if let (Some(acker), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            // Not answered, it is delivered again after the ack wait.
            runtime.spawn(async move { acker.ack_with(AckKind::Nak(None)).await.ok() });
        }
    }
}

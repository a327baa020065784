//! Asking for one job.
//!
//! By hand rather than through async-nats's consumer: a call that is given up must hand back what arrives meanwhile, one
//! that waits must not wait on a connection that is gone, and a worker needs no permission but to ask.

use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Context};
use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::super::Error;
use super::connect::Connections;
use super::names;

/// What the server is given beyond the time it may wait, to say that there is nothing.
const GRACE: Duration = Duration::from_secs(2);
/// How long a call that was given up looks for a job that was on its way.
const LINGER: Duration = Duration::from_secs(2);

/// A question that is open: dropped, it hands back what is still answered.
struct Question {
    answers: Option<Subscriber>,
    context: Context,
}

impl Drop for Question {
    fn drop(&mut self) {
        let Some(mut answers) = self.answers.take() else { return };
        // Outside a runtime the process is ending: the job is delivered again when patience ends.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let context = self.context.clone();
        runtime.spawn(async move {
            // Still listening: a client that unsubscribes at once forgets what is on its way to it. A question has one answer.
            match tokio::time::timeout(LINGER, answers.next()).await {
                Ok(Some(message)) if message.status.is_none() => {
                    // Not answered, it comes again when patience ends.
                    let _ = Acker::new(context.clone(), message.reply).ack_with(AckKind::Nak(None)).await;
                }
                // The server said that there is nothing, or has nothing so soon: it will find nobody listening.
                _ => {}
            }
        });
    }
}

/// Asks for one message and waits for it. `None`: there was none, or the connection was lost and found again.
pub(super) async fn one(context: &Context, connections: &mut Connections, wait: Duration) -> Result<Option<Message>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unavailable(format!("no job could be asked for: {error}"));
    let client = context.client();
    connections.mark_unchanged();
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
    let mut question = Question { answers: Some(answers), context: context.clone() };
    let request = match wait.as_nanos() {
        0 => r#"{"batch":1,"no_wait":true}"#.to_owned(),
        nanos => format!(r#"{{"batch":1,"expires":{nanos}}}"#),
    };
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", names::JOBS, names::CONSUMER);
    client.publish_with_reply(subject, inbox, request.into()).await.map_err(|error| failed(&error))?;
    let deadline = Instant::now() + wait + GRACE;
    loop {
        let Some(answers) = question.answers.as_mut() else { return Ok(None) };
        let answer = tokio::select! {
            answer = answers.next() => answer,
            // The server that was asked has forgotten.
            _ = connections.changed() => return Ok(None),
            () = sleep_until(deadline) => return if wait.is_zero() { Err(failed(&"no answer")) } else { Ok(None) },
        };
        let Some(message) = answer else { return Err(failed(&"the connection is closed")) };
        match message.status {
            None => {
                question.answers = None;
                return Ok(Some(message));
            }
            Some(StatusCode::IDLE_HEARTBEAT) => {}
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => return Ok(None),
            Some(StatusCode::NO_RESPONDERS) => {
                return Err(Error::Unavailable("there is no queue of jobs here yet; a coordinator makes it".to_owned()));
            }
            Some(status) => {
                let why = message.description.unwrap_or_else(|| status.to_string());
                return Err(failed(&why));
            }
        }
    }
}

/// A message that is not yet decided about: dropped, it is handed back.
pub(super) struct Undecided(Option<Acker>);

impl Undecided {
    pub(super) fn new(acker: Acker) -> Self {
        Self(Some(acker))
    }

    /// The way to answer, for whoever has decided.
    pub(super) fn decide(mut self) -> Option<Acker> {
        self.0.take()
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if let (Some(acker), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            // Not answered, it comes again when patience ends.
            runtime.spawn(async move { acker.ack_with(AckKind::Nak(None)).await.ok() });
        }
    }
}

//! The lease of a run: one coordinator at a time works on a run.
//!
//! A lease is the last message under the run's subject, in a stream whose messages expire after one
//! term. A coordinator takes it by publishing the first message, and renews it by publishing the
//! next one after its own last message. The lease keeps two coordinators from doing the same work.
//! It does not fence late writers: the claim number in the store does.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use lethe_shared::fault::Limits;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::names;
use super::publish::{Message, Published, publish};
use crate::error::Error;

/// Returns how long a lease lasts without renewal.
pub(super) fn term(limits: &Limits) -> Duration {
    limits.ack_wait.clamp(Duration::from_secs(2), Duration::from_secs(15))
}

/// The lease of a run that this process coordinates. It is renewed until it is released or dropped.
#[derive(Debug)]
pub struct Lease {
    context: Context,
    subject: String,
    holder: String,
    lost: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// Takes the lease of a run; `None` when someone has it.
    pub(super) async fn take(
        context: &Context,
        run: &str,
        holder: String,
        term: Duration,
    ) -> Result<Option<Self>, Error> {
        let subject = names::lease(run);
        let Some(sequence) = create(context, &subject, &holder).await? else { return Ok(None) };
        let lost = CancellationToken::new();
        let renewal = tokio::spawn(renew(
            context.clone(),
            subject.clone(),
            holder.clone(),
            sequence,
            term,
            lost.clone(),
        ));
        Ok(Some(Self { context: context.clone(), subject, holder, lost, renewal }))
    }

    /// Returns a token that is cancelled when another coordinator has the lease. While the server
    /// is unreachable, no coordinator can take it; this one renews it when the server is back.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Releases the lease, so that the next coordinator need not wait until it expires.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the lease in place until it expires.
    ///
    /// # Errors
    /// When the queue cannot be reached; the lease then expires.
    pub async fn release(self) -> Result<(), Error> {
        self.renewal.abort();
        match last(&self.context, &self.subject).await? {
            Some(message) if message.payload == self.holder.as_bytes() => {
                let stream = self
                    .context
                    .get_stream_no_info(names::LEASES)
                    .await
                    .map_err(|error| failed(&error))?;
                stream
                    .delete_message(message.sequence)
                    .await
                    .map(drop)
                    .map_err(|error| failed(&error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Returns the holder of the lease of a run.
pub(super) async fn holder(context: &Context, run: &str) -> Result<Option<String>, Error> {
    let message = last(context, &names::lease(run)).await?;
    Ok(message.map(|message| {
        String::from_utf8_lossy(&message.payload).split(' ').next().unwrap_or_default().to_owned()
    }))
}

async fn renew(
    context: Context,
    subject: String,
    holder: String,
    mut sequence: u64,
    term: Duration,
    lost: CancellationToken,
) {
    let mut ticks = tokio::time::interval(term / 3);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        match follow(&context, &subject, &holder, sequence).await {
            Ok(Some(next)) => sequence = next,
            Ok(None) => {
                warn!(%subject, "another coordinator has the lease");
                lost.cancel();
                return;
            }
            Err(error) => warn!(%subject, %error, "a lease could not be renewed"),
        }
    }
}

/// Renews the lease and returns its sequence; `None` when another coordinator has it.
async fn follow(
    context: &Context,
    subject: &str,
    holder: &str,
    sequence: u64,
) -> Result<Option<u64>, Error> {
    let message = Message {
        subject: subject.to_owned(),
        body: holder.into(),
        after: Some(sequence),
        ..Message::default()
    };
    match publish(context, message).await? {
        Published::Stored(next) => Ok(Some(next)),
        // The lease expired meanwhile, the server lost its data, or the reply to an earlier renewal
        // was lost.
        Published::Overtaken => create(context, subject, holder).await,
    }
}

/// Takes a free lease, or recognises this process's own.
async fn create(context: &Context, subject: &str, holder: &str) -> Result<Option<u64>, Error> {
    let message = Message {
        subject: subject.to_owned(),
        body: holder.into(),
        after: Some(0),
        ..Message::default()
    };
    match publish(context, message).await? {
        Published::Stored(sequence) => Ok(Some(sequence)),
        Published::Overtaken => {
            let last = last(context, subject).await?;
            Ok(last
                .filter(|message| message.payload == holder.as_bytes())
                .map(|message| message.sequence))
        }
    }
}

async fn last(context: &Context, subject: &str) -> Result<Option<StreamMessage>, Error> {
    let stream = context.get_stream_no_info(names::LEASES).await.map_err(|error| failed(&error))?;
    match stream.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("lease: {error}"))
}

//! Answers to one delivery.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use async_trait::async_trait;
use lethe_shared::fault::{Fault, History};
use lethe_shared::message::{Event, Notice};
use lethe_shared::reference::JobId;

use super::connection::Connection;
use super::dead_letter::{self, End};
use super::delivery_history::{self, DeliveryHistory};
use super::publish::announce;
use crate::error::Error;
use crate::queue::Receipt;

/// Everything that is needed to answer one delivery.
pub(super) struct JetStreamReceipt {
    pub(super) shared: Arc<Connection>,
    pub(super) acker: Acker,
    pub(super) run: String,
    pub(super) job: JobId,
    pub(super) subject: String,
    pub(super) body: Vec<u8>,
    pub(super) attempt: u32,
    pub(super) sequence: u64,
}

impl std::fmt::Debug for JetStreamReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JetStreamReceipt")
            .field("job", &self.job)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl JetStreamReceipt {
    /// Sends an answer and waits for the confirmation of the server.
    async fn answer(&self, kind: AckKind) -> Result<(), Error> {
        self.acker.double_ack_with(kind).await.map_err(|error| {
            Error::Unavailable(format!("the server did not confirm an acknowledgement: {error}"))
        })
    }

    /// Writes the dead letter before it terminates the message: a terminated message can no longer
    /// be read.
    pub(super) async fn write_dead_letter(&self, fault: &Fault) -> Result<(), Error> {
        let end = End { attempts: self.attempt, fault, worker: &self.shared.name };
        dead_letter::write(
            &self.shared.context,
            &self.subject,
            self.sequence,
            self.body.clone(),
            &end,
        )
        .await?;
        self.answer(AckKind::Term).await?;
        let event = Event::DeadLettered { fault: fault.clone() };
        let notice = Notice {
            run: self.run.clone(),
            job: self.job,
            attempt: self.attempt,
            worker: self.shared.name.clone(),
            event,
        };
        announce(&self.shared.client, &notice).await
    }
}

#[async_trait]
impl Receipt for JetStreamReceipt {
    async fn heartbeat(&self) -> Result<(), Error> {
        self.answer(AckKind::Progress).await
    }

    async fn ack(self: Box<Self>) -> Result<(), Error> {
        self.answer(AckKind::Ack).await
    }

    async fn redeliver(self: Box<Self>, after: Duration, history: &History) -> Result<(), Error> {
        // The answer matters more than the history: without it, the delivery counts as one missed
        // heartbeat.
        let deliveries = DeliveryHistory { sequence: self.sequence, history: history.clone() };
        let written =
            delivery_history::write(&self.shared.context, &self.subject, &deliveries).await;
        self.answer(AckKind::Nak((!after.is_zero()).then_some(after))).await?;
        written
    }

    async fn dead_letter(self: Box<Self>, fault: &Fault) -> Result<(), Error> {
        self.write_dead_letter(fault).await
    }
}

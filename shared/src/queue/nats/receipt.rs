//! Answers to a delivery.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::message::Acker;
use async_trait::async_trait;

use super::super::{Cause, Error, Event, Notice, Receipt};
use super::dead::{self, End};
use super::ledger::{self, Ledger};
use super::{Shared, announce};
use crate::job::JobId;

/// What is needed to answer for one delivery.
pub(super) struct JetStreamReceipt {
    pub(super) shared: Arc<Shared>,
    pub(super) acker: Acker,
    pub(super) run: String,
    pub(super) job: JobId,
    pub(super) subject: String,
    pub(super) body: Vec<u8>,
    pub(super) attempt: u32,
    pub(super) ledger: Ledger,
}

impl std::fmt::Debug for JetStreamReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JetStreamReceipt").field("job", &self.job).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

impl JetStreamReceipt {
    /// Answers and waits for the server's word that it heard.
    async fn answer(&self, kind: AckKind) -> Result<(), Error> {
        self.acker.double_ack_with(kind).await.map_err(|error| Error::Unavailable(format!("an answer was not heard: {error}")))
    }

    /// The letter first: of a message that is gone nothing can be read.
    pub(super) async fn bury_as(&self, error: &str, cause: Cause) -> Result<(), Error> {
        let end = End { attempts: self.attempt, error, cause, worker: &self.shared.name };
        dead::bury(&self.shared.context, &self.subject, self.ledger.sequence, self.body.clone(), &end).await?;
        self.answer(AckKind::Term).await?;
        let event = Event::Buried { error: error.to_owned(), cause };
        let notice = Notice { run: self.run.clone(), job: self.job, attempt: self.attempt, worker: self.shared.name.clone(), event };
        announce(&self.shared.client, &notice).await
    }
}

#[async_trait]
impl Receipt for JetStreamReceipt {
    async fn heartbeat(&self) -> Result<(), Error> {
        self.answer(AckKind::Progress).await
    }

    async fn done(self: Box<Self>) -> Result<(), Error> {
        self.answer(AckKind::Ack).await
    }

    async fn retry(self: Box<Self>, after: Duration, error: &str) -> Result<(), Error> {
        let mut ledger = self.ledger.clone();
        ledger.failures += 1;
        error.clone_into(&mut ledger.error);
        if ledger.failures >= self.shared.limits.failures {
            return self.bury_as(error, Cause::Circumstances).await;
        }
        ledger::write(&self.shared.context, &self.run, self.job, &ledger).await?;
        self.answer(AckKind::Nak(Some(after))).await
    }

    async fn bury(self: Box<Self>, error: &str) -> Result<(), Error> {
        self.bury_as(error, Cause::Input).await
    }

    async fn hand_back(self: Box<Self>, after: Duration) -> Result<(), Error> {
        let mut ledger = self.ledger.clone();
        ledger.returned += 1;
        // Handing back matters more than being counted right: uncounted, it is one silence.
        let counted = ledger::write(&self.shared.context, &self.run, self.job, &ledger).await;
        self.answer(AckKind::Nak((!after.is_zero()).then_some(after))).await?;
        counted
    }
}

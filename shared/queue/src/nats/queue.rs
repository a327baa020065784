//! The queue itself: one job-queue stream with one consumer, over one connection.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{self, AckKind, ErrorCode};
use async_trait::async_trait;
use futures::StreamExt;
use lethe_shared::codec;
use lethe_shared::fault::{Decision, Fault, Limits, decide};
use lethe_shared::job::Job;
use lethe_shared::message::{Backlog, DeadLetter, Event, Notice};
use lethe_shared::reference::JobId;
use lethe_shared::retry::RetryPolicy;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::connect::{self, Options};
use super::connection::Connection;
use super::dead_letter::{self, End, StoredDeadLetter};
use super::delivery_history::{self, DeliveryHistory};
use super::lease::{self, Lease};
use super::maintenance::Maintenance;
use super::names::{self, TRACEPARENT};
use super::publish::{Message, announce, publish};
use super::pull::{self, Undecided};
use super::receipt::JetStreamReceipt;
use super::role::Role;
use super::{consumer_repair, setup};
use crate::error::Error;
use crate::queue::{Delivery, Notices, Queue};
use crate::trace::traceparent;

/// A queue on NATS JetStream; clones share one connection.
#[derive(Debug, Clone)]
pub struct JetStreamQueue {
    pub(super) shared: Arc<Connection>,
}

impl JetStreamQueue {
    /// Connects to servers (`nats://host:4222`, `tls://…`, several separated by commas). A
    /// coordinator makes the streams.
    ///
    /// # Cancel safety
    /// A cancelled call closes the connection. A coordinator may have created some of the streams.
    ///
    /// # Errors
    /// [`Error::Refused`] when credentials or existing streams do not fit, [`Error::Unavailable`]
    /// when no server can be reached for as long as the options say.
    pub async fn connect(
        url: &str,
        role: Role,
        name: &str,
        options: &Options,
    ) -> Result<Self, Error> {
        let limits =
            Limits { ack_wait: Duration::from_secs(options.ack_wait), ..Limits::default() };
        Self::connect_with(url, role, name, options, limits).await
    }

    /// Like [`connect`](Self::connect), with the caller's limits.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        url: &str,
        role: Role,
        name: &str,
        options: &Options,
        limits: Limits,
    ) -> Result<Self, Error> {
        let inbox = role.inbox();
        let (client, connections) = connect::connect(url, inbox, name, options).await?;
        let context = jetstream::new(client.clone());
        let replicas = usize::from(options.replicas.max(1));
        let maintenance = match role {
            Role::Worker | Role::Client => None,
            Role::Coordinator => {
                RetryPolicy::service(options.give_up())
                    .run(|| setup::ensure(&context, &limits, replicas))
                    .await?;
                let (client, context, connections) =
                    (client.clone(), context.clone(), connections.clone());
                Some(tokio::spawn(
                    Maintenance { client, context, limits, replicas, connections }.run(),
                ))
            }
        };
        let ack_wait = Mutex::default();
        let name = name.to_owned();
        Ok(Self {
            shared: Arc::new(Connection {
                client,
                context,
                name,
                limits,
                connections,
                ack_wait,
                replicas,
                role,
                maintenance,
            }),
        })
    }

    /// Flushes pending messages and closes the connection; waits for at most three seconds.
    ///
    /// # Cancel safety
    /// A cancelled call may leave the connection open until the last clone is dropped.
    pub async fn close(&self) {
        let closing = async {
            // The server may be gone.
            let _ = self.shared.client.flush().await;
            let _ = self.shared.client.drain().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), closing).await;
    }

    /// Takes the lease of a run. Returns `None` when another coordinator has it.
    ///
    /// # Cancel safety
    /// A cancelled call may hold the lease until it expires.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn lease(&self, run: &str) -> Result<Option<Lease>, Error> {
        // The inbox distinguishes successive leases of one process.
        let holder = format!("{} {}", self.shared.name, self.shared.client.new_inbox());
        Lease::take(&self.shared.context, run, holder, lease::term(&self.shared.limits)).await
    }

    /// Returns the name of the coordinator that holds the lease of a run.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn lease_holder(&self, run: &str) -> Result<Option<String>, Error> {
        lease::holder(&self.shared.context, run).await
    }

    /// Returns all dead letters or those of one run, oldest first, including messages that cannot
    /// be read.
    ///
    /// # Cancel safety
    /// A cancelled call has no effect.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn stored_dead_letters(
        &self,
        run: Option<&str>,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        dead_letter::read(
            &self.shared.context,
            &run.map_or_else(|| "lethe.dead.>".to_owned(), names::dead_of),
        )
        .await
    }

    /// Publishes the message of a dead letter again and removes the dead letter. Returns `false`
    /// when there is none of that name.
    ///
    /// # Cancel safety
    /// A cancelled call may have published the job and left the dead letter in place. Calling it
    /// again is harmless.
    ///
    /// # Errors
    /// [`Error::Refused`] when the message is not a readable job; otherwise when the queue cannot
    /// be reached.
    pub async fn replay(&self, name: &str) -> Result<bool, Error> {
        let Some(letter) = dead_letter::get(&self.shared.context, name).await? else {
            return Ok(false);
        };
        let Some(job) = letter.job else {
            return Err(Error::Refused(format!(
                "dead letter {name} is not a job that this program can read; it can only be dropped"
            )));
        };
        self.publish_bytes(&job, letter.body).await?;
        self.drop_stored_dead_letter(name).await?;
        Ok(true)
    }

    /// Removes a dead letter. Returns `false` when there is none of that name.
    ///
    /// # Cancel safety
    /// A cancelled call may have removed the dead letter.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn drop_stored_dead_letter(&self, name: &str) -> Result<bool, Error> {
        if name.is_empty() || name.contains(['*', '>', ' ']) {
            return Ok(false);
        }
        Ok(dead_letter::forget(&self.shared.context, &format!("lethe.dead.{name}")).await? > 0)
    }

    async fn consumer(&self) -> Result<PullConsumer, Error> {
        let found =
            self.shared.context.get_consumer_from_stream(names::CONSUMER, names::JOBS).await;
        found.map_err(|error| match error.kind() {
            // Workers may be started before the first coordinator.
            ConsumerErrorKind::JetStream(inner)
                if [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND].contains(&inner.error_code()) =>
            {
                Error::Unavailable("no coordinator has created the queue yet (`lethe run --nats` and `lethe serve` do); waiting".to_owned())
            }
            _ => Error::Unavailable(format!("consumer {}: {error}", names::CONSUMER)),
        })
    }

    async fn ack_wait(&self) -> Result<Duration, Error> {
        let connection = *self.shared.connections.borrow();
        let known = *self.shared.ack_wait.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, ack_wait)) = known
            && at == connection
        {
            return Ok(ack_wait);
        }
        let ack_wait = self.consumer().await?.cached_info().config.ack_wait;
        *self.shared.ack_wait.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((connection, ack_wait));
        Ok(ack_wait)
    }

    async fn publish_bytes(&self, job: &Job, body: Vec<u8>) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, traceparent(&job.run, job.id()).as_str());
        // Retries of one call use one id, so that the server stores the message once.
        let id = format!("{}/{}/{}", job.run, job.id(), self.shared.client.new_inbox());
        let message =
            Message { subject: names::job(job), headers, body, id: Some(id), after: Some(0) };
        match publish(&self.shared.context, message.clone()).await {
            Err(Error::Unavailable(problem)) if self.shared.role == Role::Coordinator => {
                // A server that lost its data lost the streams too.
                warn!(%problem, "a job could not be published; checking the streams");
                setup::ensure(&self.shared.context, &self.shared.limits, self.shared.replicas)
                    .await?;
                publish(&self.shared.context, message).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Makes a delivery of a message. Returns `None` when this process must not work on it.
    async fn receive(
        &self,
        message: async_nats::Message,
        ack_wait: Duration,
    ) -> Result<Option<Delivery>, Error> {
        let context = &self.shared.context;
        let undecided = Undecided::new(Acker::new(context.clone(), message.reply.clone()));
        let header = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(TRACEPARENT))
            .map(|value| value.as_str().to_owned());
        let (subject, body) = (message.subject.to_string(), message.payload.to_vec());
        let message = jetstream::Message { message, context: context.clone() };
        let (attempt, sequence) = match message.info() {
            Ok(info) => (u32::try_from(info.delivered).unwrap_or(u32::MAX), info.stream_sequence),
            Err(error) => {
                return Err(Error::Unavailable(format!(
                    "a message without JetStream's metadata: {error}"
                )));
            }
        };
        let job = match codec::decode_job(&body) {
            Ok(job) => job,
            Err(error) => {
                let Some(acker) = undecided.decide() else { return Ok(None) };
                return self
                    .refuse(&subject, sequence, attempt, body, &acker, &error)
                    .await
                    .map(|()| None);
            }
        };
        let (run, id) = (job.run.clone(), job.id());
        let history = match attempt {
            0 | 1 => DeliveryHistory::fresh(sequence),
            _ => delivery_history::read(context, &subject, sequence).await?,
        }
        .history;
        let missed = attempt
            .saturating_sub(1)
            .saturating_sub(history.failures)
            .saturating_sub(history.released);
        let Some(acker) = undecided.decide() else { return Ok(None) };
        let shared = Arc::clone(&self.shared);
        let limits = Limits { ack_wait, ..self.shared.limits };
        let traceparent =
            header.filter(|text| text.len() == 55).unwrap_or_else(|| traceparent(&run, id));
        let receipt =
            JetStreamReceipt { shared, acker, run, job: id, subject, body, attempt, sequence };
        if missed >= limits.missed_heartbeats {
            // Deliveries before this one.
            let receipt = JetStreamReceipt { attempt: attempt - 1, ..receipt };
            let fault = Fault::transient(format!(
                "no heartbeat for {ack_wait:?} from {missed} workers that had the job"
            ));
            warn!(job = %job.label(), error = %fault, "given up");
            receipt.write_dead_letter(&fault).await?;
            return Ok(None);
        }
        debug!(job = %job.label(), attempt, missed, "taken");
        Ok(Some(Delivery {
            job,
            attempt,
            history,
            limits,
            traceparent,
            receipt: Box::new(receipt),
        }))
    }

    /// Answers for a message that this program cannot read: releases it for another version, or
    /// makes a dead letter of it.
    async fn refuse(
        &self,
        subject: &str,
        sequence: u64,
        attempt: u32,
        body: Vec<u8>,
        acker: &Acker,
        error: &codec::Error,
    ) -> Result<(), Error> {
        let context = &self.shared.context;
        let unheard = |error: async_nats::Error| Error::Unavailable(error.to_string());
        if error.is_foreign() {
            warn!(%subject, sequence, %error, "left for workers of another version");
            // The delivery must not count as a missed heartbeat.
            let mut deliveries = delivery_history::read(context, subject, sequence).await?;
            let fault = Fault::foreign(error);
            let decision =
                decide(&fault, &mut deliveries.history, &self.shared.limits, &self.shared.name);
            delivery_history::write(context, subject, &deliveries).await?;
            if let Some((run, job)) = names::run_and_job(subject) {
                let event = Event::Failed { fault, will_retry: true };
                announce(
                    &self.shared.client,
                    &Notice { run, job, attempt, worker: self.shared.name.clone(), event },
                )
                .await?;
            }
            let after = match decision {
                Decision::Redeliver(after) => Some(after),
                Decision::DeadLetter(_) => None,
            };
            return acker.ack_with(AckKind::Nak(after)).await.map_err(unheard);
        }
        warn!(%subject, sequence, %error, "a message is not a job");
        let fault = Fault::input(error);
        let end = End { attempts: attempt, fault: &fault, worker: &self.shared.name };
        dead_letter::write(context, subject, sequence, body, &end).await?;
        acker.double_ack_with(AckKind::Term).await.map_err(unheard)
    }
}

#[async_trait]
impl Queue for JetStreamQueue {
    async fn publish(&self, job: &Job) -> Result<(), Error> {
        self.publish_bytes(job, codec::encode_job(job)?).await
    }

    async fn pull(&self, wait: Duration) -> Result<Option<Delivery>, Error> {
        let deadline = Instant::now() + wait;
        let mut connections = self.shared.connections.clone();
        loop {
            let ack_wait = self.ack_wait().await?;
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(message) = pull::one(&self.shared.context, &mut connections, left).await?
            else {
                return Ok(None);
            };
            if let Some(delivery) = self.receive(message, ack_wait).await? {
                return Ok(Some(delivery));
            }
        }
    }

    async fn announce(&self, notice: &Notice) -> Result<(), Error> {
        announce(&self.shared.client, notice).await
    }

    async fn notices(&self, run: &str) -> Result<Notices, Error> {
        let failed = |error: &dyn fmt::Display| {
            Error::Unavailable(format!("cannot subscribe to notices: {error}"))
        };
        let messages = self
            .shared
            .client
            .subscribe(names::notices(run))
            .await
            .map_err(|error| failed(&error))?;
        // After the flush, the server has processed the subscription.
        self.shared.client.flush().await.map_err(|error| failed(&error))?;
        let run = run.to_owned();
        let notices = messages.filter_map(move |message| {
            let notice =
                codec::decode_notice(&message.payload).ok().filter(|notice| notice.run == run);
            async move { notice }
        });
        Ok(Box::pin(notices))
    }

    async fn purge(&self, run: &str) -> Result<(), Error> {
        let failed = |error: &dyn fmt::Display| {
            Error::Unavailable(format!("waiting jobs cannot be removed: {error}"))
        };
        let stream = self
            .shared
            .context
            .get_stream_no_info(names::JOBS)
            .await
            .map_err(|error| failed(&error))?;
        // Messages are deleted one by one: after a purge by subject, the consumer may skip waiting
        // messages of other runs (seen with nats-server 2.9.10 and 2.15.1). There are never many.
        for (sequence, _) in
            consumer_repair::waiting(&stream, &names::jobs(run), u64::MAX, usize::MAX).await?
        {
            consumer_repair::delete(&stream, sequence).await?;
        }
        Ok(())
    }

    async fn dead_letters(&self, run: &str) -> Result<Vec<DeadLetter>, Error> {
        Ok(self
            .stored_dead_letters(Some(run))
            .await?
            .into_iter()
            .filter_map(StoredDeadLetter::into_dead_letter)
            .collect())
    }

    async fn drop_dead_letter(&self, run: &str, job: JobId) -> Result<(), Error> {
        dead_letter::forget(&self.shared.context, &names::dead(run, job)).await.map(drop)
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let consumer = self.consumer().await?;
        let info = consumer.cached_info();
        let waiting = usize::try_from(info.num_pending).unwrap_or(usize::MAX);
        Ok(Backlog { waiting, in_hand: info.num_ack_pending, asking: info.num_waiting })
    }
}

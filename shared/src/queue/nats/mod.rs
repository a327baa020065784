//! The queue on NATS JetStream (server 2.9 or newer).
//!
//! | file | what |
//! |---|---|
//! | `connect.rs` | options, credentials, the connection |
//! | `names.rs` | subjects and streams |
//! | `setup.rs` | streams and the consumer, made and held to what they should be |
//! | `publish.rs` | publishing with an answer |
//! | `pull.rs`, `receipt.rs` | one job at a time, and the answer to it |
//! | `ledger.rs` | what counts against a job |
//! | `dead.rs` | dead letters |
//! | `keeper.rs` | what a coordinator looks after meanwhile |
//! | `stranded.rs` | jobs that no delivery will come of |
//! | `lease.rs` | one coordinator a run |
//! | `examine.rs` | whether server and account are fit for a role |
//! | `control.rs` | questions to a long-lived coordinator |
//!
//! Jobs lie in one work-queue stream with one pull consumer. That a job is there once is the server's doing: a message is
//! stored only where its subject, which names run and job, has none. Fairness between runs is the dispatcher's: it keeps
//! no more jobs of a run here than workers can soon use.
//!
//! A worker needs few permissions and no administration; `docs/security.md` lists them.

mod connect;
mod control;
mod dead;
mod examine;
mod keeper;
mod lease;
mod ledger;
mod names;
mod publish;
mod pull;
mod receipt;
mod setup;
mod stranded;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::ConsumerErrorKind;
use async_nats::jetstream::{self, AckKind, Context, ErrorCode};
use async_nats::{Client, HeaderMap};
use async_trait::async_trait;
pub use connect::{Options, without_secrets};
pub use control::{Asked, Requests};
pub use dead::Letter;
pub use examine::examine;
use futures::StreamExt;
pub use lease::Lease;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::connect::Connections;
use self::keeper::Keeper;
use self::ledger::Ledger;
use self::publish::{Message, publish};
use self::pull::Undecided;
use self::receipt::JetStreamReceipt;
use super::{Backlog, Cause, DeadLetter, Delivery, Error, Limits, Notice, Notices, Queue, traceparent};
use crate::codec;
use crate::job::{Job, JobId};

/// A message that a newer or older program wrote waits this long for one that reads it.
const FOREIGN: Duration = Duration::from_secs(15);
/// The header that carries a trace context.
const TRACEPARENT: &str = "traceparent";

/// What a process is to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes streams, publishes jobs, looks after dead letters.
    Coordinator,
    /// Takes jobs.
    Worker,
    /// Asks coordinators, and looks after dead letters.
    Person,
}

impl Role {
    /// Where answers to its requests come, below `_INBOX`.
    fn inbox(self) -> &'static str {
        match self {
            Self::Coordinator => "lethe-coordinator",
            Self::Worker => "lethe-worker",
            Self::Person => "lethe-person",
        }
    }
}

/// A queue on NATS JetStream; clones share one connection.
#[derive(Debug, Clone)]
pub struct JetStreamQueue {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    context: Context,
    name: String,
    limits: Limits,
    connections: Connections,
    /// What the consumer says about patience, and on which connection it said so.
    patience: Mutex<Option<(u64, Duration)>>,
    replicas: usize,
    role: Role,
    keeper: Option<JoinHandle<()>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamQueue").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

impl JetStreamQueue {
    /// Connects to servers (`nats://host:4222`, `tls://…`, several separated by commas). A coordinator makes the streams.
    ///
    /// # Errors
    /// [`Error::Refused`] when credentials or existing streams do not fit, [`Error::Unavailable`] when no server can be
    /// reached for as long as the options say.
    pub async fn connect(url: &str, role: Role, name: &str, options: &Options) -> Result<Self, Error> {
        let limits = Limits { patience: Duration::from_secs(options.patience), ..Limits::default() };
        Self::connect_with(url, role, name, options, limits).await
    }

    /// Like [`connect`](Self::connect), with limits of the caller's.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_with(url: &str, role: Role, name: &str, options: &Options, limits: Limits) -> Result<Self, Error> {
        let inbox = role.inbox();
        let (client, connections) = connect::connect(url, inbox, name, options).await?;
        let context = jetstream::new(client.clone());
        let replicas = usize::from(options.replicas.max(1));
        let keeper = match role {
            Role::Worker | Role::Person => None,
            Role::Coordinator => {
                let deadline = Instant::now() + options.give_up();
                while let Err(error) = setup::ensure(&context, &limits, replicas).await {
                    if !error.is_transient() || Instant::now() >= deadline {
                        return Err(error);
                    }
                    warn!(%error, "streams cannot be made yet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                let (client, context, connections) = (client.clone(), context.clone(), connections.clone());
                Some(tokio::spawn(Keeper { client, context, limits, replicas, connections }.run()))
            }
        };
        let patience = Mutex::default();
        let name = name.to_owned();
        Ok(Self { shared: Arc::new(Shared { client, context, name, limits, connections, patience, replicas, role, keeper }) })
    }

    /// Waits until everything that was said has reached the server, and closes the connection.
    pub async fn close(&self) {
        let closing = async {
            // A server that is gone hears nothing more.
            let _ = self.shared.client.flush().await;
            let _ = self.shared.client.drain().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), closing).await;
    }

    /// Takes the lease of a run; `None` when another coordinator has it.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn lease(&self, run: &str) -> Result<Option<Lease>, Error> {
        // One process may be several holders in the course of time.
        let holder = format!("{} {}", self.shared.name, self.shared.client.new_inbox());
        Lease::take(&self.shared.context, run, holder, lease::term(&self.shared.limits)).await
    }

    /// Who coordinates a run.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn lease_holder(&self, run: &str) -> Result<Option<String>, Error> {
        lease::holder(&self.shared.context, run).await
    }

    /// All dead letters, or those of one run, oldest first; unreadable messages among them.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn letters(&self, run: Option<&str>) -> Result<Vec<Letter>, Error> {
        dead::read(&self.shared.context, &run.map_or_else(|| "lethe.dead.>".to_owned(), names::dead_of)).await
    }

    /// Publishes a dead letter's message anew and forgets the letter. `false`: there is no letter of that name.
    ///
    /// # Errors
    /// [`Error::Refused`] for a message that no worker can read; when the queue cannot be reached.
    pub async fn replay(&self, name: &str) -> Result<bool, Error> {
        let Some(letter) = dead::get(&self.shared.context, name).await? else { return Ok(false) };
        let Some(job) = letter.job else {
            return Err(Error::Refused(format!("dead letter {name} is no job that this program reads; it can only be dropped")));
        };
        self.publish_bytes(&job, letter.body).await?;
        self.drop_letter(name).await?;
        Ok(true)
    }

    /// Forgets a dead letter. `false`: there is none of that name.
    ///
    /// # Errors
    /// When the queue cannot be reached.
    pub async fn drop_letter(&self, name: &str) -> Result<bool, Error> {
        if name.is_empty() || name.contains(['*', '>', ' ']) {
            return Ok(false);
        }
        Ok(dead::forget(&self.shared.context, &format!("lethe.dead.{name}")).await? > 0)
    }

    async fn consumer(&self) -> Result<PullConsumer, Error> {
        let found = self.shared.context.get_consumer_from_stream(names::CONSUMER, names::JOBS).await;
        found.map_err(|error| match error.kind() {
            // Whoever starts workers first should not have to look for a fault.
            ConsumerErrorKind::JetStream(inner)
                if [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND].contains(&inner.error_code()) =>
            {
                Error::Unavailable("no coordinator has made the queue yet (`lethe run --nats` and `lethe serve` do); waiting".to_owned())
            }
            _ => Error::Unavailable(format!("consumer {}: {error}", names::CONSUMER)),
        })
    }

    async fn patience(&self) -> Result<Duration, Error> {
        let connection = *self.shared.connections.borrow();
        let known = *self.shared.patience.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, patience)) = known
            && at == connection
        {
            return Ok(patience);
        }
        let patience = self.consumer().await?.cached_info().config.ack_wait;
        *self.shared.patience.lock().unwrap_or_else(PoisonError::into_inner) = Some((connection, patience));
        Ok(patience)
    }

    async fn publish_bytes(&self, job: &Job, body: Vec<u8>) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, traceparent(&job.run, job.id()).as_str());
        // One call is one publication, however often it has to be said.
        let id = format!("{}/{}/{}", job.run, job.id(), self.shared.client.new_inbox());
        let message = Message { subject: names::job(job), headers, body, id: Some(id), after: Some(0) };
        match publish(&self.shared.context, message.clone()).await {
            Err(Error::Unavailable(problem)) if self.shared.role == Role::Coordinator => {
                // A server that lost its disk lost the streams too.
                warn!(%problem, "a job could not be published; looking after the streams");
                setup::ensure(&self.shared.context, &self.shared.limits, self.shared.replicas).await?;
                publish(&self.shared.context, message).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Makes a delivery of a message; `None` when it is none for this process.
    async fn receive(&self, message: async_nats::Message, patience: Duration) -> Result<Option<Delivery>, Error> {
        let context = &self.shared.context;
        let undecided = Undecided::new(Acker::new(context.clone(), message.reply.clone()));
        let header = message.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT)).map(|value| value.as_str().to_owned());
        let (subject, body) = (message.subject.to_string(), message.payload.to_vec());
        let message = jetstream::Message { message, context: context.clone() };
        let (attempt, sequence) = match message.info() {
            Ok(info) => (u32::try_from(info.delivered).unwrap_or(u32::MAX), info.stream_sequence),
            Err(error) => return Err(Error::Unavailable(format!("a message without JetStream's marks: {error}"))),
        };
        let job = match codec::decode_job(&body) {
            Ok(job) => job,
            Err(error) => {
                let foreign = matches!(error, codec::Error::UnknownVersion(_) | codec::Error::UnknownFlags(_));
                warn!(%subject, sequence, %error, foreign, "a message that is no job to this program");
                if foreign {
                    // Another release's worker may know it.
                    if let Some(acker) = undecided.decide() {
                        acker.ack_with(AckKind::Nak(Some(FOREIGN))).await.map_err(|error| Error::Unavailable(error.to_string()))?;
                    }
                    return Ok(None);
                }
                let end = dead::End { attempts: attempt, error: &error.to_string(), cause: Cause::Input, worker: &self.shared.name };
                dead::bury(context, &subject, sequence, body, &end).await?;
                if let Some(acker) = undecided.decide() {
                    acker.double_ack_with(AckKind::Term).await.map_err(|error| Error::Unavailable(error.to_string()))?;
                }
                return Ok(None);
            }
        };
        let (run, id) = (job.run.clone(), job.id());
        let ledger = match attempt {
            0 | 1 => Ledger::fresh(sequence),
            _ => ledger::read(context, &run, id, sequence).await?,
        };
        let silences = attempt.saturating_sub(1).saturating_sub(ledger.failures).saturating_sub(ledger.returned);
        let is_last = ledger.failures + 1 >= self.shared.limits.failures;
        let Some(acker) = undecided.decide() else { return Ok(None) };
        let shared = Arc::clone(&self.shared);
        let traceparent = header.filter(|text| text.len() == 55).unwrap_or_else(|| traceparent(&run, id));
        let receipt = JetStreamReceipt { shared, acker, run, job: id, subject, body, attempt, ledger };
        if silences >= self.shared.limits.silences {
            // Deliveries before this one.
            let receipt = JetStreamReceipt { attempt: attempt - 1, ..receipt };
            let error = format!("no sign of life for {patience:?} from {silences} workers that had it");
            warn!(job = %job.label(), %error, "given up");
            receipt.bury_as(&error, Cause::Circumstances).await?;
            return Ok(None);
        }
        debug!(job = %job.label(), attempt, silences, "taken");
        Ok(Some(Delivery { job, attempt, is_last, patience, traceparent, receipt: Box::new(receipt) }))
    }
}

async fn announce(client: &Client, notice: &Notice) -> Result<(), Error> {
    let sent = client.publish(names::notices(&notice.run), codec::encode_notice(notice)?.into()).await;
    sent.map_err(|error| Error::Unavailable(format!("a notice could not be sent: {error}")))
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
            let patience = self.patience().await?;
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(message) = pull::one(&self.shared.context, &mut connections, left).await? else { return Ok(None) };
            if let Some(delivery) = self.receive(message, patience).await? {
                return Ok(Some(delivery));
            }
        }
    }

    async fn announce(&self, notice: &Notice) -> Result<(), Error> {
        announce(&self.shared.client, notice).await
    }

    async fn notices(&self, run: &str) -> Result<Notices, Error> {
        let failed = |error: &dyn fmt::Display| Error::Unavailable(format!("notices cannot be heard: {error}"));
        let messages = self.shared.client.subscribe(names::notices(run)).await.map_err(|error| failed(&error))?;
        // Once the server has answered, it has heard what we listen to.
        self.shared.client.flush().await.map_err(|error| failed(&error))?;
        let run = run.to_owned();
        let notices = messages.filter_map(move |message| {
            let notice = codec::decode_notice(&message.payload).ok().filter(|notice| notice.run == run);
            async move { notice }
        });
        Ok(Box::pin(notices))
    }

    async fn purge(&self, run: &str) -> Result<(), Error> {
        let failed = |error: &dyn fmt::Display| Error::Unavailable(format!("jobs cannot be taken back: {error}"));
        let stream = self.shared.context.get_stream_no_info(names::JOBS).await.map_err(|error| failed(&error))?;
        // One by one: after a purge by subject, the server's consumer may pass over what others have waiting (seen on
        // 2.9.10 and on 2.15.1). There are never many.
        for (sequence, _) in stranded::waiting(&stream, &names::jobs(run), u64::MAX, usize::MAX).await? {
            stranded::delete(&stream, sequence).await?;
        }
        Ok(())
    }

    async fn dead_letters(&self, run: &str) -> Result<Vec<DeadLetter>, Error> {
        Ok(self.letters(Some(run)).await?.into_iter().filter_map(Letter::into_dead_letter).collect())
    }

    async fn drop_dead_letter(&self, run: &str, job: JobId) -> Result<(), Error> {
        dead::forget(&self.shared.context, &names::dead(run, job)).await.map(drop)
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let consumer = self.consumer().await?;
        let info = consumer.cached_info();
        let waiting = usize::try_from(info.num_pending).unwrap_or(usize::MAX);
        Ok(Backlog { waiting, in_hand: info.num_ack_pending, asking: info.num_waiting })
    }
}

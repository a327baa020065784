//! Maintenance by coordinators: recreates streams that a server lost, makes dead letters of jobs
//! that reached the delivery limit, and repairs the consumer.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use futures::StreamExt;
use lethe_shared::codec;
use lethe_shared::fault::Fault;
use lethe_shared::fault::Limits;
use lethe_shared::message::{Event, Notice};
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::connect::Connections;
use super::consumer_repair::ConsumerRepair;
use super::publish::announce;
use super::{dead_letter, names, setup};
use crate::error::Error;

/// Bounds of the interval between two checks of the consumer, which is half of the ack wait.
const CHECK_INTERVAL: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// The advisory that the server sends when a message reaches the delivery limit.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream_seq: u64,
    deliveries: u32,
}

/// Everything that maintenance needs.
pub(super) struct Maintenance {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) limits: Limits,
    pub(super) replicas: usize,
    pub(super) connections: Connections,
}

impl Maintenance {
    /// Runs until it is aborted.
    pub(super) async fn run(mut self) {
        let subject = format!(
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{}",
            names::JOBS,
            names::CONSUMER
        );
        let mut advisories = match self.client.subscribe(subject).await {
            Ok(advisories) => advisories,
            Err(error) => return warn!(%error, "cannot subscribe to advisories"),
        };
        self.connections.mark_unchanged();
        let mut repair = ConsumerRepair::new(self.context.clone(), self.limits);
        let mut checks = tokio::time::interval(
            (self.limits.ack_wait / 2).clamp(CHECK_INTERVAL[0], CHECK_INTERVAL[1]),
        );
        // Two checks must be some time apart, however long the first one took.
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let kept = tokio::select! {
                Some(message) = advisories.next() => match serde_json::from_slice::<Advisory>(&message.payload) {
                    Ok(advisory) => self.give_up(advisory.stream_seq, advisory.deliveries).await,
                    Err(_) => Ok(()),
                },
                Ok(()) = self.connections.changed() => {
                    repair.forget();
                    setup::ensure(&self.context, &self.limits, self.replicas).await
                }
                _ = checks.tick() => self.check_consumer(&mut repair).await,
                else => return,
            };
            if let Err(error) = kept {
                warn!(%error, "queue maintenance failed; retrying");
                // A server that was just restarted may need a moment.
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.connections.mark_changed();
            }
        }
    }

    async fn check_consumer(&self, repair: &mut ConsumerRepair) -> Result<(), Error> {
        for sequence in repair.check().await? {
            self.give_up(sequence, self.limits.deliveries).await?;
        }
        Ok(())
    }

    async fn give_up(&self, sequence: u64, attempts: u32) -> Result<(), Error> {
        let Some(message) = dead_letter::give_up(&self.context, sequence, attempts).await? else {
            return Ok(());
        };
        info!(sequence, attempts, "a job reached the delivery limit and became a dead letter");
        let Ok(job) = codec::decode_job(&message.payload) else { return Ok(()) };
        let event = Event::DeadLettered {
            fault: Fault::transient(format!("not finished after {attempts} deliveries")),
        };
        announce(
            &self.client,
            &Notice {
                run: job.run.clone(),
                job: job.id(),
                attempt: attempts,
                worker: "queue".into(),
                event,
            },
        )
        .await
    }
}

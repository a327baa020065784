//! What the coordinator keeps up: streams that a server lost with its disk, jobs that nobody finished, jobs that nobody would get.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::Context;
use futures::StreamExt;
use serde::Deserialize;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::super::{Cause, Error, Event, Limits, Notice};
use super::connect::Connections;
use super::stranded::Stranded;
use super::{announce, dead, names, setup};
use crate::codec;

/// The queue is searched for jobs that no delivery will come of twice in the time of its patience, no oftener and no more rarely than this.
const LOOKS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// What the server says when it gives a message up.
#[derive(Debug, Deserialize)]
struct Advisory {
    stream_seq: u64,
    deliveries: u32,
}

/// Everything the keeper needs.
pub(super) struct Keeper {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) limits: Limits,
    pub(super) replicas: usize,
    pub(super) connections: Connections,
}

impl Keeper {
    /// Keeps until it is aborted.
    pub(super) async fn run(mut self) {
        let subject = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{}", names::JOBS, names::CONSUMER);
        let mut advisories = match self.client.subscribe(subject).await {
            Ok(advisories) => advisories,
            Err(error) => return warn!(%error, "advisories cannot be heard"),
        };
        self.connections.mark_unchanged();
        let mut stranded = Stranded::new(self.context.clone(), self.limits);
        let mut look = tokio::time::interval((self.limits.patience / 2).clamp(LOOKS[0], LOOKS[1]));
        // Two looks are to be apart, whatever kept the first.
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let kept = tokio::select! {
                Some(message) = advisories.next() => match serde_json::from_slice::<Advisory>(&message.payload) {
                    Ok(advisory) => self.bury(advisory.stream_seq, advisory.deliveries).await,
                    Err(_) => Ok(()),
                },
                Ok(()) = self.connections.changed() => {
                    stranded.forget();
                    setup::ensure(&self.context, &self.limits, self.replicas).await
                }
                _ = look.tick() => self.look(&mut stranded).await,
                else => return,
            };
            if let Err(error) = kept {
                warn!(%error, "the queue could not be looked after; again soon");
                // A server that was just restarted may need a moment.
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.connections.mark_changed();
            }
        }
    }

    async fn look(&self, stranded: &mut Stranded) -> Result<(), Error> {
        for sequence in stranded.look().await? {
            self.bury(sequence, self.limits.deliveries).await?;
        }
        Ok(())
    }

    async fn bury(&self, sequence: u64, attempts: u32) -> Result<(), Error> {
        let Some(message) = dead::bury_stuck(&self.context, sequence, attempts).await? else { return Ok(()) };
        info!(sequence, attempts, "a job that nobody finished is a dead letter");
        let Ok(job) = codec::decode_job(&message.payload) else { return Ok(()) };
        let event = Event::Buried { error: format!("never finished in {attempts} deliveries"), cause: Cause::Circumstances };
        announce(&self.client, &Notice { run: job.run.clone(), job: job.id(), attempt: attempts, worker: "queue".into(), event }).await
    }
}

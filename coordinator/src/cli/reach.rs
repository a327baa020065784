//! Connects commands to a long-lived coordinator.

use std::time::Duration;

use clap::Args;
use lethe_queue::nats::{JetStreamQueue, Options, Role};
use lethe_shared::exit;
use lethe_shared::message::{Reply, Request};
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::lease::name_of_this_process;

/// Longest wait for NATS, seconds; short, because a person is waiting.
const WAIT: u64 = 20;
/// Longest wait for a coordinator, which may still be starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Address of a coordinator.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// NATS servers: nats://host:4222 or tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    pub(super) nats: String,
    #[command(flatten)]
    pub(super) options: Options,
}

impl Reach {
    /// Connects in the role of a client.
    pub(super) async fn connect(&self) -> Result<JetStreamQueue, Failure> {
        let options = Options { give_up: self.options.give_up.min(WAIT), ..self.options.clone() };
        Ok(JetStreamQueue::connect(&self.nats, Role::Client, &name_of_this_process(), &options)
            .await?)
    }
}

/// Sends a request and reads the answer.
pub(super) async fn ask<T: DeserializeOwned>(
    queue: &JetStreamQueue,
    request: &Request,
) -> Result<(T, String), Failure> {
    match queue.ask(request, PATIENCE).await? {
        Reply::Done { json } => {
            let read = serde_json::from_str(&json);
            Ok((
                read.map_err(|error| {
                    Failure::Infrastructure(format!(
                        "the coordinator's answer cannot be read: {error}"
                    ))
                })?,
                json,
            ))
        }
        Reply::Refused { exit_code: exit::BAD_INPUT, problem } => Err(Failure::input(problem)),
        Reply::Refused { problem, .. } => Err(Failure::Infrastructure(problem)),
    }
}

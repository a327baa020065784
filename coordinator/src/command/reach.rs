//! How commands reach a long-lived coordinator.

use std::time::Duration;

use clap::Args;
use lethe_shared::control::{Reply, Request};
use lethe_shared::exit;
use lethe_shared::queue::nats::{JetStreamQueue, Options, Role};
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::lease::name_of_this_process;

/// Longest wait for NATS, seconds: a person is waiting.
const WAIT: u64 = 20;
/// Longest wait for a coordinator there, which may just be starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a coordinator is.
#[derive(Debug, Args)]
pub(super) struct Reach {
    /// NATS servers: nats://host:4222 or tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    pub(super) nats: String,
    #[command(flatten)]
    pub(super) options: Options,
}

impl Reach {
    /// Connects, as one who asks.
    pub(super) async fn connect(&self) -> Result<JetStreamQueue, Failure> {
        let options = Options { give_up: self.options.give_up.min(WAIT), ..self.options.clone() };
        Ok(JetStreamQueue::connect(&self.nats, Role::Person, &name_of_this_process(), &options).await?)
    }
}

/// Asks, and reads the answer.
pub(super) async fn ask<T: DeserializeOwned>(queue: &JetStreamQueue, request: &Request) -> Result<(T, String), Failure> {
    match queue.ask(request, PATIENCE).await? {
        Reply::Done { json } => {
            let read = serde_json::from_str(&json);
            Ok((read.map_err(|error| Failure::Infrastructure(format!("the coordinator's answer cannot be read: {error}")))?, json))
        }
        Reply::Refused { exit_code: exit::BAD_INPUT, problem } => Err(Failure::input(problem)),
        Reply::Refused { problem, .. } => Err(Failure::Infrastructure(problem)),
    }
}

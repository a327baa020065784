//! `lethe serve`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use lethe_shared::exit;
use lethe_shared::queue::nats::{JetStreamQueue, Options, Role, without_secrets};
use lethe_shared::store::Store;
use lethe_shared::telemetry::Health;
use lethe_shared::telemetry::http::{ListenOn, Server};
use lethe_shared::telemetry::log::say;
use tokio_util::sync::CancellationToken;

use super::{Signing, cache, here};
use crate::failure::Failure;
use crate::gates;
use crate::lease::name_of_this_process;
use crate::patience::Patience;
use crate::serve::{self, Service};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// NATS servers: nats://host:4222 or tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: String,
    /// Where runs, artifacts and releases go: a path, file://, s3://, gs:// or az://. Workers need the same.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: String,
    /// Where the status page, JSON API, metrics and probes are: a port on loopback, or ADDRESS:PORT. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP", default_value = "127.0.0.1:9464")]
    http: ListenOn,
    /// Runs at one time; more wait their turn.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    runs: u16,
    /// Gates that every run's release has to pass before `latest` leads to it, beside its manifest's: a file with a `[gates]` section.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    signing: Signing,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

pub(super) async fn main(options: &Serve, cancel: CancellationToken) -> Result<u8, Failure> {
    let address = here("--store", &options.store)?;
    let gates = options.gates.as_deref().map(gates::read).transpose()?;
    let signer = options.signing.key()?;
    let health = Health::waiting_for(&["queue", "store", "runs"]);
    let name = name_of_this_process();

    let store = Store::open(&address)?;
    store.probe().await?;
    health.met("store");
    let connected = JetStreamQueue::connect(&options.nats, Role::Coordinator, &name, &options.options);
    let queue = tokio::select! {
        () = cancel.cancelled() => return Err(Failure::Cancelled),
        queue = connected => Arc::new(queue?),
    };
    health.met("queue");

    let patience = Patience { give_up: options.options.give_up() };
    let settings = serve::Options { name, runs: usize::from(options.runs), cache: cache(options.cache.as_ref()), gates, signer, patience };
    let service = Service::new(Arc::clone(&queue), store.clone(), settings, health.clone());
    let in_use = |error: std::io::Error| Failure::input(format!("--http {}: {error}", options.http));
    let server = Server::bind(options.http, health, service.routes()).await.map_err(in_use)?;
    say("info", &format!("http://{}: status page, API, metrics", server.address()));
    say("info", &format!("takes runs on {}, store {}", without_secrets(&options.nats), store.name()));

    let http = tokio::spawn(server.run(cancel.clone()));
    let ended = service.run(cancel.clone()).await;
    cancel.cancel();
    queue.close().await;
    // Pages that are still open end with the process.
    http.abort();
    // Asked to stop, a service has done what it was asked for.
    ended.map(|()| exit::DONE)
}

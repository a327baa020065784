//! The command `lethe serve`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use lethe_operations::Health;
use lethe_operations::http::{ListenOn, Server};
use lethe_operations::log::say;
use lethe_queue::nats::{JetStreamQueue, Options, Role, without_secrets};
use lethe_shared::exit;
use lethe_shared::retry::RetryPolicy;
use lethe_store::Store;
use tokio_util::sync::CancellationToken;

use super::common::{Signing, cache, here};
use crate::failure::Failure;
use crate::lease::name_of_this_process;
use crate::release::gates;
use crate::retry::retry;
use crate::run;
use crate::serve::{self, Service};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// NATS servers: nats://host:4222 or tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: String,
    /// The store for runs, artifacts and releases: a path, file://, s3://, gs:// or az://. Workers
    /// use the same one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: String,
    /// Serve status page, JSON API, metrics and probes here: a port on loopback, or ADDRESS:PORT.
    /// Port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP", default_value = "127.0.0.1:9464")]
    http: ListenOn,
    /// Number of runs at the same time; more wait.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    runs: u16,
    /// Gates that every run's release has to pass before `latest` points to it, in addition to its
    /// manifest's: a file with a `[gates]` section.
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
    let run = run::Options { gates, signer: options.signing.key()?, quiet: false };
    let health = Health::waiting_for(&["queue", "store", "runs"]);
    let name = name_of_this_process();

    let store = Store::open(&address)?;
    let give_up = options.options.give_up();
    retry(&RetryPolicy::service(give_up), "probe the store", &cancel, || store.probe()).await?;
    health.met("store");
    let connected =
        JetStreamQueue::connect(&options.nats, Role::Coordinator, &name, &options.options);
    let queue = tokio::select! {
        () = cancel.cancelled() => return Err(Failure::Cancelled),
        queue = connected => Arc::new(queue?),
    };
    health.met("queue");

    let settings = serve::Options {
        name,
        runs: usize::from(options.runs),
        cache: cache(options.cache.as_ref()),
        run,
        give_up,
    };
    let service = Service::new(Arc::clone(&queue), store.clone(), settings, health.clone());
    let in_use =
        |error: std::io::Error| Failure::input(format!("--http {}: {error}", options.http));
    let server = Server::bind(options.http, health, service.routes()).await.map_err(in_use)?;
    say("info", &format!("http://{}: status page, API, metrics", server.address()));
    say(
        "info",
        &format!("takes runs on {}, store {}", without_secrets(&options.nats), store.name()),
    );

    let http = tokio::spawn(server.run(cancel.clone()));
    let ended = service.run(cancel.clone()).await;
    cancel.cancel();
    queue.close().await;
    // Connections of open pages end with the process.
    http.abort();
    // For a service, an orderly stop on request is a success.
    ended.map(|()| exit::DONE)
}

//! `lethe run`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use lethe_shared::exit;
use lethe_shared::queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::record::Composition;
use lethe_shared::store::Store;
use lethe_shared::telemetry::Health;
use lethe_shared::telemetry::http::{ListenOn, Server};
use lethe_shared::telemetry::log::say;
use lethe_shared::telemetry::trace::TraceContext;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::{Common, Signing, print};
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::gates;
use crate::lease;
use crate::patience::Patience;
use crate::plan::Plan;
use crate::summary::{self, Report, Status};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    common: Common,
    /// NATS servers (nats://host:4222, tls://…, several separated by commas): jobs are done by lethe-worker processes
    /// that are connected there, and model, data and store must be where they can reach them too.
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    connection: nats::Options,
    /// More gates that the release has to pass before `latest` leads to it, beside the manifest's: a file with a `[gates]` section.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    signing: Signing,
    /// Where metrics and probes are while the run lasts: a port on loopback, or ADDRESS:PORT. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP")]
    http: Option<ListenOn>,
}

pub(super) async fn main(options: &Options, cancel: CancellationToken) -> Result<u8, Failure> {
    let common = &options.common;
    let health = Health::waiting_for(&["plan", "store"]);
    if let Some(on) = options.http {
        let bound = Server::bind(on, health.clone(), axum::Router::new()).await;
        let server = bound.map_err(|error| Failure::input(format!("--http {on}: {error}")))?;
        say("info", &format!("http://{}: metrics and probes", server.address()));
        tokio::spawn(server.run(CancellationToken::new()));
    }
    let gates = options.gates.as_deref().map(gates::read).transpose()?;
    let signer = options.signing.key()?;
    let mut plan = Plan::make(&common.manifest, &common.cache()).await?;
    plan.gates.extend(gates);
    plan.signer = signer;
    for warning in &plan.warnings {
        say("warning", warning);
    }
    health.met("plan");
    let store = Store::open(&common.store(&plan.manifest)?)?;
    let patience = Patience { give_up: options.connection.give_up() };
    patience.keep("write", &cancel, || store.probe()).await?;
    health.met("store");
    let span = info_span!("run", run = %plan.run, trace = TraceContext::of_run(&plan.run).trace_id());
    let done = async {
        match &options.nats {
            None => in_this_process(&plan, store, common, patience, cancel).await,
            Some(url) => elsewhere(&plan, store, options, url, patience, cancel).await,
        }
    };
    done.instrument(span).await
}

async fn elsewhere(
    plan: &Plan,
    store: Store,
    options: &Options,
    url: &str,
    patience: Patience,
    cancel: CancellationToken,
) -> Result<u8, Failure> {
    let name = lease::name_of_this_process();
    let queue = JetStreamQueue::connect(url, Role::Coordinator, &name, &options.connection).await?;
    let (run, concepts, server) = (&plan.run, plan.concepts.len(), nats::without_secrets(url));
    say("info", &format!("{run}: {concepts} concepts, workers at {server}, store {}", store.name()));
    // Ends with the lease, or with this process's signal.
    let cancel = cancel.child_token();
    let tenure = lease::take(&queue, &store, &plan.run, &name, patience, &cancel).await?;
    let mut dispatcher = Dispatcher::new(Arc::new(queue.clone()), store, cancel, patience);
    dispatcher.claim = Some(tenure.claim().clone());
    let ended = crate::run::run(plan, &dispatcher, false).await;
    let ended = tenure.end(ended).await;
    queue.close().await;
    tell(&options.common, ended?)
}

#[cfg(feature = "embedded")]
async fn in_this_process(plan: &Plan, store: Store, common: &Common, patience: Patience, cancel: CancellationToken) -> Result<u8, Failure> {
    let workers = crate::embedded::Workers::start(&plan.manifest.execution, &store, &common.cache())?;
    let (run, concepts, count) = (&plan.run, plan.concepts.len(), workers.count);
    say("info", &format!("{run}: {concepts} concepts, {count} workers on {}, store {}", workers.device, store.name()));
    let queue: Arc<dyn lethe_shared::queue::Queue> = workers.queue.clone();
    let ended = crate::run::run(plan, &Dispatcher::new(queue, store, cancel, patience), false).await;
    workers.stop().await;
    tell(common, ended?)
}

#[cfg(not(feature = "embedded"))]
async fn in_this_process(_: &Plan, _: Store, _: &Common, _: Patience, _: CancellationToken) -> Result<u8, Failure> {
    Err(Failure::input("this lethe was built without workers (feature `embedded`); give --nats"))
}

/// Tells how a run ended.
fn tell(common: &Common, (report, record): (Report, Composition)) -> Result<u8, Failure> {
    if common.json {
        print(&serde_json::to_string(&report).map_err(Failure::input)?)?;
    } else {
        print(&summary::table(&report, &record))?;
    }
    match report.status {
        Status::Complete => Ok(exit::DONE),
        Status::Incomplete => {
            let missing = report.summary.missing.len();
            say(
                "error",
                &format!(
                    "{missing} concepts are missing, and the manifest's policy.required asks for them; the release is written without them"
                ),
            );
            Ok(exit::INCOMPLETE)
        }
        Status::GatesMissed => {
            for gate in &report.missed {
                say("error", &format!("a gate is missed: {gate}"));
            }
            say("error", &format!("the release is stored as {}:{}, and no channel leads to it", record.name, report.number));
            Ok(exit::NOT_PASSED)
        }
    }
}

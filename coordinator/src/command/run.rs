//! `lethe run`

use std::sync::Arc;

use clap::Args;
use lethe_shared::exit;
use lethe_shared::queue::Queue;
use lethe_shared::queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::record::Composition;
use lethe_shared::store::Store;
use tokio_util::sync::CancellationToken;

use super::{Common, print};
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
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
}

pub(super) async fn main(options: &Options, cancel: CancellationToken) -> Result<u8, Failure> {
    let common = &options.common;
    let plan = Plan::make(&common.manifest, &common.cache()).await?;
    for warning in &plan.warnings {
        eprintln!("warning: {warning}");
    }
    let store = Store::open(&common.store(&plan.manifest)?)?;
    let patience = Patience { give_up: options.connection.give_up() };
    patience.keep("write", &cancel, || store.probe()).await?;
    match &options.nats {
        None => in_this_process(&plan, store, common, patience, cancel).await,
        Some(url) => elsewhere(&plan, store, options, url, patience, cancel).await,
    }
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
    eprintln!("{}: {} concepts, workers at {}, store {}", plan.run, plan.concepts.len(), nats::without_secrets(url), store.name());
    // Ends with the lease, or with this process's signal.
    let cancel = cancel.child_token();
    let tenure = lease::take(&queue, &store, &plan.run, &name, patience, &cancel).await?;
    let mut dispatcher = Dispatcher::new(Arc::new(queue.clone()), store, cancel, patience);
    dispatcher.claim = Some(tenure.claim().clone());
    let ended = crate::run::run(plan, &dispatcher, false).await;
    let ended = tenure.end(ended).await;
    queue.close().await;
    say(&options.common, ended?)
}

#[cfg(feature = "embedded")]
async fn in_this_process(plan: &Plan, store: Store, common: &Common, patience: Patience, cancel: CancellationToken) -> Result<u8, Failure> {
    let workers = crate::embedded::Workers::start(&plan.manifest.execution, &store, &common.cache())?;
    eprintln!("{}: {} concepts, {} workers on {}, store {}", plan.run, plan.concepts.len(), workers.count, workers.device, store.name());
    let queue: Arc<dyn Queue> = workers.queue.clone();
    let ended = crate::run::run(plan, &Dispatcher::new(queue, store, cancel, patience), false).await;
    workers.stop().await;
    say(common, ended?)
}

#[cfg(not(feature = "embedded"))]
async fn in_this_process(_: &Plan, _: Store, _: &Common, _: Patience, _: CancellationToken) -> Result<u8, Failure> {
    Err(Failure::input("this lethe was built without workers (feature `embedded`); give --nats"))
}

/// Tells how a run ended.
fn say(common: &Common, (report, record): (Report, Composition)) -> Result<u8, Failure> {
    if common.json {
        print(&serde_json::to_string(&report).map_err(Failure::input)?)?;
    } else {
        print(&summary::table(&report, &record))?;
    }
    match report.status {
        Status::Complete => Ok(exit::DONE),
        Status::Incomplete => {
            eprintln!(
                "error: {} concepts are missing, and the manifest's policy.required asks for them; the release is written without them",
                report.summary.missing.len()
            );
            Ok(exit::INCOMPLETE)
        }
    }
}

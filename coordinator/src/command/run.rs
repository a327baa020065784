//! `lethe run`

use std::sync::Arc;

use lethe_shared::exit;
use lethe_shared::queue::Queue;
use lethe_shared::store::Store;
use lethe_shared::telemetry::log::say;
use tokio_util::sync::CancellationToken;

use super::{Common, print};
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::plan::Plan;
use crate::summary::{self, Status};

pub(super) async fn main(options: &Common, cancel: CancellationToken) -> Result<u8, Failure> {
    let plan = Plan::make(&options.manifest, &options.cache()).await?;
    for warning in &plan.warnings {
        say("warning", warning);
    }
    let store = Store::open(&options.store(&plan.manifest)?)?;
    store.probe().await?;
    in_this_process(&plan, store, options, cancel).await
}

#[cfg(feature = "embedded")]
async fn in_this_process(plan: &Plan, store: Store, options: &Common, cancel: CancellationToken) -> Result<u8, Failure> {
    let workers = crate::embedded::Workers::start(&plan.manifest.execution, &store, &options.cache())?;
    let (run, concepts, count) = (&plan.run, plan.concepts.len(), workers.count);
    say("info", &format!("{run}: {concepts} concepts, {count} workers on {}, store {}", workers.device, store.name()));
    let queue: Arc<dyn Queue> = workers.queue.clone();
    let ended = crate::run::run(plan, &Dispatcher { queue, store, cancel }, false).await;
    workers.stop().await;
    let (report, record) = ended?;
    if options.json {
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
    }
}

#[cfg(not(feature = "embedded"))]
async fn in_this_process(_: &Plan, _: Store, _: &Common, _: CancellationToken) -> Result<u8, Failure> {
    Err(Failure::input("this lethe was built without workers (feature `embedded`)"))
}

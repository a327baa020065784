//! The command `lethe run`.

use std::path::PathBuf;

use clap::Args;
use lethe_operations::Health;
use lethe_operations::http::{ListenOn, serve_probes};
use lethe_operations::log::say;
use lethe_operations::trace::TraceContext;
use lethe_shared::exit;
use lethe_shared::record::Composition;
use lethe_shared::retry::RetryPolicy;
use lethe_store::Store;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::common::{Common, Signing, print};
use super::workers::Workers;
use crate::failure::Failure;
use crate::intake::plan::Plan;
use crate::present::run_summary::{self, Report, Status};
use crate::release::{gates, policy};
use crate::retry::retry;
use crate::run;

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    workers: Workers,
    /// Gates that the release has to pass before `latest` points to it, in addition to the
    /// manifest's: a file with a `[gates]` section.
    #[arg(long, value_name = "FILE")]
    gates: Option<PathBuf>,
    #[command(flatten)]
    signing: Signing,
    /// Serve metrics and probes here during the run: a port on loopback, or ADDRESS:PORT. Port 0
    /// picks a free one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP")]
    http: Option<ListenOn>,
}

pub(super) async fn main(options: &Options, cancel: CancellationToken) -> Result<u8, Failure> {
    let common = &options.common;
    let health = Health::waiting_for(&["plan", "store"]);
    if let Some(on) = options.http {
        serve_probes(on, health.clone())
            .await
            .map_err(|error| Failure::input(format!("--http {on}: {error}")))?;
    }
    let gates = options.gates.as_deref().map(gates::read).transpose()?;
    let choices = run::Options { gates, signer: options.signing.key()?, quiet: false };
    let plan = Plan::make(&common.manifest, &common.cache()).await?;
    for warning in &plan.warnings {
        say("warning", warning);
    }
    health.met("plan");
    let store = Store::open(&common.store(&plan.manifest)?)?;
    retry(&RetryPolicy::service(options.workers.give_up()), "probe the store", &cancel, || {
        store.probe()
    })
    .await?;
    health.met("store");
    let span =
        info_span!("run", run = %plan.run, trace = TraceContext::of_run(&plan.run).trace_id());
    let cache = common.cache();
    let done = options.workers.with(&plan, store, &cache, cancel, async |dispatcher| {
        run::run(&plan, &choices, dispatcher).await
    });
    tell(common, done.instrument(span).await?)
}

/// Prints the result of a run, and returns the exit code.
fn tell(common: &Common, (report, record): (Report, Composition)) -> Result<u8, Failure> {
    if common.json {
        if let Some(unmoved) = &report.unmoved {
            say("info", unmoved);
        }
        print(&serde_json::to_string(&report).map_err(Failure::input)?)?;
    } else {
        print(&run_summary::table(&report, &record))?;
    }
    match report.status {
        Status::Complete => Ok(exit::DONE),
        Status::Incomplete => {
            let unmet =
                policy::unmet(&record).unwrap_or_else(|| "not all concepts are removed".to_owned());
            say(
                "error",
                &format!(
                    "{unmet}; the manifest's policy.required demands them; the release is stored, and no channel points to it"
                ),
            );
            Ok(exit::INCOMPLETE)
        }
        Status::GatesMissed => {
            for gate in &report.missed {
                say("error", &format!("a gate is not met: {gate}"));
            }
            say(
                "error",
                &format!(
                    "the release is stored as {}:{}, and no channel points to it",
                    record.name, report.number
                ),
            );
            Ok(exit::NOT_PASSED)
        }
    }
}

//! `lethe run`

use std::path::PathBuf;

use clap::Args;
use lethe_shared::exit;
use lethe_shared::record::Composition;
use lethe_shared::store::Store;
use lethe_shared::telemetry::Health;
use lethe_shared::telemetry::http::{ListenOn, Server};
use lethe_shared::telemetry::log::say;
use lethe_shared::telemetry::trace::TraceContext;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::workers::Workers;
use super::{Common, Signing, print};
use crate::failure::Failure;
use crate::gates;
use crate::plan::Plan;
use crate::summary::{self, Report, Status};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    workers: Workers,
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
    options.workers.patience().keep("write", &cancel, || store.probe()).await?;
    health.met("store");
    let span = info_span!("run", run = %plan.run, trace = TraceContext::of_run(&plan.run).trace_id());
    let cache = common.cache();
    let done = options.workers.with(&plan, store, &cache, cancel, async |dispatcher| crate::run::run(&plan, dispatcher, false).await);
    tell(common, done.instrument(span).await?)
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

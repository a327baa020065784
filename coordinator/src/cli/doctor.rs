//! The command `lethe doctor`.

use std::path::PathBuf;

use clap::Args;
use lethe_operations::doctor;
use lethe_queue::nats::{self, Role};
use lethe_shared::finding::{Finding, Report};

use super::common::{cache, here, print};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// NATS servers that runs will use: nats://host:4222, tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: Option<String>,
    /// The store that runs will use: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: Option<String>,
    /// The device for computations on this machine: auto (a GPU where there is one), cpu, cuda or
    /// cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    connection: nats::Options,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn main(options: &Doctor) -> Result<u8, Failure> {
    let mut findings = compute(&options.device).await?;
    findings.push(doctor::memory());
    findings.extend(doctor::cache(&cache(options.cache.as_ref())));
    findings.extend(doctor::files(&options.connection.secrets()));
    if let Some(text) = &options.store {
        findings.extend(lethe_store::doctor::examine(&here("--store", text)?).await);
    }
    if let Some(url) = &options.nats {
        findings.extend(nats::examine(url, Role::Coordinator, &options.connection).await);
    }
    let report = Report::of(findings);
    print(&if options.json {
        serde_json::to_string(&report).map_err(Failure::input)?
    } else {
        report.lines()
    })?;
    Ok(report.exit_code())
}

/// Checks libtorch and the device if this program contains workers.
#[cfg(feature = "embedded")]
async fn compute(device: &str) -> Result<Vec<Finding>, Failure> {
    let device = device.to_owned();
    let looked = tokio::task::spawn_blocking(move || lethe_worker::doctor::examine(&device));
    looked.await.map_err(|error| Failure::Infrastructure(error.to_string()))
}

#[cfg(not(feature = "embedded"))]
async fn compute(_: &str) -> Result<Vec<Finding>, Failure> {
    Ok(vec![Finding::ok("libtorch", "not needed: this lethe was built without workers")])
}

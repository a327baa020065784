//! `lethe submit`

use std::path::PathBuf;

use clap::Args;
use lethe_shared::control::Request;
use lethe_shared::exit;
use lethe_shared::manifest::Manifest;
use lethe_shared::telemetry::log::say;
use serde::Deserialize;

use super::reach::{Reach, ask};
use super::{cache, print, status};
use crate::failure::Failure;
use crate::plan;
use crate::submission::Submission;

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// The manifest: a .toml or .json file.
    manifest: PathBuf,
    #[command(flatten)]
    reach: Reach,
    /// Wait for the end, showing progress, and end with the run's exit code.
    #[arg(long)]
    watch: bool,
    /// Do not look at what the manifest names: it is there for the coordinator, not for this machine.
    #[arg(long)]
    unchecked: bool,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Submitted {
    run: String,
    state: String,
    new: bool,
}

pub(super) async fn main(options: &Submit) -> Result<u8, Failure> {
    let manifest = Manifest::read(&options.manifest)?;
    if !options.unchecked {
        plan::glance(&manifest, &cache(options.cache.as_ref())).await?;
    }
    let submission = Submission::new(manifest)?;
    let queue = options.reach.connect().await?;
    let (submitted, json): (Submitted, String) = ask(&queue, &Request::Submit { submission: submission.to_json() }).await?;
    if !submitted.new {
        say("info", &format!("{} was submitted before and is {}", submitted.run, submitted.state));
    }
    if options.watch {
        say("info", &submitted.run);
        return status::watch(&queue, &submitted.run, options.json).await;
    }
    print(if options.json { &json } else { &submitted.run })?;
    Ok(exit::DONE)
}

//! The command `lethe submit`.

use std::path::PathBuf;

use clap::Args;
use lethe_operations::log::say;
use lethe_shared::exit;
use lethe_shared::manifest::Manifest;
use lethe_shared::message::Request;
use lethe_store::Pins;
use serde::Deserialize;

use super::common::{cache, print};
use super::reach::{Reach, ask};
use super::status;
use crate::failure::Failure;
use crate::intake;
use crate::intake::pin::pin;
use crate::serve::submission::Submission;

#[derive(Debug, Args)]
pub(super) struct Submit {
    /// The manifest: a .toml or .json file.
    manifest: PathBuf,
    #[command(flatten)]
    reach: Reach,
    /// Show progress until the run ends, and exit with its exit code.
    #[arg(long)]
    watch: bool,
    /// Skip the checks of files; use it when only the coordinator can reach them.
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
    let mut manifest = Manifest::read(&options.manifest)?;
    if !options.unchecked {
        // The run is of the commits that branches have now, whenever the coordinator begins it.
        manifest = pin(manifest, &Pins::default()).await?;
        intake::quick_check(&manifest, &cache(options.cache.as_ref())).await?;
    }
    let submission = Submission::new(manifest)?;
    let queue = options.reach.connect().await?;
    let (submitted, json): (Submitted, String) =
        ask(&queue, &Request::Submit { submission: submission.to_json() }).await?;
    if !submitted.new {
        say(
            "info",
            &format!("{} was submitted before; its state is {}", submitted.run, submitted.state),
        );
    }
    if options.watch {
        say("info", &submitted.run);
        return status::watch(&queue, &submitted.run, options.json).await;
    }
    print(if options.json { &json } else { &submitted.run })?;
    Ok(exit::DONE)
}

//! The command `lethe inspect`.

use std::path::PathBuf;

use clap::Args;
use lethe_shared::exit;
use lethe_shared::manifest::Classes;
use lethe_store::Pins;
use serde::Serialize;

use super::common::{cache, here, print};
use crate::failure::Failure;
use crate::inspect::{Inspection, Options, inspect};
use crate::intake::concepts::MAX_CLASSES;
use crate::intake::files::read_file;
use crate::intake::pin::pin_address;

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// What to inspect: model folders, pipelines, vision-language models, releases, shards (.tar) or
    /// folders of them, concept tables (.csv, .tsv, .jsonl), lists of names (.txt), manifests
    /// (.toml, .json), weight files, images; here or s3://, gs://, az://,
    /// hf:// (hf://ORG/NAME, hf://datasets/ORG/NAME/…), https:// (files).
    #[arg(required = true, num_args = 1.., value_name = "PATH")]
    paths: Vec<String>,
    /// The CLIP model whose edits a pipeline or a vision-language model is to get.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Zero-shot class names, one a line: captions of shards and classes of tables must be in it.
    #[arg(long, value_name = "FILE")]
    classes: Option<String>,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

/// The last line of `lethe inspect --json`.
#[derive(Debug, Serialize)]
struct Inspected {
    /// Whether Lethe refuses nothing of it.
    accepted: bool,
    inspections: Vec<Inspection>,
}

pub(super) async fn main(options: &Inspect) -> Result<u8, Failure> {
    let cache = cache(options.cache.as_ref());
    let base = options.base.as_deref().map(|base| here("--base", base)).transpose()?;
    let classes = match &options.classes {
        None => None,
        Some(file) => {
            let address = here("--classes", file)?;
            let bytes = read_file("--classes", &address, MAX_CLASSES, &cache).await?;
            Some(Classes::parse(&bytes, &address.to_string())?)
        }
    };
    let using = Options { base: base.as_ref(), classes: classes.as_ref(), cache: &cache };
    let pins = Pins::default();
    let mut inspections = Vec::new();
    for path in &options.paths {
        let address = pin_address("PATH", &here("PATH", path)?, &pins).await?;
        let inspection = inspect(&address, using).await?;
        if !options.json {
            print(&inspection.lines())?;
        }
        inspections.push(inspection);
    }
    let accepted = inspections.iter().all(|inspection| inspection.problems.is_empty());
    if options.json {
        let inspected = Inspected { accepted, inspections };
        print(&serde_json::to_string(&inspected).map_err(Failure::input)?)?;
    }
    Ok(if accepted { exit::DONE } else { exit::BAD_INPUT })
}

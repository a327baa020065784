//! The command `lethe report`.

use std::path::{Path, PathBuf};

use clap::Args;
use lethe_shared::exit;
use lethe_store::Store;

use super::common::{here, print};
use super::find;
use crate::failure::Failure;
use crate::present::{report, run_summary};
use crate::release::evaluation;
use crate::release::lookup::{self, Wanted};
use crate::release::probes;
use crate::release::publish;
use crate::release::read::{Place, Release};

/// Largest summary of a run, bytes.
const MAX_SUMMARY: u64 = 256 << 20;

#[derive(Debug, Args)]
pub(super) struct Report {
    /// A run, a release (NAME, NAME:NUMBER or NAME@CHANNEL), or a release's folder. The report of a
    /// run also has its times.
    #[arg(value_name = "RUN_OR_RELEASE")]
    target: String,
    /// The store of runs and releases, not needed for a folder; without this option LETHE_STORE, or
    /// else ./store.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// The file to write; - for stdout.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

pub(super) async fn main(options: &Report) -> Result<u8, Failure> {
    let (release, run) = find(options).await?;
    let recipe = release.recipe().await?;
    let thumbnails = release.thumbnails().await?;
    let record = if release.stored {
        evaluation::measured(&release.store, &release).await?
    } else {
        release.record.clone()
    };
    let pictures = probes::pictures(&release.store, &record).await?;
    let source = report::Source {
        record: &record,
        effect_matrix: recipe.effect_matrix(),
        thumbnails: &thumbnails,
        pictures: &pictures,
        run: run.as_ref(),
    };
    let page = report::render(&source);
    if options.output == Path::new("-") {
        print(page.trim_end())?;
    } else {
        let shown = options.output.display();
        std::fs::write(&options.output, &page)
            .map_err(|error| Failure::input(format!("--output {shown}: {error}")))?;
        print(&shown.to_string())?;
    }
    Ok(exit::DONE)
}

/// Returns the release, and its run if the argument names a run.
async fn find(options: &Report) -> Result<(Release, Option<run_summary::Report>), Failure> {
    let target = &options.target;
    if find::is_folder(target) {
        return Ok((Release::open(&here("RUN_OR_RELEASE", target)?).await?, None));
    }
    let store = find::store(options.store.as_deref())?;
    if let Some(run) = run(&store, target).await? {
        // Only the end of the address counts, because the run may have used another address of the
        // same store.
        let parts: Vec<&str> = run.release.rsplitn(4, '/').collect();
        let [digest, name, "releases", _] = parts[..] else {
            return Err(Failure::input(format!(
                "run {target}: its summary names no release but `{}`",
                run.release.escape_default()
            )));
        };
        let prefix = format!("releases/{name}/{digest}");
        return Ok((Place::stored(store, prefix).open().await?, Some(run)));
    }
    let wanted: Wanted = target.parse().map_err(Failure::input)?;
    let found = lookup::find(&store, &wanted).await?;
    Ok((publish::open(&store, &found).await?, None))
}

/// Returns the summary of a run that has ended; `None` if there is none of this name.
async fn run(store: &Store, name: &str) -> Result<Option<run_summary::Report>, Failure> {
    if name.contains(['@', ':']) {
        return Ok(None);
    }
    let key = format!("runs/{name}/summary.json");
    let wrong = |problem: String| Failure::input(format!("{}/{key}: {problem}", store.name()));
    match store.size(&key).await? {
        None => Ok(None),
        Some(size) if size > MAX_SUMMARY => {
            Err(wrong(format!("has {size} bytes; no summary is that large")))
        }
        Some(_) => {
            let Some(bytes) = store.get(&key).await? else { return Ok(None) };
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| wrong(format!("is no summary of a run ({error})")))
        }
    }
}

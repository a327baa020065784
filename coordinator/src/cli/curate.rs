//! The command `lethe curate`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use lethe_operations::log::say;
use lethe_shared::exit;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::common::{cache, here, print};
use crate::curate::sample::Limits;
use crate::curate::{CuratedConcept, Curation, Options, Status, curate};
use crate::failure::Failure;

#[derive(Debug, Args)]
pub(super) struct Curate {
    /// The concepts: CSV or JSON lines with the columns id, name, aliases (separated by `|`), and a
    /// manifest's class, strength, group, stop, tolerance.
    concepts: String,
    /// Shards of image-text pairs (WebDataset, plain tar), here or s3://, gs://, az://,
    /// hf://datasets/ORG/NAME/…; `*`, `?` and `[…]` in the last part, braces (`{000..127}`)
    /// anywhere.
    #[arg(long, value_name = "SHARDS", required = true, num_args = 1..)]
    pairs: Vec<String>,
    /// Output folder: a new one, or the one of an interrupted call to resume.
    #[arg(long, value_name = "OUT")]
    into: PathBuf,
    /// Zero-shot class names, one a line. Pairs that name exactly one of them and no concept become
    /// validation pairs, their caption the class name. Classes of concepts that are not in it are
    /// added.
    #[arg(long, value_name = "FILE")]
    classes: Option<String>,
    /// Largest number of pairs in a concept's forget shard; pairs that mention no other concept
    /// come first.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    forget_pairs: usize,
    /// Largest number of retain pairs, in shards of 2,048.
    #[arg(long, value_name = "N", default_value_t = 10_240, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000_000))]
    retain_pairs: usize,
    /// Largest number of validation pairs per class; 0: none.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(0..=65_536))]
    validation_pairs: usize,
    /// Report concepts with fewer pairs than this.
    #[arg(long, value_name = "N", default_value_t = 16)]
    few: usize,
    /// Seed of the choice of pairs where there are more than the limit.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Shards read at once; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = RangedU64ValueParser::<usize>::new().range(0..=1024))]
    workers: usize,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for a table or class list downloaded from a remote address.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

/// The last line of `lethe curate --json`.
#[derive(Debug, Serialize)]
struct Curated<'a> {
    into: String,
    manifest: String,
    shards: usize,
    /// Shards read by this call, without those that an earlier call read.
    read: usize,
    bytes: u64,
    pairs: u64,
    mentioning: u64,
    unusable: u64,
    concepts: usize,
    few: Vec<&'a str>,
    missing: Vec<&'a str>,
    forget_pairs: usize,
    overlaps: usize,
    retain_pairs: usize,
    validation_pairs: usize,
    warnings: Vec<String>,
}

pub(super) async fn main(options: &Curate, cancel: CancellationToken) -> Result<u8, Failure> {
    let shards: Result<_, Failure> =
        options.pairs.iter().map(|text| here("--pairs", text)).collect();
    let into = std::path::absolute(&options.into)
        .map_err(|error| Failure::input(format!("--into: {error}")))?;
    let wanted = Options {
        table: here("CONCEPTS", &options.concepts)?,
        pairs: shards?,
        into,
        classes: options.classes.as_deref().map(|text| here("--classes", text)).transpose()?,
        limits: Limits {
            forget: options.forget_pairs,
            retain: options.retain_pairs,
            validation: options.validation_pairs,
        },
        few: options.few,
        seed: options.seed,
        workers: options.workers,
        cache: cache(options.cache.as_ref()),
    };
    let (curation, read) = curate(wanted, cancel).await?;
    let curated = summary(&curation, read, options);
    curated.warnings.iter().for_each(|warning| say("warning", warning));
    if options.json {
        print(&serde_json::to_string(&curated).map_err(Failure::input)?)?;
    } else {
        print(&table(&curated, &curation))?;
    }
    Ok(if curated.missing.is_empty() { exit::DONE } else { exit::INCOMPLETE })
}

fn summary<'a>(curation: &'a Curation, read: usize, options: &Curate) -> Curated<'a> {
    let ids = |status| {
        curation.with(status).map(|concept: &CuratedConcept| concept.id.as_str()).collect()
    };
    Curated {
        into: options.into.display().to_string(),
        manifest: options.into.join("manifest.toml").display().to_string(),
        shards: curation.shards.len(),
        read,
        bytes: curation.shards.iter().map(|shard| shard.bytes).sum(),
        pairs: curation.pairs,
        mentioning: curation.mentioning,
        unusable: curation.unusable.values().map(|passed| passed.samples).sum(),
        concepts: curation.concepts.len(),
        few: ids(Status::Few),
        missing: ids(Status::None),
        forget_pairs: curation.concepts.iter().map(|concept| concept.taken).sum(),
        overlaps: curation.overlaps,
        retain_pairs: curation.retain.0,
        validation_pairs: curation.validation.0,
        warnings: curation.warnings(),
    }
}

fn table(curated: &Curated<'_>, curation: &Curation) -> String {
    let found = curated.concepts - curated.missing.len();
    let rows = [
        (
            "pairs",
            format!(
                "{} in {} shards, {}",
                curated.pairs,
                curated.shards,
                crate::progress::human_bytes(curated.bytes)
            ),
        ),
        ("mention a concept", curated.mentioning.to_string()),
        (
            "concepts",
            format!("{found} of {} with pairs, {} with few", curated.concepts, curated.few.len()),
        ),
        ("mentioned together", format!("{} pairs of concepts", curated.overlaps)),
        ("forget pairs", format!("{} in {found} shards", curated.forget_pairs)),
        ("retain pairs", format!("{} in {} shards", curated.retain_pairs, curation.retain.1)),
        (
            "validation pairs",
            format!("{} in {} shards", curated.validation_pairs, curation.validation.1),
        ),
        ("next", format!("fill in the model in {0}, then: lethe plan {0}", curated.manifest)),
    ];
    rows.map(|(name, value)| format!("  {name:<20}{value}")).join("\n")
}

//! Shards of image-text pairs.

use std::collections::{BTreeMap, HashSet};
use std::io::BufReader;
use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::image_file::{self, Dimensions};
use lethe_shared::printable::printable;
use lethe_shared::shard::{self, Captions, ShardInfo};
use lethe_shared::webdataset::Archive;
use lethe_store as store;

use super::inspection::{Inspection, Options, blocking, number};
use crate::failure::Failure;
use crate::progress::human_bytes;

/// Captions that are shown.
const EXAMPLES: usize = 3;
/// Most captions that are told apart.
const DISTINCT: usize = 1_000_000;

/// A shard that was read.
pub(super) struct Shard {
    /// Its contents, when it is accepted.
    pub(super) whole: Option<ShardInfo>,
    pub(super) odd: Vec<String>,
    pub(super) problems: Vec<String>,
    summary: Summary,
}

/// What the pairs of a shard look like.
#[derive(Debug, Default)]
struct Summary {
    /// Number of images by format.
    formats: BTreeMap<&'static str, u64>,
    /// The images with the fewest and the most pixels.
    sizes: Option<(Dimensions, Dimensions)>,
    captions: HashSet<Digest>,
    examples: Vec<String>,
    longest: usize,
    pairs: u64,
}

/// Inspects a shard.
pub(super) async fn inspect(
    address: &Address,
    options: Options<'_>,
) -> Result<Inspection, Failure> {
    let shard = read(address, options).await?;
    let mut inspection = Inspection::of(address, "a shard of image-text pairs");
    let summary = shard.summary;
    match &shard.whole {
        Some(whole) => {
            inspection.row("pairs", number(whole.pairs));
            inspection.row("size", human_bytes(whole.bytes));
        }
        None => inspection.row("readable pairs", number(summary.pairs)),
    }
    if let Some(((w, h), (width, height))) = summary.sizes {
        let formats: Vec<String> = summary
            .formats
            .iter()
            .map(|(format, count)| format!("{} {format}", number(*count)))
            .collect();
        let sizes = if (w, h) == (width, height) {
            format!("{w} × {h} pixels")
        } else {
            format!("{w} × {h} to {width} × {height} pixels")
        };
        inspection.row("images", format!("{}, {sizes}", formats.join(", ")));
    }
    if !summary.examples.is_empty() {
        let examples: Vec<String> =
            summary.examples.iter().map(|caption| format!("`{}`", printable(caption))).collect();
        inspection.row(
            "captions",
            format!(
                "{} different, up to {} bytes, such as {}",
                number(summary.captions.len() as u64),
                number(summary.longest as u64),
                examples.join(", ")
            ),
        );
    }
    if let (Some(classes), Some(whole)) = (options.classes, &shard.whole) {
        inspection.row(
            "classes",
            format!("{} of {}", whole.by_class.len(), number(classes.names().len() as u64)),
        );
    }
    if let Some(whole) = &shard.whole {
        inspection.row("digest", whole.digest.to_string());
    }
    inspection.odd = shard.odd;
    inspection.problems = shard.problems;
    Ok(inspection)
}

/// Reads a shard as a plan does, and summarizes its pairs.
pub(super) async fn read(address: &Address, options: Options<'_>) -> Result<Shard, Failure> {
    let path = store::fetch_file(address, options.cache, None).await?;
    let classes = options.classes.cloned();
    blocking(move || {
        let captions = classes.as_ref().map_or(Captions::Any, Captions::Classes);
        let inspected = shard::inspect(&path, captions);
        let summary = summarize(&path);
        let (mut odd, mut problems, mut whole) = (Vec::new(), Vec::new(), None);
        match inspected {
            Ok(info) => {
                if info.pairs == 0 {
                    problems.push("holds no image-text pair".to_owned());
                }
                odd.extend(info.strays.sentence());
                whole = Some(info);
            }
            Err(found) => {
                let more = found.count.saturating_sub(found.named.len() as u64);
                problems = found.named;
                if more > 0 {
                    problems.push(format!("{more} more problems are not named here"));
                }
                if found.of_samples {
                    problems.push("`lethe curate` writes shards without such samples".to_owned());
                }
            }
        }
        Shard { whole, odd, problems, summary }
    })
    .await
}

/// Summarizes the pairs of a shard as far as it can be read.
fn summarize(path: &Path) -> Summary {
    let mut summary = Summary::default();
    let Ok(file) = std::fs::File::open(path) else { return summary };
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, file));
    let Ok(mut samples) = archive.samples(true) else { return summary };
    while let Ok(Some(sample)) = samples.advance() {
        let Ok(pair) = sample.pair() else { continue };
        summary.pairs += 1;
        *summary.formats.entry(pair.extension).or_default() += 1;
        if let Ok(Some(size)) = image_file::check(pair.image) {
            let pixels = |(width, height): Dimensions| u64::from(width) * u64::from(height);
            let (least, most) = summary.sizes.unwrap_or((size, size));
            summary.sizes = Some((
                if pixels(size) < pixels(least) { size } else { least },
                if pixels(size) > pixels(most) { size } else { most },
            ));
        }
        let is_new = summary.captions.len() < DISTINCT
            && summary.captions.insert(Digest::of(pair.caption.as_bytes()));
        if is_new && summary.examples.len() < EXAMPLES {
            summary.examples.push(pair.caption.to_owned());
        }
        summary.longest = summary.longest.max(pair.caption.len());
    }
    summary
}

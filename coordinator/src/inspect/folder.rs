//! Folders: models, releases, and folders of shards.

use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_store as store;

use super::inspection::{Inspection, Options, accepted, blocking, number};
use super::shard;
use crate::failure::Failure;
use crate::intake::model::examine;
use crate::layout;
use crate::progress::human_bytes;
use crate::release::read::Release;

/// Most shards of a folder that have a line of their own.
const SHOWN: usize = 12;
/// Most oddities and problems of a folder of shards that are shown.
const NAMED: usize = 20;

/// Inspects a model.
pub(super) async fn model(
    address: &Address,
    is: &str,
    cache: &Path,
) -> Result<Inspection, Failure> {
    let folder = store::fetch_folder(address, cache).await?;
    let shown = address.to_string();
    let examined = blocking(move || examine(&folder, &shown)).await?;
    let mut inspection = Inspection::of(address, is);
    let examined = match accepted(examined.map_err(Failure::from))? {
        Ok(examined) => examined,
        Err(problems) => return Ok(Inspection { problems, ..inspection }),
    };
    if let Some(layout) = examined.checkpoint.layout() {
        inspection.is = format!("{is} in the layout of {}", layout.library());
    }
    inspection.row("weights", weights(&examined.checkpoint));
    inspection.read.extend(examined.description);
    inspection.row("digest", examined.weights.to_string());
    inspection.odd = examined.warnings;
    inspection.problems = examined.problems;
    Ok(inspection)
}

/// Returns files, tensors, types and size of weights.
pub(super) fn weights(checkpoint: &Checkpoint) -> String {
    let mut types: Vec<String> = checkpoint
        .tensors()
        .values()
        .map(|tensor| format!("{:?}", tensor.dtype).to_lowercase())
        .collect();
    types.sort_unstable();
    types.dedup();
    let files: Vec<&str> = checkpoint.file_names().collect();
    let files = match files.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("{} shards", several.len()),
    };
    format!(
        "{files}: {} tensors, {}, {}",
        number(checkpoint.tensors().len() as u64),
        types.join(" and "),
        human_bytes(checkpoint.tensor_bytes())
    )
}

/// Inspects a release: its record, and the model in it.
pub(super) async fn release(address: &Address, cache: &Path) -> Result<Inspection, Failure> {
    let opened = match accepted(Release::open(address).await)? {
        Ok(opened) => opened,
        Err(problems) => {
            return Ok(Inspection { problems, ..Inspection::of(address, "a release") });
        }
    };
    let record = &opened.record;
    let mut inspection = model(address, "a release: a model", cache).await?;
    let removed = format!(
        "{} edits by `{}`, {} concepts without one",
        record.concepts.len(),
        record.method,
        record.missing.len()
    );
    inspection.read.insert(0, ("release", format!("{}, of run {}", record.name, record.run)));
    inspection.read.insert(1, ("edits", removed));
    inspection.next = Some("`lethe verify` checks every file".into());
    // They are files of the release, and not another form of the model.
    inspection.odd.retain(|odd| !odd.starts_with(layout::EDITS));
    Ok(inspection)
}

/// Inspects the shards of a folder.
pub(super) async fn shards(
    address: &Address,
    names: &[String],
    options: Options<'_>,
) -> Result<Inspection, Failure> {
    let mut inspection = Inspection::of(address, format!("a folder of {} shards", names.len()));
    let (mut pairs, mut bytes, mut rows) = (0, 0, Vec::new());
    for name in names {
        let of = Address::parse(&format!("{address}/{name}")).map_err(Failure::input)?;
        let shard = shard::read(&of, options).await?;
        match &shard.whole {
            Some(whole) => {
                pairs += whole.pairs;
                bytes += whole.bytes;
                rows.push(format!("{name}: {} pairs", number(whole.pairs)));
            }
            None => rows.push(format!("{name}: refused")),
        }
        let at = |sentences: Vec<String>| {
            sentences.into_iter().map(|sentence| format!("{name}: {sentence}")).collect::<Vec<_>>()
        };
        inspection.odd.extend(at(shard.odd));
        inspection.problems.extend(at(shard.problems));
    }
    inspection.row("pairs", number(pairs));
    inspection.row("size", human_bytes(bytes));
    let hidden = rows.len().saturating_sub(SHOWN);
    rows.truncate(SHOWN);
    rows.into_iter().for_each(|row| inspection.row("shard", row));
    if hidden > 0 {
        inspection.row("shard", format!("and {hidden} more"));
    }
    for sentences in [&mut inspection.odd, &mut inspection.problems] {
        let more = sentences.len().saturating_sub(NAMED);
        sentences.truncate(NAMED);
        if more > 0 {
            sentences.push(format!("{more} more are not shown"));
        }
    }
    Ok(inspection)
}

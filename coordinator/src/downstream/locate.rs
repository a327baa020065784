//! Locates a tower in a folder of a target, and compares it with the base's.

use std::collections::BTreeSet;

use lethe_shared::checkpoint::tower::{TowerMap, prefixes};
use lethe_shared::checkpoint::{Checkpoint, is_safetensors_index, read_index};
use lethe_shared::vocabulary::Tower;

use super::encoder::{Encoder, Expected, WeightSet};
use super::folder::Folder;
use super::kinds::{Kind, kind};
use super::same;
use crate::failure::Failure;

/// Ends of the prefixes of a tower's tensor names.
const ROOTS: [&str; 2] = ["text_model.", "vision_model."];

/// Returns the tower in a folder of the target as stored there, one set per precision.
pub(super) async fn weight_sets(
    folder: &Folder,
    expected: &Expected,
    tower: Tower,
) -> Result<Vec<WeightSet>, Failure> {
    let at = expected.folder.as_str();
    let names: Vec<&str> = folder.directly_in(at).collect();
    let (mut sets, mut indexed) = (Vec::new(), BTreeSet::new());
    for &name in names.iter().filter(|name| is_safetensors_index(name)) {
        let root = folder.bring([name]).await?.join(at);
        let file = name.rsplit('/').next().unwrap_or(name);
        let index = read_index(&root, file)?;
        let below =
            |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        indexed.extend(index.values().map(|file| below(file)));
        let found = prefixes(index.keys().map(String::as_str), tower);
        if found.is_empty() {
            continue;
        }
        // The projection is stored beside the tower, not under its prefix.
        let roots: Vec<&str> = found
            .iter()
            .map(|prefix| ROOTS.iter().find_map(|end| prefix.strip_suffix(end)).unwrap_or(prefix))
            .collect();
        let wanted = |tensor: &str| roots.iter().any(|root| tensor.starts_with(root));
        let files: BTreeSet<String> = index
            .iter()
            .filter(|(tensor, _)| wanted(tensor))
            .map(|(_, file)| below(file))
            .collect();
        folder.bring(files.iter().map(String::as_str)).await?;
        sets.push(weight_set(name, Checkpoint::open_part(&root, file, wanted)?, tower)?);
    }
    for &name in
        names.iter().filter(|name| name.ends_with(".safetensors") && !indexed.contains(**name))
    {
        let root = folder.bring([name]).await?.join(at);
        let checkpoint = Checkpoint::open_file(&root, name.rsplit('/').next().unwrap_or(name))?;
        if !prefixes(checkpoint.tensors().keys().map(String::as_str), tower).is_empty() {
            sets.push(weight_set(name, checkpoint, tower)?);
        }
    }
    if sets.is_empty() {
        let at = if at.is_empty() { "it" } else { at };
        let pickled = names.iter().find(|name| kind(name, 0) == Kind::OtherWeights);
        return Err(Failure::input(match (pickled, &expected.elsewhere) {
            (Some(name), _) => format!(
                "{at} has no {} tower in safetensors ({name} is not read: opening a pickle runs code); load it in Python where you trust its \
                 source, and save it with save_pretrained(folder, safe_serialization=True)",
                tower.name()
            ),
            (None, Some(elsewhere)) => format!("{at} has no {} tower: {elsewhere}", tower.name()),
            (None, None) => format!(
                "{at} has no weights of a {} tower in safetensors; name a folder that has all of the model's weights, or leave the target out",
                tower.name()
            ),
        }));
    }
    Ok(sets)
}

fn weight_set(name: &str, checkpoint: Checkpoint, tower: Tower) -> Result<WeightSet, Failure> {
    let map = TowerMap::of(checkpoint.tensors(), tower)
        .map_err(|error| Failure::input(format!("{name}: {error}")))?;
    Ok(WeightSet { name: name.to_owned(), checkpoint, map })
}

/// Returns the encoder in these weights, or the difference from the base.
pub(super) fn encoder(
    expected: Expected,
    sets: Vec<WeightSet>,
    base: (&Checkpoint, &TowerMap),
    tolerance: Option<f64>,
    is_used: bool,
) -> Result<Result<Encoder, String>, String> {
    let mut distances = Vec::new();
    for set in &sets {
        distances.push(
            same::distance(base, (&set.checkpoint, &set.map), tolerance)
                .map_err(|problem| format!("{}: {problem}", set.name)),
        );
    }
    if distances.iter().all(Result::is_err) {
        return Ok(Err(distances.into_iter().filter_map(Result::err).next().unwrap_or_default()));
    }
    // A folder with two models is ambiguous.
    let distance = distances
        .into_iter()
        .collect::<Result<Vec<f64>, String>>()?
        .into_iter()
        .fold(0.0, f64::max);
    let stored = sets.iter().map(|set| set.map.blocks()).min().unwrap_or_default();
    let blocks = expected.blocks.unwrap_or(stored);
    if blocks > stored {
        return Err(format!("its configuration has {blocks} blocks, its weights have {stored}"));
    }
    let reach = (expected.reach)(blocks)?;
    let Expected { folder, reads, .. } = expected;
    Ok(Ok(Encoder { folder, blocks, reach, reads, is_used, sets, distance }))
}

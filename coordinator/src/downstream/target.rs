//! A target: another model that contains one of CLIP's towers, located and compared with the
//! base's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::tower::{Part, TowerMap, Weight, prefixes};
use lethe_shared::checkpoint::{Checkpoint, read_index};
use lethe_shared::digest::Digest;
use lethe_shared::manifest::{Manifest, ReleaseTarget, TargetKind};
use lethe_shared::record::targets::TargetRecord;
use lethe_shared::vocabulary::Tower;

use super::encoder::{Encoder, Expected, WeightSet};
use super::folder::Folder;
use super::{llava, pipeline, same};
use crate::failure::Failure;

/// A target with its tower located and compared with the base's. The rest of the model is not read.
#[derive(Debug)]
pub struct Target {
    /// The target's entry in the manifest.
    pub request: ReleaseTarget,
    pub(super) address: Address,
    pub(super) folder: Folder,
    pub(super) encoders: Vec<Encoder>,
    pub(super) left_out: BTreeSet<String>,
    /// Warnings, which do not stop a run.
    pub warnings: Vec<String>,
}

/// Extensions of weights in formats other than safetensors: they are not edited, and would still
/// contain the removed concepts.
const OTHER_WEIGHTS: &[&str] = &[
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".msgpack",
    ".h5",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".gguf",
    ".ot",
];
/// Files with an extension of weights that hold no part of a tower.
const NO_TOWER: &[&str] = &["mm_projector.bin", "training_args.bin"];

fn is_other_weights(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let index = file.ends_with(".index.json") && !file.ends_with(".safetensors.index.json");
    !NO_TOWER.contains(&file) && (index || OTHER_WEIGHTS.iter().any(|end| file.ends_with(end)))
}

impl Target {
    /// Opens a target and compares its tower with that of `base`. Needed files of a remote target
    /// are downloaded into `cache`.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the target is invalid, or its tower differs from the base's.
    pub async fn open(
        request: &ReleaseTarget,
        address: Address,
        base: &Checkpoint,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let wrong = |problem: String| {
            Failure::input(format!("target `{}` ({address}): {problem}", request.name))
        };
        let folder =
            Folder::open(&address, cache).await.map_err(|failure| named(failure, &wrong))?;
        if folder.has(lethe_shared::record::targets::TARGET_FILE) {
            return Err(wrong("is itself a release's target without the files that it refers to; put them together first".to_owned()));
        }
        let mut warnings = Vec::new();
        let found = match request.kind {
            TargetKind::StableDiffusion => pipeline::expected(&folder).await,
            TargetKind::Llava => llava::expected(&folder, &mut warnings).await,
        };
        let expected = found.map_err(|failure| named(failure, &wrong))?;
        let tower = request.kind.tower();
        let own = TowerMap::of(base.tensors(), tower)
            .map_err(|error| Failure::input(format!("the model: {error}")))?;
        let (mut encoders, mut others, mut left_out) = (Vec::new(), Vec::new(), BTreeSet::new());
        for expected in expected {
            let at = if expected.folder.is_empty() {
                "the checkpoint".to_owned()
            } else {
                format!("`{}`", expected.folder)
            };
            let sets = weight_sets(&folder, &expected, tower)
                .await
                .map_err(|failure| named(failure, &wrong))?;
            match encoder(expected, sets, (base, &own), request.tolerance).map_err(wrong)? {
                Ok(encoder) => {
                    left_out.extend(
                        folder
                            .directly_in(&encoder.folder)
                            .filter(|name| is_other_weights(name))
                            .map(str::to_owned),
                    );
                    encoders.push(encoder);
                }
                Err(reason) => others.push(format!("{at}: {reason}")),
            }
        }
        if encoders.is_empty() {
            return Err(wrong(format!(
                "its {} tower is not the model's, so that edits of one mean nothing in the other ({})",
                tower.name(),
                others.join("; ")
            )));
        }
        warnings.extend(
            others
                .into_iter()
                .map(|other| format!("{other}; it stays as it is, and knows what it knew")),
        );
        if request.kind == TargetKind::StableDiffusion {
            let whole = |name: &&str| is_other_weights(name) || name.ends_with(".safetensors");
            left_out.extend(folder.directly_in("").filter(whole).map(str::to_owned));
        }
        if !left_out.is_empty() {
            let names: Vec<&str> = left_out.iter().map(String::as_str).collect();
            warnings.push(format!(
                "{} would carry what is removed, and cannot be edited: left out",
                names.join(", ")
            ));
        }
        let warnings = warnings
            .into_iter()
            .map(|warning| format!("target `{}`: {warning}", request.name))
            .collect();
        Ok(Self { request: request.clone(), address, folder, encoders, left_out, warnings })
    }

    /// Opens the target of a record, at its recorded address or at `elsewhere`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn of_record(
        record: &TargetRecord,
        elsewhere: Option<&Address>,
        base: &Checkpoint,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let request = ReleaseTarget {
            name: record.name.clone(),
            kind: record.kind,
            uri: record.address.clone(),
            pass_through: record.pass_through,
            tolerance: record.tolerance,
        };
        let address = match elsewhere {
            Some(address) => address.clone(),
            None => Address::parse(&record.address).map_err(Failure::input)?,
        };
        Self::open(&request, address, base, cache).await
    }

    /// Opens all targets of a manifest.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with the problems of all targets.
    pub async fn open_all(
        manifest: &Manifest,
        base: &Checkpoint,
        cache: &Path,
    ) -> Result<Vec<Self>, Failure> {
        let (mut targets, mut problems) = (Vec::new(), Vec::new());
        for request in &manifest.release.target {
            let address = manifest.address("release.target", &request.uri)?;
            match Self::open(request, address, base, cache).await {
                Ok(target) => targets.push(target),
                Err(Failure::BadInput(more)) => problems.extend(
                    more.into_iter()
                        .map(|problem| format!("{}: {problem}", manifest.file.display())),
                ),
                Err(other) => return Err(other),
            }
        }
        if problems.is_empty() { Ok(targets) } else { Err(Failure::BadInput(problems)) }
    }

    /// Returns the tower that the target contains.
    pub fn tower(&self) -> Tower {
        self.request.kind.tower()
    }

    /// Returns the size of its files, bytes.
    pub fn bytes(&self) -> u64 {
        self.passed().map(|(_, bytes)| bytes).sum()
    }

    /// Returns the digest of the target in a run's identity: its tower's weights, and the names and
    /// sizes of its files.
    ///
    /// # Errors
    /// [`Failure`] when its weights cannot be read.
    pub fn identity(&self) -> Result<Digest, Failure> {
        let weights: Vec<(&str, Digest)> = self
            .encoders
            .iter()
            .flat_map(|encoder| &encoder.sets)
            .map(|set| Ok((set.name.as_str(), set.checkpoint.digest()?)))
            .collect::<Result<_, Failure>>()?;
        let ReleaseTarget { name, kind, uri: _, pass_through, tolerance } = &self.request;
        Ok(Digest::of_json(&(
            name,
            kind,
            pass_through,
            tolerance,
            weights,
            self.passed().collect::<BTreeMap<_, _>>(),
        )))
    }

    /// Returns whether an edit of this layer of the base has an effect in the target.
    pub fn acts(&self, layer: &str, own: &TowerMap) -> bool {
        own.tower() == self.tower()
            && own
                .weights_in(layer)
                .any(|(weight, _)| self.encoders.iter().any(|encoder| encoder.acts(weight)))
    }

    /// Returns names and sizes of its files, without those that a release leaves out.
    pub(super) fn passed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.folder.files().filter(|(name, _)| !self.left_out.contains(*name))
    }
}

/// Adds the target's name to every problem.
fn named(failure: Failure, wrong: &impl Fn(String) -> Failure) -> Failure {
    match failure {
        Failure::BadInput(problems) => wrong(problems.join("; ")),
        other => other,
    }
}

/// Ends of the prefixes of a tower's tensor names.
const ROOTS: [&str; 2] = ["text_model.", "vision_model."];

/// Returns the tower in a folder of the target as stored there, one set per precision.
async fn weight_sets(
    folder: &Folder,
    expected: &Expected,
    tower: Tower,
) -> Result<Vec<WeightSet>, Failure> {
    let at = expected.folder.as_str();
    let names: Vec<&str> = folder.directly_in(at).collect();
    let (mut sets, mut indexed) = (Vec::new(), BTreeSet::new());
    for &name in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
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
        let pickled = names.iter().find(|name| is_other_weights(name));
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
fn encoder(
    expected: Expected,
    sets: Vec<WeightSet>,
    base: (&Checkpoint, &TowerMap),
    tolerance: Option<f64>,
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
    Ok(Ok(Encoder { folder: expected.folder, blocks, reach, sets, distance }))
}

/// Returns the tensors of a base's tower that edits may change.
pub(super) fn candidates(own: &TowerMap, gains: bool) -> BTreeSet<&str> {
    let weights = own.places().iter().filter(|(weight, _)| weight.is_candidate(gains));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

/// Returns the last MLP tensors of the blocks of a base's tower, which corrected edits change.
pub(super) fn mlp_ends(own: &TowerMap) -> BTreeSet<&str> {
    use lethe_shared::checkpoint::tower::Map::Contract;
    let weights = own
        .places()
        .iter()
        .filter(|(weight, _)| matches!(weight, Weight::Block(_, Contract, Part::Weight)));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

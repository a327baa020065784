//! Targets: models with one of CLIP's towers inside, which get a release's edits too (`docs/targets.md`).
//!
//! An edit is CLIP's; here it is found again in another model's files, by what a tensor does and not by its name. The other model must
//! hold the same weights: an edit for another CLIP would do something, and nobody knows what.
//!
//! | file | what |
//! |---|---|
//! | `folder.rs` | a target's files, wherever they are |
//! | `pipeline.rs`, `llava.rs` | what a target of each kind holds, and which layers of it it uses |
//! | `same.rs` | whether its tower is the base's |
//! | `layers.rs` | which layers edits may go to, so that they act in every target |
//! | `apply.rs` | the edits on its tensors |
//! | `stage.rs` | its files as the release has them |

mod apply;
mod folder;
pub mod layers;
mod llava;
mod pipeline;
mod same;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::tower::{Part, TowerMap, Weight, prefixes};
use lethe_shared::checkpoint::{Checkpoint, read_index};
use lethe_shared::digest::Digest;
use lethe_shared::manifest::{Manifest, ReleaseTarget, TargetKind};
use lethe_shared::outcome::Tower;
use lethe_shared::record::targets::TargetRecord;

pub use self::apply::Edited;
use self::folder::Folder;
pub use self::stage::{Staged, stage};
use crate::failure::Failure;

/// How much of a tower a target uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Blocks, from the first one on.
    pub blocks: usize,
    /// The norm after the last block.
    pub last_norm: bool,
    /// The projection into the shared space.
    pub projection: bool,
}

impl Reach {
    /// Whether a change of this weight changes what the target computes.
    pub fn acts(&self, weight: Weight) -> bool {
        match weight {
            Weight::Block(block, ..) => block < self.blocks,
            Weight::LastNorm(_) => self.last_norm,
            Weight::Projection => self.projection,
            Weight::Input | Weight::Class | Weight::Position | Weight::FirstNorm(_) => true,
        }
    }
}

/// One tower of a target that is the base's.
#[derive(Debug)]
pub struct Encoder {
    /// Its folder in the target; empty for the target's own.
    folder: String,
    /// Its blocks, by its configuration.
    blocks: usize,
    reach: Reach,
    /// Its weights, once for each precision that they are stored in.
    sets: Vec<WeightSet>,
    /// Largest distance of a tensor from the base's.
    distance: f64,
}

impl Encoder {
    /// Whether an edit of this weight acts here.
    fn acts(&self, weight: Weight) -> bool {
        self.reach.acts(weight) && self.sets.iter().all(|set| set.map.places().contains_key(&weight))
    }
}

/// The tower in one weight file, or in those of one index.
#[derive(Debug)]
struct WeightSet {
    /// File or index, by its path in the target.
    name: String,
    checkpoint: Checkpoint,
    map: TowerMap,
}

/// A target, its tower found and compared with the base's. The rest of it is not read.
#[derive(Debug)]
pub struct Target {
    /// As the manifest has it.
    pub request: ReleaseTarget,
    address: Address,
    folder: Folder,
    encoders: Vec<Encoder>,
    left_out: BTreeSet<String>,
    /// Things worth knowing that stop nothing.
    pub warnings: Vec<String>,
}

/// A tower that a target of some kind has somewhere.
struct Expected {
    folder: String,
    /// What is used of it, given its number of blocks.
    reach: Box<dyn Fn(usize) -> Result<Reach, String> + Send + Sync>,
    /// Its configuration says that it has this many blocks, whatever is stored.
    blocks: Option<usize>,
    /// Where it is taken from, when it need not be in the target at all.
    elsewhere: Option<String>,
}

/// Weights in other formats than safetensors: what they hold is not edited, and would carry what was removed.
const OTHER_WEIGHTS: &[&str] = &[".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".gguf", ".ot"];
/// Files that end like weights and hold nothing of a tower.
const NO_TOWER: &[&str] = &["mm_projector.bin", "training_args.bin"];

fn is_other_weights(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let index = file.ends_with(".index.json") && !file.ends_with(".safetensors.index.json");
    !NO_TOWER.contains(&file) && (index || OTHER_WEIGHTS.iter().any(|end| file.ends_with(end)))
}

impl Target {
    /// Opens a target, and compares its tower with that of `base`. Files that this needs are downloaded into `cache` where the target
    /// is not on this machine.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it is not what it should be, or its tower is another model's.
    pub async fn open(request: &ReleaseTarget, address: Address, base: &Checkpoint, cache: &Path) -> Result<Self, Failure> {
        let wrong = |problem: String| Failure::input(format!("target `{}` ({address}): {problem}", request.name));
        let folder = Folder::open(&address, cache).await.map_err(|failure| named(failure, &wrong))?;
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
        let own = TowerMap::of(base.tensors(), tower).map_err(|error| Failure::input(format!("the model: {error}")))?;
        let (mut encoders, mut others, mut left_out) = (Vec::new(), Vec::new(), BTreeSet::new());
        for expected in expected {
            let at = if expected.folder.is_empty() { "the checkpoint".to_owned() } else { format!("`{}`", expected.folder) };
            let sets = weight_sets(&folder, &expected, tower).await.map_err(|failure| named(failure, &wrong))?;
            match encoder(expected, sets, (base, &own), request.tolerance).map_err(wrong)? {
                Ok(encoder) => {
                    left_out.extend(folder.directly_in(&encoder.folder).filter(|name| is_other_weights(name)).map(str::to_owned));
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
        warnings.extend(others.into_iter().map(|other| format!("{other}; it stays as it is, and knows what it knew")));
        if request.kind == TargetKind::StableDiffusion {
            let whole = |name: &&str| is_other_weights(name) || name.ends_with(".safetensors");
            left_out.extend(folder.directly_in("").filter(whole).map(str::to_owned));
        }
        if !left_out.is_empty() {
            let names: Vec<&str> = left_out.iter().map(String::as_str).collect();
            warnings.push(format!("{} would carry what is removed, and cannot be edited: left out", names.join(", ")));
        }
        let warnings = warnings.into_iter().map(|warning| format!("target `{}`: {warning}", request.name)).collect();
        Ok(Self { request: request.clone(), address, folder, encoders, left_out, warnings })
    }

    /// Opens the target that a record speaks of, where it was or `elsewhere`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn of_record(record: &TargetRecord, elsewhere: Option<&Address>, base: &Checkpoint, cache: &Path) -> Result<Self, Failure> {
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
    /// [`Failure::BadInput`] with what is wrong with each of them.
    pub async fn open_all(manifest: &Manifest, base: &Checkpoint, cache: &Path) -> Result<Vec<Self>, Failure> {
        let (mut targets, mut problems) = (Vec::new(), Vec::new());
        for request in &manifest.release.target {
            let address = manifest.address("release.target", &request.uri)?;
            match Self::open(request, address, base, cache).await {
                Ok(target) => targets.push(target),
                Err(Failure::BadInput(more)) => {
                    problems.extend(more.into_iter().map(|problem| format!("{}: {problem}", manifest.file.display())))
                }
                Err(other) => return Err(other),
            }
        }
        if problems.is_empty() { Ok(targets) } else { Err(Failure::BadInput(problems)) }
    }

    /// The tower that is in it.
    pub fn tower(&self) -> Tower {
        self.request.kind.tower()
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.passed().map(|(_, bytes)| bytes).sum()
    }

    /// What it adds to a run's identity: its tower's weights, and the names and sizes of its files.
    ///
    /// # Errors
    /// When its weights cannot be read.
    pub fn identity(&self) -> Result<Digest, Failure> {
        let weights: Vec<(&str, Digest)> = self
            .encoders
            .iter()
            .flat_map(|encoder| &encoder.sets)
            .map(|set| Ok((set.name.as_str(), set.checkpoint.digest()?)))
            .collect::<Result<_, Failure>>()?;
        let ReleaseTarget { name, kind, uri: _, pass_through, tolerance } = &self.request;
        Ok(Digest::of_json(&(name, kind, pass_through, tolerance, weights, self.passed().collect::<BTreeMap<_, _>>())))
    }

    /// Whether an edit of this layer of the base acts in it.
    pub fn acts(&self, layer: &str, own: &TowerMap) -> bool {
        own.tower() == self.tower() && own.weights_in(layer).any(|(weight, _)| self.encoders.iter().any(|encoder| encoder.acts(weight)))
    }

    /// Its files without those that are left out, and their sizes.
    fn passed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.folder.files().filter(|(name, _)| !self.left_out.contains(*name))
    }
}

/// Puts the target's name before every problem.
fn named(failure: Failure, wrong: &impl Fn(String) -> Failure) -> Failure {
    match failure {
        Failure::BadInput(problems) => wrong(problems.join("; ")),
        other => other,
    }
}

/// How the names of a tower's tensors end, up to what is the tower's.
const ROOTS: [&str; 2] = ["text_model.", "vision_model."];

/// The tower in a folder of the target as it is stored there, once for each precision.
async fn weight_sets(folder: &Folder, expected: &Expected, tower: Tower) -> Result<Vec<WeightSet>, Failure> {
    let at = expected.folder.as_str();
    let names: Vec<&str> = folder.directly_in(at).collect();
    let (mut sets, mut indexed) = (Vec::new(), BTreeSet::new());
    for &name in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        let root = folder.bring([name]).await?.join(at);
        let file = name.rsplit('/').next().unwrap_or(name);
        let index = read_index(&root, file)?;
        let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
        indexed.extend(index.values().map(|file| below(file)));
        let found = prefixes(index.keys().map(String::as_str), tower);
        if found.is_empty() {
            continue;
        }
        // The projection stands beside the tower.
        let roots: Vec<&str> = found.iter().map(|prefix| ROOTS.iter().find_map(|end| prefix.strip_suffix(end)).unwrap_or(prefix)).collect();
        let wanted = |tensor: &str| roots.iter().any(|root| tensor.starts_with(root));
        let files: BTreeSet<String> = index.iter().filter(|(tensor, _)| wanted(tensor)).map(|(_, file)| below(file)).collect();
        folder.bring(files.iter().map(String::as_str)).await?;
        sets.push(weight_set(name, Checkpoint::open_part(&root, file, wanted)?, tower)?);
    }
    for &name in names.iter().filter(|name| name.ends_with(".safetensors") && !indexed.contains(**name)) {
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
    let map = TowerMap::of(checkpoint.tensors(), tower).map_err(|error| Failure::input(format!("{name}: {error}")))?;
    Ok(WeightSet { name: name.to_owned(), checkpoint, map })
}

/// The encoder in these weights; what makes it another model's, when it is.
fn encoder(
    expected: Expected,
    sets: Vec<WeightSet>,
    base: (&Checkpoint, &TowerMap),
    tolerance: Option<f64>,
) -> Result<Result<Encoder, String>, String> {
    let mut distances = Vec::new();
    for set in &sets {
        distances.push(same::distance(base, (&set.checkpoint, &set.map), tolerance).map_err(|problem| format!("{}: {problem}", set.name)));
    }
    if distances.iter().all(Result::is_err) {
        return Ok(Err(distances.into_iter().filter_map(Result::err).next().unwrap_or_default()));
    }
    // One folder with two models is not understood.
    let distance = distances.into_iter().collect::<Result<Vec<f64>, String>>()?.into_iter().fold(0.0, f64::max);
    let stored = sets.iter().map(|set| set.map.blocks()).min().unwrap_or_default();
    let blocks = expected.blocks.unwrap_or(stored);
    if blocks > stored {
        return Err(format!("its configuration has {blocks} blocks, its weights have {stored}"));
    }
    let reach = (expected.reach)(blocks)?;
    Ok(Ok(Encoder { folder: expected.folder, blocks, reach, sets, distance }))
}

/// The tensors of a base's tower that edits may change.
fn candidates(own: &TowerMap, gains: bool) -> BTreeSet<&str> {
    let weights = own.places().iter().filter(|(weight, _)| weight.is_candidate(gains));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

/// The tensors of a base's tower that end a block's MLP: those that corrected edits change.
fn mlp_ends(own: &TowerMap) -> BTreeSet<&str> {
    use lethe_shared::checkpoint::tower::Map::Contract;
    let weights = own.places().iter().filter(|(weight, _)| matches!(weight, Weight::Block(_, Contract, Part::Weight)));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

//! A target: another model that contains one of CLIP's towers, located and compared with the
//! base's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::checkpoint::tower::{Part, TowerMap, Weight};
use lethe_shared::digest::Digest;
use lethe_shared::manifest::{Manifest, ReleaseTarget, TargetKind};
use lethe_shared::record::targets::{TargetRecord, UneditedEncoder};
use lethe_shared::vocabulary::Tower;

use super::encoder::{Encoder, Found, Reach};
use super::folder::Folder;
use super::kinds::Component;
use super::locate::{encoder, weight_sets};
use super::settings::Settings;
use super::sweep::Sweep;
use super::{padding, pipeline, vision_language};
use crate::failure::Failure;

/// A target with its tower located and compared with the base's. The rest of the model is not read.
#[derive(Debug)]
pub struct Target {
    /// The target's entry in the manifest.
    pub request: ReleaseTarget,
    pub(super) address: Address,
    pub(super) folder: Folder,
    pub(super) encoders: Vec<Encoder>,
    /// The class of a pipeline, or `model_type` of a vision-language model.
    pub architecture: String,
    /// Text encoders in it that are no towers of the base's.
    pub unedited: Vec<UneditedEncoder>,
    padding: Option<u32>,
    pub(super) left_out: BTreeSet<String>,
    /// Warnings, which do not stop a run.
    pub warnings: Vec<String>,
}

/// A tower of a target, for a person.
#[derive(Debug)]
pub struct TowerSummary<'a> {
    /// Its folder in the target; empty for the root.
    pub folder: &'a str,
    /// Number of blocks by its configuration.
    pub blocks: usize,
    /// The part that the target uses.
    pub reach: Reach,
    /// What the target reads of it.
    pub reads: &'a str,
    /// Whether the target reads it; further copies are edited too.
    pub is_used: bool,
    /// Its weight files and indexes, by their path in the target.
    pub weights: Vec<&'a str>,
}

/// Returns the kind of target that a folder is; `None` when it is none.
///
/// # Errors
/// [`Failure::BadInput`] when its configuration cannot be read.
pub async fn kind_of(folder: &Folder) -> Result<Option<TargetKind>, Failure> {
    if folder.has(pipeline::INDEX) {
        return Ok(Some(TargetKind::StableDiffusion));
    }
    if !folder.has(vision_language::CONFIG) {
        return Ok(None);
    }
    let config = folder.json(vision_language::CONFIG).await?;
    Ok(vision_language::is_config(&config).then_some(TargetKind::Llava))
}

impl Target {
    /// Opens a target without a base: its first tower stands for the base's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn alone(
        request: &ReleaseTarget,
        address: Address,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let wrong = refusal(request, &address);
        let folder =
            Folder::open(&address, cache).await.map_err(|failure| named(failure, &wrong))?;
        let found = expected(request.kind, &folder, &mut Vec::new(), &mut Vec::new()).await;
        let mut base = None;
        for expected in found.map_err(|failure| named(failure, &wrong))?.expected {
            let sets = weight_sets(&folder, &expected, request.kind.tower())
                .await
                .map_err(|failure| named(failure, &wrong))?;
            // Of several precisions, the others are rounded from the widest.
            let widest =
                sets.into_iter().map(|set| set.checkpoint).max_by_key(Checkpoint::tensor_bytes);
            base = base.or(widest);
        }
        let base = base.ok_or_else(|| wrong("has no tower".to_owned()))?;
        Self::compared(request, address, &base, None, cache).await
    }

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
        let settings = Settings::of_model(base, request.kind.tower());
        Self::compared(request, address, base, settings, cache).await
    }

    async fn compared(
        request: &ReleaseTarget,
        address: Address,
        base: &Checkpoint,
        settings: Option<Settings>,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let wrong = refusal(request, &address);
        let folder =
            Folder::open(&address, cache).await.map_err(|failure| named(failure, &wrong))?;
        if folder.has(lethe_shared::record::targets::TARGET_FILE) {
            return Err(wrong("is itself a release's target without the files that it refers to; put them together first".to_owned()));
        }
        let mut warnings = Vec::new();
        let mut components = Vec::new();
        let found = expected(request.kind, &folder, &mut components, &mut warnings).await;
        let Found { architecture, expected, mut unedited } =
            found.map_err(|failure| named(failure, &wrong))?;
        let tower = request.kind.tower();
        let own = TowerMap::of(base.tensors(), tower)
            .map_err(|error| Failure::input(format!("the model: {error}")))?;
        let (mut encoders, mut others, mut kept) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut unedited_towers = Vec::new();
        for expected in expected {
            let at = if expected.folder.is_empty() {
                "the checkpoint".to_owned()
            } else {
                format!("`{}`", expected.folder)
            };
            let in_folder = expected.folder.clone();
            let class = expected.class.clone();
            let difference = match (&expected.settings, &settings) {
                (Some(here), Some(model)) => here.difference(model),
                _ => None,
            };
            let sets = weight_sets(&folder, &expected, tower)
                .await
                .map_err(|failure| named(failure, &wrong))?;
            match encoder(expected, sets, (base, &own), request.tolerance, true).map_err(&wrong)? {
                Ok(encoder) => match difference {
                    None => encoders.push(encoder),
                    Some(difference) => return Err(wrong(format!("{at}: {difference}"))),
                },
                Err(reason) => {
                    others.push(format!("{at}: {reason}"));
                    kept.insert(in_folder.clone());
                    unedited_towers.push(UneditedEncoder { folder: in_folder, class });
                }
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
        let reads_states = encoders.iter().any(|encoder: &Encoder| !encoder.reach.is_pooled);
        warnings.extend(pipeline::unedited_warning(&unedited, reads_states));
        unedited.extend(unedited_towers);
        let sweep = Sweep {
            folder: &folder,
            tower,
            base: (base, &own),
            tolerance: request.tolerance,
            kept,
            components,
            is_pipeline: request.kind == TargetKind::StableDiffusion,
        };
        let left_out = sweep
            .run(&mut encoders, &mut warnings)
            .await
            .map_err(|failure| named(failure, &wrong))?;
        let padding = match encoders.first() {
            Some(encoder) if request.kind == TargetKind::StableDiffusion && reads_states => {
                padding::of(&folder, &encoder.folder, &mut warnings)
                    .await
                    .map_err(|failure| named(failure, &wrong))?
            }
            _ => None,
        };
        let warnings = warnings
            .into_iter()
            .map(|warning| format!("target `{}`: {warning}", request.name))
            .collect();
        let request = request.clone();
        Ok(Self {
            request,
            address,
            folder,
            encoders,
            architecture,
            unedited,
            padding,
            left_out,
            warnings,
        })
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

    /// Returns the token with which a pipeline pads prompts, where it is another one than the end of
    /// a text.
    pub fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Returns whether it reads the states of all tokens of a text, and not one vector alone.
    pub fn reads_every_token(&self) -> bool {
        self.tower() == Tower::Text && self.used().any(|encoder| !encoder.reach.is_pooled)
    }

    /// Returns the tower that the target contains.
    pub fn tower(&self) -> Tower {
        self.request.kind.tower()
    }

    /// Returns its towers that are the base's.
    pub fn towers(&self) -> impl Iterator<Item = TowerSummary<'_>> {
        self.encoders.iter().map(|encoder| TowerSummary {
            folder: &encoder.folder,
            blocks: encoder.blocks,
            reach: encoder.reach,
            reads: &encoder.reads,
            is_used: encoder.is_used,
            weights: encoder.sets.iter().map(|set| set.name.as_str()).collect(),
        })
    }

    /// Returns the number of its files that a release gets.
    pub fn files(&self) -> usize {
        self.passed().count()
    }

    /// Returns the size of these files, bytes.
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
                .any(|(weight, _)| self.used().any(|encoder| encoder.acts(weight)))
    }

    /// Returns the towers that the target reads.
    fn used(&self) -> impl Iterator<Item = &Encoder> {
        self.encoders.iter().filter(|encoder| encoder.is_used)
    }

    /// Returns names and sizes of its files, without those that a release leaves out.
    pub(super) fn passed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.folder.files().filter(|(name, _)| !self.left_out.contains(*name))
    }
}

/// Returns the towers that a target of this kind has.
async fn expected(
    kind: TargetKind,
    folder: &Folder,
    components: &mut Vec<Component>,
    warnings: &mut Vec<String>,
) -> Result<Found, Failure> {
    match kind {
        TargetKind::StableDiffusion => pipeline::expected(folder, components).await,
        TargetKind::Llava => vision_language::expected(folder, warnings).await,
    }
}

/// Returns how a problem of this target is reported.
fn refusal(request: &ReleaseTarget, address: &Address) -> impl Fn(String) -> Failure + use<> {
    let target = format!("target `{}` ({address})", request.name);
    move |problem| Failure::input(format!("{target}: {problem}"))
}

/// Adds the target's name to every problem.
fn named(failure: Failure, wrong: &impl Fn(String) -> Failure) -> Failure {
    match failure {
        Failure::BadInput(problems) => wrong(problems.join("; ")),
        other => other,
    }
}

/// Returns the tensors of a base's tower that edits may change.
pub(super) fn candidates(own: &TowerMap, gains: bool) -> BTreeSet<&str> {
    let weights = own.places().iter().filter(|(weight, _)| weight.is_candidate(gains));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

/// Returns the last MLP tensors of the blocks of a base's tower, which corrected edits change.
pub(super) fn mlp_ends(own: &TowerMap) -> BTreeSet<&str> {
    use lethe_shared::checkpoint::tower::Map::Fc2;
    let weights = own
        .places()
        .iter()
        .filter(|(weight, _)| matches!(weight, Weight::Block(_, Fc2, Part::Weight)));
    weights.map(|(_, place)| place.tensor.as_str()).collect()
}

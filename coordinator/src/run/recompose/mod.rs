//! Composes a new release from the stored edits of an old one: concepts with other strengths, left
//! out, or added from another release. Runs no model.
//!
//! Concepts of several releases must have been corrected by the same moments; otherwise the request
//! is rejected.
//!
//! | file | content |
//! |---|---|
//! | `member.rs` | a concept with the release that its edit is from |
//! | `join.rs` | one recipe of concepts from several releases |

mod join;
mod member;

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::manifest::concepts::MAX_STRENGTH;
use lethe_shared::record::{Amendment, Composition, ConceptRecord, Parent, Utility};
use lethe_store as store;
use lethe_store::Store;
use serde::Serialize;

use self::join::join;
use self::member::{Member, unknown};
use crate::compose::apply::{self, Change, Directions};
use crate::compose::recipe::{Part, Recipe};
use crate::compose::{near_duplicates, protected};
use crate::downstream::{self, Staged, Target};
use crate::failure::Failure;
use crate::intake::run_manifest;
use crate::layout::{EDITS, PROTECTED};
use crate::lease::fence::Fence;
use crate::present::report::Thumbnails;
use crate::release::publish::Published;
use crate::release::read::{Release, direction};
use crate::release::write::{self, Contents};

/// The requested changes, applied in this order: additions, removals, strengths.
#[derive(Debug, Default)]
pub struct Request {
    /// Concepts of other releases, each with its release.
    pub add: Vec<(Release, String)>,
    /// Concepts to leave out.
    pub remove: Vec<String>,
    /// New strengths, by concept.
    pub strength: Vec<(String, f64)>,
}

/// A release with changes that are not composed yet.
#[derive(Debug)]
pub struct Amended {
    parent: Release,
    changes: Vec<Amendment>,
    /// Every concept before and after the change.
    concepts: BTreeMap<String, Member>,
    /// Edits of each release, by the digest of its record.
    files: BTreeMap<Digest, Bytes>,
    /// A recipe of all `concepts`, with added ones at strength 0.
    before: Recipe,
    after: Recipe,
    removed: BTreeSet<String>,
}

/// A comparison of weights with the composition of base and edits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Tensors without an edit that equal the base's, byte for byte.
    pub untouched: usize,
    /// Tensors with an edit that equal the composed ones, byte for byte.
    pub composed: usize,
    /// Other tensors, with the kind of difference.
    pub other: BTreeMap<String, &'static str>,
}

/// First-order predictions of a change. Nothing here was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// Address of the changed release.
    pub parent: String,
    /// Its composition method.
    pub method: String,
    /// Predicted cost on retained data, aᵀQa, before and after, if coefficients are solved.
    pub cost: Option<(f64, f64)>,
    /// Every concept before and after the change, by id.
    pub concepts: Vec<PreviewedConcept>,
}

/// One concept of a [`Preview`]. Pairs are before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewedConcept {
    /// Its id.
    pub id: String,
    /// Strength α; 0 if it is not removed.
    pub strength: (f64, f64),
    /// Step along its direction, α · coefficient · λ.
    pub step: (f64, f64),
    /// Wanted rise of its forget loss, if coefficients are solved.
    pub wanted: Option<(f64, f64)>,
    /// Predicted rise of its forget loss by all edits together, if coefficients are solved.
    pub raise: Option<(f64, f64)>,
}

/// Applies a request to a release without composing it.
///
/// # Errors
/// [`Failure::BadInput`] when the request names unknown concepts, contradicts itself, or combines
/// incompatible edits.
pub async fn amend(parent: Release, request: Request) -> Result<Amended, Failure> {
    let mut concepts: BTreeMap<String, Member> = BTreeMap::new();
    for record in &parent.record.concepts {
        concepts.insert(record.id.clone(), Member { record: record.clone(), from: parent.clone() });
    }
    let mut changes = Vec::new();
    let own: BTreeSet<String> = concepts.keys().cloned().collect();
    for (other, id) in request.add {
        let record = fitting(&parent, &other, &id, &concepts)?.clone();
        changes.push(Amendment::Add { id: id.clone(), from: other.reference() });
        concepts.insert(id, Member { record, from: other });
    }
    let mut removed = BTreeSet::new();
    for id in request.remove {
        if !own.contains(&id) {
            return Err(unknown(&parent, &id));
        }
        if !removed.insert(id.clone()) {
            return Err(Failure::input(format!("`{id}` is left out twice")));
        }
        changes.push(Amendment::Remove { id });
    }
    let mut strengths: BTreeMap<String, f64> = BTreeMap::new();
    for (id, strength) in request.strength {
        let concept = concepts
            .get(&id)
            .filter(|_| !removed.contains(&id))
            .ok_or_else(|| unknown(&parent, &id))?;
        if !(0.0..=MAX_STRENGTH).contains(&strength) {
            return Err(Failure::input(format!(
                "concept `{id}`: strength is {strength}, expected 0 to {MAX_STRENGTH}"
            )));
        }
        if strengths.insert(id.clone(), strength).is_some() {
            return Err(Failure::input(format!("concept `{id}` is given two strengths")));
        }
        changes.push(Amendment::Strength { id, before: concept.record.strength, after: strength });
    }

    let mut files = BTreeMap::new();
    for member in concepts.values() {
        if let Entry::Vacant(entry) = files.entry(member.from.digest) {
            entry.insert(member.from.file(EDITS).await?);
        }
    }
    let all = join(&parent, &concepts, &files).await?;
    let before = concepts
        .keys()
        .filter(|id| !own.contains(*id))
        .fold(all.clone(), |recipe, id| recipe.with_strength(id, 0.0));
    let after =
        strengths.iter().fold(all, |recipe, (id, &strength)| recipe.with_strength(id, strength));
    let after = removed.iter().fold(after, |recipe, id| recipe.with_strength(id, 0.0));
    Ok(Amended { parent, changes, concepts, files, before, after, removed })
}

/// Returns a concept of another release if it can be added to this one.
fn fitting<'a>(
    parent: &Release,
    other: &'a Release,
    id: &str,
    there: &BTreeMap<String, Member>,
) -> Result<&'a ConceptRecord, Failure> {
    let record = other
        .record
        .concepts
        .iter()
        .find(|concept| concept.id == id)
        .ok_or_else(|| unknown(other, id))?;
    let refuse = |problem: String| {
        Err(Failure::input(format!(
            "concept `{id}` of {} cannot be added: {problem}",
            other.address()
        )))
    };
    if there.contains_key(id) {
        return refuse(
            "there is a concept of this id already; --strength changes how strongly it is removed"
                .to_owned(),
        );
    }
    if let Some((same, _)) = there.iter().find(|(_, member)| member.record.class == record.class) {
        return refuse(format!(
            "its class `{}` is removed already, as concept `{same}`",
            record.class
        ));
    }
    if other.record.base.digest != parent.record.base.digest {
        let (ours, theirs) = (parent.record.base.digest.short(), other.record.base.digest.short());
        return refuse(format!(
            "it was found on other weights ({theirs}) than this release edits ({ours})"
        ));
    }
    if (&other.record.method, other.record.merge) != (&parent.record.method, parent.record.merge) {
        return refuse(format!(
            "it was found for `{}`, this release is composed by `{}`",
            other.record.method, parent.record.method
        ));
    }
    // Edits by least squares are added as they are; other ones are solved again with the others.
    if !other.record.is_by_least_squares() && other.record.moments != parent.record.moments {
        return refuse(
            "its direction was corrected by other second moments: retain data, ridge, weights or protected names differ between the runs"
                .to_owned(),
        );
    }
    Ok(record)
}

impl Amended {
    /// Returns the first-order predictions of the change.
    pub fn preview(&self) -> Preview {
        let steps = (self.before.steps(), self.after.steps());
        let solved = self.before.effect_matrix().zip(self.after.effect_matrix());
        let raises = solved.map(|(before, after)| {
            (before.predicted_raise(&steps.0), after.predicted_raise(&steps.1))
        });
        let concept = |(i, (before, after)): (usize, (&Part, &Part))| PreviewedConcept {
            id: before.concept.clone(),
            strength: (before.strength, after.strength),
            step: (steps.0[i], steps.1[i]),
            wanted: raises.as_ref().map(|_| (before.wanted(), after.wanted())),
            raise: raises.as_ref().map(|(before, after)| (before[i], after[i])),
        };
        Preview {
            parent: self.parent.address(),
            method: self.parent.record.method.clone(),
            cost: solved.map(|(before, after)| {
                (before.predicted_cost(&steps.0), after.predicted_cost(&steps.1))
            }),
            concepts: self
                .before
                .parts()
                .iter()
                .zip(self.after.parts())
                .enumerate()
                .map(concept)
                .collect(),
        }
    }

    /// Opens the base checkpoint, at its recorded address or at another one. It must be unchanged.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the checkpoint is missing, or has other weights or files.
    pub async fn base(
        &self,
        elsewhere: Option<&Address>,
        cache: &Path,
    ) -> Result<Checkpoint, Failure> {
        let recorded = &self.parent.record.base;
        let address = match elsewhere {
            Some(address) => address.clone(),
            None => Address::parse(&recorded.address).map_err(Failure::input)?,
        };
        let moved = |problem: String| {
            Failure::input(format!(
                "the base model {address}: {problem}; --base says where the model is that {} was made from",
                self.parent.address()
            ))
        };
        let folder = store::fetch_folder(&address, cache).await.map_err(|error| match error {
            store::Error::Unavailable { .. } => Failure::from(error),
            other => moved(other.to_string()),
        })?;
        let files = self.parent.record.files.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let checkpoint = Checkpoint::open(&folder).map_err(|error| error.to_string())?;
            let mut other = None;
            for name in checkpoint.companions().map_err(|error| error.to_string())? {
                let digest = std::fs::File::open(folder.join(&name))
                    .and_then(Digest::of_reader)
                    .map_err(|error| format!("{name}: {error}"))?;
                if files.get(&name).map(|file| file.digest) != Some(digest) {
                    other = Some(name);
                    break;
                }
            }
            let digest = checkpoint.digest().map_err(|error| error.to_string())?;
            Ok::<_, String>((checkpoint, digest, other))
        });
        let (checkpoint, digest, other) = opened
            .await
            .map_err(|error| Failure::Infrastructure(error.to_string()))?
            .map_err(moved)?;
        if digest != recorded.digest {
            return Err(moved(format!(
                "its weights are {}, the release was made from {}",
                digest.short(),
                recorded.digest.short()
            )));
        }
        match other {
            Some(name) => Err(moved(format!("`{name}` is not the file that was released with"))),
            None => Ok(checkpoint),
        }
    }

    /// Opens the targets that get the edits, at their recorded addresses or at others, without
    /// those to leave out.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when a target is missing or has changed, or a name is not that of a
    /// target.
    pub async fn targets(
        &self,
        elsewhere: &BTreeMap<String, Address>,
        dropped: &BTreeSet<String>,
        base: &Checkpoint,
        cache: &Path,
    ) -> Result<Vec<Target>, Failure> {
        let records = &self.parent.record.targets;
        if let Some(name) = elsewhere
            .keys()
            .chain(dropped)
            .find(|name| !records.iter().any(|record| record.name == **name))
        {
            return Err(Failure::input(format!(
                "{} has no target `{name}`",
                self.parent.address()
            )));
        }
        let mut targets = Vec::new();
        for record in records.iter().filter(|record| !dropped.contains(&record.name)) {
            let name = &record.name;
            let opened = Target::of_record(record, elsewhere.get(name), base, cache).await;
            targets.push(opened.map_err(|failure| match failure {
                Failure::BadInput(problems) => Failure::input(format!(
                    "{}; --target {name}=ADDRESS says where it is that {} was made from",
                    problems.join("; "),
                    self.parent.address()
                )),
                other => other,
            })?);
        }
        Ok(targets)
    }

    /// Returns these targets with the edits applied, ready to be written to a store.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when a target is not the model from which the release was made.
    pub async fn staged<'a>(
        &self,
        targets: &'a [Target],
        base: &Checkpoint,
        store: &Store,
    ) -> Result<Vec<Staged<'a>>, Failure> {
        let edits = self.edits().1;
        let mut staged = Vec::with_capacity(targets.len());
        for one in targets {
            let edited = one.edited(base, &edits, self.parent.record.merge, self).await?;
            let one = downstream::stage(one, edited, store).await?;
            let recorded =
                self.parent.record.targets.iter().find(|record| record.name == one.record.name);
            if let Some(recorded) = recorded.filter(|recorded| recorded.source != one.record.source)
            {
                let names: BTreeSet<&String> =
                    recorded.source.keys().chain(one.record.source.keys()).collect();
                let other = names
                    .into_iter()
                    .find(|name| recorded.source.get(*name) != one.record.source.get(*name));
                return Err(Failure::input(format!(
                    "target `{}` ({}) is not the model that {} was made from: {} differs",
                    recorded.name,
                    one.record.address,
                    self.parent.address(),
                    other.map_or("something", String::as_str)
                )));
            }
            one.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            staged.push(one);
        }
        Ok(staged)
    }

    fn edits(&self) -> (Recipe, Vec<Edit>) {
        let recipe = self.after.keeping(|part| !self.removed.contains(&part.concept));
        let edits = recipe.edits();
        (recipe, edits)
    }

    async fn compose(&self, checkpoint: &Checkpoint, edits: &[Edit]) -> Result<Change, Failure> {
        apply::compose(checkpoint, edits, self.parent.record.merge, self).await
    }

    /// Compares weights with the composition of base and edits, tensor by tensor.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the edits do not match the base.
    pub async fn compare(
        &self,
        base: &Checkpoint,
        weights: &Checkpoint,
    ) -> Result<Compared, Failure> {
        let change = self.compose(base, &self.edits().1).await?;
        let mut compared = Compared::default();
        let names: BTreeSet<&String> =
            base.tensors().keys().chain(weights.tensors().keys()).collect();
        for name in names {
            let (Some(before), Some(after)) =
                (base.tensors().get(name), weights.tensors().get(name))
            else {
                compared.other.insert(name.clone(), "is in one of base and release alone");
                continue;
            };
            let composed = change.get(name);
            let expected = composed.map_or_else(
                || base.bytes(name).map(Cow::Owned),
                |bytes| Ok(Cow::Borrowed(bytes.as_slice())),
            )?;
            if (before.dtype, &before.shape) != (after.dtype, &after.shape) {
                compared.other.insert(name.clone(), "has another type or shape than the base's");
            } else if weights.bytes(name)? == *expected {
                *(if composed.is_some() {
                    &mut compared.composed
                } else {
                    &mut compared.untouched
                }) += 1;
            } else {
                let how = if composed.is_some() {
                    "does not follow from base and edits"
                } else {
                    "is touched by no edit, and is not the base's"
                };
                compared.other.insert(name.clone(), how);
            }
        }
        Ok(compared)
    }

    /// Composes, writes and publishes the new release. Returns its address, record and number. No
    /// channel points to it, because it has not been measured.
    ///
    /// # Errors
    /// [`Failure`] when the store cannot be written.
    pub async fn write(
        self,
        store: &Store,
        checkpoint: &Checkpoint,
        targets: &[Target],
    ) -> Result<(String, Composition, Published), Failure> {
        let targets = self.staged(targets, checkpoint, store).await?;
        let (recipe, edits) = self.edits();
        let change = self.compose(checkpoint, &edits).await?;
        let mut concepts = Vec::new();
        let (mut thumbnails, mut pictures) = (Thumbnails::new(), BTreeMap::new());
        let solved = recipe.coefficients().into_iter().zip(recipe.by_others());
        for (part, (coefficient, by_others)) in recipe.parts().iter().zip(solved) {
            let member = &self.concepts[&part.concept];
            let (strength, run) = (part.strength, member.foreign_run(&self.parent.record.run));
            let criterion = Some(member.from.record.criterion(&member.record));
            let unmeasured = ConceptRecord {
                composed: None,
                predictions_composed: None,
                verdict: None,
                ..member.record.clone()
            };
            concepts.push(ConceptRecord {
                strength,
                coefficient,
                by_others,
                run,
                criterion,
                ..unmeasured
            });
            let from = match pictures.entry(member.from.digest) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(member.from.thumbnails().await?),
            };
            if let Some(strip) = from.remove(&part.concept) {
                thumbnails.insert(part.concept.clone(), strip);
            }
            // A release refers only to objects in its own store.
            if member.from.stored && member.from.store.name() != store.name() {
                for artifact in
                    [Some(member.record.direction), member.record.gradients].into_iter().flatten()
                {
                    store.put_artifact(member.from.store.get_artifact(&artifact).await?).await?;
                }
            }
        }
        // The manifests of the runs, which contain the addresses of the data for a later
        // evaluation.
        let mut taken = BTreeSet::new();
        for from in self
            .concepts
            .values()
            .map(|member| &member.from)
            .chain([&self.parent])
            .filter(|from| from.stored)
        {
            if from.store.name() != store.name() && taken.insert(from.digest) {
                let runs = from
                    .record
                    .concepts
                    .iter()
                    .filter_map(|concept| concept.run.as_ref())
                    .chain([&from.record.run]);
                for run in runs.collect::<BTreeSet<_>>() {
                    run_manifest::copy(&from.store, store, run).await?;
                }
            }
        }
        let parent = &self.parent.record;
        let protected = match parent.files.contains_key(PROTECTED) {
            true => Some(self.parent.file(PROTECTED).await?),
            false => None,
        };
        let names: Vec<String> = parent.protected.iter().map(|text| text.name.clone()).collect();
        let mut record = Composition {
            protected: protected::moved(checkpoint, &change, protected.as_deref(), &names)?,
            parent: Some(Parent {
                release: self.parent.reference(),
                changes: self.changes.clone(),
            }),
            missing: parent
                .missing
                .iter()
                .filter(|missing| !self.concepts.contains_key(&missing.id))
                .cloned()
                .collect(),
            near_duplicates: near_duplicates::near_duplicates(&recipe),
            utility: Utility::default(),
            recognition: None,
            towers: Vec::new(),
            probes: Vec::new(),
            change_bound: None,
            layers: apply::sizes(checkpoint, &change)?,
            files: BTreeMap::new(),
            concepts,
            ..parent.clone()
        };
        record.judge();
        let (effect_matrix, thumbnails) = (recipe.effect_matrix(), &thumbnails);
        let protected = protected.as_ref();
        let contents = Contents {
            change: &change,
            edits: &edits,
            directions: &self,
            effect_matrix,
            protected,
            thumbnails,
            targets,
        };
        // The command is interactive, so there is no claim.
        write::write(store, &Fence::open(), checkpoint, contents, record).await
    }
}

impl Directions for Amended {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        direction(&self.files[&self.concepts[&edit.concept].from.digest], &edit.name(), shape)
    }
}

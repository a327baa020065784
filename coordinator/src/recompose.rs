//! A new release from what an old one stored: concepts at other strengths, left out, or added from another release. No model is run.
//!
//! Effects between concepts of one release are in it. Those between concepts of two releases are worked out here, from gradients and
//! directions as factors, ⟨g_i, D_j⟩: both were corrected by the same moments, or are refused.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::manifest::concepts::MAX_STRENGTH;
use lethe_shared::record::{Amendment, Composition, ConceptRecord, Parent, Utility};
use lethe_shared::store::{self, Store};
use safetensors::SafeTensors;
use serde::Serialize;

use crate::clusters;
use crate::compose::{self, Change, Directions};
use crate::failure::Failure;
use crate::protected;
use crate::recipe::{Part, Recipe};
use crate::release::publish::Published;
use crate::release::read::{Release, direction};
use crate::release::{self, Contents, EDITS, PROTECTED, Thumbnails};
use crate::run_manifest;
use crate::target::{self, Staged, Target};

/// What is to be changed: first what is added, then what is left out, then strengths.
#[derive(Debug, Default)]
pub struct Request {
    /// Concepts of other releases.
    pub add: Vec<(Release, String)>,
    /// Concepts to leave out.
    pub remove: Vec<String>,
    /// Other strengths, by concept.
    pub strength: Vec<(String, f64)>,
}

/// A release with changes that are not yet composed.
#[derive(Debug)]
pub struct Amended {
    parent: Release,
    changes: Vec<Amendment>,
    /// Every concept of before and after.
    concepts: BTreeMap<String, Member>,
    /// Edits of each release, by its record's digest.
    files: BTreeMap<Digest, Bytes>,
    /// All of `concepts`, with those that are not there at strength 0.
    before: Recipe,
    after: Recipe,
    removed: BTreeSet<String>,
}

#[derive(Debug)]
struct Member {
    record: ConceptRecord,
    from: Release,
}

impl Member {
    /// The run that found it, where that is not this one.
    fn foreign_run(&self, own: &str) -> Option<String> {
        let run = self.record.run.as_ref().unwrap_or(&self.from.record.run);
        (run != own).then(|| run.clone())
    }
}

/// How weights compare with what base and edits give.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Tensors that no edit touches, and that are the base's, byte for byte.
    pub untouched: usize,
    /// Tensors that follow from base and edits, byte for byte.
    pub composed: usize,
    /// Tensors that are neither, and how.
    pub other: BTreeMap<String, &'static str>,
}

/// What a change is expected to do, to first order. Nothing here was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The release that is changed.
    pub parent: String,
    /// Its method.
    pub method: String,
    /// Predicted change of what must stay, aᵀQa, before and after; where doses are solved.
    pub cost: Option<(f64, f64)>,
    /// Every concept of before and after, by id.
    pub concepts: Vec<PreviewedConcept>,
}

/// One concept of a [`Preview`]. Pairs are before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PreviewedConcept {
    /// Its id.
    pub id: String,
    /// Strength α; 0 where it is not removed.
    pub strength: (f64, f64),
    /// How far it goes along its direction, α · dose · λ.
    pub step: (f64, f64),
    /// By how much its forget loss should rise; where doses are solved.
    pub wanted: Option<(f64, f64)>,
    /// By how much all edits together are predicted to raise it; where doses are solved.
    pub raise: Option<(f64, f64)>,
}

/// Works out what a request comes to.
///
/// # Errors
/// [`Failure::BadInput`] when it names what is not there, contradicts itself, or would put edits together that do not belong
/// together.
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
        let concept = concepts.get(&id).filter(|_| !removed.contains(&id)).ok_or_else(|| unknown(&parent, &id))?;
        if !(0.0..=MAX_STRENGTH).contains(&strength) {
            return Err(Failure::input(format!("concept `{id}`: strength is {strength}, expected 0 to {MAX_STRENGTH}")));
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
    let before = concepts.keys().filter(|id| !own.contains(*id)).fold(all.clone(), |recipe, id| recipe.with_strength(id, 0.0));
    let after = strengths.iter().fold(all, |recipe, (id, &strength)| recipe.with_strength(id, strength));
    let after = removed.iter().fold(after, |recipe, id| recipe.with_strength(id, 0.0));
    Ok(Amended { parent, changes, concepts, files, before, after, removed })
}

/// A concept of another release, when it can be added to this one.
fn fitting<'a>(parent: &Release, other: &'a Release, id: &str, there: &BTreeMap<String, Member>) -> Result<&'a ConceptRecord, Failure> {
    let record = other.record.concepts.iter().find(|concept| concept.id == id).ok_or_else(|| unknown(other, id))?;
    let refuse = |problem: String| Err(Failure::input(format!("concept `{id}` of {} cannot be added: {problem}", other.address())));
    if there.contains_key(id) {
        return refuse("there is a concept of this id already; --strength changes how strongly it is removed".to_owned());
    }
    if let Some((same, _)) = there.iter().find(|(_, member)| member.record.class == record.class) {
        return refuse(format!("its class `{}` is removed already, as concept `{same}`", record.class));
    }
    if other.record.base.digest != parent.record.base.digest {
        let (ours, theirs) = (parent.record.base.digest.short(), other.record.base.digest.short());
        return refuse(format!("it was found on other weights ({theirs}) than this release edits ({ours})"));
    }
    if (&other.record.method, other.record.merge) != (&parent.record.method, parent.record.merge) {
        return refuse(format!("it was found for `{}`, this release is composed by `{}`", other.record.method, parent.record.method));
    }
    if other.record.moments != parent.record.moments {
        return refuse(
            "its direction was corrected by other second moments: retain data, ridge, weights or protected names differ between the runs"
                .to_owned(),
        );
    }
    Ok(record)
}

fn unknown(release: &Release, id: &str) -> Failure {
    let ids: Vec<&str> = release.record.concepts.iter().map(|concept| concept.id.as_str()).take(20).collect();
    Failure::input(format!("{} removes no concept `{id}`; it removes {}", release.address(), ids.join(", ")))
}

/// One recipe of concepts from several releases.
async fn join(parent: &Release, concepts: &BTreeMap<String, Member>, edits: &BTreeMap<Digest, Bytes>) -> Result<Recipe, Failure> {
    let mut recipes: BTreeMap<Digest, Recipe> = BTreeMap::new();
    for member in concepts.values() {
        if let Entry::Vacant(entry) = recipes.entry(member.from.digest) {
            entry.insert(member.from.recipe().await?);
        }
    }
    if recipes.is_empty() {
        return parent.recipe().await;
    }
    // Where each concept stands in its own release.
    let place = |(id, member): (&String, &Member)| {
        let recipe = &recipes[&member.from.digest];
        let at = recipe.parts().iter().position(|part| part.concept == *id).ok_or_else(|| unknown(&member.from, id))?;
        Ok((recipe, member.from.digest, at))
    };
    let places = concepts.iter().map(place).collect::<Result<Vec<_>, Failure>>()?;
    let parts = places.iter().map(|(recipe, _, at)| recipe.parts()[*at].clone()).collect();
    if recipes.values().any(|recipe| recipe.interference().is_none()) {
        return Recipe::sum(parts).map_err(Failure::input);
    }
    let n = places.len();
    let mut effect = vec![0.0; n * n];
    let directions = if recipes.len() > 1 { directions(concepts, edits)? } else { Vec::new() };
    for (row, member) in concepts.values().enumerate() {
        let (recipe, source, i) = places[row];
        let mut foreign = Vec::new();
        for (column, &(_, other, j)) in places.iter().enumerate() {
            match recipe.interference() {
                Some(interference) if other == source => effect[row * n + column] = interference.effect(i, j),
                _ => foreign.push(column),
            }
        }
        if foreign.is_empty() {
            continue;
        }
        let gradients = gradients(member).await?;
        let mut by_layer: BTreeMap<&str, Direction> = BTreeMap::new();
        for column in foreign {
            let (layer, direction) = &directions[column];
            let own = match by_layer.entry(layer) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(gradient(member, &gradients, layer)?),
            };
            let id = &member.record.id;
            effect[row * n + column] = edit::inner_product(own, direction)
                .ok_or_else(|| Failure::input(format!("gradient of `{id}` and a direction on `{layer}` are not of one shape")))?;
        }
    }
    Recipe::solved(parts, effect).map_err(Failure::input)
}

/// Layer and direction of every concept, in order.
fn directions(concepts: &BTreeMap<String, Member>, edits: &BTreeMap<Digest, Bytes>) -> Result<Vec<(String, Direction)>, Failure> {
    let of = |(id, member): (&String, &Member)| {
        let file = parse(&edits[&member.from.digest], EDITS)?;
        let found =
            factored(&file, id)?.ok_or_else(|| Failure::input(format!("{}: no factors of `{id}` in {EDITS}", member.from.address())))?;
        Ok((member.record.layer.clone(), found))
    };
    concepts.iter().map(of).collect()
}

fn parse<'a>(bytes: &'a [u8], name: &str) -> Result<SafeTensors<'a>, Failure> {
    SafeTensors::deserialize(bytes).map_err(|error| Failure::input(format!("{name}: {error}")))
}

/// The factors of this name, whatever shape they make; `None` when there are none.
fn factored(file: &SafeTensors<'_>, name: &str) -> Result<Option<Direction>, Failure> {
    let (up, down) = edit::factor_names(name);
    let (Ok(up), Ok(down)) = (file.tensor(&up), file.tensor(&down)) else { return Ok(None) };
    let (&[outputs, _], &[_, inputs]) = (up.shape(), down.shape()) else { return Ok(None) };
    Ok(Some(edit::read_direction(file, name, &[outputs, inputs])?))
}

/// The file with a concept's gradient factors.
async fn gradients(member: &Member) -> Result<Bytes, Failure> {
    let (id, from) = (&member.record.id, &member.from);
    let refuse =
        |problem: &str| Failure::input(format!("what others' edits do to concept `{id}` of {} is not known: {problem}", from.address()));
    let artifact = member.record.gradients.ok_or_else(|| refuse("its record names no gradients"))?;
    if !from.stored {
        return Err(refuse("gradients stay in the store that it was released to; give the release as STORE/releases/NAME/DIGEST"));
    }
    match from.store.get_artifact(&artifact).await {
        Err(store::Error::NotFound { object }) => {
            Err(refuse(&format!("{object}, its gradients, is no longer there; the run that found it makes them again")))
        }
        other => Ok(other?),
    }
}

/// A concept's gradient at a layer.
fn gradient(member: &Member, file: &[u8], layer: &str) -> Result<Direction, Failure> {
    let (id, from) = (&member.record.id, member.from.address());
    factored(&parse(file, "gradients")?, layer)?.ok_or_else(|| {
        Failure::input(format!(
            "what edits of `{layer}` do to concept `{id}` of {from} is not known: its run kept gradients of the layers that it edits, \
             and that is none of them; run all concepts together"
        ))
    })
}

impl Amended {
    /// What the change is expected to do.
    pub fn preview(&self) -> Preview {
        let steps = (self.before.steps(), self.after.steps());
        let solved = self.before.interference().zip(self.after.interference());
        let raises = solved.map(|(before, after)| (before.predicted_raise(&steps.0), after.predicted_raise(&steps.1)));
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
            cost: solved.map(|(before, after)| (before.predicted_cost(&steps.0), after.predicted_cost(&steps.1))),
            concepts: self.before.parts().iter().zip(self.after.parts()).enumerate().map(concept).collect(),
        }
    }

    /// The checkpoint that is edited, from where the record says it was or from another place; it must be the same.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it is not there, or has other weights or files.
    pub async fn base(&self, elsewhere: Option<&Address>, cache: &Path) -> Result<Checkpoint, Failure> {
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
                let digest =
                    std::fs::File::open(folder.join(&name)).and_then(Digest::of_reader).map_err(|error| format!("{name}: {error}"))?;
                if files.get(&name).map(|file| file.digest) != Some(digest) {
                    other = Some(name);
                    break;
                }
            }
            let digest = checkpoint.digest().map_err(|error| error.to_string())?;
            Ok::<_, String>((checkpoint, digest, other))
        });
        let (checkpoint, digest, other) = opened.await.map_err(|error| Failure::Infrastructure(error.to_string()))?.map_err(moved)?;
        if digest != recorded.digest {
            return Err(moved(format!("its weights are {}, the release was made from {}", digest.short(), recorded.digest.short())));
        }
        match other {
            Some(name) => Err(moved(format!("`{name}` is not the file that was released with"))),
            None => Ok(checkpoint),
        }
    }

    /// The targets that get the edits too, from where the record says they were or from other places, without those to be left out.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when one is not there or not what it was, or a name is none of them.
    pub async fn targets(
        &self,
        elsewhere: &BTreeMap<String, Address>,
        dropped: &BTreeSet<String>,
        base: &Checkpoint,
        cache: &Path,
    ) -> Result<Vec<Target>, Failure> {
        let records = &self.parent.record.targets;
        if let Some(name) = elsewhere.keys().chain(dropped).find(|name| !records.iter().any(|record| record.name == **name)) {
            return Err(Failure::input(format!("{} has no target `{name}`", self.parent.address())));
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

    /// These targets with the edits, ready to be written to a store.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when one is not the model that the release was made from.
    pub async fn staged<'a>(&self, targets: &'a [Target], base: &Checkpoint, store: &Store) -> Result<Vec<Staged<'a>>, Failure> {
        let edits = self.edits().1;
        let mut staged = Vec::with_capacity(targets.len());
        for one in targets {
            let edited = one.edited(base, &edits, self.parent.record.merge, self).await?;
            let one = target::stage(one, edited, store).await?;
            let recorded = self.parent.record.targets.iter().find(|record| record.name == one.record.name);
            if let Some(recorded) = recorded.filter(|recorded| recorded.source != one.record.source) {
                let names: BTreeSet<&String> = recorded.source.keys().chain(one.record.source.keys()).collect();
                let other = names.into_iter().find(|name| recorded.source.get(*name) != one.record.source.get(*name));
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
        compose::compose(checkpoint, edits, self.parent.record.merge, self).await
    }

    /// Holds weights against what comes of base and edits, tensor by tensor.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when edits do not fit the base.
    pub async fn compare(&self, base: &Checkpoint, weights: &Checkpoint) -> Result<Compared, Failure> {
        let change = self.compose(base, &self.edits().1).await?;
        let mut compared = Compared::default();
        let names: BTreeSet<&String> = base.tensors().keys().chain(weights.tensors().keys()).collect();
        for name in names {
            let (Some(before), Some(after)) = (base.tensors().get(name), weights.tensors().get(name)) else {
                compared.other.insert(name.clone(), "is in one of base and release alone");
                continue;
            };
            let composed = change.get(name);
            let expected = composed.map_or_else(|| base.bytes(name), |bytes| Ok(bytes))?;
            if (before.dtype, &before.shape) != (after.dtype, &after.shape) {
                compared.other.insert(name.clone(), "has another type or shape than the base's");
            } else if weights.bytes(name)? == expected {
                *(if composed.is_some() { &mut compared.composed } else { &mut compared.untouched }) += 1;
            } else {
                let how =
                    if composed.is_some() { "does not follow from base and edits" } else { "is touched by no edit, and is not the base's" };
                compared.other.insert(name.clone(), how);
            }
        }
        Ok(compared)
    }

    /// Composes, writes and publishes the new release; its address, record and number. No channel leads to it: nobody has measured it.
    ///
    /// # Errors
    /// When the store cannot be written.
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
        for (edit, by_others) in edits.iter().zip(recipe.by_others()) {
            let member = &self.concepts[&edit.concept];
            let (strength, dose, run) = (edit.strength, edit.dose, member.foreign_run(&self.parent.record.run));
            concepts.push(ConceptRecord { strength, dose, by_others, run, composed: None, said_composed: None, ..member.record.clone() });
            let from = match pictures.entry(member.from.digest) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(member.from.thumbnails().await?),
            };
            if let Some(strip) = from.remove(&edit.concept) {
                thumbnails.insert(edit.concept.clone(), strip);
            }
            // What this release refers to is in its own store.
            if member.from.stored && member.from.store.name() != store.name() {
                for artifact in [Some(member.record.direction), member.record.gradients].into_iter().flatten() {
                    store.put_artifact(member.from.store.get_artifact(&artifact).await?).await?;
                }
            }
        }
        // Where its data is, for whoever evaluates it.
        let mut taken = BTreeSet::new();
        for from in self.concepts.values().map(|member| &member.from).chain([&self.parent]).filter(|from| from.stored) {
            if from.store.name() != store.name() && taken.insert(from.digest) {
                let runs = from.record.concepts.iter().filter_map(|concept| concept.run.as_ref()).chain([&from.record.run]);
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
        let record = Composition {
            protected: protected::moved(checkpoint, &change, protected.as_deref(), &names)?,
            parent: Some(Parent { release: self.parent.reference(), changes: self.changes.clone() }),
            missing: parent.missing.iter().filter(|missing| !self.concepts.contains_key(&missing.id)).cloned().collect(),
            near_duplicates: clusters::near_duplicates(&recipe),
            utility: Utility::default(),
            layers: compose::sizes(checkpoint, &change)?,
            files: BTreeMap::new(),
            concepts,
            ..parent.clone()
        };
        let (interference, thumbnails) = (recipe.interference(), &thumbnails);
        let protected = protected.as_ref();
        let contents = Contents { change: &change, edits: &edits, directions: &self, interference, protected, thumbnails, targets };
        release::write(store, checkpoint, contents, record).await
    }
}

impl Directions for Amended {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        direction(&self.files[&self.concepts[&edit.concept].from.digest], &edit.concept, shape)
    }
}

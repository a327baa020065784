//! Edits by least squares (`docs/composition.md`, "`least-squares`").
//!
//! The phases are, for each layer that changes, front to back:
//! 1. Collect the second moments of the layer's inputs over retained texts.
//! 2. Compute each concept's keys (inputs of the layer at its texts) and residuals (how far the
//!    states of its texts are from those of a mean text, under the edits of the layers before).
//! 3. Solve the edit that maps all keys to this layer's share of their residuals and moves retained
//!    texts least. It is the sum of one direction per concept.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::checkpoint::tower::{Map, Part, TowerMap, Weight};
use lethe_shared::edit::{self, Edit};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{KeysOutput, LeastSquaresEdit};
use lethe_shared::vocabulary::{TextTokens, Tower};
use safetensors::SafeTensors;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept, Edits, Stored, unsolved};
use super::judgement::{HeldOut, held_out};
use crate::exec::batch::Batch;
use crate::exec::jobs::{self, ShareOfLayer};
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let layers = layers(plan)?;
    let (base, moments) = statistics(run, &layers).await?;
    let read = &layers[layers.len() - 1];
    let mut concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let mut missing = Vec::new();
    // What the first layer's jobs say of each concept, and each concept's edits by layer.
    let mut known: BTreeMap<&str, KeysOutput> = BTreeMap::new();
    let mut solved: BTreeMap<&str, Vec<(&String, LeastSquaresEdit)>> = BTreeMap::new();
    let mut change = None;
    for (place, layer) in layers.iter().enumerate() {
        let inverses = std::slice::from_ref(&moments[place]);
        let share = 1.0 / (layers.len() - place) as f64;
        let at = ShareOfLayer { layer, read, change, share };
        let tasks = jobs::keys(plan, &concepts, at, inverses, run.classes);
        let ended = run.of_concepts("concepts", tasks).await?;
        let results = concept_results(&concepts, ended, &mut missing)?;
        concepts = results.iter().map(|(planned, _)| *planned).collect();
        if results.is_empty() {
            break;
        }
        let keys = results.iter().map(|(_, output)| output.factors).collect();
        let task = jobs::least_squares(plan, layer, keys, inverses);
        let edits = run.one("directions", task).await?.edits;
        if edits.len() != results.len() {
            return Err(Failure::Infrastructure(
                "the solved edits are not those of the concepts; an outcome is damaged".to_owned(),
            ));
        }
        for ((planned, output), edit) in results.into_iter().zip(edits) {
            let id = planned.concept.id.as_str();
            known.entry(id).or_insert(output);
            solved.entry(id).or_default().push((layer, edit));
        }
        if place + 1 < layers.len() {
            let directions = Stored::of(plan, run.dispatcher);
            change = Some(run.compose(&in_full(&solved), &directions).await?.1);
        }
    }
    let mut found = Vec::with_capacity(concepts.len());
    for planned in concepts {
        let id = planned.concept.id.as_str();
        if let Some((keys, edits)) = known.remove(id).zip(solved.remove(id)) {
            found.push(edited(run, planned, keys, &edits).await?);
        }
    }
    let recipe = unsolved(&found)?;
    Ok((Edits { found, missing, recipe, moments, protected: None }, base))
}

/// Returns the layers that change, front to back: of those of the text tower that may and that end
/// an MLP, the last one, or all.
///
/// # Errors
/// [`Failure::BadInput`] when none may.
pub fn layers(plan: &Plan) -> Result<Vec<String>, Failure> {
    let tower = TowerMap::of(plan.checkpoint.tensors(), Tower::Text)?;
    let ends = tower
        .places()
        .iter()
        .filter(|(weight, _)| matches!(weight, Weight::Block(_, Map::Fc2, Part::Weight)))
        .map(|(_, place)| &place.tensor);
    let allowed =
        |name: &&String| plan.layers.as_ref().is_none_or(|layers| layers.contains(name.as_str()));
    let mut layers: Vec<String> = ends.filter(allowed).cloned().collect();
    if plan.manifest.composition.tokens == TextTokens::All {
        layers.drain(..layers.len().saturating_sub(1));
    }
    if layers.is_empty() {
        return Err(Failure::input("no layer of the text tower may change"));
    }
    Ok(layers)
}

/// Returns the edits that are solved so far, each in full: later layers are solved for what these
/// leave.
fn in_full(solved: &BTreeMap<&str, Vec<(&String, LeastSquaresEdit)>>) -> Vec<Edit> {
    let one = |concept: &str, layer: &String, edit: &LeastSquaresEdit| Edit {
        concept: concept.to_owned(),
        layer: layer.clone(),
        spread: false,
        step: 1.0,
        strength: 1.0,
        coefficient: 1.0,
        direction: edit.direction,
    };
    solved
        .iter()
        .flat_map(|(concept, edits)| {
            edits.iter().map(move |(layer, edit)| one(concept, layer, edit))
        })
        .collect()
}

/// Of so many texts, one is empty.
const EMPTY: usize = 100;

/// Returns the class texts of the retained classes that retained data covers, and among them empty
/// texts: a diffusion pipeline compares every prompt with the empty one (classifier-free guidance,
/// arXiv 2207.12598), so what moves that one changes every drawing.
fn covered(plan: &Plan) -> Vec<String> {
    let prompts = (0u32..).zip(plan.class_texts.prompts());
    let mut texts: Vec<String> =
        prompts.filter(|(class, _)| plan.covered.contains(class)).map(|(_, text)| text).collect();
    texts.extend(std::iter::repeat_n(String::new(), 1 + texts.len() / EMPTY));
    texts
}

/// Computes the hits of the unedited model, and the preconditioner of each layer.
async fn statistics(
    run: &mut Run<'_>,
    layers: &[String],
) -> Result<(HeldOut, Vec<ArtifactRef>), Failure> {
    let plan = run.plan;
    let store = &run.dispatcher.store;
    let put = async |texts: &[String]| -> Result<ArtifactRef, Failure> {
        let bytes = serde_json::to_vec(texts).map_err(Failure::input)?;
        Ok(store.put_artifact(Bytes::from(bytes)).await?)
    };
    let mut texts = Vec::new();
    for slice in &plan.retain_texts {
        texts.push(put(slice).await?);
    }
    let covered = put(&covered(plan)).await?;
    let mut batch = Batch::default();
    let mut tickets = Vec::with_capacity(layers.len());
    for layer in layers {
        let (mut paired, unlabelled) = jobs::key_moments(plan, &texts, layer);
        // Captions name retained classes among other words; their class texts are what users write.
        paired.push(jobs::key_moments_of_texts(plan, covered, layer));
        tickets.push((batch.add(paired), batch.add(unlabelled)));
    }
    let base = batch.add(jobs::base_evaluation(plan, run.classes, run.removed));
    let mut results = run.must("statistics", &batch).await?;
    let base = held_out(results.take(&base)?);
    let mut reduces = Vec::with_capacity(layers.len());
    for (paired, unlabelled) in &tickets {
        let (paired, unlabelled) = (results.take(paired)?, results.take(unlabelled)?);
        reduces.extend(jobs::moments_reduces(plan, Tower::Text, &paired, &unlabelled));
    }
    let reduced = run.all("statistics", reduces).await?;
    Ok((base, reduced.iter().map(|output| output.inverse).collect()))
}

/// Returns a concept with its edits of some layers.
async fn edited<'a>(
    run: &Run<'_>,
    planned: &'a PlannedConcept,
    keys: KeysOutput,
    edits: &[(&String, LeastSquaresEdit)],
) -> Result<EditedConcept<'a>, Failure> {
    let largest = edits.iter().max_by(|a, b| a.1.size.total_cmp(&b.1.size));
    let (layer, main) =
        largest.ok_or_else(|| Failure::Infrastructure("a concept has no edit".to_owned()))?;
    let edit = ConceptEdit {
        tower: Tower::Text,
        layer: (*layer).clone(),
        layers: edits.iter().map(|(layer, _)| (*layer).clone()).collect(),
        step: 1.0,
        relative_step: main.size,
        direction: together(run, edits).await?,
        rank: edits.iter().map(|(_, edit)| edit.rank).max(),
        residual: edits.iter().map(|(_, edit)| edit.residual).reduce(f64::max),
    };
    Ok(EditedConcept {
        planned,
        pairs: planned.pairs(),
        before: keys.before,
        // No layer is scored: what is read of a text is the last one's output.
        ranking: Vec::new(),
        search: Vec::new(),
        edit,
        alone: None,
        gradients: None,
        said: Some(keys.said),
        thumbnails: keys.thumbnails,
    })
}

/// Returns one artifact with the directions of all layers.
async fn together(
    run: &Run<'_>,
    edits: &[(&String, LeastSquaresEdit)],
) -> Result<ArtifactRef, Failure> {
    if let [(_, only)] = edits {
        return Ok(only.direction);
    }
    let damaged = |problem: &dyn std::fmt::Display| {
        Failure::Infrastructure(format!("a direction is damaged: {problem}"))
    };
    let mut files = Vec::with_capacity(edits.len());
    for (_, edit) in edits {
        files.push(run.dispatcher.artifact(&run.plan.run, &edit.direction).await?);
    }
    let mut tensors = BTreeMap::new();
    for file in &files {
        let parsed = SafeTensors::deserialize(file).map_err(|error| damaged(&error))?;
        for (name, view) in parsed.tensors() {
            tensors.insert(name, (view.shape().to_vec(), view.data().to_vec()));
        }
    }
    let all = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), shape.as_slice(), bytes.as_slice()));
    let file = edit::encode_tensors(all).map_err(|error| damaged(&error))?;
    Ok(run.dispatcher.store.put_artifact(file.into()).await?)
}

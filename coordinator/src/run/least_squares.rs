//! Edits by least squares (`docs/composition.md`, "`least-squares`").
//!
//! The phases are:
//! 1. Collect the second moments of the inputs of the layers that change, over retained texts.
//! 2. For each of these layers, front to back, compute each concept's keys (inputs of the layer at
//!    its texts) and residuals (how far the states of its texts are from those of a mean text, under
//!    the edits of the layers before), and solve the edit that maps all keys to this layer's share of
//!    their residuals and moves retained texts least. It is the sum of one direction per concept.
//! 3. At the last layer, solve again for concepts that the composed model still recognises.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lethe_shared::checkpoint::tower::{Map, Part, TowerMap, Weight};
use lethe_shared::edit::{self, Edit};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{ForgetImages, LeastSquaresEdit, LeastSquaresPart};
use lethe_shared::vocabulary::Tower;
use safetensors::SafeTensors;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept, Edits, Stored, unsolved};
use super::judgement::{HeldOut, held_out, recognition};
use crate::compose::effect_matrix::Recognition;
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
    // What the first layer's jobs say of each concept's images, and each concept's edits by layer.
    let mut known: BTreeMap<&str, ForgetImages> = BTreeMap::new();
    let mut solved: Solved<'_> = BTreeMap::new();
    let directions = Stored::of(plan, run.dispatcher);
    let mut change = None;
    for (place, (layer, inverse)) in layers.iter().zip(&moments).enumerate() {
        let inverses = std::slice::from_ref(inverse);
        let share = 1.0 / (layers.len() - place) as f64;
        let at = ShareOfLayer { layer, read, change, share };
        let tasks = jobs::keys(plan, &concepts, at, inverses, run.classes);
        let ended = run.of_concepts("concepts", tasks).await?;
        let results = concept_results(&concepts, ended, &mut missing)?;
        concepts = results.iter().map(|(planned, _)| *planned).collect();
        // A concept without keys here has no edit, on no layer.
        let ids: BTreeSet<&str> =
            concepts.iter().map(|planned| planned.concept.id.as_str()).collect();
        solved.retain(|id, _| ids.contains(id));
        if results.is_empty() {
            break;
        }
        let at = Layer { name: layer, inverses, concepts: &concepts };
        let keys: Vec<ArtifactRef> = results.iter().map(|(_, output)| output.factors).collect();
        for (planned, output) in results {
            if let Some(images) = output.images {
                known.insert(planned.concept.id.as_str(), images);
            }
        }
        if place + 1 < layers.len() {
            let edits = solve(run, &at, &keys, &vec![1.0; keys.len()]).await?;
            add(&mut solved, &at, edits);
            // Later layers are solved for what these leave, whatever the strengths.
            change = Some(run.compose(&applied(&solved, |_| 1.0), &directions).await?.1);
        } else {
            let edits = solve_until_forgotten(run, &at, &keys, &solved, &directions).await?;
            add(&mut solved, &at, edits);
        }
    }
    let mut found = Vec::with_capacity(concepts.len());
    for planned in concepts {
        let id = planned.concept.id.as_str();
        let damaged = || Failure::Infrastructure(format!("concept {id} has no measured images"));
        let images = known.remove(id).ok_or_else(damaged)?;
        found.push(edited(run, planned, images, &solved.remove(id).unwrap_or_default()).await?);
    }
    let recipe = unsolved(&found)?;
    Ok((Edits { found, missing, recipe, moments, protected: None }, base))
}

/// The edits of each concept so far, by layer.
type Solved<'a> = BTreeMap<&'a str, Vec<(&'a String, LeastSquaresEdit)>>;

/// A layer that is solved, and the concepts that have keys there.
struct Layer<'a, 'b> {
    name: &'a String,
    inverses: &'b [ArtifactRef],
    concepts: &'b [&'a PlannedConcept],
}

/// Adds the edits of a layer to those of the layers before.
fn add<'a>(solved: &mut Solved<'a>, at: &Layer<'a, '_>, edits: Vec<LeastSquaresEdit>) {
    for (planned, edit) in at.concepts.iter().zip(edits) {
        solved.entry(planned.concept.id.as_str()).or_default().push((at.name, edit));
    }
}

/// Solves the edits of all concepts at a layer, with the residuals of each multiplied by a factor.
async fn solve(
    run: &mut Run<'_>,
    at: &Layer<'_, '_>,
    keys: &[ArtifactRef],
    overshoots: &[f64],
) -> Result<Vec<LeastSquaresEdit>, Failure> {
    let part = |(&factors, &overshoot)| LeastSquaresPart { factors, overshoot };
    let parts: Vec<LeastSquaresPart> = keys.iter().zip(overshoots).map(part).collect();
    let count = parts.len();
    let task = jobs::least_squares(run.plan, at.name, parts, at.inverses);
    let edits = run.one("concepts", task).await?.edits;
    if edits.len() == count {
        Ok(edits)
    } else {
        let problem = "the solved edits are not those of the concepts; an outcome is damaged";
        Err(Failure::Infrastructure(problem.to_owned()))
    }
}

/// Factor on the residuals of a concept that is still recognised, per round.
const FURTHER: f64 = 1.5;
/// Rounds in a row without fewer concepts recognised, after which no further one is made.
const MOST_IN_VAIN: u32 = 4;

/// Solves the last layer. As long as the composed model still recognises concepts, their residuals
/// are raised and the layer is solved again: their states then go beyond the mean text's. Returns the
/// edits that leave the fewest concepts recognised.
async fn solve_until_forgotten(
    run: &mut Run<'_>,
    at: &Layer<'_, '_>,
    keys: &[ArtifactRef],
    before: &Solved<'_>,
    directions: &Stored<'_>,
) -> Result<Vec<LeastSquaresEdit>, Failure> {
    let plan = run.plan;
    let strengths: BTreeMap<&str, f64> = at
        .concepts
        .iter()
        .map(|planned| (planned.concept.id.as_str(), planned.concept.strength))
        .collect();
    let strength = |id: &str| strengths.get(id).copied().unwrap_or(1.0);
    let mut overshoots = vec![1.0; keys.len()];
    let mut best: Option<(usize, Vec<LeastSquaresEdit>)> = None;
    let mut in_vain = 0;
    for round in 0..=plan.manifest.composition.rounds {
        let edits = solve(run, at, keys, &overshoots).await?;
        let mut all: Solved<'_> = before.clone();
        add(&mut all, at, edits.clone());
        let (_, change) = run.compose(&applied(&all, strength), directions).await?;
        let removed = Some(run.removed);
        let measured = recognition(run, at.concepts, change, removed).await?;
        // Only concepts with strength 1 are expected to be forgotten.
        let is_left = |(planned, measured): (&&PlannedConcept, &Recognition)| {
            planned.concept.strength == 1.0 && measured.share > planned.tolerance
        };
        let left: Vec<bool> = at.concepts.iter().zip(&measured).map(is_left).collect();
        let count = left.iter().filter(|&&left| left).count();
        tracing::info!(round, recognised = count, "least squares");
        if best.as_ref().is_none_or(|(fewest, _)| count < *fewest) {
            best = Some((count, edits));
            in_vain = 0;
        } else {
            in_vain += 1;
        }
        if count == 0 || in_vain == MOST_IN_VAIN {
            break;
        }
        for (overshoot, _) in overshoots.iter_mut().zip(&left).filter(|(_, left)| **left) {
            *overshoot *= FURTHER;
        }
    }
    Ok(best.map(|(_, edits)| edits).unwrap_or_default())
}

/// Returns the layers that change, front to back: those of the text tower that may and that end an
/// MLP.
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
    let layers: Vec<String> = ends.filter(allowed).cloned().collect();
    if layers.is_empty() {
        return Err(Failure::input("no layer of the text tower may change"));
    }
    Ok(layers)
}

/// Returns the edits of some layers, with the strength of each concept.
fn applied(solved: &Solved<'_>, strength: impl Fn(&str) -> f64) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (&concept, of_layers) in solved {
        for (layer, edit) in of_layers {
            edits.push(Edit {
                concept: concept.to_owned(),
                layer: (*layer).clone(),
                spread: false,
                step: 1.0,
                strength: strength(concept),
                coefficient: 1.0,
                direction: edit.direction,
            });
        }
    }
    edits
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
    let (paired, unlabelled) = jobs::key_moments(plan, covered, &texts, layers);
    let (paired, unlabelled) = (batch.add(paired), batch.add(unlabelled));
    let base = batch.add(jobs::base_evaluation(plan, run.classes, run.removed));
    let mut results = run.must("statistics", &batch).await?;
    let base = held_out(results.take(&base)?);
    let (paired, unlabelled) = (results.take(&paired)?, results.take(&unlabelled)?);
    let reduces = jobs::moments_reduces(plan, Tower::Text, &paired, &unlabelled);
    let reduced = run.all("statistics", reduces).await?;
    // There is one output per layer of a sum, in the order of their names.
    let names = paired.first().into_iter().flat_map(|sums| sums.layers.keys());
    let by_name: BTreeMap<&String, ArtifactRef> =
        names.zip(reduced.iter().map(|output| output.inverse)).collect();
    let of_layer = |layer: &String| {
        by_name.get(layer).copied().ok_or_else(|| {
            Failure::Infrastructure(format!("there are no moments of layer {layer}"))
        })
    };
    let inverses = layers.iter().map(of_layer).collect::<Result<_, Failure>>()?;
    Ok((base, inverses))
}

/// Returns a concept with its edits of some layers.
async fn edited<'a>(
    run: &Run<'_>,
    planned: &'a PlannedConcept,
    images: ForgetImages,
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
        before: images.before,
        // No layer is scored: what is read of a text is the last one's output.
        ranking: Vec::new(),
        search: Vec::new(),
        edit,
        alone: None,
        gradients: None,
        said: Some(images.said),
        thumbnails: images.thumbnails,
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

//! Edits by least squares (`docs/composition.md`, "`least-squares`").
//!
//! The phases are:
//! 1. Collect the second moments of the inputs of one layer over retained texts, at every token.
//! 2. Compute each concept's keys (inputs of the layer at its texts) and residuals (how far the
//!    states of its texts are from those of a mean text).
//! 3. Solve the edit that maps all keys to their residuals and moves retained texts least. It is
//!    the sum of one direction per concept.

use bytes::Bytes;
use lethe_shared::checkpoint::tower::{Map, Part, TowerMap, Weight};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::{KeysOutput, LeastSquaresEdit};
use lethe_shared::vocabulary::Tower;

use super::context::{Run, concept_results};
use super::edits::{ConceptEdit, EditedConcept, Edits, unsolved};
use super::judgement::{HeldOut, held_out};
use crate::exec::batch::Batch;
use crate::exec::jobs;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

pub(super) async fn edits<'a>(run: &mut Run<'a>) -> Result<(Edits<'a>, HeldOut), Failure> {
    let plan = run.plan;
    let layer = layer(plan)?;
    let (base, inverses) = statistics(run, &layer).await?;
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    let tasks = jobs::keys(plan, &layer, &inverses, run.classes);
    let ended = run.of_concepts("concepts", tasks).await?;
    let mut missing = Vec::new();
    let results = concept_results(&concepts, ended, &mut missing)?;
    let mut found = Vec::with_capacity(results.len());
    if !results.is_empty() {
        let keys = results.iter().map(|(_, output)| output.factors).collect();
        let task = jobs::least_squares(plan, &layer, keys, &inverses);
        let solved = run.one("directions", task).await?;
        if solved.edits.len() != results.len() {
            return Err(Failure::Infrastructure(
                "the solved edits are not those of the concepts; an outcome is damaged".to_owned(),
            ));
        }
        let both = results.into_iter().zip(solved.edits);
        found.extend(both.map(|((planned, keys), edit)| edited(planned, keys, &edit, &layer)));
    }
    let recipe = unsolved(&found)?;
    Ok((Edits { found, missing, recipe, moments: inverses, protected: None }, base))
}

/// Returns the layer that changes: of those that may, the one that ends the MLP of the last block.
fn layer(plan: &Plan) -> Result<String, Failure> {
    let tower = TowerMap::of(plan.checkpoint.tensors(), Tower::Text)?;
    let ends = tower.places().iter().rev();
    let mut ends = ends
        .filter(|(weight, _)| matches!(weight, Weight::Block(_, Map::Fc2, Part::Weight)))
        .map(|(_, place)| &place.tensor);
    let allowed =
        |name: &&String| plan.layers.as_ref().is_none_or(|layers| layers.contains(name.as_str()));
    ends.find(allowed)
        .cloned()
        .ok_or_else(|| Failure::input("no layer of the text tower may change"))
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

/// Computes the hits of the unedited model, and the preconditioner of the layer.
async fn statistics(
    run: &mut Run<'_>,
    layer: &str,
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
    let (mut paired, unlabelled) = jobs::key_moments(plan, &texts, layer);
    // Captions name retained classes among other words; their class texts are what users write.
    paired.push(jobs::key_moments_of_texts(plan, put(&covered(plan)).await?, layer));
    let mut batch = Batch::default();
    let (paired, unlabelled) = (batch.add(paired), batch.add(unlabelled));
    let base = batch.add(jobs::base_evaluation(plan, run.classes, run.removed));
    let mut results = run.must("statistics", &batch).await?;
    let base = held_out(results.take(&base)?);
    let (paired, unlabelled) = (results.take(&paired)?, results.take(&unlabelled)?);
    let reduces = jobs::moments_reduces(plan, Tower::Text, &paired, &unlabelled);
    let reduced = run.all("statistics", reduces).await?;
    Ok((base, reduced.iter().map(|output| output.inverse).collect()))
}

fn edited<'a>(
    planned: &'a PlannedConcept,
    keys: KeysOutput,
    edit: &LeastSquaresEdit,
    layer: &str,
) -> EditedConcept<'a> {
    let edit = ConceptEdit {
        tower: Tower::Text,
        layer: layer.to_owned(),
        layers: vec![layer.to_owned()],
        step: 1.0,
        relative_step: edit.size,
        direction: edit.direction,
        rank: Some(edit.rank),
        residual: Some(edit.residual),
    };
    EditedConcept {
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
    }
}

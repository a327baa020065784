//! The edits of a run, and the concepts without an edit.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::measurement::{Accuracy, Answers, Chosen, RankedLayer, Trial};
use lethe_shared::record::Missing;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::vocabulary::Tower;
use safetensors::SafeTensors;

use crate::compose::apply::Directions;
use crate::compose::recipe::{Part, Recipe};
use crate::exec::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// A concept that has an edit.
pub(super) struct EditedConcept<'a> {
    pub(super) planned: &'a PlannedConcept,
    pub(super) pairs: u64,
    pub(super) before: Accuracy,
    pub(super) ranking: Vec<RankedLayer>,
    pub(super) search: Vec<Trial>,
    pub(super) edit: ConceptEdit,
    /// The answer of the step search, when the edit was searched for by itself.
    pub(super) alone: Option<Chosen>,
    /// Factors of its gradients at every layer of the run, if directions are preconditioned.
    pub(super) gradients: Option<ArtifactRef>,
    /// The unedited model's predictions on the forget images.
    pub(super) said: Option<Answers>,
    pub(super) thumbnails: Option<ArtifactRef>,
}

/// The edit of a concept.
pub(super) struct ConceptEdit {
    pub(super) tower: Tower,
    /// The layer that changes most.
    pub(super) layer: String,
    /// All layers that change.
    pub(super) layers: Vec<String>,
    pub(super) step: f64,
    /// Size of the change relative to the layer that changes most.
    pub(super) relative_step: f64,
    pub(super) direction: ArtifactRef,
    /// Largest rank of the direction at a layer; `None` when it is not cut to a rank.
    pub(super) rank: Option<u32>,
    /// Relative error of the direction by the cut, in the norm that prices changes.
    pub(super) residual: Option<f64>,
}

impl ConceptEdit {
    /// Returns the edit that a search has found. `cut` is the rank of its direction and the error
    /// by it, if the direction was cut to a rank.
    pub(super) fn of(chosen: &Chosen, cut: Option<(u32, f64)>) -> Self {
        let answer = &chosen.answer;
        Self {
            tower: answer.tower,
            layer: answer.layer.clone(),
            layers: vec![answer.layer.clone()],
            step: answer.step,
            relative_step: answer.relative_step,
            direction: chosen.direction,
            rank: cut.map(|(rank, _)| rank),
            residual: cut.map(|(_, residual)| residual),
        }
    }
}

impl EditedConcept<'_> {
    pub(super) fn part(&self, target: Option<f64>) -> Part {
        Part {
            concept: self.planned.concept.id.clone(),
            layers: self.edit.layers.clone(),
            step: self.edit.step,
            strength: self.planned.concept.strength,
            target,
            direction: self.edit.direction,
        }
    }
}

/// Edits, and the concepts without an edit.
pub(super) struct Edits<'a> {
    pub(super) found: Vec<EditedConcept<'a>>,
    pub(super) missing: Vec<Missing>,
    /// The recipe of their composition; its parts are in the order of `found`.
    pub(super) recipe: Recipe,
    /// Moments that preconditioned the directions.
    pub(super) moments: Vec<ArtifactRef>,
    /// Inputs of the edited layers for protected texts.
    pub(super) protected: Option<ArtifactRef>,
}

/// Returns a recipe that sums the edits without solving coefficients.
pub(super) fn unsolved(found: &[EditedConcept<'_>]) -> Result<Recipe, Failure> {
    Recipe::sum(found.iter().map(|found| found.part(None)).collect())
        .map_err(Failure::Infrastructure)
}

/// Total size of the direction files that stay in memory for the next composition, bytes. Other
/// files are fetched again.
const KEPT: u64 = 128 << 20;

/// Directions in the run's store, checked against their digests. Corrupt ones are produced again.
pub(super) struct Stored<'a> {
    run: &'a str,
    dispatcher: &'a Dispatcher,
    kept: Mutex<BTreeMap<ArtifactRef, Bytes>>,
}

impl<'a> Stored<'a> {
    pub(super) fn of(plan: &'a Plan, dispatcher: &'a Dispatcher) -> Self {
        Self { run: &plan.run, dispatcher, kept: Mutex::default() }
    }

    pub(super) fn kept<T>(&self, act: impl FnOnce(&mut BTreeMap<ArtifactRef, Bytes>) -> T) -> T {
        // Files are only added, so a poisoned lock is consistent.
        act(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Directions for Stored<'_> {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        let file = match self.kept(|kept| kept.get(&edit.direction).cloned()) {
            Some(file) => file,
            None => {
                let file = self.dispatcher.artifact(self.run, &edit.direction).await?;
                self.kept(|kept| {
                    if kept.keys().map(|artifact| artifact.bytes).sum::<u64>()
                        + edit.direction.bytes
                        <= KEPT
                    {
                        kept.insert(edit.direction, file.clone());
                    }
                });
                file
            }
        };
        if !edit.spread {
            return Ok(edit::decode_direction(&edit.layer, shape, &file)?);
        }
        let parsed = SafeTensors::deserialize(&file).map_err(|error| {
            Failure::Infrastructure(format!("artifact {}: {error}", edit.direction.digest))
        })?;
        Ok(edit::read_direction(&parsed, &edit.layer, shape)?)
    }
}

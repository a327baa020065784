//! Applies edits to a target's tensors: each target tensor's own values plus the edits' change of
//! the base, in float64, rounded once to the target's stored type.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::checkpoint::tower::{Place, TowerMap};
use lethe_shared::edit::{self, Edit};
use lethe_shared::record::Merge;
use lethe_shared::record::targets::ChangedTensor;

use super::encoder::{Encoder, WeightSet};
use super::target::Target;
use crate::compose::apply::{self, Change, Directions};
use crate::failure::Failure;

/// A target's changed tensors.
#[derive(Debug)]
pub struct Edited {
    /// Changed tensors by encoder and weight set.
    pub(super) sets: Vec<Vec<EditedSet>>,
    /// Concepts whose edit has no effect in this target.
    pub(super) without: Vec<String>,
}

/// The changed tensors of one weight set.
#[derive(Debug)]
pub(super) struct EditedSet {
    /// New bytes of the tensors that differ from before.
    pub(super) change: Change,
    /// Every tensor that an edit applies to.
    pub(super) tensors: BTreeMap<String, ChangedTensor>,
}

/// A part of a target's tensor: the corresponding layer of the base, and its position in both.
struct Piece<'a> {
    layer: &'a str,
    ours: &'a Place,
    theirs: &'a Place,
}

impl Target {
    /// Applies the base's edits to a target.
    ///
    /// # Errors
    /// [`Failure`] when an edit names a layer that the base lacks, a direction cannot be read, or a
    /// value exceeds the range of its type.
    pub async fn edited(
        &self,
        base: &Checkpoint,
        edits: &[Edit],
        rule: Merge,
        directions: &impl Directions,
    ) -> Result<Edited, Failure> {
        let own = TowerMap::of(base.tensors(), self.tower())?;
        let mut layers: Vec<&str> = edits
            .iter()
            .filter(|edit| edit.factor() != 0.0)
            .map(|edit| edit.layer.as_str())
            .collect();
        layers.sort_unstable();
        layers.dedup();
        // A concept may have edits of several layers.
        let concepts = |acts: bool| -> BTreeSet<&String> {
            edits
                .iter()
                .filter(|edit| edit.factor() != 0.0 && self.acts(&edit.layer, &own) == acts)
                .map(|edit| &edit.concept)
                .collect()
        };
        let without = concepts(false).difference(&concepts(true)).map(|&id| id.clone()).collect();
        let source = Source { base, own: &own, layers: &layers, edits, rule, directions };
        let mut sets = Vec::new();
        for encoder in &self.encoders {
            let mut edited = Vec::with_capacity(encoder.sets.len());
            for set in &encoder.sets {
                edited.push(edit_set(encoder, set, &source).await?);
            }
            sets.push(edited);
        }
        Ok(Edited { sets, without })
    }
}

/// The edits, and their base model.
struct Source<'a, D> {
    base: &'a Checkpoint,
    own: &'a TowerMap,
    /// The layers that change.
    layers: &'a [&'a str],
    edits: &'a [Edit],
    rule: Merge,
    directions: &'a D,
}

async fn edit_set<D: Directions>(
    encoder: &Encoder,
    set: &WeightSet,
    source: &Source<'_, D>,
) -> Result<EditedSet, Failure> {
    let Source { base, own, layers, edits, rule, directions } = *source;
    // By tensor of the target: a fused tensor has parts of several layers of a base that stores
    // them separately, and the reverse.
    let mut pieces: BTreeMap<&str, Vec<Piece<'_>>> = BTreeMap::new();
    for &layer in layers {
        for (weight, ours) in own.weights_in(layer).filter(|(weight, _)| encoder.acts(*weight)) {
            let theirs = &set.map.places()[&weight];
            pieces.entry(theirs.tensor.as_str()).or_default().push(Piece { layer, ours, theirs });
        }
    }
    let mut edited = EditedSet { change: Change::new(), tensors: BTreeMap::new() };
    // Parts of one layer are consecutive, so only the last merged layer is kept.
    let mut last: Option<(&str, Vec<f64>)> = None;
    for (tensor, pieces) in pieces {
        let info = set.checkpoint.tensor(tensor)?;
        let before = set.checkpoint.bytes(tensor)?;
        let old = edit::widen(tensor, &before, info.dtype)?;
        let mut wanted = vec![0.0; old.len()];
        for piece in pieces {
            let merged = match last.take().filter(|(layer, _)| *layer == piece.layer) {
                Some((_, merged)) => merged,
                None => apply::delta(base, edits, piece.layer, rule, directions).await?,
            };
            let part = piece.ours.take(&base.tensor(piece.layer)?.shape, &merged);
            piece.theirs.add(&info.shape, &mut wanted, &part);
            last = Some((piece.layer, merged));
        }
        let moved: Vec<f64> =
            wanted.iter().zip(&old).map(|(change, value)| change + value).collect();
        let after = edit::store(tensor, &before, &moved, info.dtype)
            .map_err(|error| Failure::input(format!("target file {}: {error}", set.name)))?;
        let new = edit::widen(tensor, &after, info.dtype)?;
        let length = |values: &mut dyn Iterator<Item = f64>| {
            values.map(|value| value * value).sum::<f64>().sqrt()
        };
        let share = |part: f64, whole: f64| {
            if part == 0.0 { 0.0 } else { part / whole.max(f64::MIN_POSITIVE) }
        };
        let stored = new.iter().zip(&old).map(|(new, old)| new - old);
        let (change, lost) = (
            length(&mut stored.clone()),
            length(&mut stored.zip(&wanted).map(|(stored, wanted)| stored - wanted)),
        );
        let of = ChangedTensor {
            change: share(change, length(&mut old.iter().copied())),
            rounding: share(lost, length(&mut wanted.iter().copied())),
        };
        edited.tensors.insert(tensor.to_owned(), of);
        if after != before {
            edited.change.insert(tensor.to_owned(), after);
        }
    }
    Ok(edited)
}

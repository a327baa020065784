//! Composition: merges many single-layer edits into one change per layer. Arithmetic on bytes,
//! without libtorch.
//!
//! Edits are summed in float64 in the order of their concepts' ids, and the result is rounded once
//! to the type in which the layer is stored. The bytes of a composition therefore depend neither on
//! the machine nor on the order in which edits arrive.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::record::Merge;
use safetensors::tensor::TensorView;

use crate::compose::merge::Merging;
use crate::failure::Failure;

/// Changed layers: the new bytes by layer name, in the stored type.
pub type Change = BTreeMap<String, Vec<u8>>;

/// Source of the directions of edits. A function implements it when all directions are in memory.
pub trait Directions: Sync {
    /// Returns an edit's direction on a layer of this shape.
    ///
    /// # Errors
    /// [`Failure`] when the direction cannot be read or has another shape.
    fn direction(
        &self,
        edit: &Edit,
        shape: &[usize],
    ) -> impl Future<Output = Result<Direction, Failure>> + Send;
}

impl<F: Fn(&Edit, &[usize]) -> Result<Direction, Failure> + Sync> Directions for F {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        self(edit, shape)
    }
}

/// Directions that are fetched concurrently.
const AT_ONCE: usize = 4;

/// Computes θ_l plus the merged edits for each layer. An edit with strength or coefficient 0 is
/// skipped. Directions are fetched as they are needed and dropped once they are added.
///
/// # Errors
/// [`Failure`] when an edit names a layer that the checkpoint lacks, a direction cannot be read, or
/// a value exceeds the range of the type in which its layer is stored.
pub async fn compose(
    checkpoint: &Checkpoint,
    edits: &[Edit],
    rule: Merge,
    directions: &impl Directions,
) -> Result<Change, Failure> {
    let layers: BTreeSet<&str> =
        edits.iter().filter(|edit| edit.factor() != 0.0).map(|edit| edit.layer.as_str()).collect();
    let mut change = Change::new();
    for layer in layers {
        let dtype = checkpoint.tensor(layer)?.dtype;
        let stored = checkpoint.bytes(layer)?;
        let base = edit::widen(layer, &stored, dtype)?;
        // The changes are summed before the far larger weights are added, so that rounding happens
        // once.
        let mut moved = delta(checkpoint, edits, layer, rule, directions).await?;
        for (value, base) in moved.iter_mut().zip(&base) {
            *value += base;
        }
        change.insert(layer.to_owned(), edit::store(layer, &stored, &moved, dtype)?);
    }
    Ok(change)
}

/// Returns the merged edits of one layer in float64, before any rounding.
///
/// # Errors
/// [`Failure`] when the checkpoint lacks the layer, or a direction cannot be read.
pub async fn delta(
    checkpoint: &Checkpoint,
    edits: &[Edit],
    layer: &str,
    rule: Merge,
    directions: &impl Directions,
) -> Result<Vec<f64>, Failure> {
    let shape = &checkpoint.tensor(layer)?.shape;
    let mut own: Vec<&Edit> =
        edits.iter().filter(|edit| edit.layer == layer && edit.factor() != 0.0).collect();
    own.sort_by(|a, b| a.concept.cmp(&b.concept));
    let mut merging = Merging::new(rule, own.len(), shape.iter().product());
    let looks = own.len() * Merging::looks(rule);
    let (mut asked, mut wanted) = (FuturesOrdered::new(), own.iter().cycle().take(looks));
    for &edit in own.iter().cycle().take(looks) {
        while let Some(next) = if asked.len() < AT_ONCE { wanted.next() } else { None } {
            asked.push_back(directions.direction(next, shape));
        }
        if let Some(direction) = asked.next().await {
            merging.add(edit, direction?);
        }
    }
    Ok(merging.finish())
}

/// Returns the relative size of the change of each layer, ‖Δ‖/‖θ‖.
///
/// # Errors
/// [`Failure::BadInput`] when a layer is not in the checkpoint, or is stored in a type that edits
/// do not support.
pub fn sizes(checkpoint: &Checkpoint, change: &Change) -> Result<BTreeMap<String, f64>, Failure> {
    let mut sizes = BTreeMap::new();
    for (layer, bytes) in change {
        let dtype = checkpoint.tensor(layer)?.dtype;
        let (before, after) = (
            edit::widen(layer, &checkpoint.bytes(layer)?, dtype)?,
            edit::widen(layer, bytes, dtype)?,
        );
        let moved: f64 =
            before.iter().zip(&after).map(|(before, after)| (after - before).powi(2)).sum();
        let whole: f64 = before.iter().map(|value| value.powi(2)).sum();
        sizes.insert(
            layer.clone(),
            if moved == 0.0 { 0.0 } else { (moved / whole.max(f64::MIN_POSITIVE)).sqrt() },
        );
    }
    Ok(sizes)
}

/// Encodes a change as a safetensors file, for the workers that evaluate it.
///
/// # Errors
/// [`Failure`] when the length of the bytes does not match the shape.
pub fn encode(checkpoint: &Checkpoint, change: &Change) -> Result<Vec<u8>, Failure> {
    let mut views = BTreeMap::new();
    for (layer, bytes) in change {
        let info = checkpoint.tensor(layer)?;
        let view = TensorView::new(info.dtype, info.shape.clone(), bytes)
            .map_err(|error| Failure::input(format!("`{layer}`: {error}")))?;
        views.insert(layer.clone(), view);
    }
    safetensors::serialize(views, None).map_err(|error| Failure::input(error.to_string()))
}

#[cfg(test)]
mod tests {
    use lethe_shared::digest::Digest;
    use lethe_shared::reference::ArtifactRef;
    use proptest::prelude::*;
    use safetensors::Dtype;

    use super::*;

    const BASE: [f32; 3] = [1.0, -2.0, 0.5];

    fn checkpoint(folder: &std::path::Path) -> Checkpoint {
        let bytes: Vec<u8> = BASE.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = || TensorView::new(Dtype::F32, vec![3], &bytes).unwrap();
        let file = safetensors::serialize([("a", view()), ("b", view())], None).unwrap();
        std::fs::write(folder.join("model.safetensors"), file).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    fn edit(concept: &str, layer: &str, step: f64, strength: f64) -> Edit {
        Edit {
            concept: concept.into(),
            layer: layer.into(),
            spread: false,
            step,
            strength,
            coefficient: 1.0,
            direction: ArtifactRef { digest: Digest::of(concept.as_bytes()), bytes: 3 },
        }
    }

    /// Returns a direction that differs by concept.
    fn values(edit: &Edit) -> Vec<f32> {
        edit.direction.digest.as_bytes()[..BASE.len()]
            .iter()
            .map(|&byte| f32::from(byte) / 37.0 - 3.0)
            .collect()
    }

    fn direction(edit: &Edit, _: &[usize]) -> Result<Direction, Failure> {
        Ok(Direction::Dense(values(edit)))
    }

    fn try_compose(edits: &[Edit]) -> Result<Change, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(folder.path());
        futures::executor::block_on(compose(&checkpoint, edits, Merge::Sum, &direction))
    }

    fn composed(edits: &[Edit]) -> Change {
        try_compose(edits).unwrap()
    }

    #[test]
    fn one_edit_is_the_step_the_search_tried() {
        let edit = edit("pizza", "a", 0.25, 1.0);
        let expected: Vec<u8> = BASE
            .iter()
            .zip(values(&edit))
            .flat_map(|(&base, g)| ((f64::from(base) + 0.25 * f64::from(g)) as f32).to_le_bytes())
            .collect();
        assert_eq!(composed(&[edit]), Change::from([("a".to_owned(), expected)]));
    }

    #[test]
    fn strength_zero_is_no_edit() {
        assert_eq!(composed(&[edit("x", "a", 0.5, 0.0)]), Change::new());
        let alone = composed(&[edit("y", "a", 0.5, 1.0)]);
        assert_eq!(composed(&[edit("x", "a", 9.0, 0.0), edit("y", "a", 0.5, 1.0)]), alone);
    }

    #[test]
    fn a_layer_out_of_its_type_s_range_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = edit::narrow("a", &BASE.map(f64::from), Dtype::F16).unwrap();
        let broken = edit::narrow("b", &[f64::INFINITY, 0.0, 0.0], Dtype::F16).unwrap();
        let view = |bytes| TensorView::new(Dtype::F16, vec![3], bytes).unwrap();
        let file =
            safetensors::serialize([("a", view(&bytes)), ("b", view(&broken))], None).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let composed = |edits: &[Edit]| {
            futures::executor::block_on(compose(&checkpoint, edits, Merge::Sum, &direction))
        };
        assert_eq!(
            composed(&[edit("x", "a", 1.0, 1.0)]).unwrap().len(),
            1,
            "a layer that no edit touches may be what it is"
        );
        let error = composed(&[edit("x", "a", 1.0, 1e6)]).unwrap_err().to_string();
        assert!(
            error.contains("layer `a`")
                && error.contains("not finite in F16")
                && error.contains("lower the strength"),
            "{error}"
        );
        let error = composed(&[edit("x", "b", 1.0, 1.0)]).unwrap_err().to_string();
        assert!(
            error.contains(
                "layer `b`: 1 of 3 values are NaN or infinite in the model that is to be edited"
            ),
            "{error}"
        );
    }

    #[test]
    fn sizes_are_relative_to_the_layer() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = BASE.iter().flat_map(|value| (1.5 * value).to_le_bytes()).collect();
        let change = Change::from([
            ("a".to_owned(), bytes),
            ("b".to_owned(), BASE.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ]);
        let found = sizes(&checkpoint(folder.path()), &change).unwrap();
        assert!((found["a"] - 0.5).abs() < 1e-12 && found["b"] == 0.0, "{found:?}");
    }

    #[test]
    fn a_layer_that_is_not_there_is_refused() {
        let error = try_compose(&[edit("x", "c", 1.0, 1.0)]).unwrap_err();
        assert!(error.to_string().contains("tensor `c`"));
    }

    proptest! {
        #[test]
        fn the_order_of_edits_changes_nothing(mut steps in proptest::collection::vec((0.0f64..10.0, 0.0f64..2.0, any::<bool>()), 1..12), turn in 0usize..12) {
            let edits: Vec<Edit> = steps
                .drain(..)
                .enumerate()
                .map(|(i, (step, strength, first))| edit(&format!("c{i:02}"), if first { "a" } else { "b" }, step, strength))
                .collect();
            let mut turned = edits.clone();
            turned.rotate_left(turn % edits.len());
            turned.reverse();
            prop_assert_eq!(composed(&edits), composed(&turned));
        }
    }
}

//! Changes beside which that of a model is measured: half of it, and a random one of its size. Pure.

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit;

use super::apply::Change;
use crate::failure::Failure;

/// Returns the change of `model` to the mean of the base model and of `model` under a change.
///
/// # Errors
/// [`Failure::BadInput`] when the tensors of the models differ in names, shapes or types.
pub fn halfway(base: &Checkpoint, model: &Checkpoint, change: &Change) -> Result<Change, Failure> {
    each(base, model, change, |_, base, changed| {
        for (changed, base) in changed.iter_mut().zip(base) {
            *changed = 0.5 * (base + *changed);
        }
    })
}

/// Returns the change of `model` to the base model with a random change: of the tensors in which
/// they differ, and of the same norm on each, by random signs that depend on the names of the
/// tensors alone.
///
/// # Errors
/// [`Failure::BadInput`] when the tensors of the models differ in names, shapes or types.
pub fn random(base: &Checkpoint, model: &Checkpoint, change: &Change) -> Result<Change, Failure> {
    each(base, model, change, |layer, base, changed| {
        let squares: f64 =
            changed.iter().zip(base).map(|(changed, base)| (changed - base).powi(2)).sum();
        let size = (squares / base.len().max(1) as f64).sqrt();
        for ((changed, base), sign) in changed.iter_mut().zip(base).zip(signs(layer)) {
            *changed = base + sign * size;
        }
    })
}

/// Returns a change of `model` with other values of the tensors in which `model` under a change
/// differs from the base model. `act` gets a tensor's name, its values in the base model, and its
/// changed values, which it replaces.
fn each(
    base: &Checkpoint,
    model: &Checkpoint,
    change: &Change,
    act: impl Fn(&str, &[f64], &mut [f64]),
) -> Result<Change, Failure> {
    let mut other = Change::new();
    for (name, info) in model.tensors() {
        let original = base
            .tensors()
            .get(name)
            .filter(|there| (there.dtype, &there.shape) == (info.dtype, &info.shape));
        if original.is_none() || base.tensors().len() != model.tensors().len() {
            return Err(Failure::input(format!(
                "the model cannot be compared with the base model, whose tensors are others (`{name}`)"
            )));
        }
        let (before, own) = (base.bytes(name)?, model.bytes(name)?);
        let after = change.get(name).map_or(&*own, Vec::as_slice);
        if *before == *after {
            continue;
        }
        let before = edit::widen(name, &before, info.dtype)?;
        let mut values = edit::widen(name, after, info.dtype)?;
        act(name, &before, &mut values);
        other.insert(name.clone(), edit::narrow(name, &values, info.dtype)?);
    }
    Ok(other)
}

/// Returns random signs: the bits of SHA-256 over a name and a counter.
fn signs(name: &str) -> impl Iterator<Item = f64> {
    (0u64..).flat_map(move |block| {
        let bytes = *Digest::of(format!("{name} {block}").as_bytes()).as_bytes();
        bytes
            .into_iter()
            .flat_map(|byte| (0..8).map(move |bit| if byte >> bit & 1 == 1 { 1.0 } else { -1.0 }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_fair_and_those_of_a_name() {
        let sum: f64 = signs("a layer").take(10_000).sum();
        assert!(sum.abs() < 300.0, "{sum}");
        let some = |name: &str| signs(name).take(64).collect::<Vec<_>>();
        assert_eq!(some("a"), some("a"));
        assert_ne!(some("a"), some("b"));
    }
}

//! Restricts edits to the layer that a manifest names, and to layers that have an effect in every
//! target. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::checkpoint::tower::TowerMap;
use lethe_shared::checkpoint::{self, Checkpoint};
use lethe_shared::manifest::{CompositionMethod, Manifest};
use lethe_shared::printable::printable;
use lethe_shared::vocabulary::{Tower, Towers};

use super::target::{self, Target, mlp_ends};

/// Layers that may be edited.
#[derive(Debug)]
pub struct Among {
    /// By name in the base.
    pub layers: BTreeSet<String>,
    /// Warnings, which do not stop a run.
    pub warnings: Vec<String>,
}

/// What is wrong with a field of the manifest.
#[derive(Debug)]
pub struct Problem {
    /// The field.
    pub field: &'static str,
    /// A sentence.
    pub sentence: String,
}

impl Problem {
    const fn of_target(sentence: String) -> Self {
        Self { field: "release.target", sentence }
    }

    const fn of_layer(sentence: String) -> Self {
        Self { field: "composition.layer", sentence }
    }
}

/// Returns the number of layers of a tower that end an MLP: the candidates of preconditioned edits.
///
/// # Errors
/// When the checkpoint has no such tower.
pub fn candidates(base: &Checkpoint, tower: Tower) -> Result<usize, checkpoint::Error> {
    Ok(mlp_ends(&TowerMap::of(base.tensors(), tower)?).len())
}

/// Returns the number of inputs of a tower's layers that end an MLP, of the narrowest one.
///
/// # Errors
/// When the checkpoint has no such tower.
pub fn mlp_units(base: &Checkpoint, tower: Tower) -> Result<u64, checkpoint::Error> {
    let own = TowerMap::of(base.tensors(), tower)?;
    let units = mlp_ends(&own).into_iter().filter_map(|layer| {
        let shape = &base.tensors().get(layer)?.shape;
        shape.last().map(|&inputs| inputs as u64)
    });
    Ok(units.min().unwrap_or_default())
}

/// Returns the layers that may be edited: the one that the manifest names, or those that all targets
/// of a tower contain and use, over the towers that edits may change. `None` when neither restricts
/// them.
///
/// # Errors
/// A sentence for each target in which no edit would have an effect, or about the named layer.
pub fn among(
    manifest: &Manifest,
    base: &Checkpoint,
    targets: &[Target],
) -> Result<Option<Among>, Vec<Problem>> {
    let named = named_layer(manifest, base)?;
    if targets.is_empty() {
        let only = |layer| Among { layers: BTreeSet::from([layer]), warnings: Vec::new() };
        return Ok(named.map(only));
    }
    let composition = &manifest.composition;
    let corrects = composition.method().corrects();
    let may_change = |tower: Tower| match composition.towers {
        _ if !corrects => true,
        Towers::Both => true,
        Towers::Text => tower == Tower::Text,
        Towers::Vision => tower == Tower::Vision,
    };
    let mut problems = Vec::new();
    for target in targets.iter().filter(|target| !may_change(target.tower())) {
        let (name, tower) = (&target.request.name, target.tower().name());
        problems.push(Problem::of_target(format!(
            "target `{name}` has the {tower} tower inside, and edits change the other one alone: set composition.towers = \"{tower}\" \
             (or \"both\", where targets of both towers are released)"
        )));
    }
    let mut by_tower: BTreeMap<Tower, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        by_tower.entry(target.tower()).or_default().push(target);
    }
    let (mut layers, mut warnings) = (BTreeSet::new(), Vec::new());
    for (&tower, targets) in &by_tower {
        let own = TowerMap::of(base.tensors(), tower)
            .map_err(|error| vec![Problem::of_target(error.to_string())])?;
        let editable = editable(manifest, &own);
        let acting: BTreeSet<&str> = editable
            .iter()
            .copied()
            .filter(|layer| targets.iter().all(|target| target.acts(layer, &own)))
            .collect();
        if acting.is_empty() && may_change(tower) {
            let names: Vec<String> =
                targets.iter().map(|target| format!("`{}`", target.request.name)).collect();
            problems.push(Problem::of_target(format!(
                "no layer that edits may change acts in {}: each uses too little of the {} tower",
                names.join(" and "),
                tower.name()
            )));
        }
        if acting.len() < editable.len() {
            let left = editable.difference(&acting).copied().collect::<Vec<_>>().join(", ");
            warnings.push(format!(
                "targets do not have or use every layer of the {} tower; no edit goes to {left}",
                tower.name()
            ));
        }
        layers.extend(acting.into_iter().map(str::to_owned));
    }
    if by_tower.len() > 1 {
        let sentence = match composition.method() {
            CompositionMethod::Margins => {
                "targets have different towers inside, and each removal is shared between the towers: a target gets the part of its own \
                 tower, which alone removes less. A manifest for each tower removes all from all"
            }
            _ => {
                "targets have different towers inside, and a concept is removed by an edit in one of them: it stays in every target with \
                 the other one. The record names such concepts (targets[].without); a manifest for each tower removes all from all"
            }
        };
        warnings.push(sentence.to_owned());
    }
    if let Some(named) = named {
        if !layers.contains(&named) && problems.is_empty() {
            problems.push(Problem::of_layer(format!("`{named}` does not act in every target")));
        }
        layers = BTreeSet::from([named]);
        warnings.clear();
    }
    if problems.is_empty() { Ok(Some(Among { layers, warnings })) } else { Err(problems) }
}

/// Returns the layers of a tower that the manifest's method can edit.
fn editable<'a>(manifest: &Manifest, tower: &'a TowerMap) -> BTreeSet<&'a str> {
    if manifest.composition.method().corrects() {
        mlp_ends(tower)
    } else {
        target::candidates(tower, manifest.method.normalisation_gains)
    }
}

/// Returns the layer that the manifest names, if it names one.
fn named_layer(manifest: &Manifest, base: &Checkpoint) -> Result<Option<String>, Vec<Problem>> {
    let composition = &manifest.composition;
    let Some(layer) = &composition.layer else { return Ok(None) };
    let mut layers = BTreeSet::new();
    for tower in [Tower::Text, Tower::Vision] {
        if composition.method().corrects() && !composition.towers.include(tower) {
            continue;
        }
        let own = TowerMap::of(base.tensors(), tower)
            .map_err(|error| vec![Problem::of_layer(error.to_string())])?;
        layers.extend(editable(manifest, &own).into_iter().map(str::to_owned));
    }
    if layers.contains(layer) {
        return Ok(Some(layer.clone()));
    }
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    Err(vec![Problem::of_layer(format!(
        "`{}` is none of the layers that this manifest's edits can change: {}",
        printable(layer),
        layers.join(", ")
    ))])
}

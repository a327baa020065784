//! Restricts edits to layers that have an effect in every target. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::checkpoint::tower::TowerMap;
use lethe_shared::checkpoint::{self, Checkpoint};
use lethe_shared::manifest::Manifest;
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

/// Returns the number of layers of a tower that end an MLP: the candidates of preconditioned edits.
///
/// # Errors
/// When the checkpoint has no such tower.
pub fn candidates(base: &Checkpoint, tower: Tower) -> Result<usize, checkpoint::Error> {
    Ok(mlp_ends(&TowerMap::of(base.tensors(), tower)?).len())
}

/// Returns the layers that all targets of a tower contain and use, over the towers that edits may
/// change; `None` without targets.
///
/// # Errors
/// A sentence for each target in which no edit would have an effect.
pub fn among(
    manifest: &Manifest,
    base: &Checkpoint,
    targets: &[Target],
) -> Result<Option<Among>, Vec<String>> {
    if targets.is_empty() {
        return Ok(None);
    }
    let composition = &manifest.composition;
    let corrects = composition.method.corrects();
    let may_change = |tower: Tower| match composition.towers {
        _ if !corrects => true,
        Towers::Both => true,
        Towers::Text => tower == Tower::Text,
        Towers::Vision => tower == Tower::Vision,
    };
    let mut problems = Vec::new();
    for target in targets.iter().filter(|target| !may_change(target.tower())) {
        let (name, tower) = (&target.request.name, target.tower().name());
        problems.push(format!(
            "target `{name}` has the {tower} tower inside, and edits change the other one alone: set composition.towers = \"{tower}\" \
             (or \"both\", where targets of both towers are released)"
        ));
    }
    let mut by_tower: BTreeMap<Tower, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        by_tower.entry(target.tower()).or_default().push(target);
    }
    let (mut layers, mut warnings) = (BTreeSet::new(), Vec::new());
    for (&tower, targets) in &by_tower {
        let own = TowerMap::of(base.tensors(), tower)
            .map_err(|error: checkpoint::Error| vec![error.to_string()])?;
        let editable = if corrects {
            mlp_ends(&own)
        } else {
            target::candidates(&own, manifest.method.normalisation_gains)
        };
        let acting: BTreeSet<&str> = editable
            .iter()
            .copied()
            .filter(|layer| targets.iter().all(|target| target.acts(layer, &own)))
            .collect();
        if acting.is_empty() && may_change(tower) {
            let names: Vec<String> =
                targets.iter().map(|target| format!("`{}`", target.request.name)).collect();
            problems.push(format!(
                "no layer that edits may change acts in {}: each uses too little of the {} tower",
                names.join(" and "),
                tower.name()
            ));
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
        warnings.push(
            "targets have different towers inside, and a concept is removed by an edit in one of them: it stays in every target with the \
             other one. The record names such concepts (targets[].without); a manifest for each tower removes all from all"
                .to_owned(),
        );
    }
    if problems.is_empty() { Ok(Some(Among { layers, warnings })) } else { Err(problems) }
}

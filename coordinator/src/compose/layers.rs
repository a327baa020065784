//! Selection of the layers that a run edits. Pure.
//!
//! The **efficiency** η of a layer for a concept is its forgetting gain per change on held-out
//! retained data, which did not shape the direction (see `docs/composition.md`). It needs no
//! evaluation. The run takes the layers with the highest mean efficiency over all concepts; each
//! concept then gets the one of them with its highest efficiency, and the next one where no step on
//! that one forgets it. Where none of the run's layers has an answer, further layers are tried.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::measurement::RankedLayer;

/// Most layers beyond those of the run that are tried for a concept.
const MAX_FURTHER: usize = 3;

/// The layers of a run, and those of each concept, in the order of `rankings`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The run's layers, by name.
    pub layers: Vec<String>,
    /// Each concept's layers among them, best first; none when no layer has an efficiency for it.
    pub of: Vec<Vec<String>>,
    /// Each concept's best layers beyond them, best first.
    pub further: Vec<Vec<String>>,
}

/// Assigns concepts to at most `most` layers, from `among` if it is given. Ties go to the first
/// layer by name.
pub fn assign(
    rankings: &[&[RankedLayer]],
    most: usize,
    among: Option<&BTreeSet<String>>,
) -> Assignment {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    let may = |layer: &&RankedLayer| among.is_none_or(|among| among.contains(&layer.layer));
    for layer in rankings.iter().copied().flatten().filter(may) {
        if let Some(efficiency) = layer.efficiency {
            *sums.entry(&layer.layer).or_default() += efficiency;
        }
    }
    let mut best: Vec<(&str, f64)> = sums.into_iter().collect();
    // The sort is stable: layers with equal sums stay in the order of their names.
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.truncate(most);
    let taken = |layer: &&RankedLayer| best.iter().any(|(name, _)| *name == layer.layer);
    let (mut of, mut further) = (Vec::new(), Vec::new());
    for ranking in rankings {
        let mut candidates: Vec<(f64, &RankedLayer)> = ranking
            .iter()
            .filter(may)
            .filter_map(|layer| Some((layer.efficiency?, layer)))
            .collect();
        candidates.sort_by(|(a, one), (b, other)| {
            b.total_cmp(a).then_with(|| one.layer.cmp(&other.layer))
        });
        let (inside, outside): (Vec<_>, Vec<_>) =
            candidates.into_iter().map(|(_, layer)| layer).partition(taken);
        let names = |layers: Vec<&RankedLayer>| -> Vec<String> {
            layers.into_iter().map(|layer| layer.layer.clone()).collect()
        };
        of.push(names(inside));
        further.push(names(outside.into_iter().take(MAX_FURTHER).collect()));
    }
    let mut layers: Vec<String> = of.iter().flatten().cloned().collect();
    layers.sort_unstable();
    layers.dedup();
    Assignment { layers, of, further }
}

#[cfg(test)]
mod tests {
    use lethe_shared::vocabulary::Tower;

    use super::*;

    fn ranking(efficiencies: &[(&str, Option<f64>)]) -> Vec<RankedLayer> {
        let layer = |&(name, efficiency): &(&str, Option<f64>)| RankedLayer {
            layer: name.into(),
            tower: Tower::Text,
            importance: 1.0,
            alignment: 0.0,
            cosine: 0.0,
            pareto: true,
            efficiency,
        };
        efficiencies.iter().map(layer).collect()
    }

    #[test]
    fn the_best_on_average_are_taken_and_each_concept_goes_where_it_does_best() {
        let first = ranking(&[("a", Some(3.0)), ("b", Some(1.0)), ("c", None), ("d", Some(2.5))]);
        let second = ranking(&[("a", Some(2.0)), ("b", Some(9.0)), ("c", None), ("d", Some(2.6))]);
        let assigned = assign(&[&first, &second], 2, None);
        // Layer b has the highest mean, then d.
        assert_eq!(assigned.of, [["d", "b"], ["b", "d"]]);
        assert_eq!(assigned.layers, ["b", "d"]);
        assert_eq!(assigned.further, [["a"], ["a"]]);
        assert_eq!(assign(&[&first, &second], 1, None).of, [["b"], ["b"]]);
    }

    #[test]
    fn only_layers_that_may_be_edited_are_taken() {
        let first = ranking(&[("a", Some(3.0)), ("b", Some(1.0)), ("d", Some(2.5))]);
        let second = ranking(&[("a", Some(2.0)), ("b", Some(9.0)), ("d", Some(2.6))]);
        let among = |names: &[&str]| {
            names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>()
        };
        let assigned = assign(&[&first, &second], 1, Some(&among(&["a", "d"])));
        assert_eq!(assigned.of, [["d"], ["d"]]);
        assert_eq!(assigned.further, [["a"], ["a"]]);
        assert!(assign(&[&first, &second], 1, Some(&among(&["x"]))).of.concat().is_empty());
    }

    #[test]
    fn without_moments_there_is_no_layer() {
        let only = ranking(&[("a", None)]);
        assert_eq!(
            assign(&[&only], 3, None),
            Assignment { layers: vec![], of: vec![vec![]], further: vec![vec![]] }
        );
    }
}

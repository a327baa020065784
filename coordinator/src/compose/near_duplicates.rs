//! Near-duplicates: concepts that the model hardly distinguishes, so that removing one largely
//! removes the other. Pure.

use crate::compose::effect_matrix::EffectMatrix;
use crate::compose::recipe::Recipe;

/// Smallest [`similarity`] of near-duplicates. On the demo, pairs above it are such as "cloud with
/// lightning" and "cloud with lightning and rain"; most pairs are below 0.05.
pub const SIMILAR: f64 = 0.3;

/// Returns (K_ij + K_ji) / 2√(K_ii K_jj): 1 for the same concept, 0 for concepts without effect on
/// each other.
pub fn similarity(effect_matrix: &EffectMatrix, i: usize, j: usize) -> f64 {
    let own = (effect_matrix.effect(i, i) * effect_matrix.effect(j, j)).sqrt();
    if own > 0.0 {
        f64::midpoint(effect_matrix.effect(i, j), effect_matrix.effect(j, i)) / own
    } else {
        0.0
    }
}

/// Returns the [`clusters`] of a recipe's concepts, by id.
pub fn near_duplicates(recipe: &Recipe) -> Vec<Vec<String>> {
    let groups = recipe
        .effect_matrix()
        .map(|effect_matrix| clusters(effect_matrix, SIMILAR))
        .unwrap_or_default();
    groups
        .into_iter()
        .map(|group| group.into_iter().map(|i| recipe.parts()[i].concept.clone()).collect())
        .collect()
}

/// Returns the connected groups of two or more concepts, where concepts are linked by a
/// [`similarity`] of at least `least`. Each group is in order; groups are ordered by their first
/// member.
pub fn clusters(effect_matrix: &EffectMatrix, least: f64) -> Vec<Vec<usize>> {
    let n = effect_matrix.len();
    let mut seen = vec![false; n];
    let mut clusters = Vec::new();
    for first in 0..n {
        if seen[first] {
            continue;
        }
        seen[first] = true;
        let (mut members, mut next) = (Vec::new(), vec![first]);
        while let Some(member) = next.pop() {
            members.push(member);
            for (other, seen) in seen.iter_mut().enumerate() {
                if !*seen && similarity(effect_matrix, member, other) >= least {
                    *seen = true;
                    next.push(other);
                }
            }
        }
        if members.len() > 1 {
            members.sort_unstable();
            clusters.push(members);
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_together() {
        // 0 and 3 are similar, and so are 3 and 1; 2 is alone, and 4 has no effect.
        let mut effect = vec![0.0; 25];
        for (i, j, value) in [
            (0, 0, 4.0),
            (1, 1, 1.0),
            (2, 2, 1.0),
            (3, 3, 1.0),
            (0, 3, 1.0),
            (3, 0, 1.0),
            (1, 3, 0.9),
            (2, 0, 0.1),
        ] {
            effect[i * 5 + j] = value;
        }
        let effect_matrix = EffectMatrix::new(effect, vec!["l".to_owned(); 5]).unwrap();
        assert_eq!(similarity(&effect_matrix, 0, 3), 0.5);
        assert_eq!(similarity(&effect_matrix, 4, 0), 0.0);
        assert_eq!(clusters(&effect_matrix, 0.3), [vec![0, 1, 3]]);
        assert_eq!(clusters(&effect_matrix, 0.5), [vec![0, 3]]);
        assert!(clusters(&effect_matrix, 0.6).is_empty());
    }
}

//! How far each edit goes when all of them act together. Pure arithmetic, in a fixed order.
//!
//! Concept i needs its forget loss raised by `wanted[i]` (what its edit alone achieved). Edit j at dose a_j raises it by
//! `effect[i][j]` · a_j to first order, its own and every other concept's. The doses are the solution of
//!
//! ```text
//! minimise  aᵀ Q a + c · Σ max(0, wanted − K a)²   over a ≥ 0
//! ```
//!
//! where K is `effect` and Q its part within a layer: aᵀQa = Σ_l tr(Δ_l (C + ρI) Δ_lᵀ), what the composition costs that which
//! must stay. Targets are soft (c is large, not infinite), so that two concepts which contradict each other meet.

/// Rounds over all doses at most.
const SWEEPS: usize = 5000;
/// Largest relative change of a dose in a sweep that counts as settled.
const SETTLED: f64 = 1e-9;
/// Weight of missing a target against cost, for a typical concept.
const STIFFNESS: f64 = 50.0;

/// What edits do to concepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Interference {
    effect: Vec<f64>,
    layers: Vec<String>,
}

impl Interference {
    /// `effect[i * n + j]` is what a dose of 1 of edit j does to concept i; `layers[j]` is the layer of edit j.
    ///
    /// # Errors
    /// A sentence when the matrix is not square, or holds a value that is not finite.
    pub fn new(effect: Vec<f64>, layers: Vec<String>) -> Result<Self, String> {
        if effect.len() != layers.len() * layers.len() {
            return Err(format!("{} effects do not make a square for {} concepts", effect.len(), layers.len()));
        }
        if effect.iter().any(|value| !value.is_finite()) {
            return Err("an effect is not finite".to_owned());
        }
        Ok(Self { effect, layers })
    }

    /// Number of concepts.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether there is no concept.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// What a dose of 1 of edit j does to concept i.
    pub fn effect(&self, i: usize, j: usize) -> f64 {
        self.effect[i * self.len() + j]
    }

    /// All effects, row by row.
    pub fn effects(&self) -> &[f64] {
        &self.effect
    }

    /// Q: what edits i and j cost together.
    fn cost(&self, i: usize, j: usize) -> f64 {
        if self.layers[i] == self.layers[j] { f64::midpoint(self.effect(i, j), self.effect(j, i)) } else { 0.0 }
    }

    /// Predicted change of what must stay at these doses, aᵀQa.
    pub fn predicted_cost(&self, doses: &[f64]) -> f64 {
        let n = self.len();
        (0..n).map(|i| doses[i] * (0..n).map(|j| self.cost(i, j) * doses[j]).sum::<f64>()).sum()
    }

    /// By how much these doses raise each concept's forget loss, to first order: K a.
    pub fn predicted_raise(&self, doses: &[f64]) -> Vec<f64> {
        (0..self.len()).map(|i| (0..self.len()).map(|j| self.effect(i, j) * doses[j]).sum()).collect()
    }

    /// The same among these concepts alone, in their order.
    #[must_use]
    pub fn among(&self, chosen: &[usize]) -> Self {
        let effect = chosen.iter().flat_map(|&i| chosen.iter().map(move |&j| self.effect(i, j))).collect();
        Self { effect, layers: chosen.iter().map(|&i| self.layers[i].clone()).collect() }
    }

    /// The doses that raise every concept's forget loss by what is wanted, at the least cost. A concept of which nothing is
    /// wanted gets no dose.
    pub fn doses(&self, wanted: &[f64]) -> Vec<f64> {
        let active: Vec<usize> = (0..self.len()).filter(|&i| wanted[i] > 0.0 && self.effect(i, i) > 0.0).collect();
        let mut doses = vec![0.0; self.len()];
        let solved = self.among(&active).solve(&active.iter().map(|&i| wanted[i]).collect::<Vec<_>>());
        for (&i, dose) in active.iter().zip(solved) {
            doses[i] = dose;
        }
        doses
    }

    /// Coordinate descent; each step minimises a quadratic that lies above the objective, so that it never rises.
    fn solve(&self, wanted: &[f64]) -> Vec<f64> {
        let n = self.len();
        if n == 0 {
            return Vec::new();
        }
        let typical = median((0..n).map(|i| self.effect(i, i)).collect());
        let stiffness = STIFFNESS / typical;
        // By column, since a step of one dose changes everything by its column.
        let columns: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| self.effect(i, j)).collect()).collect();
        let costs: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| self.cost(i, j)).collect()).collect();
        let curvature: Vec<f64> = (0..n).map(|j| costs[j][j] + stiffness * columns[j].iter().map(|k| k * k).sum::<f64>()).collect();
        let mut doses = vec![0.0; n];
        let (mut slope, mut short) = (vec![0.0; n], wanted.to_vec());
        for _ in 0..SWEEPS {
            let (mut moved, mut largest) = (0.0f64, 0.0f64);
            for j in 0..n {
                let missing: f64 = columns[j].iter().zip(&short).map(|(k, short)| k * short.max(0.0)).sum();
                let next = (doses[j] - (slope[j] - stiffness * missing) / curvature[j]).max(0.0);
                let step = next - doses[j];
                if step != 0.0 {
                    doses[j] = next;
                    slope.iter_mut().zip(&costs[j]).for_each(|(slope, cost)| *slope += cost * step);
                    short.iter_mut().zip(&columns[j]).for_each(|(short, k)| *short -= k * step);
                }
                moved = moved.max(step.abs());
                largest = largest.max(next);
            }
            if moved <= SETTLED * largest {
                break;
            }
        }
        doses
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is asked of a concept in the composed model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// Share of its forget images that may still be found.
    pub tolerance: f64,
    /// How many ranks count as found.
    pub top: u64,
}

/// How a concept fares in the composed model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Share of its forget images that are still found by the measure that decides.
    pub share: f64,
    /// Best rank of its class over its forget images, 0 for first.
    pub best: u64,
}

/// Factor on what is wanted of a concept that still shows.
const MORE: f64 = 1.1;
/// Factor on what is wanted of a concept that is gone farther than it need be.
const LESS: f64 = 0.95;
/// Ranks beyond the deciding one that are margin enough.
const MARGIN: u64 = 3;

/// What is wanted next, after seeing the composed model: more of what still shows, less of what is gone by far.
pub fn adjust(wanted: &mut [f64], seen: &[Seen], aims: &[Aim]) {
    for ((wanted, seen), aim) in wanted.iter_mut().zip(seen).zip(aims) {
        if seen.share > aim.tolerance {
            *wanted *= MORE;
        } else if seen.best >= aim.top + MARGIN {
            *wanted *= LESS;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(rows: &[&[f64]]) -> Interference {
        let layers = vec!["l".to_owned(); rows.len()];
        Interference::new(rows.concat(), layers).unwrap()
    }

    #[test]
    fn concepts_that_do_not_meet_get_what_they_got_alone() {
        let doses = matrix(&[&[2.0, 0.0], &[0.0, 4.0]]).doses(&[1.0, 1.0]);
        // Each minimises K a² + c (1 − K a)², at a = c / (1 + c K): soft targets fall a little short.
        let c = STIFFNESS / 4.0;
        assert!((doses[0] - c / (1.0 + 2.0 * c)).abs() < 1e-6 && (doses[1] - c / (1.0 + 4.0 * c)).abs() < 1e-6, "{doses:?}");
    }

    #[test]
    fn concepts_that_help_each_other_need_less() {
        let doses = matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).doses(&[1.0, 1.0]);
        assert!((doses[0] - 1.0 / 3.0).abs() < 0.01 && (doses[0] - doses[1]).abs() < 1e-6, "{doses:?}");
    }

    #[test]
    fn what_another_edit_does_anyway_needs_no_dose() {
        let doses = matrix(&[&[1.0, 0.0], &[2.0, 1.0]]).doses(&[1.0, 0.5]);
        assert!(doses[1] < 1e-9 && (doses[0] - 1.0).abs() < 0.05, "{doses:?}");
    }

    #[test]
    fn nothing_wanted_is_nothing_done() {
        assert_eq!(matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).doses(&[0.0, 0.0]), [0.0, 0.0]);
        let alone = matrix(&[&[2.0]]).doses(&[1.0]);
        assert_eq!(matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).doses(&[1.0, 0.0]), [alone[0], 0.0]);
    }

    #[test]
    fn layers_do_not_cost_each_other() {
        let two = Interference::new(vec![1.0, 0.5, 0.5, 1.0], vec!["a".into(), "b".into()]).unwrap();
        let one = Interference::new(vec![1.0, 0.5, 0.5, 1.0], vec!["a".into(), "a".into()]).unwrap();
        assert_eq!((two.predicted_cost(&[1.0, 1.0]), one.predicted_cost(&[1.0, 1.0])), (2.0, 3.0));
    }

    #[test]
    fn what_shows_gets_more_and_what_is_far_gone_less() {
        let mut wanted = [1.0; 5];
        let seen = [(0.5, 0), (0.0, 6), (0.0, 40), (0.5, 0), (0.0, 6)].map(|(share, best)| Seen { share, best });
        let aims = [(0.0, 5), (0.0, 5), (0.0, 5), (0.6, 5), (0.0, 1)].map(|(tolerance, top)| Aim { tolerance, top });
        adjust(&mut wanted, &seen, &aims);
        assert_eq!(wanted, [MORE, 1.0, LESS, 1.0, LESS]);
    }

    proptest! {
        /// On any positive definite matrix no dose is negative, every target is nearly met, and no single dose can be
        /// changed for the better.
        #[test]
        fn doses_are_optimal(values in proptest::collection::vec(-1.0f64..1.0, 36), wanted in proptest::collection::vec(0.1f64..2.0, 6)) {
            let n = 6;
            let gram: Vec<f64> = (0..n * n).map(|at| {
                let (i, j) = (at / n, at % n);
                (0..n).map(|k| values[i * n + k] * values[j * n + k]).sum::<f64>() + if i == j { 1.0 } else { 0.0 }
            }).collect();
            let problem = Interference::new(gram, vec!["l".to_owned(); n]).unwrap();
            let doses = problem.doses(&wanted);
            let stiffness = STIFFNESS / median((0..n).map(|i| problem.effect(i, i)).collect());
            let objective = |doses: &[f64]| problem.predicted_cost(doses) + stiffness * (0..n).map(|i| {
                (wanted[i] - (0..n).map(|j| problem.effect(i, j) * doses[j]).sum::<f64>()).max(0.0).powi(2)
            }).sum::<f64>();
            let found = objective(&doses);
            for j in 0..n {
                prop_assert!(doses[j] >= 0.0);
                for step in [-1e-4, 1e-4] {
                    let mut other = doses.clone();
                    other[j] = (other[j] + step).max(0.0);
                    prop_assert!(objective(&other) >= found - 1e-9);
                }
            }
        }
    }
}

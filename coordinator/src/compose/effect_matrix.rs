//! The effect matrix, and the steps of edits that act together. Pure arithmetic, in a fixed order.
//!
//! The forget loss of concept i has to rise by `wanted[i]`, the rise that its edit achieves alone.
//! To first order, edit j with step s_j raises it by `effect[i][j]` · s_j, for its own concept and
//! for all others. (The step is α · a · λ, with the coefficient a that records name.) The steps
//! solve
//!
//! ```text
//! minimise  sᵀ Q s + c · Σ max(0, wanted − K s)²   over s ≥ 0
//! ```
//!
//! where K is `effect`, and Q holds the entries of pairs of edits on the same layer: sᵀQs = Σ_l
//! tr((M + ρ_M I) Δ_l (C + ρI) Δ_lᵀ) is the cost of the composition on retained data. Targets are
//! soft (c is large but finite), so that a solution exists for concepts whose edits oppose each
//! other.
//!
//! With margin constraints ([`ImageRows`]), K has a row per forget image instead of one per
//! concept, and the cost covers all pairs of edits.

/// Largest number of sweeps over all steps.
const SWEEPS: usize = 5000;
/// Largest relative change of a step in a sweep at which the solver stops.
const SETTLED: f64 = 1e-9;
/// Weight c of missing a target against the cost, for a typical concept.
const STIFFNESS: f64 = 50.0;

/// The effect matrix K, and the layer of each edit.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectMatrix {
    effect: Vec<f64>,
    layers: Vec<String>,
    images: Option<ImageRows>,
}

/// Margin constraints: what each forget image needs, and what each concept's edit does to it.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRows {
    /// `[images, concepts]`, row by row: by how much an edit with step 1 lowers the margin
    /// of an image.
    pub effect: Vec<f64>,
    /// The concept of each image, ascending.
    pub concept: Vec<usize>,
    /// The coefficient of each image in the direction of its concept.
    pub weight: Vec<f64>,
    /// By how much the margin of each image has to fall at strength 1.
    pub target: Vec<f64>,
    /// Weight c of missing a target against the cost.
    pub penalty: f64,
}

impl ImageRows {
    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.concept.len()
    }

    /// Returns whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.concept.is_empty()
    }

    /// Returns the target of each concept: of its images, each times its weight.
    pub fn concept_targets(&self, concepts: usize) -> Vec<f64> {
        let mut targets = vec![0.0; concepts];
        for ((&concept, weight), target) in self.concept.iter().zip(&self.weight).zip(&self.target)
        {
            targets[concept] += weight * target;
        }
        targets
    }

    /// Returns the rows and columns of these concepts alone, in the given order, which is
    /// ascending.
    fn among(&self, chosen: &[usize], concepts: usize) -> Self {
        let rows: Vec<(usize, usize)> = (0..self.len())
            .filter_map(|row| Some((row, chosen.binary_search(&self.concept[row]).ok()?)))
            .collect();
        let effect = rows
            .iter()
            .flat_map(|&(row, _)| {
                chosen.iter().map(move |&column| self.effect[row * concepts + column])
            })
            .collect();
        Self {
            effect,
            concept: rows.iter().map(|&(_, concept)| concept).collect(),
            weight: rows.iter().map(|&(row, _)| self.weight[row]).collect(),
            target: rows.iter().map(|&(row, _)| self.target[row]).collect(),
            penalty: self.penalty,
        }
    }
}

impl EffectMatrix {
    /// Creates the matrix. `effect[i * n + j]` is the effect on concept i of edit j with
    /// step 1; `layers[j]` is the layer of edit j.
    ///
    /// # Errors
    /// A sentence when the matrix is not square, or holds a value that is not finite.
    pub fn new(effect: Vec<f64>, layers: Vec<String>) -> Result<Self, String> {
        if effect.len() != layers.len() * layers.len() {
            return Err(format!(
                "{} effects do not make a square for {} concepts",
                effect.len(),
                layers.len()
            ));
        }
        if effect.iter().any(|value| !value.is_finite()) {
            return Err("an effect is not finite".to_owned());
        }
        Ok(Self { effect, layers, images: None })
    }

    /// Creates the matrix of margin constraints. The effect of edit j on concept i is that on the
    /// images of i, each times its weight; it is symmetric up to rounding and truncation.
    ///
    /// # Errors
    /// A sentence when sizes do not match, a value is not finite, or images are not in the order of
    /// concepts.
    pub fn of_images(images: ImageRows, layers: Vec<String>) -> Result<Self, String> {
        let (rows, n) = (images.len(), layers.len());
        if images.effect.len() != rows * n
            || images.weight.len() != rows
            || images.target.len() != rows
        {
            return Err(format!(
                "{} effects, {} weights and {} targets do not fit {rows} images and {n} concepts",
                images.effect.len(),
                images.weight.len(),
                images.target.len()
            ));
        }
        let values = [&images.effect, &images.weight, &images.target];
        if values.into_iter().flatten().any(|value| !value.is_finite())
            || !(images.penalty.is_finite() && images.penalty > 0.0)
        {
            return Err("a value of the margin constraints is not finite".to_owned());
        }
        if images.concept.windows(2).any(|pair| pair[0] > pair[1])
            || images.concept.iter().any(|&concept| concept >= n)
        {
            return Err("images are not in the order of concepts".to_owned());
        }
        let mut effect = vec![0.0; n * n];
        for (row, (&concept, weight)) in images.concept.iter().zip(&images.weight).enumerate() {
            for column in 0..n {
                effect[concept * n + column] += weight * images.effect[row * n + column];
            }
        }
        Ok(Self { images: Some(images), ..Self::new(effect, layers)? })
    }

    /// Returns the margin constraints, if there are any.
    pub fn images(&self) -> Option<&ImageRows> {
        self.images.as_ref()
    }

    /// Returns the matrix with other targets of images, one for each.
    #[must_use]
    pub fn with_image_targets(mut self, targets: &[f64]) -> Self {
        if let Some(images) = &mut self.images {
            images.target = targets.to_vec();
        }
        self
    }

    /// Returns the predicted fall of each image's margin under these steps, to first order.
    pub fn predicted_falls(&self, steps: &[f64]) -> Vec<f64> {
        let Some(images) = &self.images else { return Vec::new() };
        let row = |row: &[f64]| row.iter().zip(steps).map(|(effect, step)| effect * step).sum();
        images.effect.chunks_exact(self.len().max(1)).map(row).collect()
    }

    /// Returns the number of concepts.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Returns whether there is no concept.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Returns the effect on concept i of edit j with step 1.
    pub fn effect(&self, i: usize, j: usize) -> f64 {
        self.effect[i * self.len() + j]
    }

    /// Returns all effects, row by row.
    pub fn effects(&self) -> &[f64] {
        &self.effect
    }

    /// Returns Q_ij, the joint cost of edits i and j.
    fn cost(&self, i: usize, j: usize) -> f64 {
        if self.images.is_some() || self.layers[i] == self.layers[j] {
            f64::midpoint(self.effect(i, j), self.effect(j, i))
        } else {
            0.0
        }
    }

    /// Returns the predicted cost of these steps on retained data, sᵀQs.
    pub fn predicted_cost(&self, steps: &[f64]) -> f64 {
        let n = self.len();
        (0..n).map(|i| steps[i] * (0..n).map(|j| self.cost(i, j) * steps[j]).sum::<f64>()).sum()
    }

    /// Returns the rise of each concept's forget loss under these steps, to first order: K s.
    pub fn predicted_raise(&self, steps: &[f64]) -> Vec<f64> {
        (0..self.len())
            .map(|i| (0..self.len()).map(|j| self.effect(i, j) * steps[j]).sum())
            .collect()
    }

    /// Returns the matrix of these concepts alone, in the given order.
    #[must_use]
    pub fn among(&self, chosen: &[usize]) -> Self {
        let effect =
            chosen.iter().flat_map(|&i| chosen.iter().map(move |&j| self.effect(i, j))).collect();
        Self {
            effect,
            layers: chosen.iter().map(|&i| self.layers[i].clone()).collect(),
            images: self.images.as_ref().map(|images| images.among(chosen, self.len())),
        }
    }

    /// Returns the steps that raise every concept's forget loss by `wanted` at the least
    /// cost. With margin constraints, they lower the margin of every image by its target times the
    /// strength of its concept instead. A concept with a target of 0 gets the step 0.
    pub fn solve_steps(&self, wanted: &[f64], strengths: &[f64]) -> Vec<f64> {
        let active: Vec<usize> =
            (0..self.len()).filter(|&i| wanted[i] > 0.0 && self.effect(i, i) > 0.0).collect();
        let mut steps = vec![0.0; self.len()];
        let among = self.among(&active);
        let solved = match &among.images {
            None => among.solve(&active.iter().map(|&i| wanted[i]).collect::<Vec<_>>()),
            Some(images) => among.solve_images(images, |concept| strengths[active[concept]]),
        };
        for (&i, step) in active.iter().zip(solved) {
            steps[i] = step;
        }
        steps
    }

    fn solve(&self, wanted: &[f64]) -> Vec<f64> {
        let n = self.len();
        if n == 0 {
            return Vec::new();
        }
        let typical = median((0..n).map(|i| self.effect(i, i)).collect());
        let columns: Vec<f64> = (0..n * n).map(|at| self.effect(at % n, at / n)).collect();
        let problem =
            Problem { columns: &columns, costs: &self.costs(), penalty: STIFFNESS / typical };
        problem.solve(wanted, vec![0.0; n], SWEEPS, SETTLED)
    }

    fn solve_images(&self, images: &ImageRows, strength: impl Fn(usize) -> f64) -> Vec<f64> {
        let (rows, n) = (images.len(), self.len());
        if n == 0 {
            return Vec::new();
        }
        let columns: Vec<f64> =
            (0..n * rows).map(|at| images.effect[(at % rows) * n + at / rows]).collect();
        let wanted: Vec<f64> = images
            .concept
            .iter()
            .zip(&images.target)
            .map(|(&concept, target)| strength(concept) * target)
            .collect();
        let problem = Problem { columns: &columns, costs: &self.costs(), penalty: images.penalty };
        problem.solve(&wanted, vec![0.0; n], SWEEPS, SETTLED)
    }

    /// Returns Q, which is symmetric.
    fn costs(&self) -> Vec<f64> {
        let n = self.len();
        (0..n * n).map(|at| self.cost(at % n, at / n)).collect()
    }
}

/// A problem of steps: minimise sᵀQs + c · Σ max(0, wanted − K s)² over s ≥ 0.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// K `[constraints, edits]` by column, because a change of one step changes all
    /// predictions by its column.
    pub columns: &'a [f64],
    /// Q `[edits, edits]`, symmetric.
    pub costs: &'a [f64],
    /// c.
    pub penalty: f64,
}

impl Problem<'_> {
    /// Solves by coordinate descent, from `steps`. Each step minimises a quadratic upper bound of
    /// the objective, so that the objective never rises. Ends after `sweeps` over all steps,
    /// or when a sweep changes none by more than the share `settled` of the largest.
    pub fn solve(
        &self,
        wanted: &[f64],
        mut steps: Vec<f64>,
        sweeps: usize,
        settled: f64,
    ) -> Vec<f64> {
        let (rows, n) = (wanted.len(), steps.len());
        let column = |j: usize| &self.columns[j * rows..(j + 1) * rows];
        let cost = |j: usize| &self.costs[j * n..(j + 1) * n];
        let curvature: Vec<f64> = (0..n)
            .map(|j| cost(j)[j] + self.penalty * column(j).iter().map(|k| k * k).sum::<f64>())
            .collect();
        let (mut slope, mut residual) = (vec![0.0; n], wanted.to_vec());
        let change = |j: usize, by: f64, slope: &mut [f64], residual: &mut [f64]| {
            slope.iter_mut().zip(cost(j)).for_each(|(slope, cost)| *slope += cost * by);
            residual.iter_mut().zip(column(j)).for_each(|(residual, k)| *residual -= k * by);
        };
        for (j, &step) in steps.iter().enumerate().filter(|(_, step)| **step != 0.0) {
            change(j, step, &mut slope, &mut residual);
        }
        for _ in 0..sweeps {
            let (mut moved, mut largest) = (0.0f64, 0.0f64);
            for j in 0..n {
                let shortfall: f64 = column(j)
                    .iter()
                    .zip(&residual)
                    .map(|(k, residual)| k * residual.max(0.0))
                    .sum();
                // An edit without effect stays out.
                let next = if curvature[j] > 0.0 {
                    (steps[j] - (slope[j] - self.penalty * shortfall) / curvature[j]).max(0.0)
                } else {
                    0.0
                };
                let by = next - steps[j];
                if by != 0.0 {
                    steps[j] = next;
                    change(j, by, &mut slope, &mut residual);
                }
                moved = moved.max(by.abs());
                largest = largest.max(next);
            }
            if moved <= settled * largest {
                break;
            }
        }
        steps
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The criterion by which a concept counts as forgotten in the composed model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Criterion {
    /// Largest share of its forget images on which the class may still rank within `top`.
    pub tolerance: f64,
    /// Number of ranks within which the class counts as recognised.
    pub top: u64,
}

/// How well the composed model still recognises a concept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recognition {
    /// Share of its forget images on which its class ranks within `top`.
    pub share: f64,
    /// Best rank of its class over its forget images; 0 is first.
    pub best: u64,
}

/// Factor on the target of a concept that is still recognised.
const MORE: f64 = 1.1;
/// Factor on the target of a concept that is forgotten with ranks to spare.
const LESS: f64 = 0.95;
/// Ranks beyond the deciding one from which on a target is lowered.
const RANKS_TO_SPARE: u64 = 3;

/// Adjusts the targets after an evaluation of the composed model: raises those of concepts that
/// are still recognised, and lowers those of concepts that are forgotten with ranks to spare.
pub fn adjust(wanted: &mut [f64], recognised: &[Recognition], criteria: &[Criterion]) {
    for ((wanted, recognised), criterion) in wanted.iter_mut().zip(recognised).zip(criteria) {
        if recognised.share > criterion.tolerance {
            *wanted *= MORE;
        } else if recognised.best >= criterion.top + RANKS_TO_SPARE {
            *wanted *= LESS;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matrix(rows: &[&[f64]]) -> EffectMatrix {
        let layers = vec!["l".to_owned(); rows.len()];
        EffectMatrix::new(rows.concat(), layers).unwrap()
    }

    #[test]
    fn concepts_that_do_not_meet_get_what_they_got_alone() {
        let steps = matrix(&[&[2.0, 0.0], &[0.0, 4.0]]).solve_steps(&[1.0, 1.0], &[]);
        // Each minimises K a² + c (1 − K a)², at a = c / (1 + c K): soft targets are missed by a
        // little.
        let c = STIFFNESS / 4.0;
        assert!(
            (steps[0] - c / (1.0 + 2.0 * c)).abs() < 1e-6
                && (steps[1] - c / (1.0 + 4.0 * c)).abs() < 1e-6,
            "{steps:?}"
        );
    }

    #[test]
    fn concepts_that_help_each_other_need_less() {
        let steps = matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).solve_steps(&[1.0, 1.0], &[]);
        assert!(
            (steps[0] - 1.0 / 3.0).abs() < 0.01 && (steps[0] - steps[1]).abs() < 1e-6,
            "{steps:?}"
        );
    }

    #[test]
    fn what_another_edit_does_anyway_needs_no_dose() {
        let steps = matrix(&[&[1.0, 0.0], &[2.0, 1.0]]).solve_steps(&[1.0, 0.5], &[]);
        assert!(steps[1] < 1e-9 && (steps[0] - 1.0).abs() < 0.05, "{steps:?}");
    }

    #[test]
    fn nothing_wanted_is_nothing_done() {
        assert_eq!(matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).solve_steps(&[0.0, 0.0], &[]), [0.0, 0.0]);
        let alone = matrix(&[&[2.0]]).solve_steps(&[1.0], &[]);
        assert_eq!(
            matrix(&[&[2.0, 1.0], &[1.0, 2.0]]).solve_steps(&[1.0, 0.0], &[]),
            [alone[0], 0.0]
        );
    }

    #[test]
    fn layers_do_not_cost_each_other() {
        let two =
            EffectMatrix::new(vec![1.0, 0.5, 0.5, 1.0], vec!["a".into(), "b".into()]).unwrap();
        let one =
            EffectMatrix::new(vec![1.0, 0.5, 0.5, 1.0], vec!["a".into(), "a".into()]).unwrap();
        assert_eq!((two.predicted_cost(&[1.0, 1.0]), one.predicted_cost(&[1.0, 1.0])), (2.0, 3.0));
    }

    #[test]
    fn what_shows_gets_more_and_what_is_far_gone_less() {
        let mut wanted = [1.0; 5];
        let seen = [(0.5, 0), (0.0, 6), (0.0, 40), (0.5, 0), (0.0, 6)]
            .map(|(share, best)| Recognition { share, best });
        let aims = [(0.0, 5), (0.0, 5), (0.0, 5), (0.6, 5), (0.0, 1)]
            .map(|(tolerance, top)| Criterion { tolerance, top });
        adjust(&mut wanted, &seen, &aims);
        assert_eq!(wanted, [MORE, 1.0, LESS, 1.0, LESS]);
    }

    proptest! {
        /// On any positive definite matrix no step is negative, every target is nearly met,
        /// and no change of a single step improves the objective.
        #[test]
        fn doses_are_optimal(values in proptest::collection::vec(-1.0f64..1.0, 36), wanted in proptest::collection::vec(0.1f64..2.0, 6)) {
            let n = 6;
            let gram: Vec<f64> = (0..n * n).map(|at| {
                let (i, j) = (at / n, at % n);
                (0..n).map(|k| values[i * n + k] * values[j * n + k]).sum::<f64>() + if i == j { 1.0 } else { 0.0 }
            }).collect();
            let problem = EffectMatrix::new(gram, vec!["l".to_owned(); n]).unwrap();
            let steps = problem.solve_steps(&wanted, &[]);
            let stiffness = STIFFNESS / median((0..n).map(|i| problem.effect(i, i)).collect());
            let objective = |steps: &[f64]| problem.predicted_cost(steps) + stiffness * (0..n).map(|i| {
                (wanted[i] - (0..n).map(|j| problem.effect(i, j) * steps[j]).sum::<f64>()).max(0.0).powi(2)
            }).sum::<f64>();
            let found = objective(&steps);
            for j in 0..n {
                prop_assert!(steps[j] >= 0.0);
                for step in [-1e-4, 1e-4] {
                    let mut other = steps.clone();
                    other[j] = (other[j] + step).max(0.0);
                    prop_assert!(objective(&other) >= found - 1e-9);
                }
            }
        }
    }
}

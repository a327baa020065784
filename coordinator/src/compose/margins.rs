//! Margin constraints: coefficients of forget images that act together. Pure arithmetic, in a fixed
//! order (`docs/composition.md`, "`margins`").
//!
//! The margin of image i has to fall by t_i, from m_i to −σ. A step along the direction of image j
//! lowers it by K_ij, to first order, and K is also the cost of the steps on retained data. The
//! coefficients a solve
//!
//! ```text
//! minimise  aᵀ K a + c · Σ max(0, t − K a)²   over a ≥ 0
//! ```
//!
//! Then the composed model is measured, and t_i grows by what image i lacks, or shrinks where it
//! has fallen further than necessary.

use crate::compose::effect_matrix::Problem;

/// Weight c of missing a target against the cost, for an image with the mean K_ii.
const PENALTY: f64 = 100.0;
/// Most sweeps over all coefficients in one round, and the change at which a round has settled. The
/// next round starts from these coefficients, so that they need not be exact.
const SWEEPS: usize = 150;
const SETTLED: f64 = 1e-4;
/// The most by which a target shrinks in one round, in units of the mean first target.
const LARGEST_DECREASE: f64 = 0.3;

/// The kernel of some layers: K, symmetric, `[images, images]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    values: Vec<f64>,
    side: usize,
}

impl Kernel {
    /// Creates the kernel of one layer.
    ///
    /// # Errors
    /// A sentence when the matrix is not square, or holds a value that is not finite.
    pub fn new(values: Vec<f64>) -> Result<Self, String> {
        let side = values.len().isqrt();
        if side * side != values.len() {
            return Err(format!("{} values are no square matrix", values.len()));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err("a value is not finite".to_owned());
        }
        Ok(Self { values, side })
    }

    /// Adds the kernel of another layer.
    ///
    /// # Errors
    /// A sentence when it is about another number of images.
    pub fn add(&mut self, other: &Self) -> Result<(), String> {
        if self.side != other.side {
            return Err(format!("kernels are about {} and {} images", self.side, other.side));
        }
        self.values.iter_mut().zip(&other.values).for_each(|(sum, value)| *sum += value);
        Ok(())
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.side
    }

    /// Returns whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.side == 0
    }

    /// Returns the mean of the diagonal.
    fn mean_diagonal(&self) -> f64 {
        (0..self.side).map(|i| self.values[i * self.side + i]).sum::<f64>()
            / self.side.max(1) as f64
    }

    /// Returns aᵀKa.
    fn cost(&self, coefficients: &[f64]) -> f64 {
        let row = |row: &[f64]| row.iter().zip(coefficients).map(|(k, a)| k * a).sum::<f64>();
        self.values
            .chunks_exact(self.side.max(1))
            .zip(coefficients)
            .filter(|(_, a)| **a != 0.0)
            .map(|(values, a)| a * row(values))
            .sum()
    }
}

/// What is measured and adjusted from round to round, for any problem of margins.
#[derive(Debug, Clone)]
pub struct Targets {
    /// By how much each margin has to fall.
    wanted: Vec<f64>,
    /// The mean first target.
    unit: f64,
    /// σ.
    margin: f64,
}

impl Targets {
    /// Creates the first targets from the margins of the unedited model: to −σ.
    pub fn new(margins: &[f64], margin: f64) -> Self {
        let wanted: Vec<f64> = margins.iter().map(|m| m + margin).collect();
        let unit = wanted.iter().map(|t| t.max(0.0)).sum::<f64>() / wanted.len().max(1) as f64;
        Self { wanted, unit: unit.max(f64::MIN_POSITIVE), margin }
    }

    /// Returns the same problem with other targets.
    #[must_use]
    pub fn with_wanted(mut self, wanted: &[f64]) -> Self {
        self.wanted = wanted.to_vec();
        self
    }

    /// Returns the targets.
    pub fn wanted(&self) -> &[f64] {
        &self.wanted
    }

    /// Returns the sum of squares of what images lack, in units of the mean first target.
    fn missed(&self, margins: &[f64], judged: &impl Fn(usize) -> bool) -> f64 {
        let lack = |(i, m): (usize, &f64)| {
            if judged(i) { ((m + self.margin).max(0.0) / self.unit).powi(2) } else { 0.0 }
        };
        margins.iter().enumerate().map(lack).sum()
    }

    /// Adjusts the targets of judged images by their measured margins.
    pub fn adjust(&mut self, margins: &[f64], judged: impl Fn(usize) -> bool) {
        let least = -LARGEST_DECREASE * self.unit;
        for (i, (wanted, m)) in self.wanted.iter_mut().zip(margins).enumerate() {
            if judged(i) {
                *wanted = (*wanted + (m + self.margin).max(least)).max(0.0);
            }
        }
    }

    /// Raises the targets of judged images by what they lack, and lowers none.
    pub fn raise(&mut self, margins: &[f64], judged: impl Fn(usize) -> bool) {
        for (i, (wanted, m)) in self.wanted.iter_mut().zip(margins).enumerate() {
            if judged(i) {
                *wanted += (m + self.margin).max(0.0);
            }
        }
    }

    /// Returns the objective: the cost relative to one unit of fall, and what images lack.
    pub fn objective(
        &self,
        cost: f64,
        scale: f64,
        margins: &[f64],
        judged: impl Fn(usize) -> bool,
    ) -> f64 {
        cost * scale / self.unit.powi(2) + PENALTY * self.missed(margins, &judged)
    }
}

/// Coefficients of images, from round to round.
#[derive(Debug)]
pub struct Rounds {
    kernel: Kernel,
    targets: Targets,
    coefficients: Vec<f64>,
    best: Option<Solved>,
}

/// Coefficients with the targets that they were solved for.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// a.
    pub coefficients: Vec<f64>,
    /// t.
    pub targets: Vec<f64>,
    /// c.
    pub penalty: f64,
    /// aᵀKa.
    pub cost: f64,
    /// The measured objective.
    pub objective: f64,
}

impl Rounds {
    /// Begins with the margins of the unedited model; `margin` is σ.
    ///
    /// # Errors
    /// A sentence when sizes do not match, or no edit has an effect.
    pub fn new(kernel: Kernel, margins: &[f64], margin: f64) -> Result<Self, String> {
        if kernel.len() != margins.len() {
            return Err(format!(
                "a kernel of {} images, and {} margins",
                kernel.len(),
                margins.len()
            ));
        }
        if kernel.mean_diagonal() <= 0.0 {
            return Err("no edit of the selected layers changes a margin".to_owned());
        }
        let coefficients = vec![0.0; margins.len()];
        Ok(Self { kernel, targets: Targets::new(margins, margin), coefficients, best: None })
    }

    fn penalty(&self) -> f64 {
        PENALTY / self.kernel.mean_diagonal()
    }

    /// Solves for the present targets.
    pub fn solve(&mut self) -> &[f64] {
        let problem = Problem {
            columns: &self.kernel.values,
            costs: &self.kernel.values,
            penalty: self.penalty(),
        };
        let from = std::mem::take(&mut self.coefficients);
        self.coefficients = problem.solve(self.targets.wanted(), from, SWEEPS, SETTLED);
        &self.coefficients
    }

    /// Takes the margins that were measured with the coefficients, and adjusts the targets. Returns
    /// cost and objective.
    pub fn measured(&mut self, margins: &[f64]) -> (f64, f64) {
        let cost = self.kernel.cost(&self.coefficients);
        let objective =
            self.targets.objective(cost, self.kernel.mean_diagonal(), margins, |_| true);
        if self.best.as_ref().is_none_or(|best| objective < best.objective) {
            self.best = Some(Solved {
                coefficients: self.coefficients.clone(),
                targets: self.targets.wanted().to_vec(),
                penalty: self.penalty(),
                cost,
                objective,
            });
        }
        self.targets.adjust(margins, |_| true);
        (cost, objective)
    }

    /// Returns the mean of the kernel's diagonal, by which costs are scaled.
    pub fn scale(&self) -> f64 {
        self.kernel.mean_diagonal()
    }

    /// Returns the best coefficients so far: those with the least measured objective.
    pub fn best(self) -> Option<Solved> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(rows: &[&[f64]]) -> Kernel {
        Kernel::new(rows.concat()).unwrap()
    }

    #[test]
    fn kernels_of_layers_add_up() {
        let mut sum = kernel(&[&[1.0, 0.5], &[0.5, 1.0]]);
        sum.add(&kernel(&[&[1.0, 0.0], &[0.0, 2.0]])).unwrap();
        assert_eq!(sum, kernel(&[&[2.0, 0.5], &[0.5, 3.0]]));
        assert!(sum.add(&kernel(&[&[1.0]])).unwrap_err().contains("2 and 1"));
        assert!(Kernel::new(vec![1.0, 2.0]).is_err());
        assert!(Kernel::new(vec![f64::NAN]).is_err());
    }

    #[test]
    fn on_a_linear_model_every_margin_falls_to_the_margin_that_was_asked_for() {
        // The measured margin is what the kernel predicts.
        let values = [2.0, 0.8, -0.1, 0.8, 1.0, 0.3, -0.1, 0.3, 1.5];
        let start = [0.2, 0.1, -0.3];
        let mut rounds = Rounds::new(Kernel::new(values.to_vec()).unwrap(), &start, 0.05).unwrap();
        let mut last = vec![];
        for _ in 0..12 {
            let a = rounds.solve().to_vec();
            last = (0..3)
                .map(|i| start[i] - (0..3).map(|j| values[i * 3 + j] * a[j]).sum::<f64>())
                .collect();
            rounds.measured(&last);
        }
        assert!(last[..2].iter().all(|m| (m + 0.05).abs() < 1e-3), "{last:?}");
        // The third is below the margin from the start, and stays there.
        assert!(last[2] < -0.05, "{last:?}");
        let best = rounds.best().unwrap();
        assert!(best.cost > 0.0 && best.penalty == PENALTY / 1.5);
    }

    #[test]
    fn the_best_round_is_kept() {
        let mut rounds = Rounds::new(kernel(&[&[1.0]]), &[1.0], 0.0).unwrap();
        rounds.solve();
        let (_, first) = rounds.measured(&[0.0]);
        rounds.solve();
        let (_, second) = rounds.measured(&[5.0]);
        assert!(first < second);
        assert_eq!(rounds.best().unwrap().objective, first);
    }

    #[test]
    fn what_is_far_below_needs_less_and_what_is_above_more() {
        let mut targets = Targets::new(&[0.2, 0.2, 0.2, 0.2], 0.0);
        let near = |targets: &Targets, expected: [f64; 4]| {
            assert!(
                targets.wanted().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
                "{:?}",
                targets.wanted()
            );
        };
        let mut raised = targets.clone();
        targets.adjust(&[0.1, 0.0, -0.01, -9.0], |i| i != 1);
        near(&targets, [0.3, 0.2, 0.19, 0.2 - 0.3 * 0.2]);
        raised.raise(&[0.1, 0.1, -0.01, -9.0], |i| i != 1);
        near(&raised, [0.3, 0.2, 0.2, 0.2]);
    }

    #[test]
    fn layers_without_effect_are_told() {
        let error = Rounds::new(kernel(&[&[0.0]]), &[1.0], 0.0).unwrap_err();
        assert!(error.contains("no edit"), "{error}");
    }
}

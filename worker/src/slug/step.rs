//! The search for the step size on one layer (paper section 3.3): doubling, then bisection.

/// The search as a state machine.
///
/// The caller asks for the [next](Self::next) step, evaluates it and [records](Self::record) the
/// outcome, until there is no next step. [`smallest_forgetting`](Self::smallest_forgetting) is the
/// result.
///
/// # Example
/// ```no_run,standalone_crate
/// use lethe_worker::slug::step::StepSearch;
///
/// // The concept is forgotten from step 5 on. The search tries 1, 2, 4, 8, 6 and 5.
/// let mut search = StepSearch::new(10.0, 6, 0.0);
/// while let Some(step) = search.next() {
///     search.record(step >= 5.0);
/// }
/// assert_eq!(search.smallest_forgetting(), Some(5.0));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct StepSearch {
    low: f64,
    high: Option<f64>,
    step: f64,
    remaining: u32,
    tolerance: f64,
}

impl StepSearch {
    /// Creates a search that starts at a tenth of `unit` (R = ‖θ_l‖ / ‖g_f,l‖, so a relative change
    /// of 10 %) and takes at most `evaluations` steps. It stops early when `(high − low) / high`
    /// falls below `tolerance`; with 0 it uses every evaluation, as the paper's authors do.
    pub fn new(unit: f64, evaluations: u32, tolerance: f64) -> Self {
        Self { low: 0.0, high: None, step: unit / 10.0, remaining: evaluations, tolerance }
    }

    /// Returns the next step to evaluate; `None` when the search is over.
    pub fn next(&self) -> Option<f64> {
        let narrow = self.high.is_some_and(|high| (high - self.low) / high < self.tolerance);
        (self.remaining > 0 && !narrow && self.step.is_finite() && self.step > 0.0)
            .then_some(self.step)
    }

    /// Returns every step that the next `evaluations` evaluations can ask for, whatever their
    /// outcomes. The first is the [next](Self::next) step. A device can evaluate all of them in one
    /// pass.
    pub fn possible_steps(&self, evaluations: u32) -> Vec<f64> {
        let (mut steps, mut searches) = (Vec::new(), vec![self.clone()]);
        for _ in 0..evaluations {
            let mut after = Vec::with_capacity(2 * searches.len());
            for search in searches {
                let Some(step) = search.next() else { continue };
                steps.push(step);
                for forgotten in [false, true] {
                    let mut next = search.clone();
                    next.record(forgotten);
                    after.push(next);
                }
            }
            searches = after;
        }
        steps
    }

    /// Records whether the concept was forgotten at the step that [`next`](Self::next) returned.
    pub fn record(&mut self, forgotten: bool) {
        self.remaining = self.remaining.saturating_sub(1);
        if forgotten {
            self.high = Some(self.step);
        } else {
            self.low = self.step;
        }
        self.step = match self.high {
            Some(high) => f64::midpoint(self.low, high),
            None => 2.0 * self.step,
        };
    }

    /// Returns the smallest step that forgot; `None` when none did.
    pub fn smallest_forgetting(&self) -> Option<f64> {
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search against a threshold; returns the steps tried and the result.
    fn run(threshold: f64, evaluations: u32, tolerance: f64) -> (Vec<f64>, Option<f64>) {
        let mut search = StepSearch::new(10.0, evaluations, tolerance);
        let mut tried = Vec::new();
        while let Some(step) = search.next() {
            tried.push(step);
            search.record(step >= threshold);
        }
        (tried, search.smallest_forgetting())
    }

    #[test]
    fn doubles_until_it_forgets_then_halves_the_bracket() {
        let (tried, result) = run(5.0, 6, 0.0);
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(result, Some(5.0));
    }

    #[test]
    fn the_result_is_the_smallest_that_forgot_not_the_last_tried() {
        let (tried, result) = run(5.5, 6, 0.0);
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(result, Some(6.0));
    }

    #[test]
    fn a_first_step_that_forgets_is_halved() {
        let (tried, result) = run(0.3, 4, 0.0);
        assert_eq!(tried, [1.0, 0.5, 0.25, 0.375]);
        assert_eq!(result, Some(0.375));
    }

    #[test]
    fn possible_steps_contain_every_step_that_is_asked_for() {
        for threshold in [0.3, 5.0, 40.0, f64::INFINITY] {
            for evaluations in 1..5 {
                let (mut search, mut known) = (StepSearch::new(10.0, 10, 0.01), Vec::new());
                let mut passes = 0;
                while let Some(step) = search.next() {
                    if !known.contains(&step) {
                        known = search.possible_steps(evaluations);
                        passes += 1;
                    }
                    assert!(known.contains(&step));
                    search.record(step >= threshold);
                }
                assert!(
                    passes <= 10u32.div_ceil(evaluations),
                    "{threshold}, {evaluations} ahead: {passes} passes"
                );
            }
        }
        assert_eq!(StepSearch::new(10.0, 10, 0.0).possible_steps(2), [1.0, 2.0, 0.5]);
        assert_eq!(StepSearch::new(10.0, 1, 0.0).possible_steps(3), [1.0]);
    }

    #[test]
    fn never_forgetting_spends_the_budget_and_has_no_result() {
        let (tried, result) = run(f64::INFINITY, 10, 0.0);
        assert_eq!(tried.len(), 10);
        assert_eq!(tried[9], 512.0);
        assert_eq!(result, None);
    }

    #[test]
    fn a_tolerance_ends_the_search_early() {
        let (tried, result) = run(5.0, 100, 0.3);
        // After 6.0 forgot the bracket is 4 to 6: a third; after 5.0 it is 4 to 5: a fifth.
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(result, Some(5.0));
    }
}

//! Search of the step size on one layer (paper section 3.3): doubling, then bisection.

/// The search as a state machine: ask for the [next](Self::next) step, evaluate it, [record](Self::record) what
/// happened, until there is no next. The [answer](Self::answer) is the smallest step that forgot.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSearch {
    low: f64,
    high: Option<f64>,
    step: f64,
    left: u32,
    tolerance: f64,
}

impl StepSearch {
    /// Starts at a tenth of `unit` (R = ‖θ_l‖ / ‖g_f,l‖, so a 10 % relative change), with this many evaluations.
    /// Stops early when `(high − low) / high` falls under `tolerance`; 0 spends every evaluation, as the authors do.
    pub fn new(unit: f64, evaluations: u32, tolerance: f64) -> Self {
        Self { low: 0.0, high: None, step: unit / 10.0, left: evaluations, tolerance }
    }

    /// The step to evaluate now; `None` when the search is over.
    pub fn next(&self) -> Option<f64> {
        let narrow = self.high.is_some_and(|high| (high - self.low) / high < self.tolerance);
        (self.left > 0 && !narrow && self.step.is_finite() && self.step > 0.0).then_some(self.step)
    }

    /// Every step that the next so many evaluations may ask for, whatever they find: what a device looks at together.
    pub fn ahead(&self, evaluations: u32) -> Vec<f64> {
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

    /// Records whether the concept was forgotten at the step that [`next`](Self::next) gave.
    pub fn record(&mut self, forgotten: bool) {
        self.left = self.left.saturating_sub(1);
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

    /// The smallest step that forgot; `None` when none did.
    pub fn answer(&self) -> Option<f64> {
        self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a search against a threshold; returns the steps tried and the answer.
    fn run(threshold: f64, evaluations: u32, tolerance: f64) -> (Vec<f64>, Option<f64>) {
        let mut search = StepSearch::new(10.0, evaluations, tolerance);
        let mut tried = Vec::new();
        while let Some(step) = search.next() {
            tried.push(step);
            search.record(step >= threshold);
        }
        (tried, search.answer())
    }

    #[test]
    fn doubles_until_it_forgets_then_halves_the_bracket() {
        let (tried, answer) = run(5.0, 6, 0.0);
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(answer, Some(5.0));
    }

    #[test]
    fn the_answer_is_the_smallest_that_forgot_not_the_last_tried() {
        let (tried, answer) = run(5.5, 6, 0.0);
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(answer, Some(6.0));
    }

    #[test]
    fn a_first_step_that_forgets_is_halved() {
        let (tried, answer) = run(0.3, 4, 0.0);
        assert_eq!(tried, [1.0, 0.5, 0.25, 0.375]);
        assert_eq!(answer, Some(0.375));
    }

    #[test]
    fn what_may_be_asked_for_is_known_ahead() {
        for threshold in [0.3, 5.0, 40.0, f64::INFINITY] {
            for evaluations in 1..5 {
                let (mut search, mut known) = (StepSearch::new(10.0, 10, 0.01), Vec::new());
                let mut passes = 0;
                while let Some(step) = search.next() {
                    if !known.contains(&step) {
                        known = search.ahead(evaluations);
                        passes += 1;
                    }
                    assert!(known.contains(&step));
                    search.record(step >= threshold);
                }
                assert!(passes <= 10u32.div_ceil(evaluations), "{threshold}, {evaluations} ahead: {passes} passes");
            }
        }
        assert_eq!(StepSearch::new(10.0, 10, 0.0).ahead(2), [1.0, 2.0, 0.5]);
        assert_eq!(StepSearch::new(10.0, 1, 0.0).ahead(3), [1.0]);
    }

    #[test]
    fn never_forgetting_spends_the_budget_and_has_no_answer() {
        let (tried, answer) = run(f64::INFINITY, 10, 0.0);
        assert_eq!(tried.len(), 10);
        assert_eq!(tried[9], 512.0);
        assert_eq!(answer, None);
    }

    #[test]
    fn a_tolerance_ends_the_search_early() {
        let (tried, answer) = run(5.0, 100, 0.3);
        // After 6.0 forgot the bracket is 4 to 6: a third; after 5.0 it is 4 to 5: a fifth.
        assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]);
        assert_eq!(answer, Some(5.0));
    }
}

//! A measure over concepts: its mean with a bootstrap interval, and its worst values.
//! Pure.

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;

/// Number of bootstrap resamples.
const RESAMPLES: usize = 2000;
/// The seed of resamples. It is the same for all measures, so that a repetition gives the same bits.
const SEED: &[u8] = b"bootstrap over concepts";

/// A measure over concepts, of which larger values are worse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean over concepts.
    pub mean: f64,
    /// Lower end of the 95 % bootstrap interval of the mean: the 2.5th percentile of the means of
    /// concepts drawn with replacement.
    pub low: f64,
    /// Upper end of that interval, the 97.5th percentile.
    pub high: f64,
    /// The smallest value that at least 95 % of concepts do not exceed.
    pub p95: f64,
    /// The largest value of a concept.
    pub worst: f64,
}

impl Estimate {
    /// Computes the estimate from one value a concept; `None` without concepts. The interval depends on the
    /// order of the values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let worst = *sorted.last()?;
        let count = values.len() as f64;
        let mut draws = Draws::seeded(Digest::of(SEED));
        let mut one = || {
            let place = ((1.0 - draws.uniform()) * count) as usize;
            values.get(place).copied().unwrap_or(worst)
        };
        let mut means: Vec<f64> =
            (0..RESAMPLES).map(|_| (0..values.len()).map(|_| one()).sum::<f64>() / count).collect();
        means.sort_by(f64::total_cmp);
        Some(Self {
            mean: values.iter().sum::<f64>() / count,
            low: percentile(&means, 25),
            high: percentile(&means, 975),
            p95: percentile(&sorted, 950),
            worst,
        })
    }
}

/// Returns the smallest of some ascending values that at least this share of them, in thousandths, do
/// not exceed.
fn percentile(sorted: &[f64], thousandths: usize) -> f64 {
    let place = (sorted.len() * thousandths).div_ceil(1000).max(1);
    sorted.get(place - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_leave_no_doubt() {
        let found = Estimate::of(&[0.25; 40]).unwrap();
        assert_eq!(found, Estimate { mean: 0.25, low: 0.25, high: 0.25, p95: 0.25, worst: 0.25 });
        assert_eq!(Estimate::of(&[]), None);
    }

    /// Of 400 values that are 0 or 1 with equal frequency, the standard error of the mean is 0.025.
    #[test]
    fn intervals_have_the_width_of_two_standard_errors_each_way() {
        let values: Vec<f64> = (0..400).map(|place| f64::from(place % 2)).collect();
        let found = Estimate::of(&values).unwrap();
        assert_eq!((found.mean, found.p95, found.worst), (0.5, 1.0, 1.0));
        assert!((found.low - 0.451).abs() < 0.006, "{found:?}");
        assert!((found.high - 0.549).abs() < 0.006, "{found:?}");
        assert_eq!(Estimate::of(&values), Some(found));
    }

    #[test]
    fn the_95th_percentile_is_a_value_that_occurs() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        let found = Estimate::of(&values).unwrap();
        assert_eq!((found.p95, found.worst), (19.0, 20.0));
        assert_eq!(Estimate::of(&values[..19]).unwrap().p95, 20.0);
    }
}

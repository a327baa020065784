//! Merge rules: combine the edits of one layer into one change. Pure; values in float64, edits in
//! the given order.
//!
//! `sum` is SLUG's rule. The others are published rules for merging fine-tuned models, offered for
//! comparison: an edit takes the place of a task vector.

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::manifest::{CompositionMethod, CompositionSection};
use lethe_shared::record::Merge;

/// Returns the merge rule of a manifest's method.
pub fn rule(composition: &CompositionSection) -> Merge {
    match composition.method() {
        CompositionMethod::Preconditioned
        | CompositionMethod::Margins
        | CompositionMethod::LeastSquares
        | CompositionMethod::NullSpace
        | CompositionMethod::Sum => Merge::Sum,
        CompositionMethod::Mean => Merge::Mean,
        CompositionMethod::Ties => Merge::Ties { density: composition.density },
        CompositionMethod::Dare => Merge::Dare { drop: composition.drop },
    }
}

/// Accumulator for the change of one layer. Directions come one at a time and are dropped once they
/// are added.
#[derive(Debug)]
pub struct Merging {
    rule: Merge,
    count: usize,
    seen: usize,
    merged: Vec<f64>,
    /// Low-rank directions that are added together in one pass over the layer.
    pending: Vec<(Direction, f64)>,
    /// State of the second pass of `ties`: sums and counts of the values that agree with the signs
    /// in `merged`.
    agreeing: (Vec<f64>, Vec<u32>),
}

/// Largest number of float32 values of pending directions.
const PENDING: usize = 16 << 20;

impl Merging {
    /// Creates an empty accumulator for `count` edits of a layer of `size` values.
    pub fn new(rule: Merge, count: usize, size: usize) -> Self {
        let agreeing = if matches!(rule, Merge::Ties { .. }) {
            (vec![0.0; size], vec![0; size])
        } else {
            Default::default()
        };
        Self { rule, count, seen: 0, merged: vec![0.0; size], pending: Vec::new(), agreeing }
    }

    /// Returns the number of passes over all edits. (All edits may not fit into memory at once.)
    pub fn looks(rule: Merge) -> usize {
        if matches!(rule, Merge::Ties { .. }) { 2 } else { 1 }
    }

    /// Adds an edit's direction. Edits must come in order.
    pub fn add(&mut self, edit: &Edit, direction: Direction) {
        let second = self.seen >= self.count;
        self.seen += 1;
        match self.rule {
            Merge::Sum | Merge::Mean => {
                self.pending.push((direction, edit.factor()));
                if self.pending.iter().map(|(direction, _)| direction.len()).sum::<usize>()
                    > PENDING
                {
                    self.settle();
                }
            }
            Merge::Ties { density } if !second => {
                let trimmed = trimmed(self.whole(edit, &direction), density);
                self.merged.iter_mut().zip(&trimmed).for_each(|(sum, value)| *sum += value);
            }
            Merge::Ties { density } => {
                let trimmed = trimmed(self.whole(edit, &direction), density);
                let (sums, counts) = &mut self.agreeing;
                for (((sum, count), value), elected) in
                    sums.iter_mut().zip(counts).zip(trimmed).zip(&self.merged)
                {
                    if value != 0.0 && (value > 0.0) == (*elected > 0.0) {
                        *sum += value;
                        *count += 1;
                    }
                }
            }
            Merge::Dare { drop } => {
                let mut draws = Draws::seeded(Digest::of(
                    format!("{}\n{}", edit.concept, edit.layer).as_bytes(),
                ));
                let whole = self.whole(edit, &direction);
                for (sum, value) in self.merged.iter_mut().zip(whole) {
                    if draws.uniform() > drop {
                        *sum += value / (1.0 - drop);
                    }
                }
            }
        }
    }

    /// Returns the layer's change.
    pub fn finish(mut self) -> Vec<f64> {
        self.settle();
        match self.rule {
            Merge::Sum | Merge::Dare { .. } => self.merged,
            Merge::Mean => {
                let count = self.count.max(1) as f64;
                self.merged.iter_mut().for_each(|value| *value /= count);
                self.merged
            }
            Merge::Ties { .. } => {
                let (sums, counts) = self.agreeing;
                sums.into_iter()
                    .zip(counts)
                    .map(|(sum, count)| sum / f64::from(count.max(1)))
                    .collect()
            }
        }
    }

    fn settle(&mut self) {
        edit::accumulate(&mut self.merged, &self.pending);
        self.pending.clear();
    }

    /// Returns an edit's change as a full matrix.
    fn whole(&self, edit: &Edit, direction: &Direction) -> Vec<f64> {
        let mut values = vec![0.0; self.merged.len()];
        direction.accumulate(&mut values, edit.factor());
        values
    }
}

/// Returns the values with all but the largest magnitudes set to 0.
fn trimmed(mut values: Vec<f64>, density: f64) -> Vec<f64> {
    let kept = (density * values.len() as f64).round() as usize;
    if kept < values.len() {
        let mut magnitudes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        let (_, least, _) =
            magnitudes.select_nth_unstable_by(values.len() - kept.max(1), f64::total_cmp);
        let least = *least;
        values.iter_mut().filter(|value| value.abs() < least).for_each(|value| *value = 0.0);
    }
    values
}

#[cfg(test)]
mod tests {
    use lethe_shared::reference::ArtifactRef;

    use super::*;

    fn edit(concept: &str, step: f64) -> Edit {
        let direction = ArtifactRef { digest: Digest::of(concept.as_bytes()), bytes: 0 };
        Edit {
            concept: concept.into(),
            layer: "l".into(),
            spread: false,
            step,
            strength: 1.0,
            coefficient: 1.0,
            direction,
        }
    }

    fn merged(rule: Merge, changes: &[&[f32]]) -> Vec<f64> {
        let mut merging = Merging::new(rule, changes.len(), changes[0].len());
        for _ in 0..Merging::looks(rule) {
            for (i, change) in changes.iter().enumerate() {
                merging.add(&edit(&i.to_string(), 1.0), Direction::Dense(change.to_vec()));
            }
        }
        merging.finish()
    }

    #[test]
    fn sums_and_means() {
        let changes: [&[f32]; 2] = [&[1.0, 2.0], &[3.0, -4.0]];
        assert_eq!(merged(Merge::Sum, &changes), [4.0, -2.0]);
        assert_eq!(merged(Merge::Mean, &changes), [2.0, -1.0]);
    }

    #[test]
    fn ties_trims_elects_and_averages_what_agrees() {
        // Half is kept: [4, 0, -3, 0], [0, 2, 5, 0], [6, 0, 0, -1]. Elected signs: +, +, +, −.
        let changes: [&[f32]; 3] =
            [&[4.0, 0.5, -3.0, 0.1], &[0.1, 2.0, 5.0, 0.2], &[6.0, 0.3, 0.2, -1.0]];
        assert_eq!(merged(Merge::Ties { density: 0.5 }, &changes), [5.0, 2.0, 5.0, -1.0]);
        // With every value kept and equal signs, the result is the mean.
        assert_eq!(merged(Merge::Ties { density: 1.0 }, &[&[1.0, 2.0], &[3.0, 4.0]]), [2.0, 3.0]);
    }

    #[test]
    fn dare_drops_its_share_and_keeps_the_sum_on_average() {
        let change = vec![1.0f32; 20_000];
        let kept = merged(Merge::Dare { drop: 0.9 }, &[&change]);
        assert!(kept.iter().all(|&value| value == 0.0 || (value - 10.0).abs() < 1e-9));
        assert!((kept.iter().sum::<f64>() / 20_000.0 - 1.0).abs() < 0.1);
        assert_eq!(kept, merged(Merge::Dare { drop: 0.9 }, &[&change]));
        assert_eq!(merged(Merge::Dare { drop: 0.0 }, &[&[1.0, -2.0], &[0.5, 0.5]]), [1.5, -1.5]);
        // Another concept drops other values.
        let two = merged(Merge::Dare { drop: 0.9 }, &[&change, &change]);
        assert!(two.iter().zip(&kept).any(|(both, first)| *first == 0.0 && *both > 0.0));
    }
}

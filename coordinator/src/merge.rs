//! How the edits of one layer become one change. Pure; values in float64, edits in the order given.
//!
//! `sum` is what SLUG does. The others are what the literature merges fine-tuned models by, here to be compared with: an edit takes
//! the place of a task vector.

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::manifest::{CompositionMethod, CompositionSection};
use lethe_shared::record::Merge;

use crate::failure::Failure;

/// The rule of a manifest's method.
pub fn rule(composition: &CompositionSection) -> Merge {
    match composition.method {
        CompositionMethod::Preconditioned | CompositionMethod::NullSpace | CompositionMethod::Sum => Merge::Sum,
        CompositionMethod::Mean => Merge::Mean,
        CompositionMethod::Ties => Merge::Ties { density: composition.density },
        CompositionMethod::Dare => Merge::Dare { drop: composition.drop },
    }
}

/// The change of a layer of `size` values.
///
/// # Errors
/// Whatever `direction` fails with.
pub fn layer(
    rule: Merge,
    edits: &[&Edit],
    size: usize,
    direction: impl Fn(&Edit) -> Result<Direction, Failure>,
) -> Result<Vec<f64>, Failure> {
    let mut merged = vec![0.0; size];
    match rule {
        Merge::Sum | Merge::Mean => {
            for edit in edits {
                direction(edit)?.accumulate(&mut merged, edit.factor());
            }
            if rule == Merge::Mean {
                let count = edits.len().max(1) as f64;
                merged.iter_mut().for_each(|value| *value /= count);
            }
        }
        Merge::Ties { density } => {
            // Each edit is looked at twice: all of them at once may not fit into memory.
            for edit in edits {
                let trimmed = trimmed(whole(edit, size, &direction)?, density);
                merged.iter_mut().zip(&trimmed).for_each(|(sum, value)| *sum += value);
            }
            let (mut sums, mut counts) = (vec![0.0; size], vec![0u32; size]);
            for edit in edits {
                let trimmed = trimmed(whole(edit, size, &direction)?, density);
                for (((sum, count), value), elected) in sums.iter_mut().zip(&mut counts).zip(trimmed).zip(&merged) {
                    if value != 0.0 && (value > 0.0) == (*elected > 0.0) {
                        *sum += value;
                        *count += 1;
                    }
                }
            }
            merged = sums.into_iter().zip(counts).map(|(sum, count)| sum / f64::from(count.max(1))).collect();
        }
        Merge::Dare { drop } => {
            for edit in edits {
                let mut draws = Draws::seeded(Digest::of(format!("{}\n{}", edit.concept, edit.layer).as_bytes()));
                for (sum, value) in merged.iter_mut().zip(whole(edit, size, &direction)?) {
                    if draws.uniform() > drop {
                        *sum += value / (1.0 - drop);
                    }
                }
            }
        }
    }
    Ok(merged)
}

/// An edit's change, multiplied out.
fn whole(edit: &Edit, size: usize, direction: impl Fn(&Edit) -> Result<Direction, Failure>) -> Result<Vec<f64>, Failure> {
    let mut values = vec![0.0; size];
    direction(edit)?.accumulate(&mut values, edit.factor());
    Ok(values)
}

/// The same with only the largest magnitudes left.
fn trimmed(mut values: Vec<f64>, density: f64) -> Vec<f64> {
    let kept = (density * values.len() as f64).round() as usize;
    if kept < values.len() {
        let mut magnitudes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
        let (_, least, _) = magnitudes.select_nth_unstable_by(values.len() - kept.max(1), f64::total_cmp);
        let least = *least;
        values.iter_mut().filter(|value| value.abs() < least).for_each(|value| *value = 0.0);
    }
    values
}

#[cfg(test)]
mod tests {
    use lethe_shared::job::ArtifactRef;

    use super::*;

    fn edit(concept: &str, step: f64) -> Edit {
        let direction = ArtifactRef { digest: Digest::of(concept.as_bytes()), bytes: 0 };
        Edit { concept: concept.into(), layer: "l".into(), step, strength: 1.0, dose: 1.0, direction }
    }

    fn merged(rule: Merge, changes: &[&[f32]]) -> Vec<f64> {
        let edits: Vec<Edit> = (0..changes.len()).map(|i| edit(&i.to_string(), 1.0)).collect();
        let of = |edit: &Edit| Ok(Direction::Dense(changes[edit.concept.parse::<usize>().unwrap()].to_vec()));
        layer(rule, &edits.iter().collect::<Vec<_>>(), changes[0].len(), of).unwrap()
    }

    #[test]
    fn sums_and_means() {
        let changes: [&[f32]; 2] = [&[1.0, 2.0], &[3.0, -4.0]];
        assert_eq!(merged(Merge::Sum, &changes), [4.0, -2.0]);
        assert_eq!(merged(Merge::Mean, &changes), [2.0, -1.0]);
    }

    #[test]
    fn ties_trims_elects_and_averages_what_agrees() {
        // Half is kept: [4, 0, -3, 0], [0, 2, 5, 0], [6, 0, 0, -1]. Signs elected: +, +, +, −.
        let changes: [&[f32]; 3] = [&[4.0, 0.5, -3.0, 0.1], &[0.1, 2.0, 5.0, 0.2], &[6.0, 0.3, 0.2, -1.0]];
        assert_eq!(merged(Merge::Ties { density: 0.5 }, &changes), [5.0, 2.0, 5.0, -1.0]);
        // Everything kept and agreed on is the mean.
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

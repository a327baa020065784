//! Compares the towers of two checkpoints weight by weight, in any stored types.

use lethe_shared::checkpoint::tower::{Place, TowerMap, Weight};
use lethe_shared::checkpoint::{Checkpoint, Dtype};
use lethe_shared::edit;

/// Number of values compared at once.
const PIECE: usize = 1 << 18;

/// Returns the largest relative distance ‖θ' − θ‖/‖θ‖ of a weight of `target` from that of `base`.
/// Fails with a description of the difference if the distance exceeds `tolerance` or, without one,
/// the rounding error.
pub(super) fn distance(
    base: (&Checkpoint, &TowerMap),
    target: (&Checkpoint, &TowerMap),
    tolerance: Option<f64>,
) -> Result<f64, String> {
    let mut largest: f64 = 0.0;
    for (&weight, theirs) in target.1.places() {
        let Some(ours) = base.1.places().get(&weight) else {
            // Some checkpoints lack the projection; a target may have fewer blocks, but not more.
            if weight == Weight::Projection {
                continue;
            }
            return Err(format!("`{}` has no counterpart in the model", theirs.tensor));
        };
        let compared = compare(weight, (base.0, ours), (target.0, theirs))
            .map_err(|problem| format!("`{}` {problem}", theirs.tensor))?;
        let allowed = tolerance.unwrap_or(compared.rounding);
        // The comparison is false for NaN.
        let near = compared.away <= allowed * compared.length + compared.least;
        if !near {
            let by = compared.away / compared.length.max(f64::MIN_POSITIVE);
            let explains = if tolerance.is_some() { "allowed is" } else { "rounding explains" };
            return Err(format!(
                "`{}` is away from the model's `{}` by {by:.2e} of its length, {explains} {allowed:.0e}",
                theirs.tensor, ours.tensor
            ));
        }
        if compared.length > 0.0 {
            largest = largest.max(compared.away / compared.length);
        }
    }
    Ok(largest)
}

/// The comparison of two weights.
struct Compared {
    /// ‖θ' − θ‖.
    away: f64,
    /// ‖θ‖.
    length: f64,
    /// Largest ‖θ' − θ‖/‖θ‖ that rounding can cause.
    rounding: f64,
    /// Largest ‖θ' − θ‖ that rounding can cause for values near 0.
    least: f64,
}

fn compare(
    weight: Weight,
    ours: (&Checkpoint, &Place),
    theirs: (&Checkpoint, &Place),
) -> Result<Compared, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let part = |(checkpoint, place): (&Checkpoint, &Place)| {
        let info = checkpoint.tensor(&place.tensor).map_err(|error| text(&error))?;
        Ok::<_, String>((info.dtype, info.shape.clone(), place.shape(&info.shape)))
    };
    let ((dtype, whole, shape), (other, other_whole, other_shape)) = (part(ours)?, part(theirs)?);
    // Tokens added to the vocabulary are appended as rows.
    let longer = weight == Weight::Input
        && shape.len() == 2
        && other_shape.len() == 2
        && other_shape[1] == shape[1]
        && other_shape[0] > shape[0];
    if shape != other_shape && !longer {
        return Err(format!("has shape {other_shape:?}, the model's has {shape:?}"));
    }
    let count: usize = shape.iter().product();
    let (mut away, mut length) = (0.0, 0.0);
    let mut sum = |ours: &[f64], theirs: &[f64]| {
        away += ours.iter().zip(theirs).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        length += ours.iter().map(|a| a.powi(2)).sum::<f64>();
    };
    match (ours.1.range(&whole), theirs.1.range(&other_whole)) {
        (Some(range), Some(other_range)) => {
            for start in (0..count).step_by(PIECE) {
                let end = count.min(start + PIECE);
                let piece = |(checkpoint, place): (&Checkpoint, &Place),
                             dtype: Dtype,
                             from: usize| {
                    let size = width(dtype).ok_or_else(|| {
                        format!("is stored as {dtype:?}; edits act on F32, F16, BF16 and F64")
                    })?;
                    let part = ((from + start) * size) as u64..((from + end) * size) as u64;
                    let bytes =
                        checkpoint.bytes_in(&place.tensor, part).map_err(|error| text(&error))?;
                    edit::widen(&place.tensor, &bytes, dtype).map_err(|error| text(&error))
                };
                sum(&piece(ours, dtype, range.start)?, &piece(theirs, other, other_range.start)?);
            }
        }
        _ => {
            let wide =
                |(checkpoint, place): (&Checkpoint, &Place), dtype: Dtype, shape: &[usize]| {
                    let all = checkpoint.bytes(&place.tensor).map_err(|error| text(&error))?;
                    Ok::<_, String>(place.take(
                        shape,
                        &edit::widen(&place.tensor, &all, dtype).map_err(|error| text(&error))?,
                    ))
                };
            sum(&wide(ours, dtype, &whole)?, &wide(theirs, other, &other_whole)?);
        }
    }
    let half = dtype == Dtype::F16 || other == Dtype::F16;
    Ok(Compared {
        away: away.sqrt(),
        length: length.sqrt(),
        rounding: 2.0 * (roundoff(dtype) + roundoff(other)),
        // Below the normal range of float16, values have a fixed spacing.
        least: if half { (count as f64).sqrt() * 2f64.powi(-24) } else { 0.0 },
    })
}

fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F32 => Some(4),
        Dtype::F64 => Some(8),
        _ => None,
    }
}

/// Returns the largest relative rounding error of a type.
fn roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::BF16 => 2f64.powi(-9),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-53),
    }
}

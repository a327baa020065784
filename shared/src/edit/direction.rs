//! The direction of an edit, added to a layer's float64 values in a fixed order.

/// An edit's direction on a layer, float32.
#[derive(Debug, Clone, PartialEq)]
pub enum Direction {
    /// Every value, in the layer's order.
    Dense(Vec<f32>),
    /// `up · down` for a layer `[outputs, inputs]`.
    Factored {
        /// `[outputs, rank]`, row-major.
        up: Vec<f32>,
        /// `[rank, inputs]`, row-major.
        down: Vec<f32>,
        /// The rank.
        rank: usize,
    },
}

impl Direction {
    /// Returns the number of stored float32 values.
    #[expect(clippy::len_without_is_empty, reason = "nothing asks whether a direction is empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Dense(values) => values.len(),
            Self::Factored { up, down, .. } => up.len() + down.len(),
        }
    }

    /// Returns the rank of the factors; 0 for a dense direction.
    fn rank(&self) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Factored { rank, .. } => *rank,
        }
    }

    /// Adds `factor` times the direction to a layer's float64 values, in a fixed order.
    ///
    /// # Panics
    /// When lengths differ; [`decode_direction`](super::decode_direction) has checked them.
    pub fn accumulate(&self, values: &mut [f64], factor: f64) {
        match self {
            Self::Dense(direction) => {
                assert_eq!(
                    values.len(),
                    direction.len(),
                    "a direction has as many values as its layer"
                );
                for (value, &change) in values.iter_mut().zip(direction) {
                    *value += factor * f64::from(change);
                }
            }
            Self::Factored { rank: 0, .. } => {}
            Self::Factored { up, down, rank } => {
                let inputs = down.len() / rank;
                assert_eq!(
                    values.len(),
                    up.len() / rank * inputs,
                    "a direction has as many values as its layer"
                );
                for (row, ups) in values.chunks_exact_mut(inputs).zip(up.chunks_exact(*rank)) {
                    for (&up, downs) in ups.iter().zip(down.chunks_exact(inputs)) {
                        let scaled = factor * f64::from(up);
                        for (value, &down) in row.iter_mut().zip(downs) {
                            *value += scaled * f64::from(down);
                        }
                    }
                }
            }
        }
    }
}

/// Rows and columns whose sums are kept in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 8;
/// Number of values below which one thread is faster.
const WORTH_A_THREAD: usize = 1 << 18;

/// Adds many directions, each times its factor, to a layer's float64 values. The result is
/// bit-identical to calls of [`Direction::accumulate`] one after another; consecutive factored
/// directions take one pass over the layer.
///
/// # Panics
/// When lengths differ; [`decode_direction`](super::decode_direction) has checked them.
pub fn accumulate(values: &mut [f64], directions: &[(Direction, f64)]) {
    let mut rest = directions;
    while let Some((first, factor)) = rest.first() {
        let low = |direction: &Direction| match direction {
            Direction::Factored { down, rank, .. } if *rank > 0 => Some(down.len() / rank),
            _ => None,
        };
        let inputs = low(first);
        let alike = rest
            .iter()
            .take_while(|(direction, _)| inputs.is_some() && low(direction) == inputs)
            .count();
        match inputs {
            Some(inputs) if alike > 1 => accumulate_factors(values, inputs, &rest[..alike]),
            _ => first.accumulate(values, *factor),
        }
        rest = &rest[alike.max(1)..];
    }
}

/// Adds consecutive factored directions with the same number of inputs: a matrix product whose sums
/// run in the order of directions and ranks.
fn accumulate_factors(values: &mut [f64], inputs: usize, directions: &[(Direction, f64)]) {
    let outputs = values.len() / inputs.max(1);
    let ranks: usize = directions.iter().map(|(direction, _)| direction.rank()).sum();
    let mut left = vec![0.0; outputs * ranks];
    let mut at = 0;
    for (direction, factor) in directions {
        let Direction::Factored { up, rank, .. } = direction else { continue };
        assert_eq!(up.len(), outputs * rank, "a direction has as many values as its layer");
        for (row, ups) in left.chunks_exact_mut(ranks).zip(up.chunks_exact(*rank)) {
            for (slot, &up) in row[at..at + rank].iter_mut().zip(ups) {
                *slot = factor * f64::from(up);
            }
        }
        at += rank;
    }
    let threads = if values.len() < WORTH_A_THREAD {
        1
    } else {
        std::thread::available_parallelism().map_or(1, usize::from)
    };
    let rows = outputs.div_ceil(threads).next_multiple_of(ROWS);
    std::thread::scope(|scope| {
        for (values, left) in values.chunks_mut(rows * inputs).zip(left.chunks(rows * ranks)) {
            scope.spawn(move || multiply_add(values, left, inputs, ranks, directions));
        }
    });
}

/// Computes `values[rows, inputs] += left[rows, ranks] · down[ranks, inputs]`. Each sum runs in the
/// order of ranks, and each product is rounded before it is added, so that the result does not
/// depend on the vector width.
fn multiply_add(
    values: &mut [f64],
    left: &[f64],
    inputs: usize,
    ranks: usize,
    directions: &[(Direction, f64)],
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { multiply_add_avx2(values, left, inputs, ranks, directions) };
    }
    multiply_add_in_tiles(values, left, inputs, ranks, directions);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_add_avx2(
    values: &mut [f64],
    left: &[f64],
    inputs: usize,
    ranks: usize,
    directions: &[(Direction, f64)],
) {
    multiply_add_in_tiles(values, left, inputs, ranks, directions);
}

#[inline(always)]
fn multiply_add_in_tiles(
    values: &mut [f64],
    left: &[f64],
    inputs: usize,
    ranks: usize,
    directions: &[(Direction, f64)],
) {
    // Some columns of `down`: `[ranks, COLUMNS]`.
    let mut panel = vec![[0.0; COLUMNS]; ranks];
    for column in (0..inputs).step_by(COLUMNS) {
        let width = COLUMNS.min(inputs - column);
        let downs = directions.iter().flat_map(|(direction, _)| match direction {
            Direction::Factored { down, .. } => down.chunks_exact(inputs),
            Direction::Dense(_) => [].chunks_exact(inputs),
        });
        for (slot, down) in panel.iter_mut().zip(downs) {
            for (slot, &down) in slot.iter_mut().zip(&down[column..column + width]) {
                *slot = f64::from(down);
            }
        }
        for (values, left) in values.chunks_mut(ROWS * inputs).zip(left.chunks(ROWS * ranks)) {
            let mut sums = [[0.0; COLUMNS]; ROWS];
            for (sums, row) in sums.iter_mut().zip(values.chunks_exact(inputs)) {
                sums[..width].copy_from_slice(&row[column..column + width]);
            }
            if left.len() == ROWS * ranks {
                let (a, rest) = left.split_at(ranks);
                let (b, rest) = rest.split_at(ranks);
                let (c, d) = rest.split_at(ranks);
                sums = summed(sums, &panel, [a, b, c, d]);
            } else {
                for (sums, ups) in sums.iter_mut().zip(left.chunks_exact(ranks)) {
                    [*sums] = summed([*sums], &panel, [ups]);
                }
            }
            for (sums, row) in sums.iter().zip(values.chunks_exact_mut(inputs)) {
                row[column..column + width].copy_from_slice(&sums[..width]);
            }
        }
    }
}

/// Adds the products of some rows and the columns in `panel`. Sums are passed by value, so that
/// they stay in registers.
#[inline(always)]
fn summed<const N: usize>(
    mut sums: [[f64; COLUMNS]; N],
    panel: &[[f64; COLUMNS]],
    rows: [&[f64]; N],
) -> [[f64; COLUMNS]; N] {
    // Equal lengths let the compiler omit bounds checks.
    let rows = rows.map(|row| &row[..panel.len()]);
    for (rank, down) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            for (sum, down) in sums.iter_mut().zip(down) {
                *sum += row[rank] * down;
            }
        }
    }
    sums
}

/// ⟨A, B⟩ of two factored matrices of one shape, float64 in a fixed order; `None` when one is not
/// factored or shapes differ. ⟨A B, U V⟩ is the sum over (AᵀU) ∘ (B Vᵀ): nothing of a layer's size
/// is ever formed.
pub fn inner_product(a: &Direction, b: &Direction) -> Option<f64> {
    let (
        Direction::Factored { up: a_up, down: a_down, rank: a_rank },
        Direction::Factored { up: b_up, down: b_down, rank: b_rank },
    ) = (a, b)
    else {
        return None;
    };
    let (a_rank, b_rank) = (*a_rank, *b_rank);
    if a_rank == 0 || b_rank == 0 {
        return Some(0.0);
    }
    if a_up.len() / a_rank != b_up.len() / b_rank || a_down.len() / a_rank != b_down.len() / b_rank
    {
        return None;
    }
    let mut left = vec![0.0f64; a_rank * b_rank];
    for (a_row, b_row) in a_up.chunks_exact(a_rank).zip(b_up.chunks_exact(b_rank)) {
        for (sums, &a) in left.chunks_exact_mut(b_rank).zip(a_row) {
            for (sum, &b) in sums.iter_mut().zip(b_row) {
                *sum += f64::from(a) * f64::from(b);
            }
        }
    }
    let inputs = a_down.len() / a_rank;
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    let rows = a_down
        .chunks_exact(inputs)
        .flat_map(|a| b_down.chunks_exact(inputs).map(move |b| dot(a, b)));
    Some(left.iter().zip(rows).map(|(left, right)| left * right).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_directions_at_once_are_the_same_to_the_last_bit() {
        let mut draws = crate::draws::Draws::seeded(crate::digest::Digest::of(b"directions"));
        let mut drawn =
            |count: usize| (0..count).map(|_| draws.uniform() as f32 - 0.5).collect::<Vec<f32>>();
        for (outputs, inputs) in [(1, 1), (3, 7), (8, 4), (13, 18), (600, 450)] {
            let mut directions: Vec<(Direction, f64)> = Vec::new();
            for (number, rank) in [3, 1, 0, 5, 2, 4].into_iter().enumerate() {
                let factored = Direction::Factored {
                    up: drawn(outputs * rank),
                    down: drawn(rank * inputs),
                    rank,
                };
                directions.push((factored, 0.3 + number as f64));
                if number == 3 {
                    directions.push((Direction::Dense(drawn(outputs * inputs)), -1.7));
                }
            }
            let start: Vec<f64> = drawn(outputs * inputs).into_iter().map(f64::from).collect();
            let (mut together, mut apart) = (start.clone(), start);
            accumulate(&mut together, &directions);
            directions
                .iter()
                .for_each(|(direction, factor)| direction.accumulate(&mut apart, *factor));
            assert!(
                together.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{outputs} × {inputs}"
            );
        }
    }

    #[test]
    fn inner_products_are_those_of_the_whole_matrices() {
        let factored = |rank: usize, seed: usize| {
            let values = |count: usize, seed: usize| {
                (0..count).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<f32>>()
            };
            Direction::Factored {
                up: values(3 * rank, seed),
                down: values(rank * 4, seed + 3),
                rank,
            }
        };
        let dense = |direction: &Direction| {
            let mut values = vec![0.0; 12];
            direction.accumulate(&mut values, 1.0);
            values
        };
        let (a, b) = (factored(2, 1), factored(3, 5));
        let expected: f64 = dense(&a).iter().zip(dense(&b)).map(|(a, b)| a * b).sum();
        assert!(
            expected != 0.0
                && inner_product(&a, &b) == Some(expected)
                && inner_product(&b, &a) == Some(expected)
        );
        assert_eq!(
            inner_product(&a, &Direction::Factored { up: vec![], down: vec![], rank: 0 }),
            Some(0.0)
        );
        assert_eq!(
            inner_product(
                &a,
                &Direction::Factored { up: vec![1.0; 2], down: vec![1.0; 4], rank: 1 }
            ),
            None
        );
        assert_eq!(inner_product(&a, &Direction::Dense(vec![0.0; 12])), None);
    }
}

//! Edits and how they act on stored weights: `θ_l + Σ α·λ·g`, in float64, rounded once to the stored type.

use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::job::ArtifactRef;

/// What can be wrong with an edit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The direction's file is not what an edit's direction looks like.
    #[error("direction of `{layer}`: {problem}")]
    Direction {
        /// The layer.
        layer: String,
        /// What is wrong.
        problem: String,
    },
    /// The layer is stored in a type that no edit can act on.
    #[error("layer `{layer}` is stored as {dtype:?}; edits act on F32, F16, BF16 and F64")]
    Type {
        /// The layer.
        layer: String,
        /// Its type.
        dtype: Dtype,
    },
}

/// One concept's single-layer change with the strength it is applied at.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The concept's id.
    pub concept: String,
    /// The layer it changes.
    pub layer: String,
    /// Step size λ.
    pub step: f64,
    /// Strength α: 1 as found, 0 not applied.
    pub strength: f64,
    /// What the composition multiplies the step by: 1 where doses are not solved together.
    pub dose: f64,
    /// Its direction on that layer: [`Direction`] as a file.
    pub direction: ArtifactRef,
}

impl Edit {
    /// What the direction is multiplied by: α · dose · λ.
    pub fn factor(&self) -> f64 {
        self.strength * self.dose * self.step
    }
}

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
    /// Float32 values it is kept as.
    #[expect(clippy::len_without_is_empty, reason = "no direction is looked at for being empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Dense(values) => values.len(),
            Self::Factored { up, down, .. } => up.len() + down.len(),
        }
    }

    /// The number of columns of the one factor and rows of the other; 0 where it is whole.
    fn rank(&self) -> usize {
        match self {
            Self::Dense(_) => 0,
            Self::Factored { rank, .. } => *rank,
        }
    }

    /// Adds `factor` times the direction to a layer's float64 values, in a fixed order.
    ///
    /// # Panics
    /// When lengths differ; [`decode_direction`] has checked them.
    pub fn accumulate(&self, values: &mut [f64], factor: f64) {
        match self {
            Self::Dense(direction) => {
                assert_eq!(values.len(), direction.len(), "a direction has as many values as its layer");
                for (value, &change) in values.iter_mut().zip(direction) {
                    *value += factor * f64::from(change);
                }
            }
            Self::Factored { rank: 0, .. } => {}
            Self::Factored { up, down, rank } => {
                let inputs = down.len() / rank;
                assert_eq!(values.len(), up.len() / rank * inputs, "a direction has as many values as its layer");
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
/// Layers with fewer values are not worth a second thread.
const WORTH_A_THREAD: usize = 1 << 18;

/// Adds many directions, each times its factor, to a layer's float64 values: to the last bit what [`Direction::accumulate`] of one
/// after another gives, in one pass over the layer for all those of low rank that follow each other.
///
/// # Panics
/// When lengths differ; [`decode_direction`] has checked them.
pub fn accumulate(values: &mut [f64], directions: &[(Direction, f64)]) {
    let mut rest = directions;
    while let Some((first, factor)) = rest.first() {
        let low = |direction: &Direction| match direction {
            Direction::Factored { down, rank, .. } if *rank > 0 => Some(down.len() / rank),
            _ => None,
        };
        let inputs = low(first);
        let alike = rest.iter().take_while(|(direction, _)| inputs.is_some() && low(direction) == inputs).count();
        match inputs {
            Some(inputs) if alike > 1 => accumulate_factors(values, inputs, &rest[..alike]),
            _ => first.accumulate(values, *factor),
        }
        rest = &rest[alike.max(1)..];
    }
}

/// The same for factors over one number of inputs: a product of two matrices whose sums run in the order of directions and ranks.
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
    let threads = if values.len() < WORTH_A_THREAD { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let rows = outputs.div_ceil(threads).next_multiple_of(ROWS);
    std::thread::scope(|scope| {
        for (values, left) in values.chunks_mut(rows * inputs).zip(left.chunks(rows * ranks)) {
            scope.spawn(move || multiply_add(values, left, inputs, ranks, directions));
        }
    });
}

/// `values[rows, inputs] += left[rows, ranks] · down[ranks, inputs]`, each sum in the order of ranks, and each product rounded before it is
/// added: the same bits whatever the processor adds at once.
fn multiply_add(values: &mut [f64], left: &[f64], inputs: usize, ranks: usize, directions: &[(Direction, f64)]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { multiply_add_avx2(values, left, inputs, ranks, directions) };
    }
    multiply_add_in_tiles(values, left, inputs, ranks, directions);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_add_avx2(values: &mut [f64], left: &[f64], inputs: usize, ranks: usize, directions: &[(Direction, f64)]) {
    multiply_add_in_tiles(values, left, inputs, ranks, directions);
}

#[inline(always)]
fn multiply_add_in_tiles(values: &mut [f64], left: &[f64], inputs: usize, ranks: usize, directions: &[(Direction, f64)]) {
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

/// Adds the products of some rows and the columns in `panel`. Sums come and go by value: only so do they stay in registers.
#[inline(always)]
fn summed<const N: usize>(mut sums: [[f64; COLUMNS]; N], panel: &[[f64; COLUMNS]], rows: [&[f64]; N]) -> [[f64; COLUMNS]; N] {
    // All as long as the panel, said so that no index is checked.
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

/// ⟨A, B⟩ of two factored matrices of one shape, float64 in a fixed order; `None` when one is not factored or shapes differ.
/// ⟨A B, U V⟩ is the sum over (AᵀU) ∘ (B Vᵀ): nothing of a layer's size is ever formed.
pub fn inner_product(a: &Direction, b: &Direction) -> Option<f64> {
    let (Direction::Factored { up: a_up, down: a_down, rank: a_rank }, Direction::Factored { up: b_up, down: b_down, rank: b_rank }) =
        (a, b)
    else {
        return None;
    };
    let (a_rank, b_rank) = (*a_rank, *b_rank);
    if a_rank == 0 || b_rank == 0 {
        return Some(0.0);
    }
    if a_up.len() / a_rank != b_up.len() / b_rank || a_down.len() / a_rank != b_down.len() / b_rank {
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
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let rows = a_down.chunks_exact(inputs).flat_map(|a| b_down.chunks_exact(inputs).map(move |b| dot(a, b)));
    Some(left.iter().zip(rows).map(|(left, right)| left * right).sum())
}

/// Names of the two tensors of a factored direction: `LAYER.up` and `LAYER.down`.
pub fn factor_names(layer: &str) -> (String, String) {
    (format!("{layer}.up"), format!("{layer}.down"))
}

/// A direction as a safetensors file: one float32 tensor named as the layer.
///
/// # Errors
/// [`Error::Direction`] when bytes and shape do not fit.
pub fn encode_direction(layer: &str, shape: &[usize], float32: &[u8]) -> Result<Vec<u8>, Error> {
    encode_tensors([(layer, shape, float32)]).map_err(|problem| Error::Direction { layer: layer.to_owned(), problem })
}

/// Float32 tensors as a safetensors file: names, shapes, little-endian bytes. Equal tensors give equal bytes.
///
/// # Errors
/// A sentence when bytes and a shape do not fit.
pub fn encode_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [u8])>) -> Result<Vec<u8>, String> {
    let mut views = HashMap::new();
    for (name, shape, bytes) in tensors {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(|error| format!("`{name}`: {error}"))?;
        views.insert(name, view);
    }
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// Reads a direction for a layer of this shape.
///
/// # Errors
/// [`Error::Direction`] when the file holds anything but one finite float32 tensor of this name and number of values, or
/// its two factors.
pub fn decode_direction(layer: &str, shape: &[usize], file: &[u8]) -> Result<Direction, Error> {
    let wrong = |problem: String| Error::Direction { layer: layer.to_owned(), problem };
    let parsed = SafeTensors::deserialize(file).map_err(|error| wrong(format!("not a safetensors file: {error}")))?;
    match (parsed.len(), read_direction(&parsed, layer, shape)?) {
        (1, direction @ Direction::Dense(_)) | (2, direction @ Direction::Factored { .. }) => Ok(direction),
        _ => Err(wrong(format!("expected one direction, found {:?}", parsed.names()))),
    }
}

/// Reads the direction of this name for a layer of this shape from a file that may hold others too: `NAME`, or its factors
/// `NAME.up` and `NAME.down`.
///
/// # Errors
/// [`Error::Direction`] when the file has no finite float32 direction of this name and shape.
pub fn read_direction(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Direction, Error> {
    let wrong = |problem: String| Error::Direction { layer: name.to_owned(), problem };
    let read = |view: &TensorView<'_>| -> Result<Vec<f32>, Error> {
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!("is stored as {:?}, expected float32", view.dtype())));
        }
        let values: Vec<f32> = view.data().chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(wrong("holds values that are not finite".to_owned())) }
    };
    let (up_name, down_name) = factor_names(name);
    match (file.tensor(name), file.tensor(&up_name), file.tensor(&down_name)) {
        (Ok(view), ..) if view.shape().iter().product::<usize>() == shape.iter().product::<usize>() => Ok(Direction::Dense(read(&view)?)),
        (Err(_), Ok(up), Ok(down)) => match (up.shape(), down.shape(), shape) {
            // A layer without values bounds no rank.
            ([0, _], ..) | (_, [_, 0], _) => Err(wrong("is of a layer without values".to_owned())),
            ([outputs, rank], [other, inputs], [rows, columns]) if rank == other && outputs == rows && inputs == columns => {
                Ok(Direction::Factored { up: read(&up)?, down: read(&down)?, rank: *rank })
            }
            (up, down, shape) => Err(wrong(format!("factors of shapes {up:?} and {down:?} do not make {shape:?}"))),
        },
        _ => Err(wrong(format!("expected one float32 tensor of shape {shape:?}, or its two factors, found {:?}", file.names()))),
    }
}

/// Stored values as float64.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn widen(layer: &str, bytes: &[u8], dtype: Dtype) -> Result<Vec<f64>, Error> {
    Ok(match dtype {
        Dtype::F32 => bytes.chunks_exact(4).map(|w| f64::from(f32::from_le_bytes([w[0], w[1], w[2], w[3]]))).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|w| f16::from_le_bytes([w[0], w[1]]).to_f64()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|w| bf16::from_le_bytes([w[0], w[1]]).to_f64()).collect(),
        Dtype::F64 => bytes.chunks_exact(8).map(|w| f64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]])).collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

/// Float64 values rounded to the stored type, half of them by way of float32 as libtorch rounds them.
///
/// # Errors
/// [`Error::Type`] when the type is no floating-point type.
pub fn narrow(layer: &str, values: &[f64], dtype: Dtype) -> Result<Vec<u8>, Error> {
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v as f32).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v as f32).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => return Err(Error::Type { layer: layer.to_owned(), dtype }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn many_directions_at_once_are_the_same_to_the_last_bit() {
        let mut draws = crate::draws::Draws::seeded(crate::digest::Digest::of(b"directions"));
        let mut drawn = |count: usize| (0..count).map(|_| draws.uniform() as f32 - 0.5).collect::<Vec<f32>>();
        for (outputs, inputs) in [(1, 1), (3, 7), (8, 4), (13, 18), (600, 450)] {
            let mut directions: Vec<(Direction, f64)> = Vec::new();
            for (number, rank) in [3, 1, 0, 5, 2, 4].into_iter().enumerate() {
                let factored = Direction::Factored { up: drawn(outputs * rank), down: drawn(rank * inputs), rank };
                directions.push((factored, 0.3 + number as f64));
                if number == 3 {
                    directions.push((Direction::Dense(drawn(outputs * inputs)), -1.7));
                }
            }
            let start: Vec<f64> = drawn(outputs * inputs).into_iter().map(f64::from).collect();
            let (mut together, mut apart) = (start.clone(), start);
            accumulate(&mut together, &directions);
            directions.iter().for_each(|(direction, factor)| direction.accumulate(&mut apart, *factor));
            assert!(together.iter().zip(&apart).all(|(a, b)| a.to_bits() == b.to_bits()), "{outputs} × {inputs}");
        }
    }

    #[test]
    fn directions_survive_their_file() {
        let file = encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap();
        assert_eq!(decode_direction("l.weight", &[2, 2], &file).unwrap(), Direction::Dense(vec![1.0, -2.0, 3.5, 0.0]));
        assert_eq!(file, encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap());
    }

    #[test]
    fn refuses_files_that_are_no_direction() {
        let file = encode_direction("l", &[2], &bytes(&[1.0, 2.0])).unwrap();
        assert!(decode_direction("other", &[2], &file).is_err());
        assert!(decode_direction("l", &[3], &file).is_err());
        assert!(decode_direction("l", &[2], &file[..file.len() - 1]).is_err());
        assert!(decode_direction("l", &[1], &encode_direction("l", &[1], &bytes(&[f32::NAN])).unwrap()).is_err());
        assert!(encode_direction("l", &[3], &bytes(&[1.0])).is_err());
    }

    #[test]
    fn factors_are_multiplied_out() {
        let tensors = [("l.up", &[2usize, 1][..], bytes(&[2.0, -1.0])), ("l.down", &[1, 3][..], bytes(&[1.0, 0.5, 0.0]))];
        let file = encode_tensors(tensors.iter().map(|(name, shape, bytes)| (*name, *shape, bytes.as_slice()))).unwrap();
        let direction = decode_direction("l", &[2, 3], &file).unwrap();
        let mut values = [1.0; 6];
        direction.accumulate(&mut values, 0.5);
        assert_eq!(values, [2.0, 1.5, 1.0, 0.5, 0.75, 1.0]);
        for shape in [&[3usize, 2][..], &[6], &[2, 2]] {
            assert!(decode_direction("l", shape, &file).is_err());
        }
        // Nothing of nothing: no bytes, and any rank.
        for (outputs, inputs) in [(0usize, 0usize), (0, 2), (2, 0)] {
            let rank = if outputs + inputs == 0 { usize::MAX } else { 1 };
            let (up, down) = (vec![0; 4 * outputs.saturating_mul(rank)], vec![0; 4 * inputs.saturating_mul(rank)]);
            let tensors = [("l.up", [outputs, rank], up), ("l.down", [rank, inputs], down)];
            let file = encode_tensors(tensors.iter().map(|(name, shape, bytes)| (*name, &shape[..], bytes.as_slice()))).unwrap();
            assert!(decode_direction("l", &[outputs, inputs], &file).is_err(), "{outputs} {inputs}");
        }
    }

    #[test]
    fn inner_products_are_those_of_the_whole_matrices() {
        let factored = |rank: usize, seed: usize| {
            let values = |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect::<Vec<f32>>();
            Direction::Factored { up: values(3 * rank, seed), down: values(rank * 4, seed + 3), rank }
        };
        let dense = |direction: &Direction| {
            let mut values = vec![0.0; 12];
            direction.accumulate(&mut values, 1.0);
            values
        };
        let (a, b) = (factored(2, 1), factored(3, 5));
        let expected: f64 = dense(&a).iter().zip(dense(&b)).map(|(a, b)| a * b).sum();
        assert!(expected != 0.0 && inner_product(&a, &b) == Some(expected) && inner_product(&b, &a) == Some(expected));
        assert_eq!(inner_product(&a, &Direction::Factored { up: vec![], down: vec![], rank: 0 }), Some(0.0));
        assert_eq!(inner_product(&a, &Direction::Factored { up: vec![1.0; 2], down: vec![1.0; 4], rank: 1 }), None);
        assert_eq!(inner_product(&a, &Direction::Dense(vec![0.0; 12])), None);
    }

    #[test]
    fn one_direction_is_found_among_others() {
        let (one, two) = (bytes(&[1.0, 2.0]), bytes(&[3.0, 4.0]));
        let file = encode_tensors([("a", &[2usize][..], one.as_slice()), ("b", &[2], two.as_slice())]).unwrap();
        let parsed = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read_direction(&parsed, "b", &[2]).unwrap(), Direction::Dense(vec![3.0, 4.0]));
        assert!(read_direction(&parsed, "c", &[2]).is_err() && decode_direction("b", &[2], &file).is_err());
    }

    #[test]
    fn stored_types_widen_and_narrow_without_loss() {
        let values = [0.0, 1.5, -2.25, 65504.0];
        for dtype in [Dtype::F32, Dtype::F16, Dtype::F64] {
            assert_eq!(widen("l", &narrow("l", &values, dtype).unwrap(), dtype).unwrap(), values);
        }
        assert_eq!(widen("l", &narrow("l", &[1.5, -2.25], Dtype::BF16).unwrap(), Dtype::BF16).unwrap(), [1.5, -2.25]);
        assert!(narrow("l", &values, Dtype::I32).is_err() && widen("l", &[0; 4], Dtype::I32).is_err());
    }
}

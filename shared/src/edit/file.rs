//! Directions as safetensors files.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::direction::Direction;
use super::error::Error;
use crate::checkpoint::read_tensors;
use crate::printable::printable_excerpt;

/// Names of the two tensors of a factored direction: `LAYER.up` and `LAYER.down`.
pub fn factor_names(layer: &str) -> (String, String) {
    (format!("{layer}.up"), format!("{layer}.down"))
}

/// A direction as a safetensors file: one float32 tensor named as the layer.
///
/// # Errors
/// [`Error::Direction`] when bytes and shape do not fit.
pub fn encode_direction(layer: &str, shape: &[usize], float32: &[u8]) -> Result<Vec<u8>, Error> {
    encode_tensors([(layer, shape, float32)])
        .map_err(|problem| Error::Direction { layer: layer.to_owned(), problem })
}

/// Float32 tensors as a safetensors file: names, shapes, little-endian bytes. Equal tensors give
/// equal bytes.
///
/// # Errors
/// A sentence when bytes and a shape do not fit.
pub fn encode_tensors<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [u8])>,
) -> Result<Vec<u8>, String> {
    let mut views = HashMap::new();
    for (name, shape, bytes) in tensors {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes)
            .map_err(|error| format!("`{name}`: {error}"))?;
        views.insert(name, view);
    }
    safetensors::serialize(views, None).map_err(|error| error.to_string())
}

/// Reads a direction for a layer of this shape.
///
/// # Errors
/// [`Error::Direction`] when the file holds anything but one finite float32 tensor of this name and
/// number of values, or its two factors.
pub fn decode_direction(layer: &str, shape: &[usize], file: &[u8]) -> Result<Direction, Error> {
    let wrong = |problem: String| Error::Direction {
        layer: layer.to_owned(),
        problem: printable_excerpt(&problem),
    };
    let parsed = read_tensors(file)
        .map_err(|problem| wrong(format!("not a safetensors file: {problem}")))?;
    match (parsed.len(), read_direction(&parsed, layer, shape)?) {
        (1, direction @ Direction::Dense(_)) | (2, direction @ Direction::Factored { .. }) => {
            Ok(direction)
        }
        _ => Err(wrong(format!("expected one direction, found {:?}", parsed.names()))),
    }
}

/// Reads the direction of this name for a layer of this shape from a file that may hold others too:
/// `NAME`, or its factors `NAME.up` and `NAME.down`.
///
/// # Errors
/// [`Error::Direction`] when the file has no finite float32 direction of this name and shape.
pub fn read_direction(
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Direction, Error> {
    let wrong = |problem: String| Error::Direction {
        layer: name.to_owned(),
        problem: printable_excerpt(&problem),
    };
    let read = |view: &TensorView<'_>| -> Result<Vec<f32>, Error> {
        if view.dtype() != Dtype::F32 {
            return Err(wrong(format!("is stored as {:?}, expected float32", view.dtype())));
        }
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]]))
            .collect();
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(wrong("holds values that are not finite".to_owned()))
        }
    };
    let (up_name, down_name) = factor_names(name);
    match (file.tensor(name), file.tensor(&up_name), file.tensor(&down_name)) {
        (Ok(view), ..)
            if view.shape().iter().product::<usize>() == shape.iter().product::<usize>() =>
        {
            Ok(Direction::Dense(read(&view)?))
        }
        (Err(_), Ok(up), Ok(down)) => match (up.shape(), down.shape(), shape) {
            // A layer without values bounds no rank.
            ([0, _], ..) | (_, [_, 0], _) => Err(wrong("is of a layer without values".to_owned())),
            ([outputs, rank], [other, inputs], [rows, columns])
                if rank == other && outputs == rows && inputs == columns =>
            {
                Ok(Direction::Factored { up: read(&up)?, down: read(&down)?, rank: *rank })
            }
            (up, down, shape) => {
                Err(wrong(format!("factors of shapes {up:?} and {down:?} do not make {shape:?}")))
            }
        },
        _ => Err(wrong(format!(
            "expected one float32 tensor of shape {shape:?}, or its two factors, found {:?}",
            file.names()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn directions_survive_their_file() {
        let file = encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap();
        assert_eq!(
            decode_direction("l.weight", &[2, 2], &file).unwrap(),
            Direction::Dense(vec![1.0, -2.0, 3.5, 0.0])
        );
        assert_eq!(
            file,
            encode_direction("l.weight", &[2, 2], &bytes(&[1.0, -2.0, 3.5, 0.0])).unwrap()
        );
    }

    #[test]
    fn refuses_files_that_are_no_direction() {
        let file = encode_direction("l", &[2], &bytes(&[1.0, 2.0])).unwrap();
        assert!(decode_direction("other", &[2], &file).is_err());
        assert!(decode_direction("l", &[3], &file).is_err());
        assert!(decode_direction("l", &[2], &file[..file.len() - 1]).is_err());
        assert!(
            decode_direction("l", &[1], &encode_direction("l", &[1], &bytes(&[f32::NAN])).unwrap())
                .is_err()
        );
        assert!(encode_direction("l", &[3], &bytes(&[1.0])).is_err());
    }

    #[test]
    fn factors_are_multiplied_out() {
        let tensors = [
            ("l.up", &[2usize, 1][..], bytes(&[2.0, -1.0])),
            ("l.down", &[1, 3][..], bytes(&[1.0, 0.5, 0.0])),
        ];
        let file = encode_tensors(
            tensors.iter().map(|(name, shape, bytes)| (*name, *shape, bytes.as_slice())),
        )
        .unwrap();
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
            let (up, down) = (
                vec![0; 4 * outputs.saturating_mul(rank)],
                vec![0; 4 * inputs.saturating_mul(rank)],
            );
            let tensors = [("l.up", [outputs, rank], up), ("l.down", [rank, inputs], down)];
            let file = encode_tensors(
                tensors.iter().map(|(name, shape, bytes)| (*name, &shape[..], bytes.as_slice())),
            )
            .unwrap();
            assert!(
                decode_direction("l", &[outputs, inputs], &file).is_err(),
                "{outputs} {inputs}"
            );
        }
    }

    /// The safetensors library takes the last tensor of a name.
    #[test]
    fn two_directions_of_one_name_are_refused() {
        let tensor = |start: usize| {
            format!(r#""l":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{}]}}"#, start + 4)
        };
        let header = format!("{{{},{}}}", tensor(0), tensor(0));
        let file =
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes(&[1.0])].concat();
        assert!(SafeTensors::deserialize(&file).is_ok());
        let error = decode_direction("l", &[1], &file).unwrap_err().to_string();
        assert!(error.contains("the key `l` appears twice"), "{error}");
    }

    #[test]
    fn one_direction_is_found_among_others() {
        let (one, two) = (bytes(&[1.0, 2.0]), bytes(&[3.0, 4.0]));
        let file =
            encode_tensors([("a", &[2usize][..], one.as_slice()), ("b", &[2], two.as_slice())])
                .unwrap();
        let parsed = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read_direction(&parsed, "b", &[2]).unwrap(), Direction::Dense(vec![3.0, 4.0]));
        assert!(
            read_direction(&parsed, "c", &[2]).is_err()
                && decode_direction("b", &[2], &file).is_err()
        );
    }
}

//! `edits.safetensors`: writes every edit's direction with one direction in memory at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit::{self, Direction, Edit};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::compose::apply::Directions;
use crate::failure::Failure;

/// Size of a copy step, bytes.
const PIECE: u64 = 1 << 20;

/// A tensor of an edit's direction: the full matrix under the edit's name, or one of its factors,
/// `NAME.up` and `NAME.down`.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Offset of its bytes in the unordered spool.
    start: u64,
    bytes: u64,
}

/// Writes the directions of these edits in float32. The bytes equal those of the safetensors
/// library for these tensors.
///
/// # Errors
/// [`Failure`] when a direction cannot be read, or `path` cannot be written.
pub(super) async fn write(
    path: &Path,
    checkpoint: &Checkpoint,
    edits: &[Edit],
    directions: &impl Directions,
) -> Result<(), Failure> {
    let failed = |error| Failure::local(path, error);
    // The header comes first, and tensors are ordered by name; both are known only after the last
    // direction.
    let spool = tempfile::tempfile_in(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    let mut unordered = BufWriter::new(&spool);
    let mut tensors = Vec::new();
    let mut end = 0;
    for edit in edits {
        let shape = &checkpoint.tensor(&edit.layer)?.shape;
        for (name, shape, values) in
            named(&edit.name(), shape, directions.direction(edit, shape).await?)
        {
            let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
            unordered.write_all(&bytes).map_err(failed)?;
            tensors.push(Tensor { name, shape, start: end, bytes: bytes.len() as u64 });
            end += bytes.len() as u64;
        }
    }
    unordered.flush().map_err(failed)?;
    drop(unordered);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));

    let mut target = BufWriter::new(File::create(path).map_err(failed)?);
    target.write_all(&header(&tensors)?).map_err(failed)?;
    let mut buffer = vec![0; PIECE as usize];
    for tensor in &tensors {
        for at in (0..tensor.bytes).step_by(PIECE as usize) {
            let piece = &mut buffer[..PIECE.min(tensor.bytes - at) as usize];
            spool.read_exact_at(piece, tensor.start + at).map_err(failed)?;
            target.write_all(piece).map_err(failed)?;
        }
    }
    target.flush().map_err(failed)
}

/// Returns the length of the header, then the header: JSON, padded with spaces to a multiple of
/// eight bytes.
fn header(tensors: &[Tensor]) -> Result<Vec<u8>, Failure> {
    let mut end = 0;
    let place = |tensor: &Tensor| {
        let start = end;
        end += tensor.bytes as usize;
        (
            tensor.name.clone(),
            TensorInfo {
                dtype: Dtype::F32,
                shape: tensor.shape.clone(),
                data_offsets: (start, end),
            },
        )
    };
    let metadata =
        Metadata::new(None, tensors.iter().map(place).collect()).map_err(Failure::input)?;
    let mut json = serde_json::to_vec(&metadata).map_err(Failure::input)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

/// Returns the tensors of one edit's direction on a layer of this shape: names, shapes, values.
fn named(edit: &str, shape: &[usize], direction: Direction) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    match direction {
        Direction::Dense(values) => vec![(edit.to_owned(), shape.to_vec(), values)],
        Direction::Factored { up, down, rank } => {
            let (up_name, down_name) = edit::factor_names(edit);
            let (outputs, inputs) = (up.len() / rank.max(1), down.len() / rank.max(1));
            vec![(up_name, vec![outputs, rank], up), (down_name, vec![rank, inputs], down)]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lethe_shared::digest::Digest;
    use lethe_shared::reference::ArtifactRef;
    use safetensors::tensor::TensorView;

    use super::*;

    struct Made;

    impl Directions for Made {
        async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
            let value = edit.concept.len() as f32;
            Ok(match edit.step as usize {
                0 => Direction::Dense(vec![value; shape.iter().product()]),
                rank => Direction::Factored {
                    up: vec![value; shape[0] * rank],
                    down: vec![-value; rank * shape[1]],
                    rank,
                },
            })
        }
    }

    #[tokio::test]
    async fn the_bytes_are_those_that_safetensors_writes() {
        let folder = tempfile::tempdir().unwrap();
        let weights = [0u8; 4 * 6];
        let layer = TensorView::new(Dtype::F32, vec![2, 3], &weights).unwrap();
        std::fs::write(
            folder.path().join("model.safetensors"),
            safetensors::serialize([("l", layer)], None).unwrap(),
        )
        .unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        // Ids whose tensors have another order than the ids, or interleave with those of another
        // id.
        let edits: Vec<Edit> = [("b", 2.0), ("a-b", 1.0), ("a", 3.0), ("a.n", 0.0), ("x", 0.0)]
            .map(|(concept, step)| Edit {
                concept: concept.into(),
                layer: "l".into(),
                spread: false,
                step,
                strength: 1.0,
                coefficient: 1.0,
                direction: ArtifactRef { digest: Digest::of(b""), bytes: 0 },
            })
            .into();
        let path = folder.path().join("edits.safetensors");
        write(&path, &checkpoint, &edits, &Made).await.unwrap();

        let mut tensors = HashMap::new();
        for edit in &edits {
            for (name, shape, values) in
                named(&edit.name(), &[2, 3], Made.direction(edit, &[2, 3]).await.unwrap())
            {
                tensors.insert(
                    name,
                    (shape, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()),
                );
            }
        }
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let expected = safetensors::serialize(views, None).unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}

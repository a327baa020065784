//! Protected texts: stores the inputs of the edited layers for each text, so that a composition can
//! compute how far their outputs move. Pure arithmetic, no libtorch.

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit;
use lethe_shared::record::{DataFile, ProtectedText};
use safetensors::SafeTensors;

use crate::compose::apply::Change;
use crate::failure::Failure;

/// Largest number of names in a list: more would leave an edit no free direction.
pub const MAX_NAMES: usize = 1000;
/// Largest list, bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// The names of a manifest's `data.protect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// The names as recorded: hashes if names are hashed.
    pub names: Vec<String>,
    /// The prompts as the model reads them.
    pub prompts: Vec<String>,
    /// The file that lists them.
    pub file: DataFile,
}

/// Returns how far the outputs of changed layers move for each text: ‖Δx‖/‖Wx + b‖, the largest
/// over its tokens and those layers. `inputs` are the unedited model's layer inputs in the format
/// of [`ProtectOutput::inputs`](lethe_shared::task::ProtectOutput::inputs). With several changed
/// layers, the effect of an earlier one on a later one's input is ignored. `inputs` is `None` if no
/// text passes an edited layer; every movement is 0 then.
///
/// # Errors
/// [`Failure::BadInput`] when the file is damaged or of another model, or a movement is not finite.
pub fn moved(
    checkpoint: &Checkpoint,
    change: &Change,
    inputs: Option<&[u8]>,
    names: &[String],
) -> Result<Vec<ProtectedText>, Failure> {
    let mut largest = vec![0.0f64; names.len()];
    if let Some(inputs) = inputs {
        raise(&mut largest, checkpoint, change, inputs)?;
    }
    Ok(names
        .iter()
        .zip(largest)
        .map(|(name, moved)| ProtectedText { name: name.clone(), moved })
        .collect())
}

/// Raises each text's movement to the largest movement of its vectors at every changed layer.
fn raise(
    largest: &mut [f64],
    checkpoint: &Checkpoint,
    change: &Change,
    inputs: &[u8],
) -> Result<(), Failure> {
    let wrong = |problem: String| {
        Failure::input(format!("what protected texts put into the edited layers: {problem}"))
    };
    let file = SafeTensors::deserialize(inputs).map_err(|error| wrong(error.to_string()))?;
    let read = |name: &str| -> Result<(Vec<usize>, Vec<f64>), Failure> {
        let view = file.tensor(name).map_err(|error| wrong(format!("`{name}`: {error}")))?;
        Ok((view.shape().to_vec(), edit::widen(name, view.data(), view.dtype())?))
    };
    for (layer, bytes) in change {
        let key = format!("{layer}.inputs");
        // There are no inputs for layers of the vision tower: texts do not pass them.
        if !file.names().contains(&key.as_str()) {
            continue;
        }
        let dtype = checkpoint.tensor(layer)?.dtype;
        let (before, after) = (
            edit::widen(layer, &checkpoint.bytes(layer)?, dtype)?,
            edit::widen(layer, bytes, dtype)?,
        );
        let delta: Vec<f64> =
            after.iter().zip(&before).map(|(after, before)| after - before).collect();
        let ((shape, vectors), (_, outputs)) = (read(&key)?, read(&format!("{layer}.outputs"))?);
        let width = checkpoint.tensor(layer)?.shape.get(1).copied().unwrap_or(0);
        if width == 0 || shape != [outputs.len(), width] {
            return Err(wrong(format!("`{key}` is {shape:?}, and the layer reads {width} values")));
        }
        let moves: Vec<f64> = vectors
            .chunks_exact(width)
            .zip(&outputs)
            .map(|(x, size)| length(&delta, x) / size.max(f64::MIN_POSITIVE))
            .collect();
        let ((_, texts), (_, of)) =
            (read(&format!("{layer}.texts"))?, read(&format!("{layer}.vectors"))?);
        if texts.len() != of.len() {
            return Err(wrong(format!(
                "{} texts and {} vectors of `{layer}` are said to belong together",
                texts.len(),
                of.len()
            )));
        }
        for (text, vector) in texts.iter().zip(&of) {
            let (text_at, vector_at) = (index(*text), index(*vector));
            match (
                text_at.and_then(|at| largest.get_mut(at)),
                vector_at.and_then(|at| moves.get(at)),
            ) {
                // NaN compares as no violation in a gate, so it is rejected here.
                (Some(_), Some(moved)) if !moved.is_finite() => {
                    return Err(wrong(format!("`{layer}` moves text {text} by {moved}")));
                }
                (Some(largest), Some(moved)) => *largest = largest.max(*moved),
                _ => {
                    return Err(wrong(format!(
                        "text {text} with vector {vector} of `{layer}` is not there"
                    )));
                }
            }
        }
    }
    Ok(())
}

/// Returns an index that is stored as a float, or `None` if the value is not an index.
fn index(value: f64) -> Option<usize> {
    (value >= 0.0 && value.fract() == 0.0).then_some(value as usize)
}

/// Returns ‖Δx‖.
fn length(delta: &[f64], x: &[f64]) -> f64 {
    let product = |row: &[f64]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>();
    delta.chunks_exact(x.len()).map(|row| product(row).powi(2)).sum::<f64>().sqrt()
}

/// Returns the texts in descending order of movement.
pub fn by_movement(texts: &[ProtectedText]) -> Vec<&ProtectedText> {
    let mut sorted: Vec<&ProtectedText> = texts.iter().collect();
    sorted.sort_by(|a, b| b.moved.total_cmp(&a.moved));
    sorted
}

/// Returns the text that moves most.
pub fn worst(texts: &[ProtectedText]) -> Option<&ProtectedText> {
    by_movement(texts).first().copied()
}

/// Returns a summary for people: the number of texts and the largest movement.
pub fn said(texts: &[ProtectedText]) -> Option<String> {
    let worst = worst(texts)?;
    let names =
        if texts.len() == 1 { "1 name".to_owned() } else { format!("{} names", texts.len()) };
    Some(format!(
        "{names}, output at the edited layers moved by {} at most ({})",
        percent(worst.moved),
        worst.name
    ))
}

/// Returns a share in percent with two significant digits, because such shares are small.
pub fn percent(share: f64) -> String {
    let value = 100.0 * share;
    let digits =
        if value == 0.0 { 0 } else { (1.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize };
    format!("{value:.digits$} %")
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// Returns a checkpoint with two layers of shape `[1, 2]`.
    fn checkpoint(folder: &std::path::Path) -> Checkpoint {
        let bytes = floats(&[1.0, 2.0]);
        let view = || TensorView::new(Dtype::F32, vec![1, 2], &bytes).unwrap();
        std::fs::write(
            folder.join("model.safetensors"),
            safetensors::serialize([("a", view()), ("b", view())], None).unwrap(),
        )
        .unwrap();
        Checkpoint::open(folder).unwrap()
    }

    /// Returns inputs with three vectors at layer `a`; the first belongs to both texts.
    fn inputs(texts: &[f32], vectors: &[f32]) -> Vec<u8> {
        let tensors: [(&str, &[usize], Vec<u8>); 4] = [
            ("a.inputs", &[3, 2], floats(&[1.0, 0.0, 0.0, 1.0, 3.0, 4.0])),
            ("a.outputs", &[3], floats(&[1.0, 2.0, 10.0])),
            ("a.texts", &[texts.len()], floats(texts)),
            ("a.vectors", &[vectors.len()], floats(vectors)),
        ];
        edit::encode_tensors(
            tensors.iter().map(|(name, shape, bytes)| (*name, *shape, bytes.as_slice())),
        )
        .unwrap()
    }

    fn of(change: &[(&str, [f32; 2])], inputs: &[u8]) -> Result<Vec<f64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let change =
            change.iter().map(|(layer, values)| ((*layer).to_owned(), floats(values))).collect();
        let names = ["first".to_owned(), "second".to_owned()];
        let found = moved(&checkpoint(folder.path()), &change, Some(inputs), &names)
            .map_err(|failure| failure.to_string())?;
        assert!(found.iter().map(|text| &text.name).eq(&names));
        Ok(found.iter().map(|text| text.moved).collect())
    }

    #[test]
    fn a_text_moves_by_its_largest_token() {
        let inputs = inputs(&[0.0, 0.0, 1.0, 1.0], &[0.0, 1.0, 0.0, 2.0]);
        // Δ = [0.5, 3]: the outputs of the vectors move by 0.5 of 1, 3 of 2, 13.5 of 10.
        assert_eq!(of(&[("a", [1.5, 5.0])], &inputs).unwrap(), [1.5, 1.35]);
        // Only the second input changes: a vector that is 0 there does not move.
        assert_eq!(of(&[("a", [1.0, 2.5])], &inputs).unwrap(), [0.25, 0.2]);
        assert_eq!(of(&[("a", [1.0, 2.0])], &inputs).unwrap(), [0.0, 0.0]);
        // A layer that texts do not pass, and no change.
        assert_eq!(of(&[("b", [7.0, 7.0])], &inputs).unwrap(), [0.0, 0.0]);
        assert_eq!(of(&[], &inputs).unwrap(), [0.0, 0.0]);
        // No text passes an edited layer.
        let folder = tempfile::tempdir().unwrap();
        let change = Change::from([("a".to_owned(), floats(&[7.0, 7.0]))]);
        let found = moved(&checkpoint(folder.path()), &change, None, &["x".to_owned()]).unwrap();
        assert_eq!(found, [ProtectedText { name: "x".into(), moved: 0.0 }]);
    }

    #[test]
    fn damage_is_an_error() {
        let change = [("a", [1.5, 5.0])];
        assert!(
            of(&change, b"none")
                .unwrap_err()
                .contains("what protected texts put into the edited layers")
        );
        assert!(
            of(&change, &inputs(&[0.0, 2.0], &[0.0, 1.0]))
                .unwrap_err()
                .contains("text 2 with vector 1 of `a` is not there")
        );
        assert!(of(&change, &inputs(&[0.0], &[3.0])).unwrap_err().contains("text 0 with vector 3"));
        assert!(
            of(&change, &inputs(&[0.0], &[0.0, 1.0]))
                .unwrap_err()
                .contains("1 texts and 2 vectors")
        );
        assert!(
            of(&change, &inputs(&[-1.0], &[0.0])).unwrap_err().contains("text -1 with vector 0")
        );
        assert!(
            of(&change, &inputs(&[0.0], &[0.5])).unwrap_err().contains("text 0 with vector 0.5")
        );
        assert!(
            of(&[("a", [f32::NAN, 1.0])], &inputs(&[0.0], &[0.0]))
                .unwrap_err()
                .contains("moves text 0 by NaN")
        );
        assert!(
            of(&[("a", [f32::INFINITY, 1.0])], &inputs(&[0.0], &[0.0]))
                .unwrap_err()
                .contains("moves text 0 by inf")
        );
    }

    #[test]
    fn numbers_are_short() {
        let text = |name: &str, moved| ProtectedText { name: name.into(), moved };
        assert_eq!(said(&[]), None);
        let two = [text("a", 0.0), text("b", 0.000_123_4)];
        assert_eq!(
            said(&two).unwrap(),
            "2 names, output at the edited layers moved by 0.012 % at most (b)"
        );
        assert_eq!(
            said(&two[..1]).unwrap(),
            "1 name, output at the edited layers moved by 0 % at most (a)"
        );
        assert_eq!(
            [0.1234, 0.0, 0.0126, 1e-15].map(percent),
            ["12 %", "0 %", "1.3 %", "0.000000000 %"]
        );
    }
}

//! Composition by margins: a constraint per forget image (`docs/composition.md`, "`margins`").
//!
//! | file | contents |
//! |---|---|
//! | `constraints.rs` | the gradients of one concept's margins, as factors |
//! | `kernel.rs` | the effect of each constraint's edit on each margin |
//! | `weighted_change.rs` | the change that follows from a coefficient per constraint |
//! | `measure.rs` | the margins of forget images |
//! | `condense.rs` | one direction per layer for a concept |
//! | `image_effects.rs` | the effect of each concept's edit on each margin |

mod condense;
mod constraints;
mod image_effects;
mod kernel;
mod measure;
mod weighted_change;

use lethe_shared::edit;
use lethe_shared::reference::ArtifactRef;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::error::Error;
use super::job_context::JobContext;
use super::moments::Matrices;
use crate::model::weights::{tensor_from_bytes, tensor_to_bytes};
use crate::slug::margin::{Metric, Rows};

/// Name of the tensor with the number of images.
const IMAGES: &str = "images";

/// The gradients of all constraints of a concept at one layer.
struct LayerGradients {
    /// The factors of all images, one below the other.
    rows: Rows,
    /// The image of each row.
    image: Vec<i64>,
}

impl LayerGradients {
    /// Returns the matrix `[images, rows]` that sums rows by image; float64.
    fn sums_by_image(&self, images: usize) -> Result<Tensor, Error> {
        let mut sums = vec![0.0; images * self.image.len()];
        for (row, &image) in self.image.iter().enumerate() {
            let slot = usize::try_from(image).ok().filter(|&image| image < images);
            let image = slot.ok_or_else(|| damaged("a row belongs to no image"))?;
            sums[image * self.image.len() + row] = 1.0;
        }
        Ok(Tensor::f_from_slice(&sums)?
            .f_view([images as i64, self.image.len() as i64])?
            .f_to(self.rows.up.device())?)
    }

    /// Returns the weight of each row: the coefficient of its image.
    fn weights(&self, coefficients: &[f64]) -> Result<Tensor, Error> {
        let weight = |&image: &i64| {
            usize::try_from(image)
                .ok()
                .and_then(|image| coefficients.get(image).copied())
                .ok_or_else(|| damaged("a row belongs to no image"))
        };
        let weights = self.image.iter().map(weight).collect::<Result<Vec<f64>, Error>>()?;
        Ok(Tensor::f_from_slice(&weights)?.f_to(self.rows.up.device())?.f_unsqueeze(1)?)
    }
}

fn damaged(problem: &str) -> Error {
    Error::Input(format!("the artifact of margin constraints is damaged: {problem}"))
}

/// Encodes the gradients of all images by layer; `gradients` is `[layers][images]`.
fn encode(layers: &[String], gradients: &[Vec<Rows>]) -> Result<Vec<u8>, Error> {
    let mut parts: Vec<(String, Tensor)> = Vec::with_capacity(3 * layers.len());
    for (layer, images) in layers.iter().zip(gradients) {
        let of = |side: fn(&Rows) -> &Tensor| -> Result<Tensor, Error> {
            let all: Vec<&Tensor> = images.iter().map(side).collect();
            Ok(Tensor::f_cat(&all, 0)?.f_to_kind(Kind::Float)?)
        };
        let image: Vec<i64> = images
            .iter()
            .zip(0..)
            .flat_map(|(rows, image)| (0..rows.count()).map(move |_| image))
            .collect();
        parts.push((format!("{layer}.deltas"), of(|rows| &rows.up)?));
        parts.push((format!("{layer}.inputs"), of(|rows| &rows.down)?));
        parts.push((format!("{layer}.image"), Tensor::f_from_slice(&image)?));
    }
    let images = gradients.first().map_or(0, Vec::len) as i64;
    parts.push((IMAGES.to_owned(), Tensor::f_from_slice(&[images])?));
    let mut bytes = Vec::with_capacity(parts.len());
    for (name, tensor) in &parts {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        let (dtype, data) = match tensor.kind() {
            Kind::Int64 => {
                let values = Vec::<i64>::try_from(tensor)?;
                (Dtype::I64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            _ => (Dtype::F32, tensor_to_bytes(tensor)?),
        };
        bytes.push((name, shape, dtype, data));
    }
    let mut views = Vec::with_capacity(bytes.len());
    for (name, shape, dtype, data) in &bytes {
        let view = TensorView::new(*dtype, shape.clone(), data)
            .map_err(|error| Error::Input(error.to_string()))?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(|error| Error::Input(error.to_string()))
}

/// Reads the gradients of one layer from an artifact of constraints.
fn read(context: JobContext<'_>, file: &[u8], layer: &str) -> Result<LayerGradients, Error> {
    let parsed = SafeTensors::deserialize(file).map_err(|error| damaged(&error.to_string()))?;
    let one = |side: &str| -> Result<Tensor, Error> {
        let view = parsed
            .tensor(&format!("{layer}.{side}"))
            .map_err(|error| damaged(&error.to_string()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape)
            .map_err(|problem| damaged(&problem))?;
        Ok(tensor.f_to(context.device())?.f_to_kind(Kind::Double)?)
    };
    let image = integers(&parsed, &format!("{layer}.image"))?;
    let rows = Rows { up: one("deltas")?, down: one("inputs")? };
    match (rows.up.size().as_slice(), rows.down.size().as_slice()) {
        ([ups, _], [downs, _]) if ups == downs && *ups == image.len() as i64 => {
            Ok(LayerGradients { rows, image })
        }
        (up, down) => Err(damaged(&format!(
            "the factors of layer `{layer}` have shapes {up:?} and {down:?}, which do not match"
        ))),
    }
}

/// Returns the number of images in an artifact of constraints.
fn image_count(file: &[u8]) -> Result<usize, Error> {
    let parsed = SafeTensors::deserialize(file).map_err(|error| damaged(&error.to_string()))?;
    match integers(&parsed, IMAGES)?[..] {
        [images] if (1..=MAX_IMAGES).contains(&images) => Ok(images as usize),
        _ => Err(damaged("it does not say how many images it is about")),
    }
}

/// Most images of a concept that a task may name.
const MAX_IMAGES: i64 = 65_536;

fn integers(file: &SafeTensors<'_>, name: &str) -> Result<Vec<i64>, Error> {
    let view = file.tensor(name).map_err(|error| damaged(&error.to_string()))?;
    if view.dtype() != Dtype::I64 {
        return Err(damaged(&format!("`{name}` is not int64")));
    }
    let value = |w: &[u8]| i64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
    Ok(view.data().chunks_exact(8).map(value).collect())
}

/// Returns the metric of a layer from the preconditioners of its tower.
fn metric(inverses: &Matrices, layer: &str) -> Result<Metric, Error> {
    let part = |side: &str| {
        inverses
            .get(&format!("{layer}.{side}"))
            .ok_or_else(|| Error::Input(format!("there are no second moments of layer `{layer}`")))
    };
    let sensitivity = part("sensitivity")?.f_double_value(&[0])?;
    if !(sensitivity.is_finite() && sensitivity > 0.0) {
        return Err(Error::Input(format!(
            "retained data does not reach layer `{layer}`: its second moments are zero"
        )));
    }
    Ok(Metric::new(&part("outputs")?, &part("inputs")?, sensitivity)?)
}

/// Stores a float64 matrix `[rows, columns]` under a name as an artifact.
fn put_matrix(
    context: JobContext<'_>,
    name: &str,
    shape: [usize; 2],
    values: &[f64],
) -> Result<ArtifactRef, Error> {
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Input(
            "the effect of one margin constraint on another is not finite; check the weights of the model".into(),
        ));
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, shape.to_vec(), &bytes)
        .map_err(|error| Error::Input(error.to_string()))?;
    context.put(
        safetensors::serialize([(name, view)], None)
            .map_err(|error| Error::Input(error.to_string()))?,
    )
}

/// Returns the images of a concept that become constraints: all of them, or `most` evenly spaced
/// ones.
fn thinned(images: usize, most: u32) -> Vec<i64> {
    let most = (most as usize).min(images);
    (0..most).map(|place| (place * images / most) as i64).collect()
}

/// Reads the factors of a condensed direction at one layer: `[outputs, rank]` and `[inputs, rank]`,
/// float64.
fn read_direction(
    context: JobContext<'_>,
    file: &[u8],
    layer: &str,
) -> Result<(Tensor, Tensor), Error> {
    let wrong = |problem: String| {
        Error::Input(format!("the artifact of a direction is damaged: {problem}"))
    };
    let parsed = SafeTensors::deserialize(file).map_err(|error| wrong(error.to_string()))?;
    let one = |name: &str| -> Result<Tensor, Error> {
        let view = parsed.tensor(name).map_err(|error| wrong(error.to_string()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = tensor_from_bytes(view.data(), view.dtype(), &shape).map_err(wrong)?;
        Ok(tensor.f_to(context.device())?.f_to_kind(Kind::Double)?)
    };
    let (up, down) = edit::factor_names(layer);
    Ok((one(&up)?, one(&down)?.f_transpose(0, 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_thinned_out_evenly() {
        assert_eq!(thinned(5, 16), [0, 1, 2, 3, 4]);
        assert_eq!(thinned(10, 4), [0, 2, 5, 7]);
        assert_eq!(thinned(3, 1), [0]);
        assert!(thinned(0, 4).is_empty());
    }
}

//! The effect of each concept's edit on the margin of each constraint.

use lethe_shared::task::{ImageEffects, ImageEffectsOutput};
use tch::{Kind, Tensor};

use super::{image_count, put_matrix, read, read_direction};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};

/// Computes the matrix `[constraints, concepts]`, float64. Each pair of concepts is computed
/// separately, as in the kernel.
impl Perform for ImageEffects {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<ImageEffectsOutput, Error> {
        let _guard = tch::no_grad_guard();
        let columns = self.concepts.len();
        // `[concepts][layers]`
        let mut directions: Vec<Vec<(Tensor, Tensor)>> = Vec::with_capacity(columns);
        for concept in &self.concepts {
            let file = stages.time("store", || context.get(&concept.direction))?;
            let of = |layer: &String| read_direction(context, &file, layer);
            directions.push(self.layers.iter().map(of).collect::<Result<_, Error>>()?);
        }
        let mut effect: Vec<f64> = Vec::new();
        for concept in &self.concepts {
            context.check_cancelled()?;
            let file = stages.time("store", || context.get(&concept.factors))?;
            let images = image_count(&file)?;
            let start = effect.len();
            effect.resize(start + images * columns, 0.0);
            stages.time("products", || {
                for (place, layer) in self.layers.iter().enumerate() {
                    let gradients = read(context, &file, layer)?;
                    let sums = gradients.sums_by_image(images)?;
                    for (column, direction) in directions.iter().enumerate() {
                        let (up, down) = &direction[place];
                        let by_row = gradients
                            .rows
                            .up
                            .f_matmul(up)?
                            .f_mul(&gradients.rows.down.f_matmul(down)?)?
                            .f_sum_dim_intlist([1].as_slice(), true, Kind::Double)?;
                        let by_image = sums.f_matmul(&by_row)?.f_reshape([-1])?;
                        let values = Vec::<f64>::try_from(by_image.f_to_device(tch::Device::Cpu)?)?;
                        for (image, value) in values.into_iter().enumerate() {
                            effect[start + image * columns + column] += value;
                        }
                    }
                }
                Ok(())
            })?;
        }
        let rows = effect.len() / columns.max(1);
        Ok(ImageEffectsOutput { effect: put_matrix(context, "effect", [rows, columns], &effect)? })
    }
}

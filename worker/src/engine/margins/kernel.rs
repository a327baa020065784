//! The effect of each constraint's edit on each margin, at one layer.

use lethe_shared::task::{Kernel, KernelOutput};
use tch::{Kind, Tensor};

use super::{image_count, metric, put_matrix, read};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::moments::Matrices;

/// The constraints of one concept at the layer.
struct Concept {
    /// The first constraint's place in the matrix.
    start: usize,
    images: usize,
    /// Transposed factors of gradients: `[outputs, rows]` and `[inputs, rows]`.
    gradient: (Tensor, Tensor),
    /// Factors of directions: `[rows, outputs]` and `[rows, inputs]`.
    direction: (Tensor, Tensor),
    /// `[images, rows]`.
    sums: Tensor,
}

/// Computes the kernel: float64, `[constraints, constraints]`, symmetric.
///
/// Each pair of concepts is computed separately, so that no value depends on which other concepts
/// there are, to the last bit (see [`Effects`](lethe_shared::task::Effects)).
impl Perform for Kernel {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<KernelOutput, Error> {
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let _guard = tch::no_grad_guard();
        let metric = metric(&inverses, &self.layer)?.for_many_products()?;
        let (mut concepts, mut side) = (Vec::with_capacity(self.concepts.len()), 0);
        for artifact in &self.concepts {
            context.check_cancelled()?;
            let file = stages.time("store", || context.get(artifact))?;
            let gradients = read(context, &file, &self.layer)?;
            let images = image_count(&file)?;
            let direction = metric.direction(&gradients.rows)?;
            let transposed = |tensor: &Tensor| tensor.f_transpose(0, 1)?.f_contiguous();
            concepts.push(Concept {
                start: side,
                images,
                gradient: (transposed(&gradients.rows.up)?, transposed(&gradients.rows.down)?),
                direction: (direction.up, direction.down),
                sums: gradients.sums_by_image(images)?,
            });
            side += images;
        }
        let mut kernel = vec![0.0f64; side * side];
        stages.time("products", || {
            for (number, row) in concepts.iter().enumerate() {
                context.check_cancelled()?;
                for column in &concepts[..=number] {
                    // ⟨A B, U V⟩ is the sum over (AᵀU) ∘ (B Vᵀ), by image.
                    let products = column
                        .direction
                        .0
                        .f_matmul(&row.gradient.0)?
                        .f_mul(&column.direction.1.f_matmul(&row.gradient.1)?)?;
                    let block = row
                        .sums
                        .f_matmul(&products.f_transpose(0, 1)?)?
                        .f_matmul(&column.sums.f_transpose(0, 1)?)?;
                    let values = Vec::<f64>::try_from(
                        block
                            .f_to_device(tch::Device::Cpu)?
                            .f_to_kind(Kind::Double)?
                            .f_reshape([-1])?,
                    )?;
                    for i in 0..row.images {
                        for j in 0..column.images {
                            let (i_at, j_at) = (row.start + i, column.start + j);
                            // Within a concept the two halves differ by rounding: one of them is
                            // taken.
                            if j_at <= i_at {
                                let value = values[i * column.images + j];
                                kernel[i_at * side + j_at] = value;
                                kernel[j_at * side + i_at] = value;
                            }
                        }
                    }
                }
            }
            Ok(())
        })?;
        Ok(KernelOutput { kernel: put_matrix(context, "kernel", [side, side], &kernel)? })
    }
}

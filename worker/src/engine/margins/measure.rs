//! The margins of forget images.

use lethe_shared::task::{Margins, MarginsOf, MarginsOutput};
use tch::{Kind, Tensor};

use super::thinned;
use crate::engine::class_list::ClassList;
use crate::engine::error::Error;
use crate::engine::evaluate::{ComposedModel, embedded_images};
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::zero_shot;

impl Perform for Margins {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MarginsOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let _guard = tch::no_grad_guard();
        let composed = stages.time("change", || {
            let change = self.change.as_ref();
            change.map(|change| ComposedModel::of(context, &model, &classes, change)).transpose()
        })?;
        let class_texts = composed
            .as_ref()
            .map_or(&classes.embeddings, |composed| &composed.class_embeddings)
            .get();
        let mut margins = Vec::with_capacity(self.concepts.len());
        for concept in &self.concepts {
            if i64::from(concept.class) >= class_texts.size()[0] || class_texts.size()[0] < 2 {
                return Err(Error::Input(format!(
                    "class {} is not in the class list, or is the only one",
                    concept.class
                )));
            }
            let (images, _) =
                embedded_images(context, &model, composed.as_deref(), &concept.forget, stages)?;
            let chosen = thinned(images.size()[0] as usize, self.images);
            let chosen = Tensor::f_from_slice(&chosen)?.f_to(images.device())?;
            margins.push(of_images(&images.f_index_select(0, &chosen)?, &class_texts, concept)?);
        }
        Ok(MarginsOutput { margins })
    }
}

/// Returns the score of the own class minus the k-th best score of another class, for each image.
/// With fewer other classes than k, the last of them decides.
fn of_images(images: &Tensor, classes: &Tensor, concept: &MarginsOf) -> Result<Vec<f64>, Error> {
    let scores = zero_shot::scores(images, classes)?;
    let class = i64::from(concept.class);
    let own = scores.f_index_select(1, &Tensor::f_from_slice(&[class])?.f_to(scores.device())?)?;
    let _ = scores.f_select(1, class)?.f_fill_(f64::NEG_INFINITY)?;
    let rank = i64::from(concept.rank).min(classes.size()[0] - 1);
    let (best, _) = scores.f_topk(rank, 1, true, true)?;
    let margins =
        own.f_squeeze_dim(1)?.f_sub(&best.f_select(1, rank - 1)?)?.f_to_kind(Kind::Double)?;
    let margins = Vec::<f64>::try_from(margins.f_to_device(tch::Device::Cpu)?)?;
    if margins.iter().all(|margin| margin.is_finite()) {
        Ok(margins)
    } else {
        Err(Error::Input(
            "the margins of forget images are not finite; lower the strength of the edited concepts".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_is_the_distance_to_the_class_of_that_rank() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 2]);
        let classes = rows(&[1.0, 0.0, 0.8, 0.6, 0.6, 0.8, 0.0, 1.0]);
        let images = rows(&[1.0, 0.0, 0.0, 1.0]);
        let of = |class: u32, rank: u32| {
            of_images(&images, &classes, &MarginsOf { class, rank, forget: Vec::new() }).unwrap()
        };
        let near = |found: Vec<f64>, expected: [f64; 2]| {
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
                "{found:?} instead of {expected:?}"
            );
        };
        near(of(0, 1), [0.2, -1.0]);
        near(of(0, 2), [0.4, -0.8]);
        near(of(2, 1), [-0.4, -0.2]);
        near(of(0, 5), [1.0, -0.6]);
    }
}

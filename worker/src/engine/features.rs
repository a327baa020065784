//! What a change does to embeddings, beside zero-shot accuracy.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;
use lethe_shared::task::{EvaluateItem, Features, FeaturesOutput};
use tch::{Device, Kind, Tensor};

use super::class_list::ClassList;
use super::error::Error;
use super::evaluate::{self, ComposedModel, Removed};
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use crate::{corpus, zero_shot};

/// Compares embeddings of the base model and of the changed one, and classifies images by the
/// nearest mean of the changed model's embeddings.
impl Perform for Features {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<FeaturesOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let _guard = tch::no_grad_guard();
        let change = self.change.as_ref();
        let composed = stages.time("change", || {
            change.map(|change| ComposedModel::of(context, &model, &classes, change)).transpose()
        })?;
        let removed = Removed::of(context, &self.removed, classes.texts.names.len())?;
        let retained = removed.retained.f_to(context.device())?;
        let base = classes.embeddings.get();
        let texts = composed
            .as_ref()
            .map_or_else(|| base.shallow_clone(), |composed| composed.class_embeddings.get());

        let mut embedded = |items: &[EvaluateItem], composed: Option<&ComposedModel>| {
            let (mut images, mut labels) = (Vec::new(), Vec::new());
            for item in items {
                let (embeddings, captions) =
                    evaluate::embedded_images(context, &model, composed, &item.shards, stages)?;
                images.push(embeddings);
                labels.extend(evaluate::labels(item, &captions, &classes.texts)?);
            }
            if images.is_empty() {
                images.push(base.f_narrow(0, 0, 0)?);
            }
            Ok::<_, Error>((Tensor::f_cat(&images, 0)?, labels))
        };
        let (reference, reference_labels) = embedded(&self.reference, composed.as_deref())?;
        let (shown, labels) = embedded(&self.shown, composed.as_deref())?;
        let (unchanged, _) = embedded(&self.shown, None)?;

        let is_retained =
            retained.f_index_select(0, &corpus::labels(&labels, context.device())?)?;
        let means = class_means(&reference, &reference_labels)?;
        Ok(FeaturesOutput {
            text_similarity: mean_similarity(&base, &texts, &retained)?,
            image_similarity: mean_similarity(&unchanged, &shown, &is_retained)?,
            class_means: nearest_means(&shown, &labels, &means)?,
            neighbours: neighbours(&base, &removed, &retained, self.neighbours)?,
        })
    }
}

/// Returns the mean cosine of equal rows of unit embeddings `[n, d]`, over the rows that `chosen`
/// `[n]`, boolean, marks; `None` when there are none.
fn mean_similarity(before: &Tensor, after: &Tensor, chosen: &Tensor) -> Result<Option<f64>, Error> {
    let cosines = before.f_mul(after)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Double)?;
    let cosines = cosines.f_masked_select(chosen)?;
    if cosines.numel() == 0 {
        return Ok(None);
    }
    // Rounded because the sizes of passes may affect the last bits of embeddings.
    let mean = cosines.f_mean(Kind::Double)?.f_double_value(&[])?;
    Ok(Some((mean * 1e6).round() / 1e6))
}

/// Returns the unit mean embedding of each class that has images, by class.
fn class_means(images: &Tensor, labels: &[u32]) -> Result<BTreeMap<u32, Tensor>, Error> {
    let mut rows: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for (row, &label) in labels.iter().enumerate() {
        rows.entry(label).or_default().push(row as i64);
    }
    let mean = |rows: &Vec<i64>| -> Result<Tensor, Error> {
        let rows = Tensor::f_from_slice(rows)?.f_to(images.device())?;
        let sum = images.f_index_select(0, &rows)?.f_sum_dim_intlist(
            [0].as_slice(),
            false,
            Kind::Float,
        )?;
        let length = sum.f_square()?.f_sum(Kind::Float)?.f_sqrt()?.f_clamp_min(1e-12)?;
        Ok(sum.f_div(&length)?)
    };
    rows.iter().map(|(&class, rows)| Ok((class, mean(rows)?))).collect()
}

/// Counts the hits of the nearest class mean on the images whose class has one.
fn nearest_means(
    images: &Tensor,
    labels: &[u32],
    means: &BTreeMap<u32, Tensor>,
) -> Result<Hits, Error> {
    let places: BTreeMap<u32, u32> = means.keys().copied().zip(0..).collect();
    let with_mean: Vec<(i64, u32)> = labels
        .iter()
        .zip(0i64..)
        .filter(|(label, _)| places.contains_key(label))
        .map(|(&label, row)| (row, label))
        .collect();
    if with_mean.is_empty() {
        return Ok(Hits::default());
    }
    let (rows, labels): (Vec<i64>, Vec<u32>) = with_mean.into_iter().unzip();
    let own: Vec<u32> = labels.iter().map(|label| places[label]).collect();
    let device = images.device();
    let images = images.f_index_select(0, &Tensor::f_from_slice(&rows)?.f_to(device)?)?;
    let means = Tensor::f_stack(&means.values().collect::<Vec<_>>(), 0)?;
    let ranks = zero_shot::ranks(&images, &means, &corpus::labels(&own, device)?)?;
    Ok(zero_shot::hits(&ranks, &labels))
}

/// Returns the retained classes whose texts are nearest to those of each removed class, from unit
/// embeddings `[c, d]`.
fn neighbours(
    texts: &Tensor,
    removed: &Removed,
    retained: &Tensor,
    count: u32,
) -> Result<Vec<Vec<u32>>, Error> {
    let available = retained.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let count = i64::from(count).min(available);
    if count == 0 || removed.classes.is_empty() {
        return Ok(vec![Vec::new(); removed.classes.len()]);
    }
    let rows = corpus::labels(&removed.classes, texts.device())?;
    let scores = zero_shot::scores(&texts.f_index_select(0, &rows)?, texts)?;
    let scores = scores.f_masked_fill(&retained.f_logical_not()?, f64::NEG_INFINITY)?;
    // Stable, so that of equally near classes the one that comes first in the list is nearer.
    let (_, order) = scores.f_sort_stable(true, -1, true)?;
    let nearest = order.f_narrow(1, 0, count)?.f_contiguous()?.f_view([-1])?;
    let nearest = Vec::<i64>::try_from(nearest.f_to_device(Device::Cpu)?)?;
    let classes = |row: &[i64]| row.iter().map(|&class| class as u32).collect();
    Ok(nearest.chunks(count as usize).map(classes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view([-1, 2])
    }

    #[test]
    fn the_nearest_mean_decides_among_classes_that_have_one() {
        // Class 5 lies at 45°, class 2 at 0°; the images of class 9 have no mean.
        let means = class_means(&rows(&[1., 0., 0., 1., 1., 0.]), &[5, 5, 2]).unwrap();
        let hits = nearest_means(&rows(&[1., 0., 0.8, 0.6, 1., 0.]), &[2, 2, 9], &means).unwrap();
        assert_eq!(hits.classes.keys().copied().collect::<Vec<_>>(), [2]);
        let class = hits.classes[&2];
        assert_eq!((class.n, class.top1, class.top5), (2, 1, 2));
        assert_eq!(nearest_means(&rows(&[1., 0.]), &[9], &means).unwrap(), Hits::default());
    }

    #[test]
    fn similarity_is_a_mean_over_chosen_rows() {
        let (before, after) = (rows(&[1., 0., 0., 1.]), rows(&[0.6, 0.8, 0., 1.]));
        let mean = |chosen: [bool; 2]| {
            mean_similarity(&before, &after, &Tensor::from_slice(&chosen)).unwrap()
        };
        assert_eq!(mean([true, true]), Some(0.8));
        assert_eq!(mean([false, true]), Some(1.0));
        assert_eq!(mean([false, false]), None);
    }

    #[test]
    fn neighbours_are_retained_and_ordered() {
        let texts = rows(&[1., 0., 0.8, 0.6, 0.6, 0.8, 0.8, 0.6, 0., 1.]);
        let retained = Tensor::from_slice(&[false, true, true, true, false]);
        let removed = Removed { classes: vec![0, 4], retained: retained.shallow_clone() };
        let found = |count: u32| neighbours(&texts, &removed, &retained, count).unwrap();
        assert_eq!(found(2), [[1, 3], [2, 1]]);
        assert_eq!(found(9), [[1, 3, 2], [2, 1, 3]]);
        assert_eq!(found(0), [[], []] as [[u32; 0]; 2]);
    }
}

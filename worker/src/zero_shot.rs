//! Zero-shot classification: where the true class ranks among all class texts.

use std::collections::BTreeMap;

use lethe_shared::outcome::{Accuracy, Answers, Hits};
use tch::{Kind, Tensor};

use crate::model::Error;
use crate::multiplying::exactly;

/// Cosines of unit embeddings `[n, d]` and `[c, d]`: `[n, c]`, in float32 whatever the device may round to.
///
/// # Errors
/// When shapes do not fit.
pub fn scores(images: &Tensor, classes: &Tensor) -> Result<Tensor, Error> {
    Ok(exactly(|| images.f_matmul(&classes.f_transpose(0, 1)?))?)
}

/// For each image, how many classes score higher than its own: 0 means top-1.
///
/// `images` `[n, d]` and `classes` `[c, d]` are unit embeddings, `labels` `[n]` int64 the true classes. Classes that
/// score exactly as high count when they come earlier in the list, as a stable arg-sort would have it.
///
/// # Errors
/// When shapes do not fit, or an embedding is not finite.
pub fn ranks(images: &Tensor, classes: &Tensor, labels: &Tensor) -> Result<Vec<i64>, Error> {
    let scores = scores(images, classes)?;
    if !scores.f_isfinite()?.f_all()?.f_double_value(&[])?.eq(&1.0) {
        return Err(Error::Tensor { tensor: "embeddings".into(), problem: "are not finite".into() });
    }
    let column = labels.f_unsqueeze(1)?;
    let own = scores.f_gather(1, &column, false)?;
    let positions = Tensor::f_arange(classes.size()[0], (Kind::Int64, classes.device()))?.f_unsqueeze(0)?;
    let earlier = scores.f_eq_tensor(&own)?.f_logical_and(&positions.f_lt_tensor(&column)?)?;
    let above = scores.f_gt_tensor(&own)?.f_logical_or(&earlier)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
    Ok(Vec::<i64>::try_from(above.f_to_device(tch::Device::Cpu)?)?)
}

/// The same for one class at a time, when its text alone is embedded anew, in several ways: for each way and each image, how many classes
/// score higher.
///
/// `scores` `[n, c]` are the cosines of all classes, of which those of `class` are not looked at; `own` `[ways, d]` its embeddings. One
/// that is not finite counts as the first of all: nothing was forgotten.
///
/// # Errors
/// When shapes do not fit.
pub fn ranks_of(images: &Tensor, scores: &Tensor, own: &Tensor, class: u32) -> Result<Vec<Vec<i64>>, Error> {
    let (class, classes, ways) = (i64::from(class), scores.size()[1], own.size()[0]);
    let own = self::scores(images, own)?.f_transpose(0, 1)?.f_unsqueeze(2)?;
    let others = scores.f_unsqueeze(0)?;
    let positions = Tensor::f_arange(classes, (Kind::Int64, scores.device()))?;
    let above = others.f_gt_tensor(&own)?.f_logical_or(&others.f_eq_tensor(&own)?.f_logical_and(&positions.f_lt(class)?)?)?;
    let above = above.f_logical_and(&positions.f_ne(class)?)?.f_sum_dim_intlist([2].as_slice(), false, Kind::Int64)?;
    let above = Vec::<i64>::try_from(above.f_reshape([-1])?.f_to_device(tch::Device::Cpu)?)?;
    Ok(above.chunks((above.len() / ways.max(1) as usize).max(1)).map(<[i64]>::to_vec).collect())
}

/// What a model says of images `[n, d]` of one class, n > 0: the classes that rank first on most of them, and how near they are to
/// their own. Of classes that score alike, the earlier ranks first.
///
/// # Errors
/// When shapes do not fit, or an embedding is not finite.
pub fn answers(images: &Tensor, classes: &Tensor, class: u32) -> Result<Answers, Error> {
    let scores = scores(images, classes)?;
    let own = scores.f_select(1, i64::from(class))?.f_mean(Kind::Double)?.f_double_value(&[])?;
    if !own.is_finite() {
        return Err(Error::Tensor { tensor: "embeddings".into(), problem: "are not finite".into() });
    }
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for first in Vec::<i64>::try_from(scores.f_argmax(1, false)?.f_to_device(tch::Device::Cpu)?)? {
        *counts.entry(first as u32).or_default() += 1;
    }
    let mut first: Vec<(u32, u32)> = counts.into_iter().collect();
    first.sort_by_key(|&(class, images)| (std::cmp::Reverse(images), class));
    first.truncate(Answers::MOST);
    // Rounded: how passes are cut may change the last bits of embeddings.
    Ok(Answers { similarity: (own * 1e6).round() / 1e6, first })
}

/// Top-1 and top-5 accuracy from [`ranks`], 0 to 1.
pub fn accuracy(ranks: &[i64]) -> Accuracy {
    let share = |k: i64| ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64;
    Accuracy { fa1: share(1), fa5: share(5) }
}

/// Top-1 and top-5 hits per class from [`ranks`] and the classes they belong to.
pub fn hits(ranks: &[i64], labels: &[u32]) -> Hits {
    let mut hits = Hits::default();
    for (&rank, &label) in ranks.iter().zip(labels) {
        hits.count(rank, label);
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f32], width: i64) -> Tensor {
        Tensor::from_slice(values).view([-1, width])
    }

    #[test]
    fn ranks_count_the_classes_above() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8], 2);
        let images = rows(&[1., 0., 0., 1., 1., 0.], 2);
        let labels = Tensor::from_slice(&[0i64, 0, 1]);
        assert_eq!(ranks(&images, &classes, &labels).unwrap(), [0, 2, 2]);
    }

    #[test]
    fn a_tie_goes_to_the_earlier_class() {
        let classes = rows(&[1., 0., 1., 0., 1., 0.], 2);
        let images = rows(&[1., 0.], 2);
        assert_eq!(ranks(&images, &classes, &Tensor::from_slice(&[2i64])).unwrap(), [2]);
        assert_eq!(ranks(&images, &classes, &Tensor::from_slice(&[0i64])).unwrap(), [0]);
    }

    #[test]
    fn ranks_of_one_class_are_those_among_all() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8, 1., 0.], 2);
        let images = rows(&[1., 0., 0., 1., 0.6, 0.8], 2);
        let scores = scores(&images, &classes).unwrap();
        let ways = rows(&[0.6, 0.8, 1., 0., f32::NAN, 0.], 2);
        for class in 0..4 {
            let found = ranks_of(&images, &scores, &ways, class).unwrap();
            for (way, found) in found.iter().enumerate().take(2) {
                let row = Tensor::from_slice(&[i64::from(class)]);
                let changed = classes.index_copy(0, &row, &ways.narrow(0, way as i64, 1));
                assert_eq!(*found, ranks(&images, &changed, &row.repeat([3])).unwrap(), "class {class}, way {way}");
            }
            assert_eq!(found[2], [0, 0, 0]);
        }
    }

    #[test]
    fn a_collapsed_model_is_an_error_not_an_accuracy() {
        let classes = rows(&[1., f32::NAN], 2);
        assert!(ranks(&classes, &classes, &Tensor::from_slice(&[0i64])).is_err());
    }

    #[test]
    fn answers_name_what_ranks_first_most_often() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8, -1., 0.], 2);
        let images = rows(&[1., 0., 0., 1., 0., 1., 0.6, 0.8, -1., 0.], 2);
        let found = answers(&images, &classes, 2).unwrap();
        // Classes 0, 2 and 3 rank first once each: the last is not listed.
        assert_eq!(found.first, [(1, 2), (0, 1), (2, 1)]);
        assert_eq!(found.similarity, 0.52);
        assert!(answers(&images, &rows(&[1., f32::NAN], 2), 0).is_err());
    }

    #[test]
    fn hits_are_per_class() {
        let hits = hits(&[0, 3, 7], &[4, 4, 9]);
        assert_eq!((hits.classes[&4].n, hits.classes[&4].top1, hits.classes[&4].top5), (2, 1, 2));
        assert_eq!((hits.classes[&9].n, hits.classes[&9].top1, hits.classes[&9].top5), (1, 0, 0));
    }
}

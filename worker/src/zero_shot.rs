//! Zero-shot classification: the rank of an image's true class among all class texts.

use std::collections::BTreeMap;

use lethe_shared::measurement::{Accuracy, Answers, Hits, ImageRanks, NameSearch};
use tch::{Device, Kind, Tensor};

use crate::matmul_precision::in_full_precision;
use crate::model::{Error, NotFinite};

/// Computes the cosines `[n, c]` of unit embeddings `[n, d]` and `[c, d]`, in full float32
/// precision even where jobs use TF32.
///
/// # Errors
/// When shapes do not match.
pub fn scores(images: &Tensor, classes: &Tensor) -> Result<Tensor, Error> {
    Ok(in_full_precision(|| images.f_matmul(&classes.f_transpose(0, 1)?))?)
}

fn not_finite() -> NotFinite {
    NotFinite::new("zero-shot scores")
}

/// Computes [`scores`], and checks that each of them is finite: no rank follows from others, and so
/// no claim that a class was forgotten.
fn finite_scores(images: &Tensor, classes: &Tensor) -> Result<Tensor, Error> {
    let scores = scores(images, classes)?;
    if scores.f_isfinite()?.f_all()?.f_double_value(&[])?.eq(&1.0) {
        Ok(scores)
    } else {
        Err(not_finite().into())
    }
}

/// Returns, for each image, the rank of its own class: the number of classes that score higher.
/// Rank 0 is a top-1 hit.
///
/// `images` `[n, d]` and `classes` `[c, d]` are unit embeddings, `labels` `[n]`, int64, the true
/// classes. Of classes with equal scores the one that comes first in the list ranks higher, as in a
/// stable sort.
///
/// # Errors
/// [`Error::NotFinite`] when a score is not finite. Otherwise when shapes do not match.
pub fn ranks(images: &Tensor, classes: &Tensor, labels: &Tensor) -> Result<Vec<i64>, Error> {
    let above = above(&finite_scores(images, classes)?, labels)?;
    let ranks = above.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
    Ok(Vec::<i64>::try_from(ranks.f_to_device(Device::Cpu)?)?)
}

/// Returns the ranks of images of one class: among all classes, and among those that `retained`
/// `[c]`, boolean, marks.
///
/// # Errors
/// As [`ranks`].
pub fn image_ranks(
    images: &Tensor,
    classes: &Tensor,
    class: u32,
    retained: &Tensor,
) -> Result<Vec<ImageRanks>, Error> {
    let labels =
        Tensor::f_full([images.size()[0]], i64::from(class), (Kind::Int64, images.device()))?;
    let above = above(&finite_scores(images, classes)?, &labels)?;
    let count = |above: &Tensor| -> Result<Vec<i64>, Error> {
        let ranks = above.f_sum_dim_intlist([1].as_slice(), false, Kind::Int64)?;
        Ok(Vec::<i64>::try_from(ranks.f_to_device(Device::Cpu)?)?)
    };
    let (all, retained) = (count(&above)?, count(&above.f_logical_and(retained)?)?);
    let ranks = |(all, retained)| ImageRanks { all: all as u32, retained: retained as u32 };
    Ok(all.into_iter().zip(retained).map(ranks).collect())
}

/// Returns, for each class of `searched` that has an image, how many images of other classes score
/// higher on its text than its best image does. `labels` are the classes of the images. Of images
/// with equal scores, those of other classes rank higher.
///
/// # Errors
/// As [`ranks`].
pub fn name_searches(
    images: &Tensor,
    classes: &Tensor,
    labels: &[u32],
    searched: &[u32],
) -> Result<Vec<NameSearch>, Error> {
    let scores = finite_scores(images, classes)?;
    let mut searches = Vec::new();
    for &class in searched {
        let own: Vec<bool> = labels.iter().map(|&label| label == class).collect();
        if !own.contains(&true) {
            continue;
        }
        let own = Tensor::f_from_slice(&own)?.f_to(images.device())?;
        let column = scores.f_select(1, i64::from(class))?;
        let best = column.f_masked_select(&own)?.f_max()?;
        let rank = column
            .f_ge_tensor(&best)?
            .f_logical_and(&own.f_logical_not()?)?
            .f_sum(Kind::Int64)?
            .f_int64_value(&[])?;
        searches.push(NameSearch { class, rank: rank as u32 });
    }
    Ok(searches)
}

/// Returns which classes rank above the own class of each image, `[n, c]`, boolean.
fn above(scores: &Tensor, labels: &Tensor) -> Result<Tensor, Error> {
    let column = labels.f_unsqueeze(1)?;
    let own = scores.f_gather(1, &column, false)?;
    let positions =
        Tensor::f_arange(scores.size()[1], (Kind::Int64, scores.device()))?.f_unsqueeze(0)?;
    let earlier = scores.f_eq_tensor(&own)?.f_logical_and(&positions.f_lt_tensor(&column)?)?;
    Ok(scores.f_gt_tensor(&own)?.f_logical_or(&earlier)?)
}

/// The ranks of images of one class under a variant of its embedding, or the reason why there are
/// none.
pub type VariantRanks = Result<Vec<i64>, NotFinite>;

/// Returns the ranks of images of one class for several variants of that class's embedding, while
/// the other classes keep theirs.
///
/// `scores` `[n, c]` are the cosines of images and classes; the column of `class` is ignored. `own`
/// `[variants, d]` holds the variants. A variant whose scores are not finite has no ranks, but
/// [`NotFinite`] in their place.
///
/// # Errors
/// When shapes do not match.
pub fn ranks_with_class_variants(
    images: &Tensor,
    scores: &Tensor,
    own: &Tensor,
    class: u32,
) -> Result<Vec<VariantRanks>, Error> {
    /// Marks an image whose own score is not finite.
    const NO_RANK: i64 = -1;
    let (class, classes, variants) = (i64::from(class), scores.size()[1], own.size()[0]);
    let own = self::scores(images, own)?.f_transpose(0, 1)?.f_unsqueeze(2)?;
    let others = scores.f_unsqueeze(0)?;
    let positions = Tensor::f_arange(classes, (Kind::Int64, scores.device()))?;
    let above = others
        .f_gt_tensor(&own)?
        .f_logical_or(&others.f_eq_tensor(&own)?.f_logical_and(&positions.f_lt(class)?)?)?;
    let above = above.f_logical_and(&positions.f_ne(class)?)?.f_sum_dim_intlist(
        [2].as_slice(),
        false,
        Kind::Int64,
    )?;
    let above =
        above.f_masked_fill(&own.f_squeeze_dim(2)?.f_isfinite()?.f_logical_not()?, NO_RANK)?;
    let above = Vec::<i64>::try_from(above.f_reshape([-1])?.f_to_device(Device::Cpu)?)?;
    let ranks_of = |ranks: &[i64]| {
        if ranks.contains(&NO_RANK) { Err(not_finite()) } else { Ok(ranks.to_vec()) }
    };
    Ok(above.chunks((above.len() / variants.max(1) as usize).max(1)).map(ranks_of).collect())
}

/// Returns the top predictions for images `[n, d]` of one class, n > 0: the classes that rank first
/// on most images, and the mean cosine of the images and their own class. Of classes with equal
/// scores the one that comes first in the list ranks higher.
///
/// # Errors
/// [`Error::NotFinite`] when a score of the own class is not finite; otherwise when shapes do not
/// match.
pub fn top_predictions(images: &Tensor, classes: &Tensor, class: u32) -> Result<Answers, Error> {
    let scores = scores(images, classes)?;
    let own = scores.f_select(1, i64::from(class))?.f_mean(Kind::Double)?.f_double_value(&[])?;
    if !own.is_finite() {
        return Err(not_finite().into());
    }
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for first in Vec::<i64>::try_from(scores.f_argmax(1, false)?.f_to_device(Device::Cpu)?)? {
        *counts.entry(first as u32).or_default() += 1;
    }
    let mut first: Vec<(u32, u32)> = counts.into_iter().collect();
    first.sort_by_key(|&(class, images)| (std::cmp::Reverse(images), class));
    first.truncate(Answers::MOST);
    // Rounded because the sizes of passes may affect the last bits of embeddings.
    Ok(Answers { similarity: (own * 1e6).round() / 1e6, first })
}

/// Computes top-1 and top-5 accuracy, 0 to 1, from [`ranks`].
pub fn accuracy(ranks: &[i64]) -> Accuracy {
    let share =
        |k: i64| ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64;
    Accuracy { fa1: share(1), fa5: share(5) }
}

/// Counts top-1 and top-5 hits per class from [`ranks`] and the true classes.
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
    fn image_ranks_leave_out_removed_classes() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8, 0.8, 0.6], 2);
        let images = rows(&[1., 0., 0., 1.], 2);
        let retained = Tensor::from_slice(&[true, true, false, false]);
        let found = image_ranks(&images, &classes, 2, &retained).unwrap();
        let found: Vec<(u32, u32)> = found.iter().map(|rank| (rank.all, rank.retained)).collect();
        assert_eq!(found, [(2, 1), (1, 1)]);
        assert!(image_ranks(&images, &rows(&[f32::NAN; 8], 2), 2, &retained).is_err());
    }

    #[test]
    fn a_search_finds_the_best_image_of_its_class() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8], 2);
        let images = rows(&[1., 0., 0.8, 0.6, 0., 1., 0.8, 0.6], 2);
        let found = name_searches(&images, &classes, &[0, 1, 0, 2], &[0, 1, 2, 3]).unwrap();
        let found: Vec<(u32, u32)> = found.iter().map(|s| (s.class, s.rank)).collect();
        // The images of classes 1 and 2 are the same: each ranks behind the other.
        assert_eq!(found, [(0, 0), (1, 2), (2, 1)]);
    }

    #[test]
    fn a_tie_goes_to_the_earlier_class() {
        let classes = rows(&[1., 0., 1., 0., 1., 0.], 2);
        let images = rows(&[1., 0.], 2);
        assert_eq!(ranks(&images, &classes, &Tensor::from_slice(&[2i64])).unwrap(), [2]);
        assert_eq!(ranks(&images, &classes, &Tensor::from_slice(&[0i64])).unwrap(), [0]);
    }

    #[test]
    fn ranks_with_class_variants_equal_ranks_among_all_classes() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8, 1., 0.], 2);
        let images = rows(&[1., 0., 0., 1., 0.6, 0.8], 2);
        let scores = scores(&images, &classes).unwrap();
        let variants = rows(&[0.6, 0.8, 1., 0., f32::NAN, 0.], 2);
        for class in 0..4 {
            let found = ranks_with_class_variants(&images, &scores, &variants, class).unwrap();
            for (variant, found) in found.iter().enumerate().take(2) {
                let row = Tensor::from_slice(&[i64::from(class)]);
                let changed = classes.index_copy(0, &row, &variants.narrow(0, variant as i64, 1));
                let expected = ranks(&images, &changed, &row.repeat([3])).unwrap();
                assert_eq!(found.as_ref(), Ok(&expected), "class {class}, variant {variant}");
            }
            assert_eq!(found[2], Err(not_finite()));
        }
    }

    #[test]
    fn a_collapsed_model_is_an_error_not_an_accuracy() {
        let sound = rows(&[1., 0., 0., 1.], 2);
        let labels = Tensor::from_slice(&[0i64, 1]);
        for broken in [rows(&[1., f32::NAN, 0., 1.], 2), rows(&[f32::INFINITY, 0., 0., 1.], 2)] {
            for (images, classes) in [(&sound, &broken), (&broken, &sound)] {
                let error = ranks(images, classes, &labels).unwrap_err();
                assert!(
                    matches!(error, Error::NotFinite(_))
                        && error.to_string().contains("zero-shot scores are not finite"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn top_predictions_are_the_classes_that_rank_first_most_often() {
        let classes = rows(&[1., 0., 0., 1., 0.6, 0.8, -1., 0.], 2);
        let images = rows(&[1., 0., 0., 1., 0., 1., 0.6, 0.8, -1., 0.], 2);
        let found = top_predictions(&images, &classes, 2).unwrap();
        // Classes 0, 2 and 3 rank first once each: the last is not listed.
        assert_eq!(found.first, [(1, 2), (0, 1), (2, 1)]);
        assert_eq!(found.similarity, 0.52);
        assert!(top_predictions(&images, &rows(&[1., f32::NAN], 2), 0).is_err());
    }

    #[test]
    fn hits_are_per_class() {
        let hits = hits(&[0, 3, 7], &[4, 4, 9]);
        assert_eq!((hits.classes[&4].n, hits.classes[&4].top1, hits.classes[&4].top5), (2, 1, 2));
        assert_eq!((hits.classes[&9].n, hits.classes[&9].top1, hits.classes[&9].top5), (1, 0, 0));
    }
}

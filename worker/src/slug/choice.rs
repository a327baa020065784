//! The choice among the layers on which a concept was forgotten (paper section 3.3): lowest forget
//! accuracy, then highest utility, then smallest relative change.
//!
//! The search measures the utility of edits of the text tower. For an edit of the vision tower, all
//! validation images have to pass through the edited blocks once more. Such a candidate is
//! therefore evaluated only while it can still win: with every image that it misclassifies, the
//! highest utility it can reach falls. [`hardest_first`] orders the images so that likely misses
//! come first.

use std::cmp::Ordering;

use lethe_shared::measurement::{Hits, LayerAnswer, Trial};
use lethe_shared::vocabulary::Stop;
use tch::{Device, Kind, Tensor};

use super::trial::{CandidateEdit, EvaluationContext, ForgetSet, SelectedEdit, edited_layer};
use crate::corpus;
use crate::model::Error;
use crate::zero_shot;

/// The key by which candidates are ordered: the least is the best.
#[derive(Debug, Clone, Copy)]
struct SelectionKey<'a> {
    /// The forget accuracy that `stop` names, then the other one.
    accuracies: (f64, f64),
    utility: f64,
    relative_step: f64,
    layer: &'a str,
}

impl<'a> SelectionKey<'a> {
    /// The key of a candidate with this utility.
    fn new(candidate: &CandidateEdit<'a>, utility: f64, stop: Stop) -> Self {
        let accuracies = match stop {
            Stop::Fa5 | Stop::Rank(_) => (candidate.accuracy.fa5, candidate.accuracy.fa1),
            Stop::Fa1 => (candidate.accuracy.fa1, candidate.accuracy.fa5),
        };
        Self { accuracies, utility, relative_step: candidate.relative_step, layer: candidate.name }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self, other);
        a.accuracies
            .0
            .total_cmp(&b.accuracies.0)
            .then(a.accuracies.1.total_cmp(&b.accuracies.1))
            .then(b.utility.total_cmp(&a.utility))
            .then(a.relative_step.total_cmp(&b.relative_step))
            .then_with(|| a.layer.cmp(b.layer))
    }
}

/// Selects the best candidate: lowest forget accuracy (the one that `stop` names, then the other),
/// then highest utility, then smallest relative change, then first layer by name.
///
/// Records the utilities that it knows in `trials`: of every candidate on the text tower, and of
/// each candidate on the vision tower that was evaluated to the end.
///
/// # Errors
/// When libtorch returns an error, or `check_cancelled` does, which is called before validation
/// images are evaluated.
pub fn choose<E: From<Error>>(
    context: EvaluationContext<'_>,
    forget_set: &ForgetSet<'_>,
    mut candidates: Vec<CandidateEdit<'_>>,
    stop: Stop,
    trials: &mut [Trial],
    check_cancelled: impl Fn() -> Result<(), E>,
) -> Result<Option<SelectedEdit>, E> {
    let utility = |hits: &Hits| hits.mean_top1(|class| class != forget_set.class);
    let mut record = |candidate: &CandidateEdit<'_>, utility: f64| {
        if let Some(trial) = trials
            .iter_mut()
            .find(|trial| trial.step == candidate.step && trial.layer == candidate.name)
        {
            trial.utility = Some(utility);
        }
    };
    // Candidates of known utility come first, so that the others have something to be compared
    // with.
    candidates.sort_by_key(|candidate| candidate.validation.is_none());
    let mut best: Option<(CandidateEdit<'_>, Hits)> = None;
    for mut candidate in candidates {
        let can_win = |candidate: &CandidateEdit<'_>, highest_utility: f64| match &best {
            Some((best, hits)) => {
                let best_key = SelectionKey::new(best, utility(hits), stop);
                SelectionKey::new(candidate, highest_utility, stop).cmp(&best_key).is_lt()
            }
            None => true,
        };
        let hits = match candidate.validation.take() {
            Some(hits) => Some(hits),
            None => {
                check_cancelled()?;
                evaluate_while_it_can_win(context, forget_set, &candidate, |highest| {
                    can_win(&candidate, highest)
                })?
            }
        };
        let Some(hits) = hits else { continue };
        record(&candidate, utility(&hits));
        if can_win(&candidate, utility(&hits)) {
            best = Some((candidate, hits));
        }
    }
    Ok(best.map(|(candidate, validation)| {
        let summary = LayerAnswer {
            layer: candidate.name.to_owned(),
            tower: candidate.tower,
            step: candidate.step,
            relative_step: candidate.relative_step,
            fa1: candidate.accuracy.fa1,
            fa5: candidate.accuracy.fa5,
            utility: utility(&validation),
        };
        SelectedEdit { id: candidate.id, summary, validation }
    }))
}

/// Counts hits on the validation images under an edit of the vision tower. Returns `None` as soon
/// as the highest utility that the edit can still reach does not satisfy `can_win`, which is asked
/// after every image, so that batch sizes do not affect results.
fn evaluate_while_it_can_win(
    context: EvaluationContext<'_>,
    forget_set: &ForgetSet<'_>,
    candidate: &CandidateEdit<'_>,
    can_win: impl Fn(f64) -> bool,
) -> Result<Option<Hits>, Error> {
    let mut hits = Hits::default();
    let others =
        context.validation_labels.iter().filter(|&&label| label != forget_set.class).count();
    let share = |right: usize| if others == 0 { 0.0 } else { right as f64 / others as f64 };
    let mut possibly_right = others;
    let mut remaining_labels = context.validation_labels;
    if !can_win(share(possibly_right)) {
        return Ok(None);
    }
    if remaining_labels.is_empty() {
        return Ok(Some(hits));
    }
    let missing = || Error::Tensor {
        tensor: "pixels".into(),
        problem: "were not loaded, but an edit of the vision tower needs them".into(),
    };
    let images = context.validation_images.ok_or_else(missing)?;
    let original = context.parameters.weights();
    let edited = original.with(
        candidate.id,
        edited_layer(context.parameters, candidate.id, candidate.gradient, candidate.step)?,
    );
    for embedded in images.embed_lazily(context.clip, &original, &edited, Some(candidate.id)) {
        let embedded = embedded?;
        let (labels, after) =
            remaining_labels.split_at(remaining_labels.len().min(embedded.size()[0] as usize));
        remaining_labels = after;
        let label_tensor = corpus::labels(labels, context.parameters.device())?;
        for (rank, &label) in zero_shot::ranks(&embedded, context.class_embeddings, &label_tensor)?
            .into_iter()
            .zip(labels)
        {
            hits.count(rank, label);
            if rank > 0 && label != forget_set.class {
                possibly_right -= 1;
                if !can_win(share(possibly_right)) {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(hits))
}

/// Returns the order in which to evaluate images `[n, d]` under edits: by the margin of their own
/// class over the best of the other classes `[c, d]` under the unedited model, smallest first. The
/// first images are those that an edit is most likely to get wrong.
///
/// # Errors
/// When shapes do not match or libtorch returns an error.
pub fn hardest_first(
    images: &Tensor,
    classes: &Tensor,
    labels: &Tensor,
) -> Result<Vec<i64>, Error> {
    let scores = zero_shot::scores(images, classes)?;
    let column = labels.f_unsqueeze(1)?;
    let own = scores.f_gather(1, &column, false)?.f_squeeze_dim(1)?;
    let (others, _) = scores.f_scatter_value(1, &column, f64::NEG_INFINITY)?.f_max_dim(1, false)?;
    let margins = own.f_sub(&others)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
    let margins = Vec::<f64>::try_from(margins)?;
    let mut order: Vec<i64> = (0..margins.len() as i64).collect();
    order.sort_by(|&a, &b| margins[a as usize].total_cmp(&margins[b as usize]));
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(
        layer: &str,
        accuracies: (f64, f64),
        utility: f64,
        relative_step: f64,
    ) -> SelectionKey<'_> {
        SelectionKey { accuracies, utility, relative_step, layer }
    }

    #[test]
    fn keys_order_by_forgetting_then_utility_then_size() {
        let base = key("a", (0.0, 0.0), 0.8, 0.1);
        for (other, expected) in [
            (key("b", (0.0, 0.1), 0.9, 0.01), Ordering::Less),
            (key("b", (0.0, 0.0), 0.9, 0.5), Ordering::Greater),
            (key("b", (0.0, 0.0), 0.8, 0.05), Ordering::Greater),
            (key("b", (0.0, 0.0), 0.8, 0.1), Ordering::Less),
        ] {
            assert_eq!(base.cmp(&other), expected, "{other:?}");
            assert_eq!(other.cmp(&base), expected.reverse(), "{other:?}");
        }
    }

    #[test]
    fn images_with_the_smallest_margin_come_first() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 2]);
        let (images, classes) =
            (rows(&[1.0, 0.0, 0.0, 1.0, 0.8, 0.6, 0.6, 0.8]), rows(&[1.0, 0.0, 0.0, 1.0]));
        // Margins: 1, −1, 0.2, −0.2.
        assert_eq!(
            hardest_first(&images, &classes, &Tensor::from_slice(&[0i64; 4])).unwrap(),
            [1, 3, 2, 0]
        );
        assert_eq!(
            hardest_first(&images, &classes.narrow(0, 0, 1), &Tensor::from_slice(&[0i64; 4]))
                .unwrap(),
            [0, 1, 2, 3]
        );
        assert!(
            hardest_first(&images.narrow(0, 0, 0), &classes, &Tensor::from_slice(&[0i64; 0]))
                .unwrap()
                .is_empty()
        );
    }
}

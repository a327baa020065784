//! The choice among the layers on which a concept was forgotten (paper section 3.3): lowest forget accuracy, then highest utility, then
//! smallest relative change.
//!
//! An edit of the text tower tells its utility while it is searched. That of a vision layer costs the validation images once more from
//! the edited block on, so such a layer is looked at only for as long as it may be the best: with every image that it misses, the most
//! that its utility can be falls. [`hardest_first`] puts the images that are missed first.

use std::cmp::Ordering;

use lethe_shared::manifest::Stop;
use lethe_shared::outcome::{Hits, LayerAnswer, Trial};
use tch::{Device, Kind, Tensor};

use super::search::{Found, Ground, Subject, edited_layer};
use crate::corpus;
use crate::model::{Error, ParameterId};
use crate::zero_shot;

/// The best answer of a concept.
#[derive(Debug)]
pub struct Answer {
    /// The layer.
    pub id: ParameterId,
    /// Step, accuracies, utility.
    pub summary: LayerAnswer,
    /// Hits per class on the validation images with this edit alone.
    pub validation: Hits,
}

/// An answer's place in the order: the best is the least.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    /// The forget accuracy that `stop` names, and the other.
    accuracies: (f64, f64),
    utility: f64,
    relative_step: f64,
    layer: &'a str,
}

impl Place<'_> {
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

impl Found<'_> {
    /// Its place with this utility.
    fn place(&self, utility: f64, stop: Stop) -> Place<'_> {
        let accuracies = match stop {
            Stop::Fa5 => (self.accuracy.fa5, self.accuracy.fa1),
            Stop::Fa1 => (self.accuracy.fa1, self.accuracy.fa5),
        };
        Place { accuracies, utility, relative_step: self.relative_step, layer: self.name }
    }
}

/// The best of the answers: lowest forget accuracy (of the measure that `stop` names, then the other), then highest utility, then
/// smallest relative change, then first by name. Utilities that were measured on the way are put on record in `trials`: of every
/// answer on the text tower, and of those on the vision tower that were the best so far.
///
/// # Errors
/// When libtorch refuses, or when `go_on` does: it is asked before every look at validation images.
pub fn choose<E: From<Error>>(
    ground: Ground<'_>,
    subject: &Subject<'_>,
    mut found: Vec<Found<'_>>,
    stop: Stop,
    trials: &mut [Trial],
    go_on: impl Fn() -> Result<(), E>,
) -> Result<Option<Answer>, E> {
    let utility = |hits: &Hits| hits.mean_top1(|class| class != subject.class);
    let mut on_record = |found: &Found<'_>, utility: f64| {
        if let Some(trial) = trials.iter_mut().find(|trial| trial.step == found.step && trial.layer == found.name) {
            trial.utility = Some(utility);
        }
    };
    // What costs nothing to compare with comes first.
    found.sort_by_key(|found| found.validation.is_none());
    let mut best: Option<(Found<'_>, Hits)> = None;
    for mut one in found {
        let hits = match one.validation.take() {
            Some(hits) => {
                on_record(&one, utility(&hits));
                Some(hits)
            }
            None => {
                go_on()?;
                let may_win = |at_most: f64| match &best {
                    Some((best, hits)) => one.place(at_most, stop).cmp(&best.place(utility(hits), stop)).is_lt(),
                    None => true,
                };
                look(ground, subject, &one, may_win)?.inspect(|hits| on_record(&one, utility(hits)))
            }
        };
        let Some(hits) = hits else { continue };
        let wins =
            best.as_ref().is_none_or(|(best, of_best)| one.place(utility(&hits), stop).cmp(&best.place(utility(of_best), stop)).is_lt());
        if wins {
            best = Some((one, hits));
        }
    }
    Ok(best.map(|(found, validation)| {
        let summary = LayerAnswer {
            layer: found.name.to_owned(),
            tower: found.tower,
            step: found.step,
            relative_step: found.relative_step,
            fa1: found.accuracy.fa1,
            fa5: found.accuracy.fa5,
            utility: utility(&validation),
        };
        Answer { id: found.id, summary, validation }
    }))
}

/// Hits on the validation images under an edit of the vision tower; `None` as soon as its utility can no longer be one that may win.
/// Whether it can is asked image by image, so that how passes are cut shows in nothing.
fn look(ground: Ground<'_>, subject: &Subject<'_>, found: &Found<'_>, may_win: impl Fn(f64) -> bool) -> Result<Option<Hits>, Error> {
    let mut hits = Hits::default();
    let others = ground.validation_labels.iter().filter(|&&label| label != subject.class).count();
    let share = |right: usize| if others == 0 { 0.0 } else { right as f64 / others as f64 };
    let mut may_be_right = others;
    let mut left = ground.validation_labels;
    if !may_win(share(may_be_right)) {
        return Ok(None);
    }
    if left.is_empty() {
        return Ok(Some(hits));
    }
    let images = ground.validation.ok_or_else(|| Error::Tensor { tensor: "pixels".into(), problem: "are not at hand".into() })?;
    let original = ground.parameters.weights();
    let edited = original.with(found.id, edited_layer(ground.parameters, found.id, found.gradient, found.step)?);
    for embedded in images.embed_in_turn(ground.clip, &original, &edited, Some(found.id)) {
        let embedded = embedded?;
        let (here, after) = left.split_at(left.len().min(embedded.size()[0] as usize));
        left = after;
        let labels = corpus::labels(here, ground.parameters.device())?;
        for (rank, &label) in zero_shot::ranks(&embedded, ground.classes, &labels)?.into_iter().zip(here) {
            hits.count(rank, label);
            if rank > 0 && label != subject.class {
                may_be_right -= 1;
                if !may_win(share(may_be_right)) {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(hits))
}

/// The order in which images `[n, d]` are looked at under edits: by how far the best of the other classes `[c, d]` stands above their
/// own under the unedited model, so that those come first which an edit is least likely to leave right.
///
/// # Errors
/// When shapes do not fit.
pub fn hardest_first(images: &Tensor, classes: &Tensor, labels: &Tensor) -> Result<Vec<i64>, Error> {
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

    fn place(layer: &str, accuracies: (f64, f64), utility: f64, relative_step: f64) -> Place<'_> {
        Place { accuracies, utility, relative_step, layer }
    }

    #[test]
    fn forgetting_comes_before_utility_before_size() {
        let base = place("a", (0.0, 0.0), 0.8, 0.1);
        for (other, expected) in [
            (place("b", (0.0, 0.1), 0.9, 0.01), Ordering::Less),
            (place("b", (0.0, 0.0), 0.9, 0.5), Ordering::Greater),
            (place("b", (0.0, 0.0), 0.8, 0.05), Ordering::Greater),
            (place("b", (0.0, 0.0), 0.8, 0.1), Ordering::Less),
        ] {
            assert_eq!(base.cmp(&other), expected, "{other:?}");
            assert_eq!(other.cmp(&base), expected.reverse(), "{other:?}");
        }
    }

    #[test]
    fn images_that_are_missed_by_most_come_first() {
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 2]);
        let (images, classes) = (rows(&[1.0, 0.0, 0.0, 1.0, 0.8, 0.6, 0.6, 0.8]), rows(&[1.0, 0.0, 0.0, 1.0]));
        // Margins: 1, −1, 0.2, −0.2.
        assert_eq!(hardest_first(&images, &classes, &Tensor::from_slice(&[0i64; 4])).unwrap(), [1, 3, 2, 0]);
        assert_eq!(hardest_first(&images, &classes.narrow(0, 0, 1), &Tensor::from_slice(&[0i64; 4])).unwrap(), [0, 1, 2, 3]);
        assert!(hardest_first(&images.narrow(0, 0, 0), &classes, &Tensor::from_slice(&[0i64; 0])).unwrap().is_empty());
    }
}

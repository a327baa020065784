//! Computes the numbers of a release from outcomes: forgetting and utility. Pure.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::measurement::{
    Accuracy, Answers, Chosen, ClassHits, Hits, ImageRanks, NameSearch,
};
use lethe_shared::record::{
    Candidates, FirstClass, Group, Measured, NameSearches, Recall, Recognition, Retained,
    TopPredictions, Utility, UtilityOn, WorstClass,
};
use lethe_shared::vocabulary::Stop;
use serde::{Deserialize, Serialize};

/// Number of classes in the list of the worst.
const WORST: usize = 10;

/// The measurements of a composed model.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Accuracy on each concept that has an edit, by id.
    pub concepts: BTreeMap<String, Measured>,
    /// The model's predictions on each concept's forget images, by id.
    pub said: BTreeMap<String, TopPredictions>,
    /// Share of each concept's forget images that the unedited model recognises by the concept's
    /// own criterion, by id; only for criteria that are a share of ranks.
    pub within_before: BTreeMap<String, f64>,
    /// What can still be told of removed concepts.
    pub recognition: Option<Recognition>,
    /// Accuracy on retained classes, before and after.
    pub utility: Utility,
    /// Jobs whose stored outcome was reused.
    pub jobs_found: usize,
    /// Jobs executed by this invocation.
    pub jobs_done: usize,
}

/// Returns the accuracy on one concept for the original weights. `base` are their hits on the
/// validation set.
pub fn before(forget: Accuracy, class: u32, base: Option<&Hits>, within: Option<f64>) -> Measured {
    Measured {
        fa1: forget.fa1,
        fa5: forget.fa5,
        within,
        held_out: base.and_then(|hits| hits.classes.get(&class).copied()),
        utility: base.map(|hits| hits.mean_top1(|other| other != class)),
    }
}

/// Returns the accuracy on one concept with its edit alone.
pub fn alone(chosen: &Chosen, class: u32, base: Option<&Hits>) -> Measured {
    Measured {
        fa1: chosen.answer.fa1,
        fa5: chosen.answer.fa5,
        within: None,
        held_out: chosen.validation.classes.get(&class).copied(),
        utility: base.map(|_| chosen.answer.utility),
    }
}

/// Returns the accuracy on one concept in the composed model.
pub fn composed(
    forget: &Hits,
    class: u32,
    validation: Option<&Hits>,
    within: Option<f64>,
) -> Measured {
    let own = |other: u32| other == class;
    Measured {
        fa1: forget.mean_top1(own),
        fa5: forget.mean_top5(own),
        within,
        held_out: validation.and_then(|hits| hits.classes.get(&class).copied()),
        utility: None,
    }
}

/// Returns the share of images that count as recognised by a criterion that is a share of ranks;
/// `None` for other criteria, and without images. `others` is the number of other classes.
pub fn within(stop: Stop, others: u32, ranks: &[ImageRanks]) -> Option<f64> {
    if !matches!(stop, Stop::Rank(_)) || ranks.is_empty() {
        return None;
    }
    let recognised = ranks.iter().filter(|ranks| ranks.all < stop.rank(others)).count();
    Some(recognised as f64 / ranks.len() as f64)
}

/// Numbers of retained classes beside which a removed name is shown.
const CANDIDATES: [u32; 4] = [1, 4, 9, 19];

/// The ranks of one concept's forget images, before and after.
#[derive(Debug, Clone, Copy)]
pub struct ConceptRanks<'a> {
    /// In the unedited model.
    pub before: &'a [ImageRanks],
    /// In the composed model.
    pub after: &'a [ImageRanks],
}

/// Returns what can still be told of removed concepts; `None` when nothing was measured. `retained`
/// is the number of retained classes.
pub fn recognition(
    concepts: &[ConceptRanks<'_>],
    retained: u32,
    searches: Vec<NameSearches>,
) -> Option<Recognition> {
    // A mean over the images of a concept, then over concepts.
    let mean = |others: u32, all: &[&[ImageRanks]]| {
        let share = |ranks: &&[ImageRanks]| {
            let wins: f64 = ranks.iter().map(|rank| wins(rank.retained, retained, others)).sum();
            wins / ranks.len().max(1) as f64
        };
        all.iter().map(share).sum::<f64>() / all.len().max(1) as f64
    };
    let before: Vec<&[ImageRanks]> = concepts.iter().map(|concept| concept.before).collect();
    let after: Vec<&[ImageRanks]> = concepts.iter().map(|concept| concept.after).collect();
    let measured = before.iter().chain(&after).all(|ranks| !ranks.is_empty());
    let candidates = if measured && !concepts.is_empty() {
        let of = |others: u32| Candidates {
            others,
            before: mean(others, &before),
            after: mean(others, &after),
        };
        CANDIDATES.into_iter().filter(|&others| others <= retained).map(of).collect()
    } else {
        Vec::new()
    };
    (!candidates.is_empty() || !searches.is_empty()).then_some(Recognition { candidates, searches })
}

/// Returns the probability that a class which `above` of the retained classes outrank comes before
/// all of `others` different classes drawn from the retained ones: C(retained − above, others) /
/// C(retained, others).
fn wins(above: u32, retained: u32, others: u32) -> f64 {
    let below = retained.saturating_sub(above);
    (0..others)
        .map(|drawn| {
            f64::from(below.saturating_sub(drawn))
                / f64::from(retained.saturating_sub(drawn).max(1))
        })
        .product()
}

/// Returns the recall of searches by the names of removed concepts in one set, before and after;
/// `None` when the set has no image of any.
pub fn name_search(
    set: &str,
    before: &[NameSearch],
    after: &[NameSearch],
    removed: &BTreeSet<u32>,
) -> Option<NameSearches> {
    let of_removed = |search: &&NameSearch| removed.contains(&search.class);
    let recall = |searches: &[NameSearch]| {
        let ranks: Vec<u32> =
            searches.iter().filter(of_removed).map(|search| search.rank).collect();
        let among = |k: u32| {
            ranks.iter().filter(|&&rank| rank < k).count() as f64 / ranks.len().max(1) as f64
        };
        Recall { r1: among(1), r5: among(5), r20: among(20) }
    };
    let names = after.iter().filter(of_removed).count() as u64;
    (names > 0).then(|| NameSearches {
        set: set.to_owned(),
        names,
        before: recall(before),
        after: recall(after),
    })
}

/// Returns the predictions of a model, with the names of classes.
pub fn top_predictions(answers: &Answers, names: &[String]) -> TopPredictions {
    let named = |&(class, images): &(u32, u32)| FirstClass {
        class: names.get(class as usize).cloned().unwrap_or_default(),
        images,
    };
    TopPredictions {
        similarity: answers.similarity,
        first: answers.first.iter().map(named).collect(),
    }
}

/// The grouping of classes in utility measurements.
#[derive(Debug)]
pub struct Fates<'a, R> {
    /// Returns whether a class is retained.
    pub retained: R,
    /// Retained classes that the retain statistics cover.
    pub covered: &'a BTreeSet<u32>,
    /// Classes of the concepts that have an edit.
    pub removed: &'a BTreeSet<u32>,
}

/// Returns the accuracy over the chosen classes before and after; `None` if there is no image of
/// any.
fn group(before: &Hits, after: &Hits, chosen: impl Fn(u32) -> bool) -> Option<Group> {
    let own = before.classes.iter().filter(|(class, hits)| chosen(**class) && hits.n > 0);
    let (classes, images) =
        own.fold((0, 0), |(classes, images), (_, hits)| (classes + 1, images + u64::from(hits.n)));
    let accuracy =
        |hits: &Hits| Retained { ta1: hits.mean_top1(&chosen), ta5: hits.mean_top5(&chosen) };
    (images > 0).then(|| Group {
        classes,
        images,
        before: accuracy(before),
        after: accuracy(after),
    })
}

/// Returns the share of TA@1 that is kept on the group of retained classes that keeps least: the
/// classes that the retain statistics cover, or those that they do not. A mean over both would hide
/// what the smaller group loses.
pub fn least_kept(
    before: &Hits,
    after: &Hits,
    retained: impl Fn(u32) -> bool,
    covered: &BTreeSet<u32>,
) -> f64 {
    [true, false]
        .into_iter()
        .filter_map(|is_covered| {
            group(before, after, |class| retained(class) && covered.contains(&class) == is_covered)
        })
        .filter(|group| group.before.ta1 > 0.0)
        .map(|group| group.after.ta1 / group.before.ta1)
        .reduce(f64::min)
        .unwrap_or(0.0)
}

/// Returns the utility on one set: accuracy on retained classes before and after, the classes that
/// lost most, and each group of classes.
pub fn utility<R: Fn(u32) -> bool>(
    before: &Hits,
    after: &Hits,
    fates: &Fates<'_, R>,
    names: &[String],
) -> UtilityOn {
    let retained = &fates.retained;
    let accuracy =
        |hits: &Hits| Retained { ta1: hits.mean_top1(retained), ta5: hits.mean_top5(retained) };
    let images = before
        .classes
        .iter()
        .filter(|(class, _)| retained(**class))
        .map(|(_, hits)| u64::from(hits.n))
        .sum();
    let share = |hits: ClassHits, count: u32| f64::from(count) / f64::from(hits.n.max(1));
    let mut lost: Vec<(f64, f64, u32)> = before
        .classes
        .iter()
        .filter(|(class, _)| retained(**class))
        .map(|(&class, &was)| {
            let is = after.classes.get(&class).copied().unwrap_or_default();
            (
                share(was, was.top1) - share(is, is.top1),
                share(was, was.top5) - share(is, is.top5),
                class,
            )
        })
        .filter(|&(first, fifth, _)| first > 0.0 || fifth > 0.0)
        .collect();
    lost.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
    let worst = lost
        .into_iter()
        .take(WORST)
        .map(|(_, _, class)| WorstClass {
            class: names.get(class as usize).cloned().unwrap_or_default(),
            before: before.classes.get(&class).copied().unwrap_or_default(),
            after: after.classes.get(&class).copied().unwrap_or_default(),
        })
        .collect();
    UtilityOn {
        images,
        before: accuracy(before),
        after: accuracy(after),
        worst,
        covered: group(before, after, |class| retained(class) && fates.covered.contains(&class)),
        never_seen: group(before, after, |class| {
            retained(class) && !fates.covered.contains(&class)
        }),
        removed: group(before, after, |class| fates.removed.contains(&class)),
    }
}

/// Summary statistics of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Number of values.
    pub count: usize,
    /// Smallest.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Returns the statistics of values, or `None` if there are none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { count: values.len(), min, mean, median: at(0.5), p90: at(0.9), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(classes: &[(u32, u32, u32, u32)]) -> Hits {
        Hits {
            classes: classes
                .iter()
                .map(|&(class, n, top1, top5)| (class, ClassHits { n, top1, top5 }))
                .collect(),
        }
    }

    #[test]
    fn a_removed_name_wins_against_few_when_few_are_above() {
        // Two of five retained classes are above: of the ten pairs, three have neither.
        assert_eq!(wins(2, 5, 1), 3.0 / 5.0);
        assert!((wins(2, 5, 2) - 3.0 / 10.0).abs() < 1e-12);
        assert_eq!((wins(0, 5, 5), wins(3, 5, 3), wins(9, 5, 1)), (1.0, 0.0, 0.0));
        let ranks = |ranks: &[u32]| -> Vec<ImageRanks> {
            ranks.iter().map(|&rank| ImageRanks { all: rank, retained: rank }).collect()
        };
        let (before, after) = (ranks(&[0, 0]), ranks(&[0, 10]));
        let concept = ConceptRanks { before: &before, after: &after };
        let found = recognition(&[concept], 10, Vec::new()).unwrap();
        assert_eq!(found.candidates.len(), 3, "there are no nineteen others");
        assert!(found.candidates.iter().all(|c| c.before == 1.0 && c.after == 0.5));
        assert_eq!(recognition(&[], 10, Vec::new()), None);
        let unmeasured = ConceptRanks { after: &[], ..concept };
        assert_eq!(recognition(&[unmeasured], 10, Vec::new()), None);
    }

    #[test]
    fn a_share_of_ranks_recognises_what_fewer_classes_outrank() {
        let stop = Stop::parse("rank 0.5").unwrap();
        let ranks: Vec<ImageRanks> = [3, 4, 5, 6].map(|all| ImageRanks { all, retained: 0 }).into();
        assert_eq!(within(stop, 10, &ranks), Some(0.5));
        assert_eq!(within(stop, 10, &[]), None);
        assert_eq!(within(Stop::Fa5, 10, &ranks), None);
    }

    #[test]
    fn searches_by_removed_names_are_counted_and_others_are_not() {
        let searches = |ranks: [u32; 3]| -> Vec<NameSearch> {
            (0..).zip(ranks).map(|(class, rank)| NameSearch { class, rank }).collect()
        };
        let removed = BTreeSet::from([0, 1]);
        let found =
            name_search("test", &searches([0, 4, 0]), &searches([4, 20, 0]), &removed).unwrap();
        assert_eq!(found.names, 2);
        assert_eq!(found.before, Recall { r1: 0.5, r5: 1.0, r20: 1.0 });
        assert_eq!(found.after, Recall { r1: 0.0, r5: 0.5, r20: 0.5 });
        assert_eq!(name_search("test", &[], &[], &removed), None);
    }

    #[test]
    fn the_worst_lose_most_and_removed_classes_do_not_count() {
        let before = hits(&[(0, 2, 2, 2), (1, 2, 2, 2), (2, 4, 4, 4), (3, 1, 0, 1)]);
        let after = hits(&[(0, 2, 0, 0), (1, 2, 1, 2), (2, 4, 4, 4), (3, 1, 0, 0)]);
        let names: Vec<String> = ["removed", "half", "whole", "fifth"].map(String::from).into();
        let (covered, removed) = (BTreeSet::from([1]), BTreeSet::from([0]));
        let fates = Fates { retained: |class| class != 0, covered: &covered, removed: &removed };
        let found = utility(&before, &after, &fates, &names);
        assert_eq!(found.images, 7);
        assert_eq!((found.before.ta1, found.after.ta1), (6.0 / 7.0, 5.0 / 7.0));
        assert_eq!(
            found.worst.iter().map(|w| w.class.as_str()).collect::<Vec<_>>(),
            ["half", "fifth"]
        );
    }

    #[test]
    fn groups_are_told_apart_and_empty_ones_are_absent() {
        // Class 4 is a concept of the manifest without an edit: neither retained nor removed.
        let before = hits(&[(0, 2, 2, 2), (1, 2, 2, 2), (2, 4, 3, 4), (3, 0, 0, 0), (4, 9, 9, 9)]);
        let after = hits(&[(0, 2, 0, 1), (1, 2, 1, 2), (2, 4, 0, 1), (3, 0, 0, 0), (4, 9, 9, 9)]);
        let (covered, removed) = (BTreeSet::from([1]), BTreeSet::from([0]));
        let retained = |class| class != 0 && class != 4;
        let found = utility(
            &before,
            &after,
            &Fates { retained, covered: &covered, removed: &removed },
            &[],
        );
        let shape = |group: Option<Group>| {
            group.map(|g| {
                (g.classes, g.images, g.before.ta1, g.after.ta1, g.before.ta5, g.after.ta5)
            })
        };
        assert_eq!(shape(found.covered), Some((1, 2, 1.0, 0.5, 1.0, 1.0)));
        assert_eq!(shape(found.never_seen), Some((1, 4, 0.75, 0.0, 1.0, 0.25)));
        assert_eq!(shape(found.removed), Some((1, 2, 1.0, 0.0, 1.0, 0.5)));
        let none = BTreeSet::new();
        let found =
            utility(&before, &after, &Fates { retained, covered: &none, removed: &none }, &[]);
        assert_eq!(
            (found.covered, found.removed, found.never_seen.map(|g| g.images)),
            (None, None, Some(6))
        );
        assert_eq!(found.images, 6);
    }

    #[test]
    fn the_group_that_keeps_least_decides() {
        let before = hits(&[(0, 4, 4, 4), (1, 4, 4, 4), (2, 4, 2, 4), (3, 4, 0, 4)]);
        let after = hits(&[(0, 4, 0, 0), (1, 4, 3, 4), (2, 4, 1, 4), (3, 4, 4, 4)]);
        let of = |retained: &dyn Fn(u32) -> bool| {
            least_kept(&before, &after, retained, &BTreeSet::from([1]))
        };
        assert_eq!(of(&|class| class == 1 || class == 2), 0.5);
        assert_eq!(of(&|class| class == 1), 0.75);
        // A group in which nothing was right before says nothing.
        assert_eq!(of(&|class| class == 1 || class == 3), 0.75);
        assert_eq!(of(&|_| false), 0.0);
    }

    #[test]
    fn a_spread_of_known_values() {
        let spread = Spread::of((0..=10).map(f64::from).rev().collect()).unwrap();
        assert_eq!(
            (spread.min, spread.mean, spread.median, spread.p90, spread.max),
            (0.0, 5.0, 5.0, 9.0, 10.0)
        );
        assert_eq!(Spread::of(Vec::new()), None);
    }
}

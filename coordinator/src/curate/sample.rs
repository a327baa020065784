//! Selection of pairs: a seeded sample that depends on the pairs alone, and not on their order.
//!
//! Every pair has a priority, a hash of the seed and of all its bytes. A set of at most k pairs
//! holds the k pairs of lowest priority (bottom-k sampling). Samples of parts therefore merge into
//! the sample of the whole, in any order, and duplicates count once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

use super::pairs::Pair;

/// The priority of a pair, which is also its name in the output: XXH3 of seed, caption and image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u128);

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Priority {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes the priorities of pairs.
#[allow(missing_debug_implementations)]
pub struct Lottery(Xxh3);

impl Lottery {
    /// Creates the lottery of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Xxh3::with_seed(seed))
    }

    /// Returns the priority of a pair.
    pub fn draw(&mut self, pair: &Pair<'_>) -> Priority {
        self.0.reset();
        self.0.update(&(pair.caption.len() as u64).to_le_bytes());
        self.0.update(pair.caption.as_bytes());
        self.0.update(pair.image);
        Priority(self.0.digest128())
    }
}

/// The validation set takes at most one of this many pairs without a concept.
pub const VALIDATION_SHARE: usize = 4;
/// This many pairs without a concept go to the retain set before any goes to the validation set: a
/// batch by default, and fewer give no gradient.
pub const FIRST_RETAINED: usize = 128;

/// Largest number of pairs in each set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Forget pairs per concept.
    pub forget: usize,
    /// Pairs of the retain set.
    pub retain: usize,
    /// Validation pairs per class.
    pub validation: usize,
}

/// The state of an offered pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The pair may be selected, and is new.
    New,
    /// The pair may be selected, and is a duplicate.
    Known,
    /// The pair is not selected, whichever pairs follow.
    Out,
}

/// The pairs selected from those offered so far.
///
/// A pair that mentions concepts belongs to their forget sets; pairs that mention one concept come
/// before those that mention several. A pair that mentions none belongs to the validation set if it
/// has a class and the class has room, and otherwise to the retain set. At the end,
/// [`limit_validation`](Selection::limit_validation) leaves the retain set most of them.
#[derive(Debug)]
pub struct Selection {
    limits: Limits,
    forget: Vec<BTreeSet<(bool, Priority)>>,
    validation: BTreeMap<u32, BTreeSet<Priority>>,
    retain: BTreeSet<Priority>,
}

impl Selection {
    /// Creates an empty selection for this number of concepts.
    pub fn new(concepts: usize, limits: Limits) -> Self {
        Self {
            limits,
            forget: vec![BTreeSet::new(); concepts],
            validation: BTreeMap::new(),
            retain: BTreeSet::new(),
        }
    }

    /// Offers a pair: the concepts that it mentions, and its class if there are none.
    pub fn offer(&mut self, priority: Priority, concepts: &[u32], class: Option<u32>) -> Verdict {
        if !concepts.is_empty() {
            let shared = concepts.len() > 1;
            let verdicts = concepts.iter().filter_map(|&concept| {
                Some(
                    insert(
                        self.forget.get_mut(concept as usize)?,
                        (shared, priority),
                        self.limits.forget,
                    )
                    .0,
                )
            });
            return verdicts.fold(Verdict::Out, better);
        }
        let mut candidate = priority;
        let mut verdict = Verdict::Out;
        if let Some(class) = class {
            let (taken, out) =
                insert(self.validation.entry(class).or_default(), priority, self.limits.validation);
            match out {
                // The pair that leaves the validation set, this one or another, is a candidate for
                // the retain set.
                Some(other) => (candidate, verdict) = (other, taken),
                None => return taken,
            }
        }
        let (taken, _) = insert(&mut self.retain, candidate, self.limits.retain);
        if candidate == priority { better(verdict, taken) } else { verdict }
    }

    /// Returns the verdict of [`offer`](Self::offer) without changing the selection.
    pub fn judge(&self, priority: Priority, concepts: &[u32], class: Option<u32>) -> Verdict {
        if !concepts.is_empty() {
            let shared = concepts.len() > 1;
            let sets = concepts.iter().filter_map(|&concept| self.forget.get(concept as usize));
            return sets
                .map(|set| look(set, &(shared, priority), self.limits.forget))
                .fold(Verdict::Out, better);
        }
        let validation = match class.map(|class| self.validation.get(&class)) {
            None => Verdict::Out,
            Some(None) if self.limits.validation > 0 => Verdict::New,
            Some(None) => Verdict::Out,
            Some(Some(set)) => look(set, &priority, self.limits.validation),
        };
        if validation == Verdict::Out {
            look(&self.retain, &priority, self.limits.retain)
        } else {
            validation
        }
    }

    /// Moves pairs from the validation set to the retain set where validation would take more than
    /// its share, and returns their number. Call it after all pairs have been offered.
    ///
    /// Validation keeps at most one pair in [`VALIDATION_SHARE`] of those without a concept, and none
    /// of the first [`FIRST_RETAINED`]; but a full retain set takes no more. Every class keeps its
    /// first pair before any class keeps its second one.
    pub fn limit_validation(&mut self) -> usize {
        let taken: usize = self.validation.values().map(BTreeSet::len).sum();
        let all = taken + self.retain.len();
        let share = (all / VALIDATION_SHARE).min(all.saturating_sub(FIRST_RETAINED));
        let kept = taken.min(share.max(all.saturating_sub(self.limits.retain)));
        let mut ranked: Vec<(usize, Priority, u32)> = self
            .validation
            .iter()
            .flat_map(|(&class, set)| {
                set.iter().enumerate().map(move |(rank, &priority)| (rank, priority, class))
            })
            .collect();
        ranked.sort_unstable();
        for &(_, priority, class) in &ranked[kept..] {
            if let Some(set) = self.validation.get_mut(&class) {
                set.remove(&priority);
            }
            self.retain.insert(priority);
        }
        taken - kept
    }

    /// Returns the pairs of a concept by priority, unshared pairs first.
    pub fn forget(&self, concept: usize) -> impl ExactSizeIterator<Item = Priority> {
        self.forget[concept].iter().map(|&(_, priority)| priority)
    }

    /// Returns the retain set by priority.
    pub fn retain(&self) -> impl ExactSizeIterator<Item = Priority> {
        self.retain.iter().copied()
    }

    /// Returns the validation set with classes, by priority.
    pub fn validation(&self) -> Vec<(Priority, u32)> {
        let mut all: Vec<_> = self
            .validation
            .iter()
            .flat_map(|(class, set)| set.iter().map(|&priority| (priority, *class)))
            .collect();
        all.sort_unstable();
        all
    }
}

/// Inserts a value into a set of at most `most` values. Also returns the value that is removed,
/// which may be the inserted one.
fn insert<T: Ord + Copy>(set: &mut BTreeSet<T>, value: T, most: usize) -> (Verdict, Option<T>) {
    match look(set, &value, most) {
        Verdict::New => {
            set.insert(value);
            let out = if set.len() > most { set.pop_last() } else { None };
            (Verdict::New, out)
        }
        Verdict::Known => (Verdict::Known, None),
        Verdict::Out => (Verdict::Out, Some(value)),
    }
}

fn look<T: Ord>(set: &BTreeSet<T>, value: &T, most: usize) -> Verdict {
    if set.contains(value) {
        Verdict::Known
    } else if set.len() < most || set.last().is_some_and(|last| most > 0 && value < last) {
        Verdict::New
    } else {
        Verdict::Out
    }
}

/// Combines two verdicts: a pair that is new in one set is new.
fn better(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Verdict::New, _) | (_, Verdict::New) => Verdict::New,
        (Verdict::Known, _) | (_, Verdict::Known) => Verdict::Known,
        _ => Verdict::Out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { forget: 3, retain: 4, validation: 2 };

    type Offer = (Priority, Vec<u32>, Option<u32>);

    fn offers() -> impl Strategy<Value = Vec<Offer>> {
        // Equal pairs have equal captions, and therefore mention the same concepts.
        let one = (0u128..60).prop_map(|number| {
            let concepts = match number % 5 {
                0 => vec![0],
                1 => vec![0, 1],
                2 => vec![1],
                _ => vec![],
            };
            let class = (number % 5 == 3).then_some((number % 2) as u32);
            (Priority(number * 7919 % 101), concepts, class)
        });
        prop::collection::vec(one, 0..80)
    }

    /// Forget pairs of each concept, retain pairs, validation pairs with their classes.
    type Shown = (Vec<Vec<Priority>>, Vec<Priority>, Vec<(Priority, u32)>);

    fn shown(selection: &Selection) -> Shown {
        let forget = (0..2).map(|concept| selection.forget(concept).collect()).collect();
        (forget, selection.retain().collect(), selection.validation())
    }

    fn brute(offers: &[Offer]) -> Shown {
        let all: BTreeSet<&Offer> = offers.iter().collect();
        let forget = |concept: u32| {
            let mut own: Vec<_> = all
                .iter()
                .filter(|o| o.1.contains(&concept))
                .map(|o| (o.1.len() > 1, o.0))
                .collect();
            own.sort();
            own.into_iter().take(LIMITS.forget).map(|(_, priority)| priority).collect::<Vec<_>>()
        };
        let of_class = |class: u32| {
            all.iter()
                .filter(move |o| o.2 == Some(class))
                .take(LIMITS.validation)
                .map(move |o| (o.0, class))
        };
        let mut validation: Vec<_> = (0..2).flat_map(of_class).collect();
        validation.sort();
        let clean = all
            .iter()
            .filter(|o| o.1.is_empty() && !validation.iter().any(|v| v.0 == o.0))
            .map(|o| o.0);
        (vec![forget(0), forget(1)], clean.take(LIMITS.retain).collect(), validation)
    }

    proptest! {
        /// Shards are read one by one, and each drops the pairs that earlier shards and its own
        /// earlier pairs rule out. The rest, in any order, has the sample of the whole.
        #[test]
        fn samples_of_what_shards_keep_are_the_sample_of_everything(shards in prop::collection::vec(offers(), 1..5), turn in 0usize..20) {
            let mut finished = Selection::new(2, LIMITS);
            let mut kept = Vec::new();
            for shard in &shards {
                let mut own = Selection::new(2, LIMITS);
                let mut spooled = Vec::new();
                for (priority, concepts, class) in shard {
                    let before = finished.judge(*priority, concepts, *class);
                    let here = own.offer(*priority, concepts, *class);
                    if before == Verdict::New && here == Verdict::New {
                        spooled.push((*priority, concepts.clone(), *class));
                    }
                }
                for (priority, concepts, class) in &spooled {
                    finished.offer(*priority, concepts, *class);
                }
                kept.extend(spooled);
            }
            let length = kept.len().max(1);
            kept.rotate_left(turn % length);
            let mut last = Selection::new(2, LIMITS);
            for (priority, concepts, class) in &kept {
                last.offer(*priority, concepts, *class);
            }
            let expected = brute(&shards.concat());
            prop_assert_eq!(shown(&last), expected.clone());
            prop_assert_eq!(shown(&finished), expected);
        }

        #[test]
        fn judging_foretells_what_offering_does(offers in offers()) {
            let mut selection = Selection::new(2, LIMITS);
            for (priority, concepts, class) in &offers {
                let foretold = selection.judge(*priority, concepts, *class);
                prop_assert_eq!(selection.offer(*priority, concepts, *class), foretold);
            }
        }
    }

    #[test]
    fn the_retain_set_comes_before_the_validation_set() {
        // 500 classes of which captions name 8 pairs each would take everything.
        let sets = |pairs: u128, retain: usize| {
            let mut selection = Selection::new(0, Limits { forget: 0, retain, validation: 8 });
            for number in 0..pairs {
                selection.offer(
                    Priority(number * 7919 % 100_003),
                    &[],
                    Some((number % 500) as u32),
                );
            }
            let before: BTreeSet<Priority> = all(&selection);
            let moved = selection.limit_validation();
            assert_eq!(all(&selection), before);
            let classes: BTreeSet<u32> =
                selection.validation().into_iter().map(|(_, class)| class).collect();
            (selection.retain().len(), selection.validation().len(), classes.len(), moved)
        };
        fn all(selection: &Selection) -> BTreeSet<Priority> {
            let validation = selection.validation().into_iter().map(|(priority, _)| priority);
            selection.retain().chain(validation).collect()
        }
        assert_eq!(sets(3240, 10_240), (2430, 810, 500, 2430));
        assert_eq!(sets(400, 10_240), (300, 100, 100, 300));
        assert_eq!(sets(150, 10_240), (128, 22, 22, 128));
        assert_eq!(sets(100, 10_240), (100, 0, 0, 100));
        // A retain set that is full leaves the rest to validation.
        assert_eq!(sets(3240, 1000), (1000, 2240, 500, 1000));
        assert_eq!(sets(3240, 0), (0, 3240, 500, 0));
        assert_eq!(sets(20_000, 10_240).3, 0);
    }

    #[test]
    fn nothing_is_taken_where_nothing_may_be() {
        let mut none = Selection::new(1, Limits { forget: 0, retain: 0, validation: 0 });
        assert_eq!(none.offer(Priority(1), &[0], None), Verdict::Out);
        assert_eq!(none.offer(Priority(2), &[], Some(3)), Verdict::Out);
        assert_eq!(shown_retain(&none), 0);
    }

    fn shown_retain(selection: &Selection) -> usize {
        selection.retain().len() + selection.validation().len()
    }

    #[test]
    fn a_priority_is_of_seed_caption_and_image() {
        let draw = |seed, caption, image: &'static [u8]| {
            Lottery::new(seed).draw(&Pair { key: "k", caption, image, extension: "png" })
        };
        let one = draw(1, "a cat", b"xyz");
        assert_eq!(one, draw(1, "a cat", b"xyz"));
        assert!(
            [draw(2, "a cat", b"xyz"), draw(1, "a ca", b"txyz"), draw(1, "a cat", b"xy")]
                .iter()
                .all(|other| *other != one)
        );
        assert_eq!(one.to_string().parse(), Ok(one));
        let mut lottery = Lottery::new(1);
        lottery.draw(&Pair { key: "", caption: "x", image: b"y", extension: "png" });
        assert_eq!(
            lottery.draw(&Pair { key: "", caption: "a cat", image: b"xyz", extension: "png" }),
            one
        );
    }
}

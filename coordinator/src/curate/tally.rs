//! Counts: pairs of each concept, overlaps between concepts, and unusable samples.

use std::collections::BTreeMap;

use lethe_shared::printable::printable;
use serde::{Deserialize, Serialize};

use super::pairs::{Strays, Unusable};

/// Largest number of concepts in a caption whose overlaps are counted: a caption with more is a
/// list, and the number of concept pairs grows quadratically.
const MOST_OVERLAPS: usize = 32;

/// Counts of a concept's pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Pairs that mention it.
    pub pairs: u64,
    /// Of these, pairs that also mention another concept.
    pub shared: u64,
}

/// Samples that are unusable for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Their number.
    pub samples: u64,
    /// An example: shard and key.
    pub example: String,
}

/// Counts over one shard, or over all shards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pairs read.
    pub pairs: u64,
    /// Pairs that mention a concept.
    pub mentioning: u64,
    /// Counts by concept.
    pub concepts: BTreeMap<u32, Counted>,
    /// Pairs that mention two concepts, by the first and the second concept.
    pub overlaps: BTreeMap<u32, BTreeMap<u32, u64>>,
    /// Unusable samples, by reason.
    pub unusable: BTreeMap<Unusable, PassedOver>,
    /// Members that belong to no pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strays: Option<PassedOver>,
}

impl Tally {
    /// Counts a pair that mentions these concepts, in ascending order.
    pub fn count(&mut self, concepts: &[u32]) {
        self.pairs += 1;
        self.mentioning += u64::from(!concepts.is_empty());
        for &concept in concepts {
            let counted = self.concepts.entry(concept).or_default();
            counted.pairs += 1;
            counted.shared += u64::from(concepts.len() > 1);
        }
        let listed = &concepts[..concepts.len().min(MOST_OVERLAPS)];
        for (position, &first) in listed.iter().enumerate() {
            for &second in &listed[position + 1..] {
                *self.overlaps.entry(first).or_default().entry(second).or_default() += 1;
            }
        }
    }

    /// Counts an unusable sample.
    pub fn pass_over(&mut self, why: Unusable, shard: &str, key: &str) {
        let passed = self.unusable.entry(why).or_default();
        if passed.samples == 0 {
            passed.example = format!("{}: {}", printable(shard), printable(key));
        }
        passed.samples += 1;
    }

    /// Counts members that belong to no pair.
    pub fn pass_over_strays(&mut self, strays: &Strays, shard: &str) {
        let passed = self.strays.get_or_insert_default();
        if passed.samples == 0 {
            passed.example = format!("{}: {}", printable(shard), strays.example);
        }
        passed.samples += strays.members;
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.mentioning += other.mentioning;
        for (&concept, counted) in &other.concepts {
            let sum = self.concepts.entry(concept).or_default();
            sum.pairs += counted.pairs;
            sum.shared += counted.shared;
        }
        for (&first, others) in &other.overlaps {
            let row = self.overlaps.entry(first).or_default();
            others.iter().for_each(|(&second, pairs)| *row.entry(second).or_default() += pairs);
        }
        for (&why, passed) in &other.unusable {
            let sum = self
                .unusable
                .entry(why)
                .or_insert_with(|| PassedOver { samples: 0, example: passed.example.clone() });
            sum.samples += passed.samples;
        }
        if let Some(strays) = &other.strays {
            let sum = self
                .strays
                .get_or_insert_with(|| PassedOver { samples: 0, example: strays.example.clone() });
            sum.samples += strays.samples;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_shards_are_what_one_count_gives() {
        let captions: [&[u32]; 6] = [&[0], &[], &[0, 2], &[0, 1, 2], &[1], &[0, 2]];
        let mut whole = Tally::default();
        captions.iter().for_each(|concepts| whole.count(concepts));
        assert_eq!((whole.pairs, whole.mentioning), (6, 5));
        assert_eq!(whole.concepts[&0], Counted { pairs: 4, shared: 3 });
        assert_eq!(
            whole.overlaps,
            BTreeMap::from([(0, BTreeMap::from([(1, 1), (2, 3)])), (1, BTreeMap::from([(2, 1)]))])
        );
        whole.pass_over(Unusable::NoCaption, "a.tar", "1\n");
        whole.pass_over(Unusable::NoCaption, "a.tar", "2");

        let mut parts = [Tally::default(), Tally::default()];
        captions.iter().enumerate().for_each(|(i, concepts)| parts[i % 2].count(concepts));
        parts[0].pass_over(Unusable::NoCaption, "a.tar", "1\n");
        parts[1].pass_over(Unusable::NoCaption, "a.tar", "2");
        let mut sum = Tally::default();
        parts.iter().for_each(|part| sum.add(part));
        assert_eq!(sum, whole);
        let read: Tally = serde_json::from_str(&serde_json::to_string(&sum).unwrap()).unwrap();
        assert_eq!(read, sum);
    }

    #[test]
    fn a_list_of_everything_does_not_grow_the_table_without_bounds() {
        let mut tally = Tally::default();
        tally.count(&(0..5000).collect::<Vec<u32>>());
        assert_eq!(
            tally.overlaps.values().map(BTreeMap::len).sum::<usize>(),
            MOST_OVERLAPS * (MOST_OVERLAPS - 1) / 2
        );
        assert_eq!(tally.concepts.len(), 5000);
    }
}

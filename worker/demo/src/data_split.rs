//! The seeded, stratified split of the concepts and the order of the retain pairs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

/// Seed of every draw; another value gives another demo.
pub(crate) const SEED: &str = "lethe emoji demo 1";

/// What a concept is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// May be forgotten; has a forget shard.
    Removable,
    /// Drawn in the retain shards.
    Covered,
    /// Neither forgotten nor retained: shows what happens to knowledge nobody names.
    Unseen,
}

impl Part {
    /// The word in `split.csv`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Part::Removable => "removable",
            Part::Covered => "covered",
            Part::Unseen => "unseen",
        }
    }
}

/// A pseudo-random stream from SHA-256 in counter mode: the same on every machine and every crate
/// version.
pub(crate) struct Draws {
    label: String,
    counter: u64,
}

impl Draws {
    /// A stream of its own for each purpose, so that a change in one leaves the others alone.
    pub(crate) fn new(purpose: &str) -> Self {
        Self { label: format!("{SEED}/{purpose}/"), counter: 0 }
    }

    fn next(&mut self) -> u64 {
        let digest = Sha256::new()
            .chain_update(&self.label)
            .chain_update(self.counter.to_le_bytes())
            .finalize();
        self.counter += 1;
        digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// A number below `bound`, every one as likely (128-bit multiplication keeps the bias below
    /// 2^-50).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Shares `total` over strata in proportion to their sizes, by largest remainder; no stratum gets
/// more than it has.
pub(crate) fn shares(sizes: &[usize], total: usize) -> Vec<usize> {
    let all: usize = sizes.iter().sum();
    if all == 0 {
        return vec![0; sizes.len()];
    }
    let total = total.min(all);
    let mut shares: Vec<usize> = sizes.iter().map(|size| size * total / all).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(sizes[*index] * total % all), *index));
    let missing = total - shares.iter().sum::<usize>();
    for index in order.into_iter().take(missing) {
        shares[index] += 1;
    }
    shares
}

/// Picks `total` of `from` stratified by group, those in `first` before any other; indices into
/// `groups`, sorted.
///
/// `first` is kept whole even where a group's share is smaller, so nested picks stay nested.
pub(crate) fn pick(
    groups: &[String],
    from: &[usize],
    first: &[usize],
    total: usize,
    purpose: &str,
) -> Result<Vec<usize>> {
    ensure!(
        total <= from.len(),
        "{purpose}: {total} concepts are asked for, {} are there",
        from.len()
    );
    let mut strata: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for index in from {
        strata.entry(&groups[*index]).or_default().push(*index);
    }
    let sizes: Vec<usize> = strata.values().map(Vec::len).collect();
    let mut picked = BTreeSet::new();
    for ((group, members), share) in strata.iter().zip(shares(&sizes, total)) {
        let mut members = members.clone();
        Draws::new(&format!("{purpose}/{group}")).shuffle(&mut members);
        let (wanted, rest): (Vec<usize>, Vec<usize>) =
            members.into_iter().partition(|index| first.contains(index));
        ensure!(
            wanted.len() <= share,
            "{purpose}: group {group} has a share of {share}, {} are set",
            wanted.len()
        );
        picked.extend(wanted.into_iter().chain(rest).take(share));
    }
    Ok(picked.into_iter().collect())
}

/// The part of every concept: `removable` as given, then two thirds of each group's rest covered,
/// one third unseen.
pub(crate) fn parts(groups: &[String], removable: &[usize]) -> Result<Vec<Part>> {
    let rest: Vec<usize> = (0..groups.len()).filter(|index| !removable.contains(index)).collect();
    let covered = pick(groups, &rest, &[], (rest.len() * 2).div_ceil(3), "covered")?;
    let mut parts = vec![Part::Unseen; groups.len()];
    removable.iter().for_each(|index| parts[*index] = Part::Removable);
    covered.iter().for_each(|index| parts[*index] = Part::Covered);
    Ok(parts)
}

/// Orders drawings so that no batch of `batch` holds two of one concept; the surplus over whole
/// batches is left out.
///
/// `owners[i]` is drawing `i`'s concept; at most `most` drawings are used, spread evenly over the
/// concepts.
pub(crate) fn batches(owners: &[usize], batch: usize, most: usize) -> Result<Vec<usize>> {
    let mut draws = Draws::new("retain");
    let mut by_concept: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (drawing, owner) in owners.iter().enumerate() {
        by_concept.entry(*owner).or_default().push(drawing);
    }
    let mut concepts: Vec<Vec<usize>> = by_concept.into_values().collect();
    concepts.iter_mut().for_each(|drawings| draws.shuffle(drawings));
    draws.shuffle(&mut concepts);
    // Round by round over the concepts, so that cutting the surplus takes at most one more from any
    // concept than from another with as many drawings.
    let used = owners.len().min(most) / batch * batch;
    let rounds = concepts.iter().map(Vec::len).max().unwrap_or(0);
    let mut kept = vec![0; concepts.len()];
    let in_rounds = (0..rounds)
        .flat_map(|round| concepts.iter().enumerate().filter(move |(_, d)| d.len() > round));
    in_rounds.take(used).for_each(|(concept, _)| kept[concept] += 1);
    let count = used / batch;
    ensure!(
        kept.iter().all(|kept| *kept <= count),
        "a concept has more drawings than there are batches of {batch}"
    );
    // Each concept's drawings go to the emptiest batches, one each: fills never differ by more than
    // one, so with a whole number of batches every one ends full.
    let mut filled: Vec<Vec<usize>> = vec![Vec::with_capacity(batch); count];
    let mut order: Vec<usize> = (0..count).collect();
    for (drawings, kept) in concepts.iter().zip(kept) {
        draws.shuffle(&mut order);
        order.sort_by_key(|index| filled[*index].len());
        for (drawing, index) in drawings.iter().take(kept).zip(&order) {
            filled[*index].push(*drawing);
        }
    }
    filled.iter_mut().for_each(|drawings| draws.shuffle(drawings));
    Ok(filled.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<String> {
        (0..90)
            .map(|index| {
                ["animals", "food", "objects"][usize::from(index >= 20) + usize::from(index >= 50)]
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn draws_are_stable_and_in_range() {
        let mut draws = Draws::new("test");
        let first: Vec<usize> = (0..1000).map(|_| draws.below(7)).collect();
        let mut again = Draws::new("test");
        assert_eq!(first, (0..1000).map(|_| again.below(7)).collect::<Vec<_>>());
        assert!((0..7).all(|value| first.iter().filter(|drawn| **drawn == value).count() > 100));
        assert_ne!(Draws::new("a").next(), Draws::new("b").next());
    }

    #[test]
    fn shares_add_up_and_follow_the_sizes() {
        assert_eq!(shares(&[20, 30, 40], 9), [2, 3, 4]);
        assert_eq!(shares(&[1, 1, 1], 2), [1, 1, 0]);
        assert_eq!(shares(&[5, 0], 9), [5, 0]);
        assert_eq!(shares(&[], 3), Vec::<usize>::new());
        assert_eq!(shares(&[109, 88, 64, 193, 129, 121, 190, 175], 300).iter().sum::<usize>(), 300);
    }

    #[test]
    fn picks_are_nested_and_stratified() {
        let groups = groups();
        let all: Vec<usize> = (0..90).collect();
        let thirty = pick(&groups, &all, &[3, 77], 30, "thirty").unwrap();
        assert_eq!(thirty.len(), 30);
        assert!(thirty.contains(&3) && thirty.contains(&77));
        assert_eq!(thirty.iter().filter(|index| groups[**index] == "food").count(), 10);
        let nine = pick(&groups, &thirty, &[3, 77], 9, "nine").unwrap();
        assert!(
            nine.iter().all(|index| thirty.contains(index))
                && nine.contains(&3)
                && nine.contains(&77)
        );
        assert!(pick(&groups, &nine, &[], 10, "too many").is_err());
    }

    #[test]
    fn every_concept_has_one_part() {
        let groups = groups();
        let removable = pick(&groups, &(0..90).collect::<Vec<_>>(), &[], 30, "removable").unwrap();
        let parts = parts(&groups, &removable).unwrap();
        let count = |part| parts.iter().filter(|other| **other == part).count();
        assert_eq!(
            (count(Part::Removable), count(Part::Covered), count(Part::Unseen)),
            (30, 40, 20)
        );
    }

    #[test]
    fn no_batch_holds_two_of_a_concept() {
        // 40 concepts of five or six drawings in batches of 16.
        let owners: Vec<usize> =
            (0..40).flat_map(|concept| vec![concept; 5 + concept % 2]).collect();
        for most in [usize::MAX, 100] {
            let order = batches(&owners, 16, most).unwrap();
            assert_eq!(order.len(), owners.len().min(most) / 16 * 16);
            assert_eq!(
                order.iter().collect::<BTreeSet<_>>().len(),
                order.len(),
                "no drawing twice"
            );
            for batch in order.chunks(16) {
                assert_eq!(
                    batch.iter().map(|drawing| owners[*drawing]).collect::<BTreeSet<_>>().len(),
                    16
                );
            }
        }
        let concepts: BTreeSet<usize> =
            batches(&owners, 16, 48).unwrap().iter().map(|drawing| owners[*drawing]).collect();
        assert_eq!(concepts.len(), 40, "a cut leaves every concept represented");
    }
}

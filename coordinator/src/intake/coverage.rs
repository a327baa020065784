//! The classes that a run's retain statistics cover, determined by names. Pure.
//!
//! Composition protects the classes that the statistics cover. To measure how well it protects
//! other classes, classes that no retain caption and no unlabelled text names are evaluated
//! separately from the covered ones.

use std::collections::{BTreeMap, BTreeSet};

use lethe_shared::manifest::Concept;

/// Number of concepts that a warning lists.
const SHOWN: usize = 5;

/// Numbers of retain captions and unlabelled texts that mention each class. A class whose words
/// occur in some, but only inside longer names or across commas, has zero: statistics saw its words,
/// but nothing shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Captions of retain shards, by class.
    pub captions: BTreeMap<u32, u64>,
    /// Unlabelled texts, by class.
    pub texts: BTreeMap<u32, u64>,
}

impl Named {
    /// Returns the classes whose words occur and that are not in `removed`.
    pub fn covered(&self, removed: &BTreeSet<u32>) -> BTreeSet<u32> {
        self.captions
            .keys()
            .chain(self.texts.keys())
            .copied()
            .filter(|class| !removed.contains(class))
            .collect()
    }

    /// Returns a warning if retained data mentions concepts to remove.
    pub fn warning<'a>(&self, concepts: impl Iterator<Item = &'a Concept>) -> Option<String> {
        let count = |counts: &BTreeMap<u32, u64>, class| counts.get(&class).copied().unwrap_or(0);
        let mut named: Vec<(u64, u64, &str)> = concepts
            .map(|c| {
                (
                    count(&self.captions, c.class_index),
                    count(&self.texts, c.class_index),
                    c.class.as_str(),
                )
            })
            .filter(|&(captions, texts, _)| captions + texts > 0)
            .collect();
        named.sort_by(|a, b| (b.0 + b.1).cmp(&(a.0 + a.1)).then_with(|| a.2.cmp(b.2)));
        let (captions, texts) =
            named.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let first: Vec<String> = named
            .iter()
            .take(SHOWN)
            .map(|one| format!("`{}` in {}", one.2, places(one.0, one.1)))
            .collect();
        let first = match named.len() {
            0 => return None,
            1 => {
                return Some(format!(
                    "the concept to remove {}: {AGAINST}",
                    first[0].replacen(" in ", " is named in ", 1)
                ));
            }
            _ => first.join(", "),
        };
        let more = named.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "{} concepts to remove are named in {}: {first}{more}; {AGAINST}",
            named.len(),
            places(captions, texts)
        ))
    }
}

const AGAINST: &str = "statistics protect what is named, which works against removing it; leave such captions and texts out where you can";

fn places(captions: u64, texts: u64) -> String {
    let plural =
        |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    match (captions, texts) {
        (_, 0) => plural(captions, "retain caption"),
        (0, _) => plural(texts, "retain text"),
        _ => format!("{} and {}", plural(captions, "retain caption"), plural(texts, "retain text")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a concept of this class.
    pub(in crate::intake) fn concept(class_index: u32, class: &str) -> Concept {
        Concept {
            id: class.to_owned(),
            name: class.to_owned(),
            aliases: Vec::new(),
            class: class.to_owned(),
            class_index,
            forget: Vec::new(),
            strength: 1.0,
            group: None,
            stop: None,
            tolerance: None,
            place: String::new(),
        }
    }

    #[test]
    fn a_class_is_covered_by_captions_or_texts_unless_it_is_removed() {
        let named = Named {
            captions: BTreeMap::from([(1, 2), (4, 1)]),
            texts: BTreeMap::from([(4, 3), (7, 1)]),
        };
        assert_eq!(named.covered(&BTreeSet::from([4, 5])), BTreeSet::from([1, 7]));
        assert_eq!(Named::default().covered(&BTreeSet::new()), BTreeSet::new());
    }

    #[test]
    fn concepts_that_must_stay_and_go_are_named_most_frequent_first() {
        let named = Named {
            captions: BTreeMap::from([(1, 2), (4, 1)]),
            texts: BTreeMap::from([(4, 3), (7, 1)]),
        };
        let concepts = [concept(0, "dog"), concept(1, "cat"), concept(4, "sun")];
        let warning = named.warning(concepts.iter()).unwrap();
        assert!(
            warning.starts_with(
                "2 concepts to remove are named in 3 retain captions and 3 retain texts: \
                 `sun` in 1 retain caption and 3 retain texts, `cat` in 2 retain captions; statistics"
            ),
            "{warning}"
        );
        let warning = named.warning(concepts[..2].iter()).unwrap();
        assert!(
            warning.starts_with(
                "the concept to remove `cat` is named in 2 retain captions: statistics"
            ),
            "{warning}"
        );
        assert_eq!(named.warning(concepts[..1].iter()), None);
        // Words inside a longer name are covered, and no mention.
        let inside = Named { captions: BTreeMap::from([(1, 0)]), ..Named::default() };
        assert_eq!(inside.warning(concepts.iter()), None);
        assert_eq!(inside.covered(&BTreeSet::new()), BTreeSet::from([1]));
        let many: Vec<Concept> = (0..8).map(|class| concept(class, &format!("c{class}"))).collect();
        let all = Named { captions: (0..8).map(|class| (class, 1)).collect(), ..Named::default() };
        let warning = all.warning(many.iter()).unwrap();
        assert!(
            warning.contains("8 concepts to remove are named in 8 retain captions: `c0` in"),
            "{warning}"
        );
        assert!(warning.contains("`c4` in 1 retain caption and 3 more; "), "{warning}");
    }
}

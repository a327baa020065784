//! Finds many names in texts as whole-word phrases: the classes that a caption or an unlabelled
//! text names.
//!
//! Names and texts are compared word by word, by the rules of [`words`](crate::words): `Red heart`
//! is in `a red-heart, drawn` and not in `red hearts`. What counts as a mention is decided by
//! [`Phrases::mentions`] alone, for curation and for plans.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::words::Words;

/// The names are too long in total to be searched for at once.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the names are too long to be searched for all at once: {0}")]
pub struct TooLong(#[from] aho_corasick::BuildError);

/// Names prepared for searching. A name is identified by a number.
pub struct Phrases {
    automaton: AhoCorasick,
    /// The name of each pattern and its breaks, as offsets in the pattern; names without any word
    /// have no pattern.
    names: Vec<(u32, Vec<usize>)>,
}

/// An occurrence of a name: start and end in the words, and the name.
type Occurrence = (usize, usize, u32);

impl Phrases {
    /// Prepares names, identified by their positions.
    ///
    /// # Errors
    /// [`TooLong`], beyond some gigabytes of names.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Self, TooLong> {
        Self::numbered((0u32..).zip(names))
    }

    /// Prepares names with their numbers; several names may have one number.
    ///
    /// # Errors
    /// [`TooLong`], beyond some gigabytes of names.
    pub fn numbered<S: AsRef<str>>(
        names: impl IntoIterator<Item = (u32, S)>,
    ) -> Result<Self, TooLong> {
        let words = names.into_iter().map(|(name, text)| (name, Words::of(text.as_ref())));
        let (names, patterns): (Vec<_>, Vec<String>) = words
            .filter(|(_, words)| words.text != " ")
            .map(|(name, words)| ((name, words.breaks), words.text))
            .unzip();
        // Every occurrence counts, also one inside or across another: `heart` in `red heart`.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&patterns)?;
        Ok(Self { automaton, names })
    }

    /// Returns all names whose words occur in a text in order, including those inside longer names
    /// and those across a comma. Most of these are no mentions.
    pub fn find(&self, text: &str) -> BTreeSet<u32> {
        self.automaton
            .find_overlapping_iter(&Words::of(text).text)
            .map(|found| self.names[found.pattern().as_usize()].0)
            .collect()
    }

    /// Returns the names that a text mentions: those that occur in it outside of longer names. `New
    /// York at night` mentions only `New York`, but `from York to New York` also `York`. Two names
    /// that overlap partially are both mentioned.
    ///
    /// A name does not go across a comma or a similar break, unless it has one there itself:
    /// `monkey, face` does not mention `monkey face`.
    pub fn mentions(&self, text: &str) -> BTreeSet<u32> {
        self.mentioned(&Words::of(text))
    }

    /// Returns what [`find`](Self::find) returns, and for each name whether the text
    /// [mentions](Self::mentions) it.
    pub fn occurrences(&self, text: &str) -> BTreeMap<u32, bool> {
        let words = Words::of(text);
        let mentioned = self.mentioned(&words);
        self.automaton
            .find_overlapping_iter(&words.text)
            .map(|found| self.names[found.pattern().as_usize()].0)
            .map(|name| (name, mentioned.contains(&name)))
            .collect()
    }

    fn mentioned(&self, words: &Words) -> BTreeSet<u32> {
        let occurrence = |m: aho_corasick::Match| -> Option<Occurrence> {
            let (name, own) = &self.names[m.pattern().as_usize()];
            let first = words.breaks.partition_point(|&at| at <= m.start());
            let inside = words.breaks[first..].iter().take_while(|&&at| at + 1 < m.end());
            let goes_across = inside.map(|at| at - m.start()).any(|at| !own.contains(&at));
            (!goes_across).then_some((m.start(), m.end(), *name))
        };
        let found = self.automaton.find_overlapping_iter(&words.text);
        let mut found: Vec<Occurrence> = found.filter_map(occurrence).collect();
        // The longest first among those with the same start: a later one that ends no later lies
        // inside.
        found.sort_unstable_by_key(|&(start, end, name)| (start, std::cmp::Reverse(end), name));
        let mut outer = (0, 0);
        let mut names = BTreeSet::new();
        for (start, end, name) in found {
            // Two names of the same words have the same place.
            if end > outer.1 || (start, end) == outer {
                outer = (start, end);
                names.insert(name);
            }
        }
        names
    }
}

impl fmt::Debug for Phrases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phrases").field("names", &self.names.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(names: &[&str], text: &str) -> Vec<u32> {
        Phrases::new(names).unwrap().find(text).into_iter().collect()
    }

    #[test]
    fn names_are_found_as_whole_words_only() {
        let names = ["cat", "red heart", "heart", "woman's hat", "1st place"];
        assert_eq!(found(&names, "a Cat"), [0]);
        assert!(found(&names, "cats, concatenate, cat1, red  hearts").is_empty());
        assert_eq!(found(&names, "RED-heart!"), [1, 2]);
        assert_eq!(found(&names, "(cat)cat, WOMAN’S\that; 1st_place"), [0, 3, 4]);
        assert!(found(&names, "").is_empty());
    }

    #[test]
    fn letters_of_every_script_count() {
        let names = ["être", "Straße", "ΟΔΟΣ", "кот", "寿司"];
        assert_eq!(found(&names, "ÊTRE, STRASSE; οδος. КОТ 寿司"), [0, 1, 2, 3, 4]);
        assert!(found(&names, "fenêtre êtres котик 寿").is_empty());
    }

    #[test]
    fn overlapping_and_equal_names_are_all_found() {
        assert_eq!(
            found(&["ice cream", "cream cone", "Cream", "cream"], "ice cream cone"),
            [0, 1, 2, 3]
        );
    }

    #[test]
    fn a_name_inside_a_longer_one_is_not_meant() {
        let names = ["York", "New York", "york minster", "new york city", "NEW-YORK"];
        let outermost = |text: &str| {
            Phrases::new(&names).unwrap().mentions(text).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(outermost("New York at night"), [1, 4]);
        assert_eq!(outermost("from York to New York"), [0, 1, 4]);
        assert_eq!(outermost("new york minster"), [1, 2, 4]);
        assert_eq!(outermost("New York City"), [3]);
        assert_eq!(outermost("york"), [0]);
        assert!(outermost("yorkshire").is_empty());
    }

    #[test]
    fn a_name_across_a_comma_is_no_mention() {
        let names = ["monkey face", "monkey", "Crouching Tiger, Hidden Dragon", "Washington, D.C."];
        let phrases = Phrases::new(&names).unwrap();
        let mentions = |text: &str| phrases.mentions(text).into_iter().collect::<Vec<_>>();
        for text in
            ["monkey, face", "a monkey;face", "monkey | face", "monkey、face", "monkey\n, face"]
        {
            assert_eq!(mentions(text), [1], "{text}");
            assert_eq!(
                phrases.occurrences(text),
                BTreeMap::from([(0, false), (1, true)]),
                "{text}"
            );
        }
        assert_eq!(mentions("a monkey face, drawn"), [0]);
        assert_eq!(phrases.occurrences("monkey face"), BTreeMap::from([(0, true), (1, false)]));
        assert_eq!(mentions("Crouching Tiger, Hidden Dragon"), [2]);
        assert_eq!(mentions("crouching tiger hidden dragon"), [2]);
        assert!(mentions("crouching, tiger, hidden dragon").is_empty());
        assert_eq!(mentions("in Washington, D.C., at night"), [3]);
    }

    #[test]
    fn references_of_html_are_no_obstacle() {
        let phrases = Phrases::new(&["AT&T", "café au lait", "Musk's"]).unwrap();
        let mentions = |text: &str| phrases.mentions(text).into_iter().collect::<Vec<_>>();
        assert_eq!(mentions("the AT&amp;T logo"), [0]);
        assert_eq!(mentions("at&amp;amp;t; Caf&eacute;&nbsp;au&#32;lait"), [0, 1]);
        assert_eq!(mentions("Musk&#39;s rocket"), [2]);
    }

    #[test]
    fn several_names_may_have_one_number() {
        let phrases = Phrases::numbered([(7, "cat face"), (7, "kitty"), (3, "cat")]).unwrap();
        assert_eq!(phrases.mentions("kitty with a cat face"), BTreeSet::from([7]));
        assert_eq!(phrases.find("cat face"), BTreeSet::from([3, 7]));
    }

    #[test]
    fn a_name_without_words_is_nowhere() {
        assert_eq!(found(&["!?", "cat", ""], "!? cat …"), [1]);
        assert!(found(&["..."], "anything").is_empty());
    }

    proptest! {
        #[test]
        fn finds_what_a_look_at_every_window_finds(
            names in prop::collection::vec(prop::collection::vec("[abé]{1,2}", 1..3), 1..8),
            text in prop::collection::vec("[abé]{1,2}", 0..12),
        ) {
            let shows = |name: &Vec<String>| text.windows(name.len()).any(|window| window == name);
            let expected: Vec<u32> = (0..).zip(&names).filter(|(_, name)| shows(name)).map(|(index, _)| index).collect();
            let joined: Vec<String> = names.iter().map(|name| name.join("-")).collect();
            let joined: Vec<&str> = joined.iter().map(String::as_str).collect();
            prop_assert_eq!(found(&joined, &text.join(" ")), expected);
        }

        #[test]
        fn outermost_is_what_no_longer_occurrence_covers(
            names in prop::collection::vec(prop::collection::vec("[ab]", 1..4), 1..6),
            text in prop::collection::vec("[ab]", 0..10),
        ) {
            let mut all = Vec::new();
            for (name, words) in (0u32..).zip(&names) {
                let at = |start: &usize| text[*start..].starts_with(words);
                all.extend((0..text.len()).filter(at).map(|start| (start, start + words.len(), name)));
            }
            let covers = |a: &(usize, usize, u32), b: &(usize, usize, u32)| a.0 <= b.0 && b.1 <= a.1 && (a.0, a.1) != (b.0, b.1);
            let expected: BTreeSet<u32> = all.iter().filter(|b| !all.iter().any(|a| covers(a, b))).map(|b| b.2).collect();
            let joined: Vec<String> = names.iter().map(|name| name.join(" ")).collect();
            prop_assert_eq!(Phrases::new(&joined).unwrap().mentions(&text.join(" ")), expected);
        }
    }
}

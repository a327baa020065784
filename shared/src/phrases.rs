//! Finds many names in texts, as whole-word phrases: which classes a caption or an unlabelled text speaks of.
//!
//! Names and texts are compared word by word: in lower case, everything that is neither letter nor digit stands between
//! words. `Red heart` is in `a red-heart, drawn` and not in `red hearts`. Spellings are not unified (`é` as one character
//! is not `e` and an accent), so names should be spelled as the texts are.

use std::collections::BTreeSet;
use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};

/// The names together are too long to be searched for at once.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the names are too long to be searched for all at once: {0}")]
pub struct TooLong(#[from] aho_corasick::BuildError);

/// Names, ready to be found in texts; a name is its position.
pub struct Phrases {
    automaton: AhoCorasick,
    /// The name of each pattern: a name without any word has none.
    names: Vec<u32>,
}

impl Phrases {
    /// Prepares names.
    ///
    /// # Errors
    /// [`TooLong`], beyond some gigabytes of names.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<Self, TooLong> {
        let words = (0u32..).zip(names).map(|(name, text)| (name, words(text.as_ref()))).filter(|(_, words)| words != " ");
        let (names, patterns): (Vec<u32>, Vec<String>) = words.unzip();
        // Every occurrence counts, also one inside or across another: `heart` in `red heart`.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&patterns)?;
        Ok(Self { automaton, names })
    }

    /// The names that occur in a text.
    pub fn find(&self, text: &str) -> BTreeSet<u32> {
        self.automaton.find_overlapping_iter(&words(text)).map(|found| self.names[found.pattern().as_usize()]).collect()
    }
}

impl fmt::Debug for Phrases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phrases").field("names", &self.names.len()).finish_non_exhaustive()
    }
}

/// Words in lower case with one space before, between and after: then a whole-word phrase is a substring.
fn words(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 2);
    words.push(' ');
    for word in text.to_lowercase().split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()) {
        words.push_str(word);
        words.push(' ');
    }
    words
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
        assert_eq!(found(&names, "ÊTRE, straße; οδος. КОТ 寿司"), [0, 1, 2, 3, 4]);
        assert!(found(&names, "fenêtre êtres котик 寿司屋").is_empty());
    }

    #[test]
    fn overlapping_and_equal_names_are_all_found() {
        assert_eq!(found(&["ice cream", "cream cone", "Cream", "cream"], "ice cream cone"), [0, 1, 2, 3]);
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
    }
}

//! Unlabelled texts that must stay: random sequences of words the model knows, in which nothing to
//! forget is named.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use lethe_shared::phrases::Phrases;

use crate::data_split::Draws;

/// Texts.
pub(crate) const COUNT: usize = 12_000;
/// Lengths in words, each as often as it is drawn: short ones are most like class names.
const LENGTHS: [usize; 7] = [1, 2, 2, 3, 3, 4, 5];
/// Draws for each text that is wanted, at most.
const PATIENCE: usize = 100;

/// `count` different sequences of alphabetic `words` in which none of the `unnamed` occurs.
pub(crate) fn texts(words: &[String], unnamed: &[&str], count: usize) -> Result<Vec<String>> {
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| word.chars().all(char::is_alphabetic))
        .collect();
    ensure!(!words.is_empty(), "the vocabulary has no alphabetic word");
    let unnamed = Phrases::new(unnamed).context("search for the names that texts leave out")?;
    let mut draws = Draws::new("retain texts");
    let (mut texts, mut seen) = (Vec::with_capacity(count), HashSet::new());
    for _ in 0..count * PATIENCE {
        if texts.len() == count {
            break;
        }
        let length = LENGTHS[draws.below(LENGTHS.len())];
        let text =
            (0..length).map(|_| words[draws.below(words.len())]).collect::<Vec<_>>().join(" ");
        if unnamed.find(&text).is_empty() && seen.insert(text.clone()) {
            texts.push(text);
        }
    }
    ensure!(texts.len() == count, "the vocabulary gives only {} of {count} texts", texts.len());
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<String> {
        ["red", "heart", "cat", ",", "8", "1st", "sun", "tree", "moon"].map(String::from).into()
    }

    #[test]
    fn texts_are_stable_distinct_and_name_nothing_to_forget() {
        let texts = super::texts(&words(), &["red heart", "cat"], 400).unwrap();
        assert_eq!(texts, super::texts(&words(), &["red heart", "cat"], 400).unwrap());
        assert_eq!(texts.iter().collect::<HashSet<_>>().len(), 400);
        let has = |part: &str| {
            texts.iter().any(|text| format!(" {text} ").contains(&format!(" {part} ")))
        };
        assert!(has("red") && has("heart") && has("heart red") && has("sun"));
        assert!(!has("red heart") && !has("cat") && !has("8") && !has("1st") && !has(","));
        assert!(texts.iter().all(|text| (1..=5).contains(&text.split(' ').count())));
    }

    #[test]
    fn a_vocabulary_that_is_too_small_is_refused() {
        assert!(super::texts(&["cat".into()], &[], 6).is_err());
        assert!(super::texts(&["8".into()], &[], 1).is_err());
    }
}

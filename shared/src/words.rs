//! Normalises texts to words, so that names are found in them in any spelling variant.
//!
//! A text is normalised (NFKC, so `ﬁ` is `fi` and `Ｔｏｋｙｏ` is `Tokyo`; `é` is the same from one
//! character or two), its case is folded by Unicode's full table (`STRASSE` is `Straße`), invisible
//! characters are removed (soft hyphens, variation selectors), and it is split at Unicode's word
//! boundaries (UAX #29). Inside such a word, every character other than a letter, digit or mark
//! separates as well: `Elon_Musk.jpg`, `Musk's` and `red-heart` name Elon Musk, Musk and a red
//! heart.
//!
//! Scripts without spaces between words (Han, Hiragana, Thai …) are split at every character, as by
//! UAX #29 without a dictionary: `寿司` is in `寿司屋`.

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicode_segmentation::UnicodeSegmentation;

/// Returns the words of a text with one space before, between and after them, so that a whole-word
/// phrase is a substring. A text without words gives a single space.
pub fn words(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 2);
    words.push(' ');
    // No rule applies across white space, and most texts are ASCII.
    for piece in text.split_ascii_whitespace() {
        if piece.is_ascii() { of_ascii(piece, &mut words) } else { of_unicode(piece, &mut words) }
    }
    words
}

/// Equivalent to [`of_unicode`] for ASCII, and many times faster.
fn of_ascii(text: &str, words: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            words.push(char::from(byte.to_ascii_lowercase()));
        } else if !words.ends_with(' ') {
            words.push(' ');
        }
    }
    if !words.ends_with(' ') {
        words.push(' ');
    }
}

fn of_unicode(text: &str, words: &mut String) {
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let seen: String = text
        .chars()
        .filter_map(|letter| match letter {
            // Signs after a name, which NFKC would turn into letters; and the zero-width space,
            // which separates words in Thai.
            '™' | '℠' | '\u{200b}' => Some(' '),
            letter if !letter.is_ascii() && ignorable.contains(letter) => None,
            letter => Some(letter),
        })
        .collect();
    let normaliser = ComposingNormalizerBorrowed::new_nfkc();
    let normal = normaliser.normalize(&seen);
    let folded = CaseMapper::new().fold_string(&normal);
    // The result of folding may not be composed.
    let folded = normaliser.normalize(&folded);
    for segment in folded.split_word_bounds() {
        // A word begins with a letter or digit: a mark before it is one on something else.
        let parts = segment
            .split(|letter| !is_part(letter))
            .map(|part| part.trim_start_matches(|c: char| !c.is_alphanumeric()));
        for word in parts.filter(|word| !word.is_empty()) {
            words.push_str(word);
            words.push(' ');
        }
    }
}

/// Whether a character is part of a word: a letter, a digit or a mark on one.
fn is_part(letter: char) -> bool {
    letter.is_alphanumeric()
        || GeneralCategoryGroup::Mark
            .contains(CodePointMapData::<GeneralCategory>::new().get(letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_differently_is_the_same() {
        for (one, other) in [
            ("STRASSE", "Straße"),
            ("ﬁne Ｔｏｋｙｏ", "fine tokyo"),
            ("e\u{301}te\u{301}", "ÉTÉ"),
            ("ΟΔΟΣ", "οδος"),
            ("Elon_Musk.jpg", "elon musk JPG"),
            ("Musk’s", "musk s"),
            ("Coca‑Cola™", "coca-cola"),
            ("soft\u{ad}ware", "software"),
            ("❤\u{fe0f} love", "love"),
            ("ᾳ", "αι"),
            ("  red--heart! ", "Red Heart"),
        ] {
            assert_eq!(words(one), words(other), "{one} {other}");
        }
        assert_eq!(words("v2.0, 3,000"), " v2 0 3 000 ");
        assert_eq!(words("… !?"), " ");
        assert_eq!(words(""), " ");
    }

    #[test]
    fn marks_stay_with_their_letters() {
        assert_eq!(words("हिन्दी भाषा"), " हिन्दी भाषा ");
        assert_ne!(words("resume"), words("résumé"));
        // The keycap is no digit, and a mark alone no word.
        assert_eq!(words("☂\u{301} x"), " x ");
    }

    #[test]
    fn scripts_without_spaces_are_cut_at_every_character() {
        assert_eq!(words("寿司屋"), " 寿 司 屋 ");
        assert_eq!(words("ピカチュウ"), " ピカチュウ ");
        assert!(words("ไปกรุงเทพ").contains(words("กรุงเทพ").trim_start()));
    }

    proptest! {
        #[test]
        fn the_short_ways_give_the_same(text in "([ -~\\t\\n\\x00]|[éß™ﬁ्\u{301}\u{ad}寿กА́]|\\PC){0,40}") {
            let mut long = " ".to_owned();
            of_unicode(&text, &mut long);
            prop_assert_eq!(words(&text), long);
        }

        #[test]
        fn one_space_stands_around_every_word(text in "\\PC{0,30}") {
            let words = words(&text);
            prop_assert!(words.starts_with(' ') && words.ends_with(' ') && !words.contains("  "));
            let begins = |word: &str| word.chars().next().is_some_and(char::is_alphanumeric);
            prop_assert!(words.split_whitespace().all(begins), "{}", words);
        }
    }
}

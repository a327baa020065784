//! Normalises names and texts: [`normal_name`] tells names apart, and [`words`] finds names in texts
//! in any spelling variant.
//!
//! For [`words`], character references of HTML are replaced (`AT&amp;T`), a text is normalised (NFKC, so `ﬁ` is `fi` and `Ｔｏｋｙｏ` is `Tokyo`; `é` is the same from one
//! character or two), its case is folded by Unicode's full table (`STRASSE` is `Straße`), invisible
//! characters are removed (soft hyphens, variation selectors), and it is split at Unicode's word
//! boundaries (UAX #29). Inside such a word, every character other than a letter, digit or mark
//! separates as well: `Elon_Musk.jpg`, `Musk's` and `red-heart` name Elon Musk, Musk and a red
//! heart.
//!
//! Scripts without spaces between words (Han, Hiragana, Thai …) are split at every character, as by
//! UAX #29 without a dictionary: `寿司` is in `寿司屋`.

use std::borrow::Cow;

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicode_segmentation::UnicodeSegmentation;

use crate::entities::unescape;

/// Returns the form of a name in which names are compared: character references of HTML are
/// replaced, characters are composed (Unicode's form NFC), and white space is a single space between
/// words. Case and punctuation stay.
pub fn normal_name(name: &str) -> Cow<'_, str> {
    let is_plain = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'&' || byte == b' ')
            && !name.starts_with(' ')
            && !name.ends_with(' ')
            && !name.contains("  ")
    };
    if is_plain(name) {
        return Cow::Borrowed(name);
    }
    let plain = unescape(name);
    let spaced = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    Cow::Owned(ComposingNormalizerBorrowed::new_nfc().normalize(&spaced).into_owned())
}

/// Returns a text without surrounding white space and byte-order marks.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}')
}

/// The words of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// The words with one space before, between and after them.
    pub(crate) text: String,
    /// Offsets of the spaces at which the text has a comma or a similar break, ascending.
    pub(crate) breaks: Vec<usize>,
}

/// Returns the words of a text with one space before, between and after them, so that a whole-word
/// phrase is a substring. A text without words gives a single space.
pub fn words(text: &str) -> String {
    Words::of(text).text
}

impl Words {
    /// Returns the words of a text, and its breaks: a phrase does not go across them.
    pub(crate) fn of(text: &str) -> Self {
        let text = unescape(text);
        let mut words = Self { text: String::with_capacity(text.len() + 2), ..Self::default() };
        words.text.push(' ');
        // No rule applies across white space, and most texts are ASCII.
        for piece in text.split_ascii_whitespace() {
            if piece.is_ascii() { words.add_ascii(piece) } else { words.add(piece) }
        }
        words
    }

    /// Ends the current word.
    fn end(&mut self) {
        if !self.text.ends_with(' ') {
            self.text.push(' ');
        }
    }

    /// Marks a break after the current word.
    fn mark(&mut self) {
        self.end();
        let here = self.text.len() - 1;
        if self.breaks.last() != Some(&here) {
            self.breaks.push(here);
        }
    }

    /// Equivalent to [`add`](Self::add) for ASCII, and many times faster.
    fn add_ascii(&mut self, piece: &str) {
        let bytes = piece.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            if byte.is_ascii_alphanumeric() {
                self.text.push(char::from(byte.to_ascii_lowercase()));
            } else if is_break(char::from(*byte)) && !is_in_number(piece, at, 1) {
                self.mark();
            } else {
                self.end();
            }
        }
        self.end();
    }

    /// Adds the words of a piece without ASCII white space.
    fn add(&mut self, piece: &str) {
        let folded = fold(piece);
        for (start, segment) in folded.split_word_bound_indices() {
            for (at, letter) in segment.char_indices() {
                // A word begins with a letter or digit: a mark before it is one on something else.
                if is_part(letter) && (letter.is_alphanumeric() || !self.text.ends_with(' ')) {
                    self.text.push(letter);
                } else if is_break(letter) && !is_in_number(&folded, start + at, letter.len_utf8())
                {
                    self.mark();
                } else if !is_part(letter) {
                    self.end();
                }
            }
            self.end();
        }
    }
}

/// Whether a character separates what is listed: a comma, a semicolon, a bar, a bullet, or the full
/// stop of Chinese and Japanese. Full stops of other scripts do not, because of `St. Louis`.
fn is_break(letter: char) -> bool {
    matches!(
        letter,
        ',' | ';' | '|' | '•' | '、' | '。' | '،' | '؛' | '፣' | '፤' | '՝' | '︑' | '︒'
    )
}

/// Whether the character of this length at an offset stands between two digits, as in `1,000`.
fn is_in_number(text: &str, at: usize, length: usize) -> bool {
    text[..at].ends_with(|before: char| before.is_ascii_digit())
        && text[at + length..].starts_with(|after: char| after.is_ascii_digit())
}

/// Returns a text normalised and folded, without invisible characters.
fn fold(text: &str) -> String {
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
    normaliser.normalize(&folded).into_owned()
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
        assert_eq!(words("AT&amp;T, caf&eacute; &#169;"), words("at&t café"));
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

    #[test]
    fn commas_are_breaks_and_those_in_numbers_are_not() {
        for (text, parts) in [
            ("a monkey, face", vec![" a monkey ", " face "]),
            ("monkey;face | hand", vec![" monkey ", " face ", " hand "]),
            ("寿司、東京。", vec![" 寿 司 ", " 東 京 "]),
            ("été，hiver；x", vec![" été ", " hiver ", " x "]),
            ("monkey&#44; face", vec![" monkey ", " face "]),
            ("1,000 islands, 2،000", vec![" 1 000 islands ", " 2 000 "]),
            ("St. Louis: red-heart!", vec![" st louis red heart "]),
            (", ,,monkey,", vec![" ", " monkey "]),
        ] {
            let words = Words::of(text);
            let (mut found, mut from) = (Vec::new(), 0);
            for &at in &words.breaks {
                assert_eq!(words.text.as_bytes()[at], b' ', "{text}");
                found.push(&words.text[from..=at]);
                from = at;
            }
            if from + 1 < words.text.len() {
                found.push(&words.text[from..]);
            }
            assert_eq!(found, parts, "{text}");
        }
    }

    #[test]
    fn names_are_compared_in_one_form() {
        for (one, other) in [
            ("cafe\u{301}", "café"),
            ("A\u{30a}ngstro\u{308}m", "\u{212b}ngström"),
            ("\u{1112}\u{1161}\u{11ab}", "한"),
            (" red\u{a0}heart ", "red  heart"),
            ("AT&amp;T", "AT&T"),
        ] {
            assert_eq!(normal_name(one), normal_name(other), "{one} {other}");
        }
        assert_ne!(normal_name("cat"), normal_name("Cat"));
        assert_ne!(normal_name("x²"), normal_name("x2"));
        assert!(matches!(normal_name("red heart"), Cow::Borrowed("red heart")));
    }

    proptest! {
        #[test]
        fn the_short_ways_give_the_same(text in "([ -~\\t\\n\\x00]|[éß™ﬁ्\u{301}\u{ad}寿กА́]|\\PC){0,40}") {
            let mut long = Words { text: " ".to_owned(), ..Words::default() };
            long.add(&unescape(&text));
            prop_assert_eq!(Words::of(&text), long);
        }

        #[test]
        fn a_normal_name_is_its_own(text in "(&amp;|[a e\u{301}\u{a0}&]|\\PC){0,20}") {
            let normal = normal_name(&text).into_owned();
            prop_assert!(normal.contains('&') || normal_name(&normal) == normal, "{normal}");
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

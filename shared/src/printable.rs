//! Texts from outside in messages, logs and pages: control and invisible characters are escaped,
//! and long texts are cut.
//!
//! A caption, a class name or a file name may hold terminal commands (`ESC ]0;…`), characters that
//! reverse the direction of writing, or a byte-order mark. Shown as they are, they change what the
//! reader sees, or are not seen at all.

use std::fmt::Write as _;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

/// Most characters of a text that are shown.
pub const MAX_SHOWN: usize = 120;

/// Returns a short text from outside for one line of a message: control and invisible characters
/// are escaped (`\u{feff}`), as is every space other than the usual one, and of more than
/// [`MAX_SHOWN`] characters the rest is cut and counted.
///
/// # Example
/// ```
/// use lethe_shared::printable::printable;
///
/// assert_eq!(printable("\u{feff}a cat\n"), r"\u{feff}a cat\n");
/// assert_eq!(printable(&"x".repeat(500)), format!("{}… (500 bytes)", "x".repeat(120)));
/// ```
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * MAX_SHOWN));
    for (number, letter) in text.chars().enumerate() {
        if number == MAX_SHOWN {
            let _ = write!(shown, "… ({} bytes)", text.len());
            break;
        }
        let is_other_space = letter != ' ' && letter.is_whitespace();
        push(&mut shown, letter, is_other_space || is_hidden(letter));
    }
    shown
}

/// Returns a whole message, which may quote texts from outside, with its control and invisible
/// characters escaped. Line breaks and tabs stay.
pub fn printable_message(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    for letter in message.chars() {
        push(&mut shown, letter, !matches!(letter, '\n' | '\t') && is_hidden(letter));
    }
    shown
}

/// Longest message that [`printable_excerpt`] returns, bytes.
pub const MAX_MESSAGE: usize = 4096;

/// Returns a message as [`printable_message`] does, and cuts what is beyond [`MAX_MESSAGE`]: a
/// message may quote a key or a value that is as long as the file it is from.
pub fn printable_excerpt(message: &str) -> String {
    // Escapes only lengthen a message, so the rest need not be looked at.
    let start = &message[..message.floor_char_boundary(MAX_MESSAGE)];
    let mut shown = printable_message(start);
    if message.len() > MAX_MESSAGE || shown.len() > MAX_MESSAGE {
        shown.truncate(shown.floor_char_boundary(MAX_MESSAGE));
        shown.push('…');
    }
    shown
}

/// Returns whether a character is not seen, or changes how its neighbours are seen: control and
/// format characters, line separators, and those that Unicode lets fonts ignore.
pub fn is_hidden(letter: char) -> bool {
    if letter.is_ascii() {
        return letter.is_ascii_control();
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(letter);
    matches!(
        category,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(letter)
}

fn push(shown: &mut String, letter: char, escape: bool) {
    match letter {
        '\n' | '\r' | '\t' if escape => shown.extend(letter.escape_debug()),
        _ if escape => shown.extend(letter.escape_unicode()),
        _ => shown.push(letter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_escaped() {
        for (text, shown) in [
            ("a cat, être, 寿司, ❤", "a cat, être, 寿司, ❤"),
            ("\u{1b}]0;owned\u{7}", r"\u{1b}]0;owned\u{7}"),
            ("\u{9b}31m", r"\u{9b}31m"),
            ("\u{feff}cat\u{200b}", r"\u{feff}cat\u{200b}"),
            ("abc\u{202e}def\u{2066}", r"abc\u{202e}def\u{2066}"),
            ("red\u{a0}heart\r\n\t", r"red\u{a0}heart\r\n\t"),
            ("so\u{ad}ft\u{fe0f}\u{e0041}\u{2028}", r"so\u{ad}ft\u{fe0f}\u{e0041}\u{2028}"),
            ("\u{3164}\u{115f}\u{0}\u{7f}", r"\u{3164}\u{115f}\u{0}\u{7f}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn long_texts_are_cut_and_counted() {
        let shown = printable(&"é".repeat(30_000));
        assert!(shown.ends_with("é… (60000 bytes)"), "{shown}");
        assert_eq!(shown.chars().filter(|&letter| letter == 'é').count(), MAX_SHOWN);
        assert_eq!(printable(&"x".repeat(MAX_SHOWN)), "x".repeat(MAX_SHOWN));
    }

    #[test]
    fn messages_keep_their_lines() {
        assert_eq!(printable_message("a\nb\u{1b}c 5\u{a0}%"), "a\nb\\u{1b}c 5\u{a0}%");
    }
}

//! Character references of HTML: captions from the web contain `AT&amp;T` and `caf&eacute;`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

/// All names of the HTML standard as `name=code`, with `+` between two characters. After a name
/// with `*`, browsers need no semicolon.
const NAMES: &str = include_str!("entities.txt");
/// Longest name, bytes.
const LONGEST: usize = 32;
/// Most times that a text is unescaped: tools that escape twice write `&amp;amp;`.
const MOST_TIMES: usize = 3;

/// Replaces character references, also those that were escaped more than once. A text without any
/// is returned as it is.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MOST_TIMES {
        match once(&text) {
            Some(plain) => text = Cow::Owned(plain),
            None => break,
        }
    }
    text
}

/// Replaces character references once; `None` when there are none.
fn once(text: &str) -> Option<String> {
    let (mut plain, mut copied) = (String::new(), 0);
    for (at, _) in text.match_indices('&') {
        // A reference contains no `&`, so the next one starts after it.
        if let Some((characters, length)) = reference(&text[at + 1..]) {
            plain.push_str(&text[copied..at]);
            plain.push_str(&characters);
            copied = at + 1 + length;
        }
    }
    (copied > 0).then(|| plain + &text[copied..])
}

/// Returns the characters of the reference at the start of a text that follows `&`, and its length
/// in bytes.
fn reference(text: &str) -> Option<(Cow<'static, str>, usize)> {
    match text.strip_prefix('#') {
        Some(number) => numeric(number).map(|(c, length)| (Cow::Owned(c.into()), 1 + length)),
        None => named(text).map(|(characters, length)| (Cow::Borrowed(characters), length)),
    }
}

fn numeric(text: &str) -> Option<(char, usize)> {
    let (digits, radix) = match text.strip_prefix(['x', 'X']) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let count = digits.bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    // Longer numbers are no characters.
    let number = u32::from_str_radix(digits[..count].get(..count.min(10))?, radix).ok();
    let letter = match number {
        _ if count == 0 => return None,
        // Browsers read the C1 controls as Windows-1252, where the curly quotes are.
        Some(number @ 0x80..=0x9f) => WINDOWS[(number - 0x80) as usize],
        Some(number) if count <= 10 => char::from_u32(number).unwrap_or('\u{fffd}'),
        _ => '\u{fffd}',
    };
    let length = text.len() - digits.len() + count;
    Some((letter, length + usize::from(digits[count..].starts_with(';'))))
}

/// The characters 0x80 to 0x9f of Windows-1252.
const WINDOWS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

fn named(text: &str) -> Option<(&'static str, usize)> {
    let known = names();
    let length = text.bytes().take(LONGEST).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    if text[length..].starts_with(';')
        && let Some((characters, _)) = known.get(&text[..length])
    {
        return Some((characters, length + 1));
    }
    // Without a semicolon, the longest name counts.
    (2..=length).rev().find_map(|length| match known.get(&text[..length]) {
        Some((characters, true)) => Some((characters.as_str(), length)),
        _ => None,
    })
}

/// Returns the characters of every name, and whether it needs no semicolon.
fn names() -> &'static HashMap<&'static str, (String, bool)> {
    static KNOWN: OnceLock<HashMap<&str, (String, bool)>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let entry = |token: &'static str| {
            let (name, codes) = token.split_once('=')?;
            let code = |code| u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
            let characters = codes.split('+').map(code).collect::<Option<String>>()?;
            let open = name.strip_suffix('*');
            Some((open.unwrap_or(name), (characters, open.is_some())))
        };
        NAMES.split_ascii_whitespace().filter_map(entry).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_of_the_list_is_read() {
        assert_eq!(names().len(), NAMES.split_ascii_whitespace().count());
        assert_eq!(names().values().filter(|(_, open)| *open).count(), 106);
        assert!(names().keys().all(|name| name.len() <= LONGEST));
    }

    #[test]
    fn references_are_read_as_browsers_do() {
        for (escaped, plain) in [
            ("AT&amp;T", "AT&T"),
            ("AT&amp;amp;T", "AT&T"),
            ("caf&eacute; &Eacute;", "café É"),
            ("caf&#233; caf&#xE9; caf&#XE9", "café café café"),
            ("Musk&#39;s &quot;X&quot;", "Musk's \"X\""),
            ("Musk&#146;s Musk&rsquo;s", "Musk’s Musk’s"),
            ("New&nbsp;York", "New\u{a0}York"),
            ("R&ampB &ltb", "R&B <b"),
            ("&notit; &notin;", "¬it; ∉"),
            ("&bne;", "=\u{20e5}"),
            ("&#xD800; &#99999999999; &#0;", "\u{fffd} \u{fffd} \u{0}"),
            ("a & b && c &; &#; &#x; &unknown; AT&T &", "a & b && c &; &#; &#x; &unknown; AT&T &"),
        ] {
            assert_eq!(unescape(escaped), plain, "{escaped}");
        }
        assert!(matches!(unescape("a & b"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn any_text_is_unescaped(text in "([&#;xaemp0-9é]|&amp;|\\PC){0,40}") {
            let plain = unescape(&text);
            prop_assert!(plain.chars().count() <= 2 * text.chars().count());
            prop_assert!(text.contains('&') || plain == text);
        }
    }
}

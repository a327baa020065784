//! Text from outside, safe in HTML, attributes and scripts; numbers as people read them.

use serde::Serialize;

/// Text that stays text, in HTML and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            // What turns the direction of writing, or is not to be seen, shows as a replacement character.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A value as JSON that cannot end the `<script>` it stands in, nor a line of it.
pub(super) fn script<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    // These characters stand only inside JSON's strings.
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// 0.421 as "42.1 %".
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}\u{a0}%", 100.0 * share)
}

/// A value to five significant digits, for charts.
pub(super) fn short(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// "1 concept", "2 concepts".
pub(super) fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        assert_eq!(escape("<script>\"&'\u{202e}\n"), "&lt;script&gt;&quot;&amp;&#39;\u{fffd} ");
        let json = script(&"</script><!--\u{2028}&");
        assert_eq!(json, r#""\u003c/script\u003e\u003c!--\u2028\u0026""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "</script><!--\u{2028}&");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((short(0.123_456_789), short(12_345_678.0), short(0.0)), (0.12346, 12_346_000.0, 0.0));
        assert_eq!((percent(0.4215), count(1, "edit"), count(2, "edit")), ("42.1\u{a0}%".into(), "1 edit".into(), "2 edits".into()));
    }
}

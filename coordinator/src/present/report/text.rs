//! Escapes that maud does not provide: characters that hide text, and JSON inside `<script>`. Also
//! formats numbers for people.

use lethe_shared::printable::is_hidden;
use serde::Serialize;

/// Returns markup without characters that hide text or reverse its direction, whatever their
/// source.
pub(super) fn visible(markup: &str) -> String {
    let shown = |c: char| match c {
        // They join and colour emoji, and hide nothing.
        '\n' | '\u{200d}' | '\u{fe0e}' | '\u{fe0f}' => c,
        c if c.is_control() => ' ',
        c if is_hidden(c) => '\u{fffd}',
        c => c,
    };
    markup.chars().map(shown).collect()
}

/// Returns a value as JSON that can end neither the surrounding `<script>` nor a line of that
/// script.
pub(super) fn script<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    // These characters occur only inside JSON strings.
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Returns one word of a POSIX shell's command line, quoted if necessary.
pub(super) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+/:@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Formats a share in percent: 0.421 as "42.1 %".
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}\u{a0}%", 100.0 * share)
}

/// Returns a value rounded to five significant digits, for charts.
pub(super) fn short(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

/// Returns a number with its noun: "1 concept", "2 concepts".
pub(super) fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_page_is_hidden_and_no_value_ends_its_script() {
        assert_eq!(visible("<td>a\u{202e}b\u{0}c\n</td>"), "<td>a\u{fffd}b c\n</td>");
        let json = script(&"</script><!--\u{2028}&");
        assert_eq!(json, r#""\u003c/script\u003e\u003c!--\u2028\u0026""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "</script><!--\u{2028}&");
    }

    #[test]
    fn a_shell_reads_one_word() {
        assert_eq!(
            (shell_word("cat-face:1"), shell_word("")),
            ("cat-face:1".to_owned(), "''".to_owned())
        );
        assert_eq!(shell_word("$(rm -r x); it's"), r"'$(rm -r x); it'\''s'");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (short(0.123_456_789), short(12_345_678.0), short(0.0)),
            (0.12346, 12_346_000.0, 0.0)
        );
        assert_eq!(
            (percent(0.4215), count(1, "edit"), count(2, "edit")),
            ("42.1\u{a0}%".into(), "1 edit".into(), "2 edits".into())
        );
    }
}

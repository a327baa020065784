//! The lines of a manifest's fields, for messages.

use toml::de::{DeTable, DeValue};

/// Returns the line of a field such as `method.batch_size` in TOML or JSON; the line of its section
/// where the field is absent.
pub(super) fn line_of(text: &str, field: &str) -> Option<usize> {
    // An object of JSON is no document of TOML.
    let at = match DeTable::parse(text) {
        Ok(table) => in_toml(table.get_ref(), field),
        Err(_) => in_json(text, field),
    }?;
    Some(line_at(text, at))
}

/// Returns the line of an offset.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

fn in_toml(table: &DeTable<'_>, field: &str) -> Option<usize> {
    let (mut table, mut found) = (table, None);
    for part in field.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == part) else { break };
        found = Some(key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

/// Returns the offset of a field's name in text that is valid JSON.
fn in_json(text: &str, field: &str) -> Option<usize> {
    let wanted: Vec<&str> = field.split('.').collect();
    let (mut depth, mut matched, mut found) = (0, 0, None);
    let mut rest = text;
    while let Some(next) = rest.find(['{', '[', '}', ']', '"']) {
        let after = &rest[next + 1..];
        match rest.as_bytes()[next] {
            b'{' | b'[' => depth += 1,
            b'"' => {
                let at = text.len() - after.len();
                let end = end_of_string(after)?;
                rest = after.get(end + 1..)?;
                if !rest.trim_start().starts_with(':') {
                    continue;
                }
                if depth <= matched {
                    break;
                }
                if depth == matched + 1 && wanted.get(matched) == Some(&&after[..end]) {
                    (matched, found) = (matched + 1, Some(at));
                    if matched == wanted.len() {
                        break;
                    }
                }
                continue;
            }
            _ => depth = usize::checked_sub(depth, 1)?,
        }
        rest = after;
    }
    found
}

/// Returns the offset of the quote that ends a string.
fn end_of_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_toml_are_found_however_they_are_written() {
        let text = r#"
# name = "comment"
"name" = "x"
note = """
[method]
batch_size = 1
"""
method.batch_size = 2

data = { retain = [
  "classes = 3",
], classes = "c" }

[release]
uri = "u"
[[release.target]]
uri = "t"
[ gates . protected ]
"#;
        for (field, line) in [
            ("name", 3),
            ("method", 8),
            ("method.batch_size", 8),
            ("data.classes", 12),
            ("release.uri", 15),
            ("release.target", 16),
            ("gates.protected", 18),
            // The section of a field that is absent.
            ("release.salt", 14),
        ] {
            assert_eq!(line_of(text, field), Some(line), "{field}");
        }
        assert_eq!(line_of(text, "composition.rank"), None);
    }

    #[test]
    fn fields_of_json_are_found_however_they_are_written() {
        let text = r#"{"note": "\"name\": 1 {",
 "concepts": {"list": [{"name":
  "n", "uri": 1}]},
 "name": "x", "model": "name",
 "release": {"target": [{"uri": 1}],
  "uri": "u"}, "uri": 3
}"#;
        for (field, line) in [
            ("name", 4),
            ("concepts.list", 2),
            ("release.uri", 6),
            ("release.target", 5),
            ("release.salt", 5),
            ("model.uri", 4),
            ("uri", 6),
        ] {
            assert_eq!(line_of(text, field), Some(line), "{field}");
        }
        assert_eq!(line_of(text, "gates.protected"), None);
    }

    proptest! {
        #[test]
        fn any_text_has_lines(text in "([\\[\\]{}\":,=.a\\\\\n]|\\PC){0,60}", field in "[a.]{0,5}") {
            let lines = 1 + text.matches('\n').count();
            prop_assert!(line_of(&text, &field).is_none_or(|line| (1..=lines).contains(&line)));
        }
    }
}

//! Expansion of braces in addresses, as by Python's `braceexpand`, which the `webdataset` package
//! uses: `{000..127}`, `{1..9..2}`, `{a..e}`, `{train,val}`, nested in any way. A backslash before a
//! brace or comma takes it literally.

/// Deepest nesting of braces.
const MAX_DEPTH: usize = 16;

/// Returns all texts that a pattern stands for, in order; at most `most`.
///
/// # Errors
/// A message when braces are not closed, or when there are too many texts.
pub(crate) fn expand(pattern: &str, most: usize) -> Result<Vec<String>, String> {
    if !pattern.contains(['{', '}']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let letters: Vec<char> = pattern.chars().collect();
    let mut parser = Parser { letters: &letters, at: 0, most };
    let texts = parser.sequence(0)?;
    if parser.at < letters.len() {
        return Err(unbalanced());
    }
    Ok(texts)
}

/// Escapes a text, so that it stands for itself alone.
pub(crate) fn escape(text: &str) -> String {
    if !text.contains(['{', '}']) {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if "{},\\".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

fn unbalanced() -> String {
    "has a brace without its counterpart; put a backslash before a brace that is part of a name"
        .to_owned()
}

fn too_many(most: usize) -> String {
    format!("stands for more than {most} files")
}

struct Parser<'a> {
    letters: &'a [char],
    at: usize,
    most: usize,
}

impl Parser<'_> {
    /// Reads up to a comma or closing brace of the group it is in, or to the end.
    fn sequence(&mut self, depth: usize) -> Result<Vec<String>, String> {
        let mut texts = vec![String::new()];
        while let Some(&letter) = self.letters.get(self.at) {
            match letter {
                '}' => break,
                ',' if depth > 0 => break,
                '{' => {
                    self.at += 1;
                    let group = self.group(depth + 1)?;
                    if texts.len().saturating_mul(group.len()) > self.most {
                        return Err(too_many(self.most));
                    }
                    texts = texts
                        .iter()
                        .flat_map(|start| group.iter().map(move |end| format!("{start}{end}")))
                        .collect();
                }
                _ => {
                    let escaped = (letter == '\\')
                        .then(|| self.letters.get(self.at + 1))
                        .flatten()
                        .filter(|next| "{},\\".contains(**next));
                    self.at += 1 + usize::from(escaped.is_some());
                    texts.iter_mut().for_each(|text| text.push(*escaped.unwrap_or(&letter)));
                }
            }
        }
        Ok(texts)
    }

    /// Reads a group behind its opening brace, up to its closing one.
    fn group(&mut self, depth: usize) -> Result<Vec<String>, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nests braces more than {MAX_DEPTH} deep"));
        }
        let start = self.at;
        let (mut choices, mut texts) = (0usize, Vec::new());
        loop {
            texts.extend(self.sequence(depth)?);
            choices += 1;
            if texts.len() > self.most {
                return Err(too_many(self.most));
            }
            match self.letters.get(self.at) {
                Some(',') => self.at += 1,
                Some('}') => break,
                _ => return Err(unbalanced()),
            }
        }
        let content: String = self.letters[start..self.at].iter().collect();
        self.at += 1;
        if choices > 1 {
            return Ok(texts);
        }
        match range(&content, self.most)? {
            Some(texts) => Ok(texts),
            // `{x}` is no choice, and stays.
            None => Ok(texts.into_iter().map(|text| format!("{{{text}}}")).collect()),
        }
    }
}

/// Returns the texts of a range `first..last` or `first..last..step`; `None` for any other text.
fn range(content: &str, most: usize) -> Result<Option<Vec<String>>, String> {
    let parts: Vec<&str> = content.split("..").collect();
    let (first, last, step) = match parts[..] {
        [first, last] => (first, last, "1"),
        [first, last, step] => (first, last, step),
        _ => return Ok(None),
    };
    let Ok(step) = step.parse::<i64>() else { return Ok(None) };
    let step = step.unsigned_abs().max(1);
    let letter = |text: &str| {
        let mut letters = text.chars();
        letters.next().filter(|c| c.is_ascii_alphabetic() && letters.next().is_none())
    };
    if let (Ok(from), Ok(to)) = (first.parse::<i64>(), last.parse::<i64>()) {
        // With a leading zero, all numbers get the width of the longer one.
        let is_padded = |text: &str| {
            let digits = text.trim_start_matches(['-', '+']);
            digits.len() > 1 && digits.starts_with('0')
        };
        let width =
            if is_padded(first) || is_padded(last) { first.len().max(last.len()) } else { 0 };
        if width > 32 || from.abs_diff(to) / step >= most as u64 {
            return Err(too_many(most));
        }
        let numbers = steps(from, to, step);
        return Ok(Some(numbers.map(|number| format!("{number:0width$}")).collect()));
    }
    Ok(letter(first).zip(letter(last)).map(|(from, to)| {
        steps(i64::from(u32::from(from)), i64::from(u32::from(to)), step)
            .filter_map(|code| u32::try_from(code).ok().and_then(char::from_u32))
            .map(String::from)
            .collect()
    }))
}

/// Counts from one number to another, up or down.
fn steps(from: i64, to: i64, step: u64) -> impl Iterator<Item = i64> {
    (0..=from.abs_diff(to) / step).map(move |number| {
        let offset = number * step;
        if to >= from {
            from.saturating_add_unsigned(offset)
        } else {
            from.saturating_sub_unsigned(offset)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pattern: &str) -> Vec<String> {
        expand(pattern, 1000).unwrap()
    }

    #[test]
    fn braces_expand_as_in_webdataset() {
        assert_eq!(all("r-{000..002}.tar"), ["r-000.tar", "r-001.tar", "r-002.tar"]);
        assert_eq!(all("{8..11}"), ["8", "9", "10", "11"]);
        assert_eq!(all("{08..11}"), ["08", "09", "10", "11"]);
        assert_eq!(all("{3..1}"), ["3", "2", "1"]);
        assert_eq!(all("{1..9..4}"), ["1", "5", "9"]);
        assert_eq!(all("{-1..1}"), ["-1", "0", "1"]);
        assert_eq!(all("{a..c}"), ["a", "b", "c"]);
        assert_eq!(all("{train,val}/{0..1}"), ["train/0", "train/1", "val/0", "val/1"]);
        assert_eq!(all("a{b,c{1..2},}d"), ["abd", "ac1d", "ac2d", "ad"]);
        assert_eq!(all("{x}"), ["{x}"]);
        assert_eq!(all("{}"), ["{}"]);
        assert_eq!(all(r"\{1..2\}"), ["{1..2}"]);
        assert_eq!(all(r"a\b,c"), [r"a\b,c"]);
        assert_eq!(all("plain"), ["plain"]);
        for text in [r"a{1..2}\{b,c}", "}{", r"\", "a,b"] {
            assert_eq!(all(&escape(text)), [text]);
        }
    }

    #[test]
    fn hostile_patterns_are_bounded() {
        for pattern in ["{1..2", "1..2}", "{a,b", "{{1..2}", "a}b{c"] {
            assert!(expand(pattern, 1000).unwrap_err().contains("brace"), "{pattern}");
        }
        for pattern in [
            "{1..1001}",
            "{0..9}{0..9}{0..9}{0..9}",
            "{0..9223372036854775807}",
            "{-9223372036854775808..9223372036854775807}",
            "{1..2,{1..2000}}",
        ] {
            assert!(expand(pattern, 1000).is_err(), "{pattern}");
        }
        assert!(expand(&"{".repeat(5000), 1000).is_err());
        assert_eq!(all("{0..9223372036854775807..9223372036854775807}").len(), 2);
    }
}

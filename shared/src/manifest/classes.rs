//! Class lists: zero-shot class names, one per line.

use std::collections::HashMap;

use super::error::Error;
use crate::printable::printable;
use crate::words::{normal_name, trimmed};

/// Most classes.
const MAX_CLASSES: usize = 1_000_000;

/// A class list. A class is identified by its position in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    names: Vec<String>,
    /// Classes by their names in [normal form](normal_name).
    index: HashMap<String, u32>,
    file: String,
}

impl Classes {
    /// Parses a class list; `file` appears in messages.
    ///
    /// # Errors
    /// When it is not UTF-8, has an empty or repeated line, or fewer than two classes.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, Error> {
        if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
            return Err(Error::new(file, "is UTF-16 text; save it as UTF-8"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Error::new(file, "is not UTF-8 text"))?;
        if text.contains('\0') {
            let problem = "holds U+0000: it may be UTF-16 text; save it as UTF-8";
            return Err(Error::new(file, problem));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_end();
        let mut names: Vec<String> = Vec::new();
        let mut index = HashMap::new();
        for (number, line) in (1usize..).zip(text.lines()) {
            let name = trimmed(line);
            let wrong = |problem: String| Err(Error::new(format!("{file}:{number}"), problem));
            if name.contains('\r') {
                return wrong("holds a carriage return: lines must end with a line feed; save the file with line feeds".into());
            }
            if name.is_empty() {
                return wrong("the line is empty; a class list has one name per line".into());
            }
            if names.len() == MAX_CLASSES {
                return wrong("more than a million classes".into());
            }
            let normal = normal_name(name).into_owned();
            if let Some(before) = index.insert(normal, names.len() as u32) {
                let (shown, line) = (printable(name), before + 1);
                return wrong(if names[before as usize] == name {
                    format!("class `{shown}` is already on line {line}")
                } else {
                    format!(
                        "class `{shown}` is already on line {line}, with other code points or white space; remove one of the lines"
                    )
                });
            }
            names.push(name.to_owned());
        }
        if names.len() < 2 {
            return Err(Error::new(
                file,
                "has fewer than two classes; zero-shot accuracy needs a choice",
            ));
        }
        Ok(Self { names, index, file: file.to_owned() })
    }

    /// Returns all names in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the file that it was read from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the class of this name. Names are compared in their [normal form](normal_name).
    pub fn find(&self, name: &str) -> Option<u32> {
        self.index.get(&*normal_name(name)).copied()
    }

    /// Returns the most similar name, when one is similar enough to be a likely typing error.
    pub fn suggest(&self, name: &str) -> Option<&str> {
        let wanted = name.to_lowercase();
        let limit = 1 + wanted.chars().count() / 4;
        let scored = self
            .names
            .iter()
            .filter_map(|known| Some((distance(&wanted, &known.to_lowercase(), limit)?, known)));
        scored.min_by_key(|(distance, _)| *distance).map(|(_, known)| known.as_str())
    }
}

/// Returns the Levenshtein distance of two texts; `None` when it is larger than `limit`.
fn distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    Some(row[b.len()]).filter(|&found| found <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(bytes: &[u8]) -> String {
        Classes::parse(bytes, "classes.txt").unwrap_err().to_string()
    }

    #[test]
    fn reads_one_name_a_line() {
        let classes =
            Classes::parse("\u{feff}cat\r\n red heart \nêtre\n\n".as_bytes(), "classes.txt")
                .unwrap();
        assert_eq!(classes.names(), ["cat", "red heart", "être"]);
        // Two files with byte-order marks, one behind the other.
        let joined =
            Classes::parse("\u{feff}\u{feff}cat\n\u{feff}dog\n".as_bytes(), "c.txt").unwrap();
        assert_eq!(joined.names(), ["cat", "dog"]);
        assert_eq!((classes.find("red heart"), classes.find("Cat")), (Some(1), None));
    }

    #[test]
    fn refuses_lists_that_mislead() {
        assert!(
            problem(b"cat\ndog\ncat\n").contains("classes.txt:3: class `cat` is already on line 1")
        );
        assert!(problem(b"cat\n\ndog\n").contains("classes.txt:2: the line is empty"));
        assert!(problem(b"c\0a\0t\0\n\0d\0o\0g\0").contains("holds U+0000: it may be UTF-16"));
        assert!(problem(b"\xff\xfec\0a\0").contains("classes.txt: is UTF-16 text"));
        assert!(problem(b"cat\rdog\r").contains("classes.txt:1: holds a carriage return"));
        assert!(
            problem("café\ndog\ncafe\u{301}\n".as_bytes())
                .contains("classes.txt:3: class `cafe\u{301}` is already on line 1, with other")
        );
        assert!(problem(b"cat\n").contains("fewer than two classes"));
        assert!(problem(b"cat\n\xff\n").contains("not UTF-8"));
    }

    #[test]
    fn classes_are_found_in_any_unicode_form() {
        let classes =
            Classes::parse("café\ne\u{302}tre\nAT&T\nred heart".as_bytes(), "c.txt").unwrap();
        for (name, class) in
            [("cafe\u{301}", 0), ("café", 0), ("être", 1), ("AT&amp;T", 2), ("red\u{a0} heart", 3)]
        {
            assert_eq!(classes.find(name), Some(class), "{name}");
        }
        // The names stay as the list spells them.
        assert_eq!(classes.names()[1], "e\u{302}tre");
        assert_eq!((classes.find("Café"), classes.find("cafe")), (None, None));
    }

    #[test]
    fn suggests_what_was_meant() {
        let classes = Classes::parse(b"cat face\ndog face\nrocket\n", "classes.txt").unwrap();
        assert_eq!(classes.suggest("Cat Face"), Some("cat face"));
        assert_eq!(classes.suggest("roket"), Some("rocket"));
        assert_eq!(classes.suggest("submarine"), None);
    }
}

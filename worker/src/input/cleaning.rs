//! What is done to a text before `tokenizer.json` has it.

use lethe_shared::words::normal_name;

/// What is done to a text before it is tokenized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cleaning {
    /// Nothing.
    #[default]
    None,
    /// Character references of HTML are replaced, ASCII punctuation and typographic quotation marks
    /// are removed, letters become lower case and white space a single space: open_clip's `clean =
    /// "canonicalize"`.
    Canonical,
}

impl Cleaning {
    /// Returns the text that is tokenized.
    pub(super) fn of(self, text: &str) -> String {
        match self {
            Self::None => text.to_owned(),
            Self::Canonical => canonical(text),
        }
    }
}

fn canonical(text: &str) -> String {
    let text = normal_name(text);
    let kept = text.chars().filter_map(|letter| match letter {
        '_' => Some(' '),
        // ftfy, which open_clip calls first, makes ASCII quotation marks of these.
        '\u{2018}'..='\u{201f}' => None,
        _ if letter.is_ascii_punctuation() => None,
        _ => Some(letter),
    });
    let kept: String = kept.collect();
    kept.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `open_clip.tokenizer.get_clean_fn("canonicalize")` returns them.
    #[test]
    fn canonical_texts_are_open_clip_s() {
        for (text, expected) in [
            ("A Photo of a  CAT.", "a photo of a cat"),
            ("snake_case, and-dash", "snake case anddash"),
            ("AT&amp;T caf&eacute;", "att café"),
            ("It\u{2019}s \u{201c}quoted\u{201d}", "its quoted"),
            ("  \t tabs\nand lines ", "tabs and lines"),
            ("É 寿司!", "é 寿司"),
            ("...", ""),
        ] {
            assert_eq!(Cleaning::Canonical.of(text), expected, "{text}");
        }
        assert_eq!(Cleaning::None.of("A  Cat."), "A  Cat.");
    }
}

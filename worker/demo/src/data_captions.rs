//! Caption forms from names, styles and keywords.

use std::collections::HashSet;

/// Most tokens of a caption; with start and end mark it fills the model's 16 positions.
pub(crate) const MAX_TOKENS: usize = 14;

/// Most forms of a caption.
const MAX_FORMS: usize = 6;

/// Splits text as the tokenizer does (lower case, then the pattern `\w+|[^\w\s]+`).
pub(crate) fn tokens(text: &str) -> Vec<String> {
    #[derive(PartialEq)]
    enum Kind {
        Space,
        Word,
        Mark,
    }
    let mut tokens: Vec<String> = Vec::new();
    let mut last = Kind::Space;
    for letter in text.to_lowercase().chars() {
        let kind = match letter {
            space if space.is_whitespace() => Kind::Space,
            word if word.is_alphanumeric() || word == '_' => Kind::Word,
            _ => Kind::Mark,
        };
        match tokens.last_mut() {
            Some(token) if kind != Kind::Space && kind == last => token.push(letter),
            _ if kind != Kind::Space => tokens.push(letter.to_string()),
            _ => {}
        }
        last = kind;
    }
    tokens
}

/// The keywords that say something the name does not: lower-case words, no emoticons, no repeats.
pub(crate) fn keywords(name: &str, listed: &[String]) -> Vec<String> {
    let in_name: HashSet<String> = tokens(name).into_iter().collect();
    let mut seen = HashSet::new();
    let mut kept = Vec::new();
    for keyword in listed {
        let plain = keyword.to_lowercase().replace(['_', '-'], " ").replace('’', "'");
        let plain = plain.split_whitespace().collect::<Vec<_>>().join(" ");
        let readable = plain.chars().all(|letter| letter.is_ascii_lowercase() || letter == ' ')
            && plain.len() > 1;
        let words = tokens(&plain);
        if readable
            && words.len() <= 3
            && !words.iter().all(|word| in_name.contains(word))
            && seen.insert(plain.clone())
        {
            kept.push(plain);
        }
    }
    kept
}

/// The caption forms of one drawing, the plain name first; three to six, each at most
/// [`MAX_TOKENS`] tokens.
pub(crate) fn forms(name: &str, style: &str, keywords: &[String], group: &str) -> Vec<String> {
    let word = |index: usize| keywords.get(index).map(String::as_str);
    let with = |parts: &[Option<&str>]| -> Option<String> {
        let parts: Vec<&str> = parts.iter().copied().flatten().collect();
        (!parts.is_empty()).then(|| format!("{name}, {}", parts.join(", ")))
    };
    let group = tokens(group)
        .into_iter()
        .filter(|word| word.chars().all(char::is_alphanumeric))
        .collect::<Vec<_>>()
        .join(" ");
    let candidates = [
        Some(name.to_owned()),
        with(&[Some(style)]),
        with(&[word(0), word(1)]),
        with(&[word(2), word(3)]),
        with(&[word(4)]),
        with(&[Some(&group)]),
        // Only names without keywords come this far with fewer than three forms.
        Some(format!("emoji of {name}")),
    ];
    let mut seen = HashSet::new();
    let fitting = candidates
        .into_iter()
        .flatten()
        .filter(|form| tokens(form).len() <= MAX_TOKENS && seen.insert(form.clone()));
    fitting.take(MAX_FORMS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn tokens_split_words_and_marks() {
        assert_eq!(
            tokens("Woman's  t-shirt, 1st"),
            ["woman", "'", "s", "t", "-", "shirt", ",", "1st"]
        );
        assert_eq!(tokens("a ,. b"), ["a", ",.", "b"]);
        assert!(tokens(" ").is_empty());
    }

    #[test]
    fn keywords_are_cleaned() {
        let listed =
            strings(&["grinning_face", "face", "smile", ":D", "smile", "8ball", "Big-Smile", "x"]);
        assert_eq!(keywords("grinning face", &listed), ["smile", "big smile"]);
    }

    #[test]
    fn forms_begin_with_the_name() {
        let forms = forms(
            "pizza",
            "flat emoji",
            &strings(&["food", "party", "italy", "slice", "cheese", "more"]),
            "Food & Drink",
        );
        assert_eq!(
            forms,
            [
                "pizza",
                "pizza, flat emoji",
                "pizza, food, party",
                "pizza, italy, slice",
                "pizza, cheese",
                "pizza, food drink"
            ]
        );
    }

    #[test]
    fn there_are_always_three_forms_that_fit() {
        let long = "one two three four five six seven eight nine ten eleven twelve";
        for name in ["tie", long] {
            let forms = forms(name, "thin outline emoji", &[], "Symbols");
            assert!(forms.len() >= 3, "{forms:?}");
            assert!(forms.iter().all(|form| tokens(form).len() <= MAX_TOKENS));
        }
    }
}

//! Other ways to write a class name. Pure.

/// A way to write a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wording {
    /// `PIZZA`
    Capitals,
    /// `a picture of pizza`
    Phrase,
    /// `pziza`: two letters of the longest word exchanged.
    Misspelling,
    /// `apple red`: several words in the opposite order.
    Reversed,
}

impl Wording {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Capitals, Self::Phrase, Self::Misspelling, Self::Reversed];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capitals => "capitals",
            Self::Phrase => "phrase",
            Self::Misspelling => "misspelling",
            Self::Reversed => "reversed",
        }
    }

    /// Writes a name in this way; `None` where that is the name itself.
    pub fn of(self, name: &str) -> Option<String> {
        let written = match self {
            Self::Capitals => name.to_uppercase(),
            Self::Phrase => format!("a picture of {name}"),
            Self::Misspelling => misspelled(name)?,
            Self::Reversed => name.split_whitespace().rev().collect::<Vec<_>>().join(" "),
        };
        (written != name).then_some(written)
    }
}

/// Exchanges the first two letters inside the longest word that differ, where it has four letters.
fn misspelled(name: &str) -> Option<String> {
    let mut words: Vec<Vec<char>> =
        name.split_whitespace().map(|word| word.chars().collect()).collect();
    // Of words of equal length, the first one.
    let longest = words.iter_mut().rev().max_by_key(|word| word.len())?;
    let inside = 1..longest.len().saturating_sub(2);
    let differ = |&place: &usize| {
        let (one, next) = (longest[place], longest[place + 1]);
        one != next && one.is_alphabetic() && next.is_alphabetic()
    };
    let place = inside.into_iter().find(differ)?;
    longest.swap(place, place + 1);
    Some(words.iter().map(|word| word.iter().collect()).collect::<Vec<String>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_other_ways() {
        let all = |name: &str| Wording::ALL.map(|wording| wording.of(name).unwrap_or_default());
        assert_eq!(all("pizza"), ["PIZZA", "a picture of pizza", "pziza", ""]);
        assert_eq!(
            all("red apple"),
            ["RED APPLE", "a picture of red apple", "red aplpe", "apple red"]
        );
        assert_eq!(all("OK"), ["", "a picture of OK", "", ""]);
        assert_eq!(all("öööl"), ["ÖÖÖL", "a picture of öööl", "", ""]);
        assert_eq!(all(""), ["", "a picture of ", "", ""]);
    }
}

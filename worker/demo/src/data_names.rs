//! The concepts: which emoji they are, what they are called, and which icon of each family shows
//! them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::data_fxemoji;
use crate::data_icons::{Family, IconSet, Resolved, read_json};

#[derive(Deserialize)]
struct Unicode {
    name: String,
    group: String,
}

/// One emoji that may become a concept.
pub(crate) struct Candidate {
    pub(crate) emoji: String,
    /// `[a-z0-9-]+`, unique.
    pub(crate) id: String,
    /// Readable lower-case name, unique.
    pub(crate) class: String,
    /// Unicode's group.
    pub(crate) group: String,
    /// Names its icon may have, the Unicode name first.
    names: Vec<String>,
}

/// Whether an emoji is one of a row of near-copies that 48 pixels cannot tell apart, or text:
/// flags, skin tones, clock faces and keycaps.
fn is_left_out(name: &str, group: &str) -> bool {
    group == "Flags"
        || group == "Component"
        || name.contains("skin tone")
        || name.ends_with("o’clock")
        || name.ends_with("-thirty")
        || name.starts_with("keycap")
}

/// The class name: lower case, plain ASCII quotes, no commas, brackets or exclamation marks
/// (captions are tokenised, and a model of 16 tokens has none to spare for them).
fn class_name(unicode: &str) -> String {
    let plain: String = unicode
        .to_lowercase()
        .chars()
        .filter_map(|letter| match letter {
            '’' => Some('\''),
            '“' | '”' | ',' | '(' | ')' | '!' | ':' | '#' => None,
            'ñ' => Some('n'),
            'ã' | 'å' => Some('a'),
            'é' => Some('e'),
            'ô' => Some('o'),
            other => Some(other),
        })
        .collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lower-case words joined by hyphens.
pub(crate) fn slug(name: &str) -> String {
    let quoteless = name.replace('\'', "");
    let words = quoteless
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// The Unicode name as the icon packages write it.
fn icon_name(unicode: &str) -> String {
    slug(&class_name(&unicode.replace('!', " exclamation")))
}

/// Code points as the packages' `chars.json` writes them.
fn code_points(emoji: &str) -> String {
    let points: Vec<String> = emoji
        .chars()
        .filter(|letter| *letter != '\u{fe0f}')
        .map(|letter| format!("{:x}", u32::from(letter)))
        .collect();
    points.join("-")
}

/// Reads the emoji list; `sets` (by family) add the names that the packages with code points use.
pub(crate) fn candidates(
    npm: &Path,
    families: &[Family],
    sets: &[IconSet],
) -> Result<Vec<Candidate>> {
    // The file is in Unicode's own order, which `preserve_order` keeps.
    let list: serde_json::Map<String, serde_json::Value> =
        read_json(&npm.join("unicode-emoji-json/data-by-emoji.json"))?;
    let (mut candidates, mut classes) = (Vec::new(), HashSet::new());
    for (emoji, value) in list {
        let unicode: Unicode =
            serde_json::from_value(value).with_context(|| format!("entry {emoji}"))?;
        if is_left_out(&unicode.name, &unicode.group) {
            continue;
        }
        let class = unique(class_name(&unicode.name), &mut classes);
        let points = code_points(&emoji);
        let mut names = vec![icon_name(&unicode.name)];
        for (_, set) in families.iter().zip(sets).filter(|(family, _)| family.by_code_point) {
            if let Some(name) = set.chars.get(&points) {
                names.push(name.clone());
                names.extend(set.aliases_of(name).iter().cloned());
            }
        }
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        candidates.push(Candidate { emoji, id: slug(&class), class, group: unicode.group, names });
    }
    drop_ambiguous(&mut candidates);
    Ok(candidates)
}

/// Adds a number to a name that is taken.
fn unique(name: String, taken: &mut HashSet<String>) -> String {
    let mut result = name.clone();
    for number in 2.. {
        if taken.insert(slug(&result)) {
            break;
        }
        result = format!("{name} {number}");
    }
    result
}

/// Takes names that several emoji claim away from all but the one whose Unicode name it is.
fn drop_ambiguous(candidates: &mut [Candidate]) {
    let mut claims: HashMap<String, usize> = HashMap::new();
    for name in candidates.iter().flat_map(|candidate| &candidate.names) {
        *claims.entry(name.clone()).or_default() += 1;
    }
    for candidate in candidates {
        let unicode = candidate.names[0].clone();
        candidate.names.retain(|name| *name == unicode || claims[name] == 1);
    }
}

/// The icon of every candidate in one family, by index of the candidate.
pub(crate) fn match_icons(
    candidates: &[Candidate],
    family: &Family,
    set: &IconSet,
) -> Result<BTreeMap<usize, Resolved>> {
    let table = match family.name {
        "fxemoji" => data_fxemoji::DRAWINGS,
        // Drawn as a piano's.
        "emojione-v1" => "keyboard=-",
        _ => "",
    };
    let names = set.names();
    let mut chosen = match_names(candidates, &names, table);
    // A code point says for certain what a drawing shows; names serve the emoji that a package's
    // list of them misses.
    for (index, candidate) in candidates.iter().enumerate() {
        if let Some(name) = set.chars.get(&code_points(&candidate.emoji)) {
            chosen.insert(index, name.as_str());
        }
    }
    let mut icons = BTreeMap::new();
    for (index, name) in chosen {
        icons.insert(index, (name, set.resolve(name)?));
    }
    Ok(without_shared(icons))
}

/// Pairs candidates with icon names: by `table`, else by the first of their names that is there,
/// hyphens or not.
fn match_names<'a>(
    candidates: &[Candidate],
    names: &[&'a str],
    table: &'a str,
) -> BTreeMap<usize, &'a str> {
    let by_table: HashMap<&str, &str> =
        table.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
    let by_letters: HashMap<String, &str> =
        names.iter().rev().map(|name| (name.replace('-', ""), *name)).collect();
    let mut matched = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let found = match by_table.get(candidate.id.as_str()) {
            Some(name) => (*name != "-").then_some(*name),
            None => candidate
                .names
                .iter()
                .find_map(|name| by_letters.get(&name.replace('-', "")).copied()),
        };
        if let Some(name) = found {
            matched.insert(index, name);
        }
    }
    matched
}

/// Where several candidates reach one drawing, keeps the one that asked for it under the drawing's
/// own name.
///
/// An old set names the sport `cricket-game` and keeps `cricket` as an alias of it; Unicode has
/// since added the insect.
fn without_shared(icons: BTreeMap<usize, (&str, Resolved)>) -> BTreeMap<usize, Resolved> {
    let mut claims: HashMap<&Resolved, usize> = HashMap::new();
    for (_, resolved) in icons.values() {
        *claims.entry(resolved).or_default() += 1;
    }
    let kept = icons
        .iter()
        .filter(|(_, (name, resolved))| claims[resolved] == 1 || *name == resolved.icon);
    kept.map(|(index, (_, resolved))| (*index, resolved.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(unicode: &str, names: &[&str]) -> Candidate {
        let class = class_name(unicode);
        let names = std::iter::once(icon_name(unicode))
            .chain(names.iter().map(|name| (*name).to_owned()))
            .collect();
        Candidate { emoji: String::new(), id: slug(&class), class, group: String::new(), names }
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(class_name("woman’s hat"), "woman's hat");
        assert_eq!(slug(&class_name("woman’s hat")), "womans-hat");
        assert_eq!(
            class_name("Japanese “free of charge” button"),
            "japanese free of charge button"
        );
        assert_eq!(class_name("AB button (blood type)"), "ab button blood type");
        assert_eq!(class_name("kiss man, man"), "kiss man man");
        assert_eq!(slug("see-no-evil monkey"), "see-no-evil-monkey");
        assert_eq!(
            (icon_name("ON! arrow").as_str(), class_name("ON! arrow").as_str()),
            ("on-exclamation-arrow", "on arrow")
        );
        assert_eq!(code_points("☀\u{fe0f}"), "2600");
        assert_eq!(code_points("👩\u{200d}🌾"), "1f469-200d-1f33e");
    }

    #[test]
    fn taken_names_get_a_number() {
        let mut taken = HashSet::new();
        assert_eq!(unique("tie".into(), &mut taken), "tie");
        assert_eq!(unique("tie".into(), &mut taken), "tie 2");
        assert_eq!(unique("tie".into(), &mut taken), "tie 3");
    }

    #[test]
    fn near_copies_are_left_out() {
        for (name, group) in [
            ("flag France", "Flags"),
            ("one-thirty", "Travel & Places"),
            ("ten o’clock", "Travel & Places"),
        ] {
            assert!(is_left_out(name, group));
        }
        assert!(is_left_out("keycap 3", "Symbols"));
        assert!(!is_left_out("mantelpiece clock", "Travel & Places"));
        assert!(!is_left_out("white flag", "Symbols"));
    }

    #[test]
    fn icons_match_by_name_letters_and_table() {
        let candidates = [
            candidate("cat face", &[]),
            candidate("cat", &[]),
            candidate("hot beverage", &["coffee"]),
            candidate("ten", &[]),
        ];
        let names = ["cat", "catside", "hotbeverage", "ten"];
        let matched = match_names(&candidates, &names, "cat-face=cat cat=catside ten=-");
        assert_eq!(matched, BTreeMap::from([(0, "cat"), (1, "catside"), (2, "hotbeverage")]));
        assert_eq!(match_names(&candidates, &["coffee"], ""), BTreeMap::from([(2, "coffee")]));
    }

    #[test]
    fn an_ambiguous_name_stays_with_its_owner() {
        let mut candidates =
            [candidate("upwards button", &["up-button"]), candidate("up button", &["up"])];
        drop_ambiguous(&mut candidates);
        assert_eq!(candidates[0].names, ["upwards-button"]);
        assert_eq!(candidates[1].names, ["up-button", "up"]);
    }

    #[test]
    fn a_shared_drawing_goes_to_its_own_name() {
        let json = r#"{"icons": {"cricket-game": {"body": ""}}, "aliases": {"cricket": {"parent": "cricket-game"}}}"#;
        let set = IconSet::of_icons(json);
        let icons = ["cricket", "cricket-game"].map(|name| (name, set.resolve(name).unwrap()));
        let kept = without_shared(BTreeMap::from([(0, icons[0].clone()), (1, icons[1].clone())]));
        assert_eq!(kept.keys().copied().collect::<Vec<_>>(), [1]);
    }
}

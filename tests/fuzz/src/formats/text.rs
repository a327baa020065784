//! Texts: captions, names, files of texts, class lists, addresses.

use std::path::Path;

use icu_normalizer::DecomposingNormalizerBorrowed;
use lethe_shared::address::Address;
use lethe_shared::manifest::{Classes, is_id};
use lethe_shared::phrases::Phrases;
use lethe_shared::printable::{MAX_SHOWN, is_hidden, printable, printable_message};
use lethe_shared::texts;
use lethe_shared::webdataset::caption;
use lethe_shared::words::{normal_name, words};

use crate::draw::Draw;
use crate::harness::{Harness, Outcome, hold, refused, same, usual_memory};

pub(crate) fn harnesses() -> Vec<Harness> {
    vec![
        Harness {
            name: "name",
            memory: usual_memory,
            seeds: || {
                seeds(&[
                    "café",
                    "AT&amp;T",
                    "a red-heart, drawn",
                    "Straße ﬁ ™ 寿司",
                    "&amp;amp;amp;amp;lt;",
                ])
            },
            generate: |draw| lines(draw, 1),
            check: check_name,
        },
        Harness {
            name: "caption",
            memory: usual_memory,
            seeds: || seeds(&["a photo of a cat", "\u{feff}cat\n", "one\ntwo\n\nthree"]),
            generate: |draw| lines(draw, 4),
            check: check_caption,
        },
        Harness {
            name: "phrases",
            memory: |input| (16 << 20) + 256 * input.len(),
            seeds: || {
                seeds(&["York\nNew York\nnight\n\nNew York, York at night", "cat\n\nfat cat"])
            },
            generate: |draw| [&lines(draw, 5)[..], b"\n\n", &lines(draw, 2)].concat(),
            check: check_phrases,
        },
        Harness {
            name: "class-list",
            memory: usual_memory,
            seeds: || seeds(&["cat\ndog\n", "café\nêtre\r\n red heart \n"]),
            generate: |draw| lines(draw, 6),
            check: check_classes,
        },
        Harness {
            name: "address",
            memory: usual_memory,
            seeds: || seeds(&["/a/../b", "s3://bucket/key", "file:///data/x", "model/*.tar"]),
            generate: generate_address,
            check: check_address,
        },
    ]
}

fn seeds(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Generates at most so many lines of a few words.
fn lines(draw: &mut Draw<'_>, most: usize) -> Vec<u8> {
    let mut text = String::new();
    for number in 0..=draw.below(most) {
        if number > 0 {
            text.push_str(draw.pick::<&str>(&["\n", "\n", "\r\n", "\r", "\n\n"]));
        }
        for word in 0..draw.below(4) {
            if word > 0 {
                text.push(' ');
            }
            let word = match draw.below(4) {
                0 => (*draw.pick(&["cat", "New", "York", "dog", "red-heart", "café"])).to_owned(),
                _ => draw.text(),
            };
            text.push_str(&word);
        }
    }
    text.into_bytes()
}

fn decomposed(text: &str) -> String {
    DecomposingNormalizerBorrowed::new_nfd().normalize(text).into_owned()
}

fn check_name(bytes: &[u8]) -> Result<Outcome, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Outcome::Refused) };
    let normal = normal_name(text);
    // References that are escaped four times and more are replaced three times, so a name that
    // still has one has another normal form.
    hold(normal.contains('&') || normal_name(&normal) == normal, || {
        format!("the normal name `{normal}` has the normal name `{}`", normal_name(&normal))
    })?;
    let other = decomposed(text);
    same("normal names of two spellings", &normal, &normal_name(&other))?;
    let found = words(text);
    same("words of two spellings", &found, &words(&other))?;
    hold(found.starts_with(' ') && found.ends_with(' ') && !found.contains("  "), || {
        format!("one space is not around every word: {found:?}")
    })?;
    let shown = printable(text);
    hold(!shown.chars().any(|letter| is_hidden(letter) || letter == '\n'), || {
        format!("not printable: {shown:?}")
    })?;
    hold(shown.chars().count() <= 10 * MAX_SHOWN + 40, || format!("too long: {shown}"))?;
    let message = printable_message(text);
    hold(
        message.chars().all(|letter| matches!(letter, '\n' | '\t') || !is_hidden(letter)),
        || format!("not printable: {message:?}"),
    )?;
    if is_id(text) {
        same("an id", &printable(text), &text.to_owned())?;
        hold(!text.contains(['/', '\\', '*', '>', ' ']), || format!("`{text}` is an id"))?;
    }
    Ok(Outcome::Accepted)
}

fn check_caption(bytes: &[u8]) -> Result<Outcome, String> {
    let one = caption(bytes);
    if let Ok(text) = one {
        same("the caption of a caption", &caption(text.as_bytes()), &Ok(text))?;
    }
    match texts::parse(bytes, "texts.txt") {
        Ok(found) => {
            // A file without a line feed in which carriage returns separate texts is refused.
            let again = texts::parse((found.join("\n") + "\n").as_bytes(), "texts.txt");
            same("texts read and written", &again.as_ref(), &Ok(&found))?;
            let slices = texts::slices(found.clone());
            same("slices", &slices.concat(), &found)?;
            Ok(Outcome::Accepted)
        }
        Err(error) => {
            if let Err(problem) = one {
                refused(problem)?;
            }
            refused(error)
        }
    }
}

fn check_phrases(bytes: &[u8]) -> Result<Outcome, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Outcome::Refused) };
    let Some((names, text)) = text.split_once("\n\n") else { return Ok(Outcome::Refused) };
    let names: Vec<&str> = names.lines().collect();
    let phrases = match Phrases::new(&names) {
        Ok(phrases) => phrases,
        Err(error) => return refused(error),
    };
    let (found, mentioned) = (phrases.find(text), phrases.mentions(text));
    hold(mentioned.is_subset(&found), || "a name is mentioned that is not found".to_owned())?;
    let occurrences = phrases.occurrences(text);
    same("names found", &occurrences.keys().copied().collect(), &found)?;
    let of_occurrences =
        occurrences.iter().filter(|(_, mentioned)| **mentioned).map(|(name, _)| *name).collect();
    same("names mentioned", &mentioned, &of_occurrences)?;
    let other = decomposed(text);
    same("names found in two spellings", &found, &phrases.find(&other))?;
    for (number, name) in (0u32..).zip(&names) {
        let is_alone = words(name) == words(text) && words(name) != " ";
        hold(!is_alone || found.contains(&number), || format!("`{name}` is not found in itself"))?;
    }
    Ok(Outcome::Accepted)
}

fn check_classes(bytes: &[u8]) -> Result<Outcome, String> {
    let classes = match Classes::parse(bytes, "classes.txt") {
        Ok(classes) => classes,
        Err(error) => return refused(error),
    };
    let again = Classes::parse(classes.names().join("\n").as_bytes(), "classes.txt");
    same("class lists read and written", &again.as_ref(), &Ok(&classes))?;
    for (number, name) in (0u32..).zip(classes.names()) {
        for spelling in [name.clone(), decomposed(name), format!(" {name}\u{a0}")] {
            same("the class of a name", &classes.find(&spelling), &Some(number))?;
        }
        let _ = classes.suggest(&format!("{name}x"));
    }
    Ok(Outcome::Accepted)
}

fn generate_address(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut text = (*draw
        .pick(&["", "/", "file:///", "file://", "s3://", "gs://", "az://", "S3://", "http://"]))
    .to_owned();
    for _ in 0..draw.below(5) {
        let part = match draw.below(3) {
            0 => draw.text(),
            _ => (*draw
                .pick(&["a", "b.tar", "..", ".", "", "*", "a b", "%2e%2e", "k?x", "u:p@h", "é"]))
            .to_owned(),
        };
        text.push_str(&part);
        text.push('/');
    }
    if draw.one_in(2) {
        text.pop();
    }
    text.into_bytes()
}

fn check_address(bytes: &[u8]) -> Result<Outcome, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Outcome::Refused) };
    let address = match Address::resolve(text, Some(Path::new("/base/folder"))) {
        Ok(address) => address,
        Err(error) => return refused(error),
    };
    let shown = address.to_string();
    same("an address read and written", &Address::parse(&shown), &Ok(address.clone()))?;
    hold(!shown.split('/').any(|part| part == ".."), || format!("`{shown}` goes upwards"))?;
    if let Ok(inside) = address.join(text) {
        hold(inside.to_string().starts_with(&shown), || format!("`{inside}` leaves `{shown}`"))?;
    }
    Ok(Outcome::Accepted)
}

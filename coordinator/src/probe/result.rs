//! What a probe wrote. Its output is not trusted: sizes and counts are bounded, and names are
//! plain.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use lethe_shared::json;
use lethe_shared::printable::printable;
use serde::Deserialize;

/// Name of the document that a probe writes.
pub(super) const DOCUMENT: &str = "result.json";
/// Largest document, bytes.
const MAX_DOCUMENT: u64 = 1 << 20;
/// Most numbers.
const MAX_NUMBERS: usize = 500;
/// Longest name of a number.
const MAX_NAME: usize = 64;
/// Most pictures, each before and after.
const MAX_PICTURES: usize = 100;
/// Largest picture, bytes.
const MAX_PICTURE: u64 = 1 << 20;
/// Largest size of all pictures, bytes.
const MAX_ALL_PICTURES: u64 = 32 << 20;
/// Most notes.
const MAX_NOTES: usize = 20;
/// Longest version, title or note, bytes.
const MAX_TEXT: usize = 500;

/// What a probe measured.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeResult {
    /// The version of the probe.
    pub version: String,
    /// The numbers by name.
    pub numbers: BTreeMap<String, f64>,
    /// The pictures, in order.
    pub pictures: Vec<Picture>,
    /// Sentences about the numbers.
    pub notes: Vec<String>,
}

/// Pictures by the base model and by the release: PNG, JPEG or WebP files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// What they show.
    pub title: String,
    /// By the base model, if there is one.
    pub before: Option<Bytes>,
    /// By the release.
    pub after: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    numbers: BTreeMap<String, f64>,
    #[serde(default)]
    pictures: Vec<PictureFiles>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PictureFiles {
    title: String,
    #[serde(default)]
    before: Option<String>,
    after: String,
}

impl ProbeResult {
    /// Reads what a probe wrote into a folder.
    ///
    /// # Errors
    /// A sentence when the document or a picture is missing, invalid or too large.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let bytes = read(folder, DOCUMENT, MAX_DOCUMENT)?;
        let document: Document =
            json::parse(&bytes).map_err(|error| format!("{DOCUMENT}: {error}"))?;
        let Document { version, numbers, pictures, notes } = document;
        let wrong = |problem: String| Err(format!("{DOCUMENT}: {problem}"));
        if numbers.is_empty() || numbers.len() > MAX_NUMBERS {
            return wrong(format!("has {} numbers, expected 1 to {MAX_NUMBERS}", numbers.len()));
        }
        if let Some(name) = numbers.keys().find(|name| !is_name(name)) {
            return wrong(format!(
                "`{}` names no number: 1 to {MAX_NAME} lower-case letters, digits, `.`, `_` and `-`",
                printable(name)
            ));
        }
        if let Some((name, value)) = numbers.iter().find(|(_, value)| !value.is_finite()) {
            return wrong(format!("{name} is {value}"));
        }
        if pictures.len() > MAX_PICTURES || notes.len() > MAX_NOTES {
            return wrong(format!(
                "has {} pictures and {} notes, expected at most {MAX_PICTURES} and {MAX_NOTES}",
                pictures.len(),
                notes.len()
            ));
        }
        let texts = notes.iter().chain([&version]).chain(pictures.iter().map(|of| &of.title));
        if let Some(text) = texts.into_iter().find(|text| text.len() > MAX_TEXT) {
            return wrong(format!("`{}` is longer than {MAX_TEXT} bytes", printable(text)));
        }
        let mut total = 0;
        let mut picture = |name: &str| -> Result<Bytes, String> {
            let bytes = read(folder, name, MAX_PICTURE)?;
            total += bytes.len() as u64;
            if total > MAX_ALL_PICTURES {
                return Err(format!("pictures have more than {MAX_ALL_PICTURES} bytes together"));
            }
            match media_type(&bytes) {
                Some(_) => Ok(bytes.into()),
                None => Err(format!("{} is no PNG, JPEG or WebP file", printable(name))),
            }
        };
        let pictures = pictures
            .into_iter()
            .map(|PictureFiles { title, before, after }| {
                let before = before.as_deref().map(&mut picture).transpose()?;
                Ok(Picture { title, before, after: picture(&after)? })
            })
            .collect::<Result<Vec<_>, String>>()?;
        Ok(Self { version, numbers, pictures, notes })
    }
}

/// Returns the media type of a picture by its first bytes; `None` for other files.
pub(crate) fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(plain)
}

/// Reads a file of the folder itself: no link, and no larger than a bound.
fn read(folder: &Path, name: &str, most: u64) -> Result<Vec<u8>, String> {
    let shown = printable(name);
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(format!("`{shown}` is no plain name of a file"));
    }
    let path = folder.join(name);
    let missing = |error: std::io::Error| format!("{shown} cannot be read: {error}");
    if !std::fs::symlink_metadata(&path).map_err(missing)?.is_file() {
        return Err(format!("{shown} is no ordinary file"));
    }
    let (mut bytes, file) = (Vec::new(), std::fs::File::open(&path).map_err(missing)?);
    file.take(most + 1).read_to_end(&mut bytes).map_err(missing)?;
    if bytes.len() as u64 > most {
        return Err(format!("{shown} is larger than {most} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

    fn result(text: &str, files: &[(&str, &[u8])]) -> Result<ProbeResult, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(DOCUMENT), text).unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link.png")).unwrap();
        ProbeResult::read(folder.path())
    }

    #[test]
    fn numbers_and_pictures_are_read() {
        let text = r#"{"version": "1", "numbers": {"ua": 0.5}, "pictures": [{"title": "a cat", "after": "a.png", "before": "b.png"}], "notes": ["few"]}"#;
        let found = result(text, &[("a.png", PNG), ("b.png", PNG)]).unwrap();
        assert_eq!((found.numbers["ua"], found.notes.len()), (0.5, 1));
        assert_eq!(found.pictures[0].before.as_deref(), Some(PNG));
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        let with = |pictures: &str| {
            format!(r#"{{"version": "1", "numbers": {{"ua": 0.5}}, "pictures": [{pictures}]}}"#)
        };
        let picture = |name: &str| with(&format!(r#"{{"title": "a", "after": "{name}"}}"#));
        let large = vec![0u8; (MAX_PICTURE + 1) as usize];
        let long = format!(r#"{{"version": "{}", "numbers": {{"a": 1}}}}"#, "x".repeat(501));
        for (text, says) in [
            (r#"{"version": "1", "numbers": {}}"#.to_owned(), "has 0 numbers, expected 1 to 500"),
            (r#"{"version": "1", "numbers": {"A b": 1}}"#.into(), "`A b` names no number"),
            (
                r#"{"version": "1", "numbers": {"a": 1e999}}"#.into(),
                "result.json: number out of range",
            ),
            (
                r#"{"version": "1", "numbers": {"a": 1, "a": 2}}"#.into(),
                "the key `a` appears twice",
            ),
            (r#"{"version": "1", "numbers": {"a": 1}, "more": 1}"#.into(), "unknown field `more`"),
            (long, "is longer than 500 bytes"),
            (picture("absent.png"), "absent.png cannot be read"),
            (picture("../result.json"), "`../result.json` is no plain name"),
            (picture("link.png"), "link.png is no ordinary file"),
            (picture("text.png"), "text.png is no PNG, JPEG or WebP file"),
            (picture("large.png"), "large.png is larger than 1048576 bytes"),
            (with(&vec![r#"{"title": "a", "after": "a.png"}"#; 101].join(",")), "has 101 pictures"),
        ] {
            let files: [(&str, &[u8]); 3] =
                [("a.png", PNG), ("text.png", b"hello"), ("large.png", &large)];
            let error = result(&text, &files).unwrap_err();
            assert!(error.contains(says), "{error}\n  does not say: {says}");
        }
    }
}

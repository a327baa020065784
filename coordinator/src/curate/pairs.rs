//! Reads image-text pairs from a shard as a stream. Samples that are not pairs are skipped and
//! counted, because a crawl of hundreds of thousands contains some.

use std::io::Read;
use std::ops::ControlFlow;

use lethe_shared::webdataset::Archive;
pub use lethe_shared::webdataset::{Damaged, Pair, Strays, Unusable};

/// What is found in a shard.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A pair.
    Pair(Pair<'a>),
    /// An unusable sample: the reason and its key.
    Unusable(Unusable, &'a str),
    /// At the end, the members that belong to no pair, if there are any.
    Strays(&'a Strays),
}

/// Reads an archive to its end, or until `each` breaks, and passes every sample in order.
///
/// # Errors
/// [`Damaged`] when the archive is invalid or cannot be read; only the caller's reader can
/// distinguish the two.
pub fn read(
    reader: impl Read,
    mut each: impl FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Damaged> {
    let mut archive = Archive::new(reader);
    let mut samples = archive.samples(true)?;
    while let Some(sample) = samples.advance()? {
        let found = match sample.pair() {
            Ok(pair) => each(Found::Pair(pair)),
            Err(problem) => each(Found::Unusable(problem.reason, sample.key())),
        };
        if found.is_break() {
            return Ok(found);
        }
    }
    Ok(match samples.strays() {
        strays if strays.members > 0 => each(Found::Strays(strays)),
        _ => ControlFlow::Continue(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest";

    fn shard(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn told(bytes: &[u8]) -> Result<Vec<String>, Damaged> {
        let mut told = Vec::new();
        let ended = read(bytes, |found| {
            told.push(match found {
                Found::Pair(pair) => format!(
                    "{}: {} ({}, {} bytes)",
                    pair.key,
                    pair.caption,
                    pair.extension,
                    pair.image.len()
                ),
                Found::Unusable(why, key) => format!("{key}: {why:?}"),
                Found::Strays(strays) => format!("{} strays: {}", strays.members, strays.example),
            });
            ControlFlow::Continue(())
        });
        ended.map(|_| told)
    }

    #[test]
    fn pairs_come_in_order_and_what_is_none_is_passed_over() {
        let long = [b'x'; 70_000];
        let bytes = shard(&[
            ("a/1.jpeg", b"\xff\xd8\xff\xe0 and so on"),
            ("a/1.txt", b" a cat\n"),
            ("a/1.json", b"{}"),
            ("2.txt", b"dog"),
            ("2.png", PNG),
            ("3.png", PNG),
            ("4.txt", b"alone"),
            ("5.png", b"GIF89a"),
            ("5.txt", b"a gif"),
            ("6.png", PNG),
            ("6.txt", b" \n"),
            ("7.png", PNG),
            ("7.jpg", PNG),
            ("7.txt", b"two"),
            ("../8.png", PNG),
            ("9.png", PNG),
            ("9.txt", &long),
            ("10.png", PNG),
            ("10.txt", b"\xff"),
            ("11.png", PNG),
            ("11.txt", b"last"),
            ("12.5x.png", PNG),
            ("12.5x.txt", b"a key ends at its first dot"),
        ]);
        let expected = [
            "a/1: a cat (jpg, 14 bytes)",
            "2: dog (png, 21 bytes)",
            "3: NoCaption",
            "4: NoImage",
            "5: BadImage",
            "6: BadCaption",
            "../8.png: BadName",
            "7: Twice",
            "9: BadCaption",
            "10: BadCaption",
            "11: last (png, 21 bytes)",
            "2 strays: 12.5x.png",
        ];
        assert_eq!(told(&bytes).unwrap(), expected);
        // A second archive behind the first one is read as well.
        let twice = [&bytes[..], &shard(&[("13.png", PNG), ("13.txt", b"more")])].concat();
        assert!(told(&twice).unwrap().contains(&"13: more (png, 21 bytes)".to_owned()));
        assert!(told(&shard(&[])).unwrap().is_empty());
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let bytes = shard(&[("1.png", PNG), ("1.txt", b"cat"), ("2.png", PNG), ("2.txt", b"dog")]);
        // Each member has one block for its header and one for its content.
        let mut broken = bytes.clone();
        broken[2048 + 3] ^= 1;
        assert_eq!(told(&broken).unwrap_err().at, 2048);
        assert_eq!(told(&bytes[..2048 + 512 + 7]).unwrap_err().at, 2048 + 512 + 7);
        assert_eq!(told(&bytes[..1024 + 300]).unwrap_err().at, 1024);
    }

    #[test]
    fn reading_stops_when_it_is_told_to() {
        let bytes = shard(&[("1.png", PNG), ("1.txt", b"cat"), ("2.png", PNG), ("2.txt", b"dog")]);
        let mut seen = 0;
        let ended = read(&bytes[..], |_| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert_eq!((ended, seen), (Ok(ControlFlow::Break(())), 1));
    }
}

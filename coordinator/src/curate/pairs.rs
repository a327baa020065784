//! Reads image-text pairs from a shard as a stream. Samples that are not pairs are skipped and
//! counted, because a crawl of hundreds of thousands contains some.

use std::io::{self, Read};
use std::ops::ControlFlow;

use lethe_shared::shard::{MAX_CAPTION, MAX_IMAGE, Member, classify, image_ending};
use serde::{Deserialize, Serialize};

/// A pair, valid until the next one is read.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Its key in the shard.
    pub key: &'a str,
    /// The caption, without surrounding white space.
    pub caption: &'a str,
    /// The image in its stored format.
    pub image: &'a [u8],
    /// File extension of the image's format.
    pub ending: &'static str,
}

/// The reason why a sample is not a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// A link or device, or a path that is not UTF-8 or leaves the shard.
    BadName,
    /// The caption has no image.
    NoImage,
    /// The image has no caption.
    NoCaption,
    /// Two images or two captions have the same key.
    Twice,
    /// The image is neither PNG, JPEG nor WebP.
    BadImage,
    /// The image is larger than 64 MiB.
    LargeImage,
    /// The caption is empty, not UTF-8, or larger than 64 KiB.
    BadCaption,
}

/// A sample of a shard.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A pair.
    Pair(Pair<'a>),
    /// An unusable sample: the reason and its key.
    Unusable(Unusable, &'a str),
}

/// The shard is not a complete tar file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is damaged at byte {at}: {problem}")]
pub struct Damaged {
    /// Offset of the first invalid byte.
    pub at: u64,
    /// Description of the defect.
    pub problem: String,
}

/// The bytes of one file. The next file overwrites them, because clearing memory first would cost
/// as much as reading.
#[derive(Default)]
struct Content {
    memory: Vec<u8>,
    size: usize,
}

impl Content {
    /// Reads `size` bytes, or fewer at the end of the reader.
    fn fill(&mut self, mut reader: impl Read, size: usize) -> io::Result<()> {
        self.size = 0;
        if self.memory.len() < size {
            self.memory.resize(size, 0);
        }
        while self.size < size {
            match reader.read(&mut self.memory[self.size..size]) {
                Ok(0) => break,
                Ok(n) => self.size += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[..self.size]
    }
}

/// The files of the current sample. Its memory is reused for the next one.
#[derive(Default)]
struct Sample {
    key: String,
    image: Content,
    caption: Content,
    has_image: bool,
    has_caption: bool,
    unusable: Option<Unusable>,
}

impl Sample {
    fn begin(&mut self, key: String) {
        self.key = key;
        (self.has_image, self.has_caption, self.unusable) = (false, false, None);
    }

    fn finish(&self) -> Option<Found<'_>> {
        if !self.has_image && !self.has_caption {
            return None;
        }
        let unusable = |why| Some(Found::Unusable(why, &self.key));
        if let Some(why) = self.unusable {
            return unusable(why);
        }
        if !self.has_image {
            return unusable(Unusable::NoImage);
        }
        if !self.has_caption {
            return unusable(Unusable::NoCaption);
        }
        let image = self.image.bytes();
        let Some(ending) = image_ending(image) else { return unusable(Unusable::BadImage) };
        match std::str::from_utf8(self.caption.bytes()).map(str::trim) {
            Ok(caption) if !caption.is_empty() => {
                Some(Found::Pair(Pair { key: &self.key, caption, image, ending }))
            }
            _ => unusable(Unusable::BadCaption),
        }
    }
}

/// Reads an archive to its end, or until `each` breaks, and passes every sample in order. Holds one
/// sample in memory.
///
/// # Errors
/// [`Damaged`] when the archive is invalid or cannot be read; only the caller's reader can
/// distinguish the two.
pub fn read(
    reader: impl Read,
    mut each: impl FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Damaged> {
    let mut archive = tar::Archive::new(reader);
    let mut sample = Sample::default();
    let mut at = 0;
    let damaged = |at: u64, error: io::Error| Damaged { at, problem: error.to_string() };
    for entry in archive.entries().map_err(|error| damaged(0, error))? {
        let mut entry = entry.map_err(|error| damaged(at, error))?;
        let (body, size) = (entry.raw_file_position(), entry.size());
        at = body.saturating_add(size).div_ceil(512).saturating_mul(512);
        let (key, is_image) = match classify(&entry) {
            Ok(Member::Other) => continue,
            Ok(Member::Image(key)) => (key, true),
            Ok(Member::Caption(key)) => (key, false),
            Err(_) => {
                if each(Found::Unusable(
                    Unusable::BadName,
                    &entry.path_bytes().escape_ascii().to_string(),
                ))
                .is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            }
        };
        if key != sample.key {
            if let Some(found) = sample.finish()
                && each(found).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            sample.begin(key);
        }
        let (there, content, most, too_large) = if is_image {
            (&mut sample.has_image, &mut sample.image, MAX_IMAGE, Unusable::LargeImage)
        } else {
            (&mut sample.has_caption, &mut sample.caption, MAX_CAPTION, Unusable::BadCaption)
        };
        if std::mem::replace(there, true) {
            sample.unusable = Some(Unusable::Twice);
        } else if size > most {
            sample.unusable = Some(too_large);
        } else {
            // At most 64 MiB.
            content.fill(&mut entry, size as usize).map_err(|error| damaged(body, error))?;
            if content.size as u64 != size {
                return Err(Damaged {
                    at: body + content.size as u64,
                    problem: format!("`{}` is cut off", sample.key),
                });
            }
        }
    }
    Ok(sample.finish().map_or(ControlFlow::Continue(()), each))
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
                    pair.ending,
                    pair.image.len()
                ),
                Found::Unusable(why, key) => format!("{key}: {why:?}"),
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
        ];
        assert_eq!(told(&bytes).unwrap(), expected);
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

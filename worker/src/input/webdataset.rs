//! An iterator over the image-text pairs of a WebDataset shard.

use std::io::Read;

use lethe_shared::shard::{MAX_IMAGE, Member, classify, read_caption};

use super::error::Error;

/// One image-text pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path of the members, up to the first dot of the file name.
    pub key: String,
    /// The encoded image.
    pub image: Vec<u8>,
    /// The caption, without surrounding white space.
    pub caption: String,
}

/// Iterates over the pairs of a shard in order, and ends after the first error.
#[allow(missing_debug_implementations)]
pub struct Samples<'a, R: Read> {
    entries: tar::Entries<'a, R>,
    shard: String,
    current: Partial,
    captioned: bool,
    ended: bool,
}

/// The members of the current sample read so far.
#[derive(Default)]
struct Partial {
    key: Option<String>,
    image: Option<Vec<u8>>,
    caption: Option<String>,
}

impl Partial {
    /// Completes the sample; `None` when no member was read.
    fn finish(self, captioned: bool) -> Option<Result<Sample, String>> {
        let key = self.key?;
        Some(match (self.image, self.caption) {
            (Some(image), Some(caption)) => Ok(Sample { key, image, caption }),
            (Some(image), None) if !captioned => Ok(Sample { key, image, caption: String::new() }),
            (None, _) => Err(format!("sample `{key}` has a caption and no image")),
            (_, None) => Err(format!("sample `{key}` has an image and no caption")),
        })
    }
}

impl<'a, R: Read> Samples<'a, R> {
    /// Reads the pairs of an archive. `shard` is its name for messages.
    ///
    /// # Errors
    /// When the archive has already been read in part.
    pub fn read(archive: &'a mut tar::Archive<R>, shard: &str) -> Result<Self, Error> {
        let entries = archive
            .entries()
            .map_err(|error| Error::new(shard, format!("is not a tar file: {error}")))?;
        Ok(Self {
            entries,
            shard: shard.to_owned(),
            current: Partial::default(),
            captioned: true,
            ended: false,
        })
    }

    /// Reads images only; the captions of samples are empty.
    #[must_use]
    pub fn without_captions(self) -> Self {
        Self { captioned: false, ..self }
    }

    /// Reads members until a sample is complete.
    fn advance(&mut self) -> Result<Option<Sample>, String> {
        for entry in &mut self.entries {
            let damaged = |error: std::io::Error| {
                format!("is not a complete tar file ({error}); create it again")
            };
            let mut entry = entry.map_err(damaged)?;
            let member = classify(&entry)?;
            let key = match &member {
                Member::Other => continue,
                Member::Caption(_) if !self.captioned => continue,
                Member::Image(key) | Member::Caption(key) => key.clone(),
            };
            let mut complete = None;
            if self.current.key.as_ref() != Some(&key) {
                complete = std::mem::take(&mut self.current).finish(self.captioned);
                self.current.key = Some(key.clone());
            }
            let size = entry.size();
            match member {
                Member::Image(_) if self.current.image.is_some() => {
                    return Err(format!("sample `{key}` has two images"));
                }
                Member::Image(_) => {
                    if size > MAX_IMAGE {
                        return Err(format!(
                            "the image of sample `{key}` has {size} bytes, more than the limit of 64 MiB"
                        ));
                    }
                    let mut bytes = Vec::with_capacity(size as usize);
                    entry.read_to_end(&mut bytes).map_err(damaged)?;
                    if bytes.len() as u64 != size {
                        return Err(format!(
                            "the image of sample `{key}` is truncated; create the shard again"
                        ));
                    }
                    self.current.image = Some(bytes);
                }
                _ if self.current.caption.is_some() => {
                    return Err(format!("sample `{key}` has two captions"));
                }
                _ => self.current.caption = Some(read_caption(&mut entry, size, &key)?),
            }
            if let Some(sample) = complete {
                return sample.map(Some);
            }
        }
        self.ended = true;
        std::mem::take(&mut self.current).finish(self.captioned).transpose()
    }
}

impl<R: Read> Iterator for Samples<'_, R> {
    type Item = Result<Sample, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance().map_err(|problem| Error::new(self.shard.clone(), problem));
        if next.is_err() {
            self.ended = true;
        }
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(members: &[(&str, &[u8])]) -> Vec<Result<Sample, String>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let read = Samples::read(&mut archive, "s.tar").unwrap();
        read.map(|sample| sample.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn pairs_come_in_order_whichever_file_is_first() {
        let found = samples(&[
            ("a.png", b"A"),
            ("a.txt", b" one\n"),
            ("a.json", b"{}"),
            ("d/b.txt", b"two"),
            ("d/b.x.txt", b"no"),
            ("d/b.webp", b"B"),
        ]);
        let sample = |key: &str, image: &[u8], caption: &str| {
            Ok(Sample { key: key.into(), image: image.into(), caption: caption.into() })
        };
        assert_eq!(found, [sample("a", b"A", "one"), sample("d/b", b"B", "two")]);
    }

    #[test]
    fn captions_may_be_missing_when_they_are_not_read() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in [("a.png", "A"), ("a.txt", ""), ("b.txt", "two"), ("c.webp", "C")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, bytes.as_bytes()).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let read = Samples::read(&mut archive, "s.tar").unwrap().without_captions();
        let keys: Vec<String> = read.map(|sample| sample.unwrap().key).collect();
        assert_eq!(keys, ["a", "c"]);
    }

    #[test]
    fn an_error_ends_the_iteration() {
        let found = samples(&[("a.png", b"A"), ("b.png", b"B"), ("b.txt", b"two")]);
        assert_eq!(found, [Err("s.tar: sample `a` has an image and no caption".to_owned())]);
        let found = samples(&[("a.png", b"A"), ("a.txt", b"one"), ("b.txt", b"two")]);
        assert_eq!(found[1], Err("s.tar: sample `b` has a caption and no image".to_owned()));
    }
}

//! Pairs out of a WebDataset shard, one after another.

use std::io::Read;

use lethe_shared::shard::{MAX_IMAGE, Member, classify, read_caption};

use super::Error;

/// One image-text pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path up to the first dot of the file's name.
    pub key: String,
    /// The image as it is stored.
    pub image: Vec<u8>,
    /// The caption, without the white space around it.
    pub caption: String,
}

/// The pairs of a shard in order; stops at the first problem.
#[allow(missing_debug_implementations)]
pub struct Samples<'a, R: Read> {
    entries: tar::Entries<'a, R>,
    shard: String,
    now: Partial,
    captioned: bool,
    ended: bool,
}

#[derive(Default)]
struct Partial {
    key: Option<String>,
    image: Option<Vec<u8>>,
    caption: Option<String>,
}

impl Partial {
    /// The sample, if there was one, whole.
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
    /// The pairs of an archive; `shard` is for messages.
    ///
    /// # Errors
    /// When the archive cannot be read from its start.
    pub fn read(archive: &'a mut tar::Archive<R>, shard: &str) -> Result<Self, Error> {
        let entries = archive.entries().map_err(|error| Error::new(shard, format!("is no tar file: {error}")))?;
        Ok(Self { entries, shard: shard.to_owned(), now: Partial::default(), captioned: true, ended: false })
    }

    /// The images alone: captions are not read, and those of samples are empty.
    #[must_use]
    pub fn without_captions(self) -> Self {
        Self { captioned: false, ..self }
    }

    /// Reads members until a sample is whole.
    fn advance(&mut self) -> Result<Option<Sample>, String> {
        for entry in &mut self.entries {
            let damaged = |error: std::io::Error| format!("is no whole tar file ({error}); write it again");
            let mut entry = entry.map_err(damaged)?;
            let member = classify(&entry)?;
            let key = match &member {
                Member::Other => continue,
                Member::Caption(_) if !self.captioned => continue,
                Member::Image(key) | Member::Caption(key) => key.clone(),
            };
            let mut whole = None;
            if self.now.key.as_ref() != Some(&key) {
                whole = std::mem::take(&mut self.now).finish(self.captioned);
                self.now.key = Some(key.clone());
            }
            let size = entry.size();
            match member {
                Member::Image(_) if self.now.image.is_some() => return Err(format!("sample `{key}` has two images")),
                Member::Image(_) => {
                    if size > MAX_IMAGE {
                        return Err(format!("the image of sample `{key}` has {size} bytes, at most 64 MiB are read"));
                    }
                    let mut bytes = Vec::with_capacity(size as usize);
                    entry.read_to_end(&mut bytes).map_err(damaged)?;
                    if bytes.len() as u64 != size {
                        return Err(format!("the image of sample `{key}` is cut off; write the shard again"));
                    }
                    self.now.image = Some(bytes);
                }
                _ if self.now.caption.is_some() => return Err(format!("sample `{key}` has two captions")),
                _ => self.now.caption = Some(read_caption(&mut entry, size, &key)?),
            }
            if let Some(whole) = whole {
                return whole.map(Some);
            }
        }
        self.ended = true;
        std::mem::take(&mut self.now).finish(self.captioned).transpose()
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
        let sample = |key: &str, image: &[u8], caption: &str| Ok(Sample { key: key.into(), image: image.into(), caption: caption.into() });
        assert_eq!(found, [sample("a", b"A", "one"), sample("d/b", b"B", "two")]);
    }

    #[test]
    fn images_stand_alone_where_captions_are_not_read() {
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
    fn a_problem_ends_the_reading() {
        let found = samples(&[("a.png", b"A"), ("b.png", b"B"), ("b.txt", b"two")]);
        assert_eq!(found, [Err("s.tar: sample `a` has an image and no caption".to_owned())]);
        let found = samples(&[("a.png", b"A"), ("a.txt", b"one"), ("b.txt", b"two")]);
        assert_eq!(found[1], Err("s.tar: sample `b` has a caption and no image".to_owned()));
    }
}

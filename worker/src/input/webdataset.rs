//! An iterator over the image-text pairs of a WebDataset shard.

use std::io::Read;

use lethe_shared::webdataset::{self, Archive, Damaged};

use super::error::Error;

/// One image-text pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path of the members, up to the first dot of the file name.
    pub key: String,
    /// The encoded image.
    pub image: Vec<u8>,
    /// The caption, without surrounding white space; empty when captions are not read.
    pub caption: String,
}

/// Iterates over the pairs of a shard in order, and ends after the first error.
#[allow(missing_debug_implementations)]
pub struct Samples<'a, R: Read> {
    samples: webdataset::Samples<'a, R>,
    shard: String,
    ended: bool,
}

impl<'a, R: Read> Samples<'a, R> {
    /// Reads the pairs of an archive; without `captioned`, its images. `shard` is its name for
    /// messages.
    ///
    /// # Errors
    /// When the archive has already been read in part.
    pub fn read(archive: &'a mut Archive<R>, shard: &str, captioned: bool) -> Result<Self, Error> {
        let samples =
            archive.samples(captioned).map_err(|damage| Error::new(shard, incomplete(&damage)))?;
        Ok(Self { samples, shard: shard.to_owned(), ended: false })
    }

    fn advance(&mut self) -> Result<Option<Sample>, String> {
        let Some(sample) = self.samples.advance().map_err(|damage| incomplete(&damage))? else {
            return Ok(None);
        };
        let pair = sample.pair().map_err(|problem| problem.message)?;
        let (key, caption) = (pair.key.to_owned(), pair.caption.to_owned());
        Ok(Some(Sample { key, image: pair.image.to_vec(), caption }))
    }
}

fn incomplete(damage: &Damaged) -> String {
    damage.sentence("create it again")
}

impl<R: Read> Iterator for Samples<'_, R> {
    type Item = Result<Sample, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance().map_err(|problem| Error::new(self.shard.clone(), problem));
        self.ended = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest";

    fn samples(members: &[(&str, &[u8])], captioned: bool) -> Vec<Result<Sample, String>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        let bytes = tar.into_inner().unwrap();
        // Two archives, one after another, are one shard.
        let twice = [&bytes[..], &bytes].concat();
        let mut archive = Archive::new(&twice[..]);
        let read = Samples::read(&mut archive, "s.tar", captioned).unwrap();
        read.map(|sample| sample.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn pairs_come_in_order_whichever_file_is_first() {
        let found = samples(
            &[
                ("a.png", PNG),
                ("a.txt", "\u{feff} one\n".as_bytes()),
                ("a.json", b"{}"),
                ("d/b.txt", b"two"),
                ("d/b.x.txt", b"no"),
                ("d/b.webp", PNG),
            ],
            true,
        );
        let sample = |key: &str, caption: &str| {
            Ok(Sample { key: key.into(), image: PNG.into(), caption: caption.into() })
        };
        let once = [sample("a", "one"), sample("d/b", "two")];
        assert_eq!(found, [once.clone(), once].concat());
    }

    #[test]
    fn captions_may_be_missing_when_they_are_not_read() {
        let members: [(&str, &[u8]); 4] =
            [("a.png", PNG), ("a.txt", b""), ("b.txt", b"two"), ("c.webp", PNG)];
        let keys: Vec<String> =
            samples(&members, false).into_iter().map(|sample| sample.unwrap().key).collect();
        assert_eq!(keys, ["a", "c", "a", "c"]);
    }

    #[test]
    fn an_error_ends_the_iteration() {
        let error = |found: &Result<Sample, String>| found.clone().unwrap_err();
        let found = samples(&[("a.png", PNG), ("b.png", PNG), ("b.txt", b"two")], true);
        assert_eq!(found.len(), 1);
        assert!(error(&found[0]).contains("s.tar: sample `a` has an image and no caption"));
        let found = samples(&[("a.png", PNG), ("a.txt", b"one"), ("b.txt", b"two")], true);
        assert!(error(&found[1]).contains("s.tar: sample `b` has a caption and no image"));
    }
}

//! Inspection of a WebDataset shard without decoding its images: digest, number of pairs, captions.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{BufReader, Read};
use std::path::Path;

use crate::digest::{Digest, Hasher};
use crate::manifest::Classes;
use crate::phrases::Phrases;
use crate::placeholder::placeholder;
use crate::printable::printable;
use crate::webdataset::{Archive, Damaged, Samples, Strays};

/// Most members of a shard.
const MAX_MEMBERS: u64 = 10_000_000;
/// Most problems of a shard that are named.
const MAX_PROBLEMS: usize = 20;
/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Why a shard cannot be used: its problems, each with its sample and what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// The first twenty.
    pub named: Vec<String>,
    /// Number of all.
    pub count: u64,
    /// Whether samples are unusable, and not the file: without them the shard could be used.
    pub of_samples: bool,
}

impl Problems {
    fn of_file(problem: String) -> Self {
        Self { named: vec![problem], count: 1, of_samples: false }
    }

    fn add_sample(&mut self, problem: impl FnOnce() -> String) {
        self.count += 1;
        self.of_samples = true;
        // Only sentences that are named are made: looking for a similar class takes time.
        if self.named.len() < MAX_PROBLEMS {
            self.named.push(problem());
        }
    }

    fn add_file(&mut self, problem: String) {
        self.count += 1;
        // The file's own problem comes first, and is always named.
        self.named.insert(0, problem);
        self.named.truncate(MAX_PROBLEMS);
    }
}

/// What captions are checked for.
#[derive(Debug, Clone, Copy)]
pub enum Captions<'a> {
    /// Any text.
    Any,
    /// Names of these classes.
    Classes(&'a Classes),
    /// Any text; the names that it mentions are counted.
    Naming(&'a Phrases),
    /// Nothing: images need no captions, and captions are not read.
    Ignored,
}

/// The contents of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Image-text pairs; images, where captions are ignored.
    pub pairs: u64,
    /// Pairs by class: the caption is the name of the class, or mentions it. Zero: its words occur
    /// in captions, but only inside longer names or across commas.
    pub by_class: BTreeMap<u32, u64>,
    /// Members that belong to no pair.
    pub strays: Strays,
}

/// Recognises other file formats than tar by their first bytes, of which a tar file has 512;
/// `None` when the file may be a tar file.
pub fn not_a_tar(start: &[u8]) -> Option<&'static str> {
    // A tar file begins with the name of its first member, which may be anything.
    if start.get(257..262) == Some(b"ustar") {
        return None;
    }
    match start {
        [0x1f, 0x8b, ..] => Some("is compressed with gzip; unpack it: shards are plain tar files"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some("is compressed with zstd; unpack it: shards are plain tar files")
        }
        [b'B', b'Z', b'h', _, 0x31, 0x41, 0x59, ..] => {
            Some("is compressed with bzip2; unpack it: shards are plain tar files")
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Some("is compressed with xz; unpack it: shards are plain tar files")
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => {
            Some("is compressed with lz4; unpack it: shards are plain tar files")
        }
        [b'P', b'K', 3, 4, ..] => Some("is a zip file; shards are plain tar files"),
        [b'7', b'z', 0xbc, 0xaf, ..] => Some("is a 7z file; shards are plain tar files"),
        [b'R', b'a', b'r', b'!', 0x1a, ..] => Some("is a RAR file; shards are plain tar files"),
        [b'P', b'A', b'R', b'1', ..] => {
            Some("is a Parquet file; write its rows as WebDataset shards")
        }
        _ => placeholder(start),
    }
}

/// Reads a whole shard once: hashes it, and checks that images and captions come in pairs and that
/// images are whole.
///
/// # Errors
/// [`Problems`], which name the samples.
pub fn inspect(path: &Path, captions: Captions<'_>) -> Result<ShardInfo, Problems> {
    let unreadable = |error: std::io::Error| Problems::of_file(format!("cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut reader = Hashing {
        inner: BufReader::with_capacity(1 << 20, file),
        hasher: Hasher::new(),
        bytes: 0,
        start: Vec::new(),
        tail: VecDeque::new(),
    };
    let mut scan = Scan::new(captions);
    let scanned = scan.run(&mut reader);
    if let Some(problem) = not_a_tar(&reader.start) {
        return Err(Problems::of_file(problem.to_owned()));
    }
    let mut problems = scan.problems;
    let strays = match scanned {
        Err(problem) => {
            problems.add_file(problem);
            Strays::default()
        }
        Ok(strays) => {
            // The digest covers every byte.
            std::io::copy(&mut reader, &mut std::io::sink()).map_err(unreadable)?;
            // A tar file ends with blocks of zeros. Only they are missing when a file is truncated
            // between two members.
            if reader.bytes < 1024 || reader.tail.iter().any(|&byte| byte != 0) {
                problems.add_file(
                    "is cut off: the end of the archive is missing; write it again".to_owned(),
                );
            }
            strays
        }
    };
    if problems.count > 0 {
        return Err(problems);
    }
    Ok(ShardInfo {
        digest: reader.hasher.finish(),
        bytes: reader.bytes,
        pairs: scan.pairs,
        by_class: scan.by_class,
        strays,
    })
}

/// What is found in a shard while it is read.
struct Scan<'a> {
    captions: Captions<'a>,
    pairs: u64,
    by_class: BTreeMap<u32, u64>,
    seen: HashSet<String>,
    problems: Problems,
}

impl<'a> Scan<'a> {
    fn new(captions: Captions<'a>) -> Self {
        Self {
            captions,
            pairs: 0,
            by_class: BTreeMap::new(),
            seen: HashSet::new(),
            problems: Problems::default(),
        }
    }

    /// Reads all samples. Returns the members that belong to none.
    ///
    /// # Errors
    /// A message when the file cannot be read to its end.
    fn run(&mut self, reader: &mut impl Read) -> Result<Strays, String> {
        let damaged = |error: Damaged| error.sentence("it may be cut off: write it again");
        let mut archive = Archive::new(reader);
        let captioned = !matches!(self.captions, Captions::Ignored);
        let mut samples = archive.samples(captioned).map_err(damaged)?;
        while self.next(&mut samples).map_err(damaged)? {
            if samples.members() > MAX_MEMBERS {
                return Err("has more than ten million members".to_owned());
            }
        }
        Ok(samples.strays().clone())
    }

    /// Reads one sample; `false` at the end.
    fn next(&mut self, samples: &mut Samples<'_, impl Read>) -> Result<bool, Damaged> {
        let Some(sample) = samples.advance()? else { return Ok(false) };
        if !self.seen.insert(sample.key().to_owned()) {
            self.problems.add_sample(|| format!(
                "sample `{}` appears twice; the files of a sample must be adjacent, and keys must differ",
                printable(sample.key())
            ));
            return Ok(true);
        }
        let pair = match sample.pair() {
            Ok(pair) => pair,
            Err(problem) => {
                self.problems.add_sample(|| problem.message);
                return Ok(true);
            }
        };
        match self.captions {
            Captions::Any | Captions::Ignored => {}
            Captions::Classes(classes) => match classes.find(pair.caption) {
                Some(class) => *self.by_class.entry(class).or_default() += 1,
                None => self.problems.add_sample(|| no_class(pair.key, pair.caption, classes)),
            },
            Captions::Naming(phrases) => {
                for (name, is_mention) in phrases.occurrences(pair.caption) {
                    *self.by_class.entry(name).or_default() += u64::from(is_mention);
                }
            }
        }
        self.pairs += 1;
        Ok(true)
    }
}

fn no_class(key: &str, caption: &str, classes: &Classes) -> String {
    let hint = classes
        .suggest(caption)
        .map(|known| format!("; did you mean `{}`?", printable(known)))
        .unwrap_or_default();
    format!(
        "sample `{}` has the caption `{}`, which is not a class in {}{hint}",
        printable(key),
        printable(caption),
        classes.file()
    )
}

/// A reader that hashes the bytes it passes on.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
    start: Vec<u8>,
    /// The last block.
    tail: VecDeque<u8>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        let kept = &buffer[n.saturating_sub(BLOCK)..n];
        self.tail
            .drain(..(self.tail.len() + kept.len()).saturating_sub(BLOCK).min(self.tail.len()));
        self.tail.extend(kept);
        let missing = BLOCK - self.start.len();
        self.start.extend_from_slice(&buffer[..n.min(missing)]);
        Ok(n)
    }
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

    fn look(bytes: &[u8], captions: Captions<'_>) -> Result<ShardInfo, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        std::fs::write(&path, bytes).unwrap();
        inspect(&path, captions).map_err(|problems| problems.named.join("\n"))
    }

    fn problem(members: &[(&str, &[u8])]) -> String {
        look(&shard(members), Captions::Any).unwrap_err()
    }

    #[test]
    fn counts_pairs_and_hashes_the_file() {
        let bytes = shard(&[
            ("a/1.png", PNG),
            ("a/1.txt", b"cat\n"),
            ("a/1.json", b"{}"),
            ("2.JPG", b"\xff\xd8\xff\xe0"),
            ("2.txt", b" dog "),
        ]);
        let info = look(&bytes, Captions::Any).unwrap();
        assert_eq!(
            (info.pairs, info.bytes, info.digest),
            (2, bytes.len() as u64, Digest::of(&bytes))
        );
        let classes = Classes::parse(b"cat\ndog\n", "classes.txt").unwrap();
        assert_eq!(
            look(&bytes, Captions::Classes(&classes)).unwrap().by_class,
            BTreeMap::from([(0, 1), (1, 1)])
        );
        assert_eq!(look(&shard(&[]), Captions::Any).unwrap().pairs, 0);
        let images = shard(&[
            ("a.png", PNG),
            ("b.txt", b""),
            ("b.png", PNG),
            ("c.json", b"{}"),
            ("d.txt", b"no image"),
        ]);
        assert_eq!(look(&images, Captions::Ignored).unwrap().pairs, 2);
    }

    #[test]
    fn counts_the_captions_that_name_something() {
        let pairs = |texts: &[&str]| {
            let names: Vec<[String; 2]> =
                (0..texts.len()).map(|i| [format!("{i}.png"), format!("{i}.txt")]).collect();
            let members = names.iter().zip(texts).flat_map(|([png, txt], text)| {
                [(png.as_str(), PNG), (txt.as_str(), text.as_bytes())]
            });
            shard(&members.collect::<Vec<_>>())
        };
        let phrases = Phrases::new(&["cat", "red heart", "dog"]).unwrap();
        let info = look(
            &pairs(&["a Cat, cat", "cats", "cat with a red heart"]),
            Captions::Naming(&phrases),
        )
        .unwrap();
        assert_eq!((info.pairs, info.by_class), (3, BTreeMap::from([(0, 2), (1, 1)])));
        let info = look(&pairs(&["red, heart", "Cat", "a dog"]), Captions::Naming(&phrases));
        let expected = BTreeMap::from([(0, 1), (1, 0), (2, 1)]);
        assert_eq!(info.unwrap().by_class, expected);
    }

    #[test]
    fn problems_name_the_sample() {
        let pair = [("1.png", PNG), ("1.txt", &b"cat"[..])];
        assert!(problem(&[("1.txt", b"cat")]).contains("sample `1` has a caption and no image"));
        assert!(problem(&[("1.png", PNG)]).contains("sample `1` has an image and no caption"));
        assert!(problem(&[pair[0], ("1.jpg", PNG)]).contains("two images"));
        assert!(
            problem(&[pair[0], pair[1], ("2.png", PNG), ("2.txt", b"x"), pair[0]])
                .contains("sample `1` appears twice")
        );
        assert!(problem(&[pair[0], ("1.txt", b"\xff")]).contains("not UTF-8"));
        assert!(problem(&[pair[0], ("1.txt", b" \n")]).contains("is empty"));
        assert!(problem(&[("1.png", b"GIF89a"), pair[1]]).contains("neither PNG, JPEG nor WebP"));
        assert!(problem(&[("../1.png", PNG)]).contains("upward"));
        assert!(problem(&[("/1.png", PNG)]).contains("absolute"));
        assert!(problem(&[pair[0], ("1.txt", &[b'x'; 70_000])]).contains("at most 64 KiB"));
    }

    #[test]
    fn captions_must_be_classes_where_that_is_asked() {
        let classes = Classes::parse(b"cat\ndog\n", "classes.txt").unwrap();
        let error =
            look(&shard(&[("1.png", PNG), ("1.txt", b"catt")]), Captions::Classes(&classes))
                .unwrap_err();
        assert!(
            error.contains("`catt`, which is not a class in classes.txt; did you mean `cat`?"),
            "{error}"
        );
    }

    #[test]
    fn archives_one_after_another_are_all_read() {
        let one = shard(&[("1.png", PNG), ("1.txt", b"cat")]);
        let other = shard(&[("2.png", PNG), ("2.txt", b"dog")]);
        let padded = [&one[..], &[0; 9 * 1024], &other, &[0; 4096]].concat();
        assert_eq!(look(&padded, Captions::Any).unwrap().pairs, 2);
        assert_eq!(look(&[&one[..], &other].concat(), Captions::Any).unwrap().pairs, 2);
        let cut = &[&one[..], &other[..2048]].concat();
        assert!(look(cut, Captions::Any).unwrap_err().contains("is cut off"));
        let garbage = &[&one[..], &[7; 1024]].concat();
        assert!(look(garbage, Captions::Any).unwrap_err().contains("not a complete tar file"));
    }

    #[test]
    fn members_that_belong_to_no_pair_are_counted() {
        let info = look(
            &shard(&[
                ("zoom1.5x-1.png", PNG),
                ("zoom1.5x-1.txt", b"cat"),
                ("1.png", PNG),
                ("1.txt", b"cat"),
                ("1.json", b"{}"),
                ("README", b"x"),
                ("__meta__", b"x"),
            ]),
            Captions::Any,
        )
        .unwrap();
        assert_eq!((info.pairs, info.strays.members), (1, 3));
        let sentence = info.strays.sentence().unwrap();
        assert!(sentence.contains("3 members") && sentence.contains("`zoom1.5x-1.png`"));
    }

    #[test]
    fn twenty_problems_are_named_and_all_are_counted() {
        let names: Vec<String> = (0..30).map(|number| format!("{number}.png")).collect();
        let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), PNG)).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        let mut bytes = shard(&members);
        std::fs::write(&path, &bytes).unwrap();
        let problems = inspect(&path, Captions::Any).unwrap_err();
        assert_eq!((problems.named.len(), problems.count), (20, 30));
        assert!(problems.of_samples && problems.named[19].contains("sample `19`"));
        bytes.truncate(30 * 1024);
        std::fs::write(&path, &bytes).unwrap();
        let problems = inspect(&path, Captions::Any).unwrap_err();
        assert!(problems.named.len() == 20 && problems.named[0].contains("is cut off"));
    }

    #[test]
    fn messages_show_hidden_characters_and_cut_long_captions() {
        let classes = Classes::parse(b"cat\ndog\n", "classes.txt").unwrap();
        let refused = |caption: &[u8]| {
            look(&shard(&[("1.png", PNG), ("1.txt", caption)]), Captions::Classes(&classes))
                .unwrap_err()
        };
        assert!(refused(b"\x1b]0;owned\x07").contains(r"`\u{1b}]0;owned\u{7}`"));
        assert!(refused("c\u{200b}at".as_bytes()).contains(r"`c\u{200b}at`"));
        let long = refused(&[b'x'; 60_000]);
        assert!(long.len() < 400 && long.contains("… (60000 bytes)"), "{long}");
        let marked = shard(&[("1.png", PNG), ("1.txt", "\u{feff}cat".as_bytes())]);
        assert_eq!(look(&marked, Captions::Classes(&classes)).unwrap().by_class[&0], 1);
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        let whole = shard(&[("1.png", PNG), ("1.txt", b"cat")]);
        assert!(look(&whole[..700], Captions::Any).is_err());
        assert!(look(&whole[..520], Captions::Any).unwrap_err().contains("cut off"));
        // Cut between two members.
        assert!(look(&whole[..1024], Captions::Any).unwrap_err().contains("no caption"));
        assert!(
            look(&whole[..2048], Captions::Any)
                .unwrap_err()
                .contains("the end of the archive is missing")
        );
        for (start, named) in [
            (b"\x1f\x8b\x08 and so on".as_slice(), "gzip"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\xfd7zXZ\0", "xz"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
            (b"\n<!DOCTYPE html>", "HTML page"),
        ] {
            let problem = look(start, Captions::Any).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
        // The first member's name may look like the start of another format.
        let parquet = shard(&[("PAR1.png", PNG), ("PAR1.txt", b"cat")]);
        assert_eq!(look(&parquet, Captions::Any).unwrap().pairs, 1);
        assert!(look(&[7; 2000], Captions::Any).unwrap_err().contains("not a complete tar file"));
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_path("1.png").unwrap();
        header.set_link_name("/etc/passwd").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        tar.append(&header, &b""[..]).unwrap();
        assert!(
            look(&tar.into_inner().unwrap(), Captions::Any).unwrap_err().contains("link or device")
        );
    }
}

//! Inspection of a WebDataset shard without decoding its images: digest, number of pairs, captions.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{BufReader, Read};
use std::path::Path;

use crate::digest::{Digest, Hasher};
use crate::manifest::Classes;
use crate::phrases::Phrases;

/// Largest image, bytes.
pub const MAX_IMAGE: u64 = 64 << 20;
/// Largest caption, bytes.
pub const MAX_CAPTION: u64 = 64 << 10;
/// Most members of a shard.
const MAX_MEMBERS: u64 = 10_000_000;
/// Bytes of a tar block.
const BLOCK: usize = 512;
/// Endings of images.
pub const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Why a shard cannot be used: file, member, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shard}: {problem}")]
pub struct Error {
    /// The file.
    pub shard: String,
    /// What is wrong, and what to do.
    pub problem: String,
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
}

/// One file of a shard, by WebDataset's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// An image of the sample with this key.
    Image(String),
    /// The caption of the sample with this key.
    Caption(String),
    /// Something else of that sample, or a folder.
    Other,
}

/// Classifies a member of a shard. Its key is the path up to the first dot of the file name.
///
/// # Errors
/// A sentence when it is a link or device, or its path leaves the shard.
pub fn classify<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Member, String> {
    let path = entry.path().map_err(|error| format!("a member's name cannot be read: {error}"))?;
    let name = path.to_str().ok_or("a member's name is not UTF-8")?.to_owned();
    let kind = entry.header().entry_type();
    if kind.is_dir() || kind.is_pax_global_extensions() {
        return Ok(Member::Other);
    }
    if !kind.is_file() {
        return Err(format!("member `{name}` is a link or device; a shard holds plain files"));
    }
    let parts: Vec<&str> = name.trim_start_matches("./").split('/').collect();
    if name.starts_with('/')
        || parts.iter().any(|part| part.is_empty() || *part == "..")
        || name.len() > 1024
    {
        return Err(format!(
            "member `{}` has an absolute, upward or overlong path",
            name.chars().take(100).collect::<String>()
        ));
    }
    let last = parts[parts.len() - 1];
    let Some((stem, ending)) = last.split_once('.') else { return Ok(Member::Other) };
    // `.DS_Store`, `._1.png` and similar files belong to no sample.
    if stem.is_empty() {
        return Ok(Member::Other);
    }
    let mut key = parts[..parts.len() - 1].join("/");
    if !key.is_empty() {
        key.push('/');
    }
    key.push_str(stem);
    let ending = ending.to_ascii_lowercase();
    Ok(if IMAGES.contains(&ending.as_str()) {
        Member::Image(key)
    } else if ending == "txt" {
        Member::Caption(key)
    } else {
        Member::Other
    })
}

/// Recognises other file formats than tar by their first bytes; `None` when the file may be a tar
/// file.
pub fn not_a_tar(start: &[u8]) -> Option<&'static str> {
    match start {
        [0x1f, 0x8b, ..] => Some("is compressed with gzip; unpack it: shards are plain tar files"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some("is compressed with zstd; unpack it: shards are plain tar files")
        }
        [b'P', b'K', 3, 4, ..] => Some("is a zip file; shards are plain tar files"),
        _ => None,
    }
}

/// Reads a whole shard once: hashes it, and checks that images and captions come in pairs.
///
/// # Errors
/// [`Error`] with the member's key.
pub fn inspect(path: &Path, captions: Captions<'_>) -> Result<ShardInfo, Error> {
    let wrong = |problem: String| Error { shard: path.display().to_string(), problem };
    let file =
        std::fs::File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut reader = Hashing {
        inner: BufReader::with_capacity(1 << 20, file),
        hasher: Hasher::new(),
        bytes: 0,
        start: Vec::new(),
        tail: VecDeque::new(),
    };
    let scanned = scan(&mut reader, captions);
    if let Some(problem) = not_a_tar(&reader.start) {
        return Err(wrong(problem.to_owned()));
    }
    let (pairs, by_class) = scanned.map_err(wrong)?;
    // The digest covers the bytes after the end of the archive as well.
    std::io::copy(&mut reader, &mut std::io::sink())
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    // A tar file ends with blocks of zeros. Only they are missing when a file is truncated between
    // two members.
    if reader.bytes < 1024 || reader.tail.iter().any(|&byte| byte != 0) {
        return Err(wrong(
            "is cut off: the end of the archive is missing; write it again".to_owned(),
        ));
    }
    Ok(ShardInfo { digest: reader.hasher.finish(), bytes: reader.bytes, pairs, by_class })
}

fn scan(
    reader: &mut impl Read,
    captions: Captions<'_>,
) -> Result<(u64, BTreeMap<u32, u64>), String> {
    let damaged = |error: std::io::Error| {
        format!("is not a complete tar file ({error}); it may be cut off: write it again")
    };
    let mut archive = tar::Archive::new(reader);
    let (mut pairs, mut members, mut by_class) = (0, 0u64, BTreeMap::new());
    let mut seen: HashSet<String> = HashSet::new();
    let mut now: Option<Sample> = None;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        members += 1;
        if members > MAX_MEMBERS {
            return Err("has more than ten million members".to_owned());
        }
        let size = entry.size();
        let (key, is_image) = match classify(&entry)? {
            Member::Other => continue,
            Member::Image(key) => (key, true),
            Member::Caption(_) if matches!(captions, Captions::Ignored) => continue,
            Member::Caption(key) => (key, false),
        };
        if now.as_ref().is_none_or(|sample| sample.key != key) {
            pairs += finish(now.take(), captions)?;
            if !seen.insert(key.clone()) {
                return Err(format!(
                    "sample `{key}` appears twice; the files of a sample must be adjacent"
                ));
            }
            now = Some(Sample { key: key.clone(), image: false, caption: false });
        }
        let Some(sample) = now.as_mut() else { continue };
        if is_image {
            if std::mem::replace(&mut sample.image, true) {
                return Err(format!("sample `{key}` has two images"));
            }
            if size > MAX_IMAGE {
                return Err(format!(
                    "the image of sample `{key}` has {size} bytes, at most 64 MiB are read"
                ));
            }
            let mut start = [0; 12];
            let n = read_up_to(&mut entry, &mut start).map_err(damaged)?;
            if image_ending(&start[..n]).is_none() {
                return Err(format!("the image of sample `{key}` is neither PNG, JPEG nor WebP"));
            }
        } else {
            if std::mem::replace(&mut sample.caption, true) {
                return Err(format!("sample `{key}` has two captions"));
            }
            let caption = read_caption(&mut entry, size, &key)?;
            match captions {
                Captions::Any | Captions::Ignored => {}
                Captions::Classes(classes) => {
                    let class = classes.find(&caption).ok_or_else(|| {
                        let hint = classes.suggest(&caption).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default();
                        format!("sample `{key}` has the caption `{caption}`, which is not a class in {}{hint}", classes.file())
                    })?;
                    *by_class.entry(class).or_default() += 1;
                }
                Captions::Naming(phrases) => {
                    for (name, is_mention) in phrases.occurrences(&caption) {
                        *by_class.entry(name).or_default() += u64::from(is_mention);
                    }
                }
            }
        }
        // Reading to the end detects a truncated member.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(damaged)?;
    }
    pairs += finish(now, captions)?;
    Ok((pairs, by_class))
}

struct Sample {
    key: String,
    image: bool,
    caption: bool,
}

fn finish(sample: Option<Sample>, captions: Captions<'_>) -> Result<u64, String> {
    match sample {
        Some(_) if matches!(captions, Captions::Ignored) => Ok(1),
        None => Ok(0),
        Some(Sample { key, image: false, .. }) => {
            Err(format!("sample `{key}` has a caption and no image"))
        }
        Some(Sample { key, caption: false, .. }) => {
            Err(format!("sample `{key}` has an image and no caption ({key}.txt)"))
        }
        Some(_) => Ok(1),
    }
}

/// Reads a caption: non-empty UTF-8 text; surrounding white space is removed.
///
/// # Errors
/// A sentence that names the key.
pub fn read_caption(entry: &mut impl Read, size: u64, key: &str) -> Result<String, String> {
    if size > MAX_CAPTION {
        return Err(format!(
            "the caption of sample `{key}` has {size} bytes, at most 64 KiB are read"
        ));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    entry
        .take(MAX_CAPTION)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("the caption of sample `{key}` cannot be read: {error}"))?;
    if bytes.len() as u64 != size {
        return Err(format!("the caption of sample `{key}` is cut off; write the shard again"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("the caption of sample `{key}` is not UTF-8 text"))?;
    let text = text.trim();
    if text.is_empty() {
        Err(format!("the caption of sample `{key}` is empty"))
    } else {
        Ok(text.to_owned())
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Returns the file extension of an image by its first twelve bytes; `None` when it is neither PNG,
/// JPEG nor WebP.
pub fn image_ending(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("png"),
        [0xff, 0xd8, 0xff, ..] => Some("jpg"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("webp"),
        _ => None,
    }
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
        if self.start.len() < 8 {
            self.start.extend_from_slice(&buffer[..n.min(8)]);
        }
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
        inspect(&path, captions).map_err(|error| error.problem)
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
        assert!(look(b"\x1f\x8b\x08 and so on", Captions::Any).unwrap_err().contains("gzip"));
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

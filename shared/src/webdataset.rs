//! Samples of a WebDataset shard, read as a stream, by the rules of the `webdataset` package.
//!
//! A member belongs to the sample whose key is the member's path up to the first dot of its file
//! name; the rest of the name, in lower case, is its extension. The files of a sample are adjacent.
//! `zoom1.5x-3.png` has the key `zoom1` and the extension `5x-3.png`, which is no image.
//!
//! In contrast to the package, archives behind the end of the first one are read as well
//! (`cat a.tar b.tar > both.tar`).

mod bounded;

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

pub use self::bounded::MAX_EXTENSION;
use self::bounded::{Bounded, ContentsEnd};
use crate::image_file;
use crate::printable::{is_hidden, printable};
use crate::words::trimmed;

/// Largest image, bytes.
pub const MAX_IMAGE: u64 = 64 << 20;
/// Largest caption, bytes.
pub const MAX_CAPTION: u64 = 64 << 10;
/// Extensions of images.
pub const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Longest path of a member, bytes.
const MAX_PATH: usize = 1024;
/// Other members of a sample that are remembered for messages.
const MAX_OTHERS: usize = 3;

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
    /// The image is neither PNG, JPEG nor WebP, or it is damaged or has too many pixels.
    BadImage,
    /// The image is larger than 64 MiB.
    LargeImage,
    /// The caption is empty, not UTF-8, or larger than 64 KiB.
    BadCaption,
}

/// Why a sample is not a pair: the reason, and a sentence that names the sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The reason.
    pub reason: Unusable,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    fn new(reason: Unusable, message: String) -> Self {
        Self { reason, message }
    }
}

/// The shard is not a complete tar file, or has a record that is too large to be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Offset of the first invalid byte.
    pub at: u64,
    /// Description of the defect.
    pub problem: String,
    /// Whether a record is larger than is read; the file may be whole.
    pub oversized: bool,
}

impl Damaged {
    /// Returns a sentence about the shard; `advice` says what to do about an incomplete file.
    pub fn sentence(&self, advice: &str) -> String {
        if self.oversized {
            return self.to_string();
        }
        format!("is not a complete tar file ({} at byte {}); {advice}", self.problem, self.at)
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.oversized { "cannot be read" } else { "is damaged" };
        write!(f, "{what} at byte {}: {}", self.at, self.problem)
    }
}

impl std::error::Error for Damaged {}

/// An image and its caption, valid until the next sample is read.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Its key in the shard.
    pub key: &'a str,
    /// The caption, without surrounding white space; empty when captions are not read.
    pub caption: &'a str,
    /// The image in its stored format.
    pub image: &'a [u8],
    /// File extension of the image's format.
    pub extension: &'static str,
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

/// The files of one sample. Its memory is reused for the next one.
#[derive(Default)]
#[allow(missing_debug_implementations)]
pub struct Sample {
    key: String,
    image: Content,
    caption: Content,
    has_image: bool,
    has_caption: bool,
    captioned: bool,
    /// Names of the first other files, for messages.
    others: Vec<String>,
    /// Other files that end like an image or a caption: `img.1.png` of the sample `img`.
    dotted: Strays,
    members: u64,
    problem: Option<Problem>,
}

impl Sample {
    /// Returns its key; for a member that belongs to no sample, its path.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the pair that the sample holds. The image is whole, as far as its headers tell, and
    /// not decoded.
    ///
    /// # Errors
    /// [`Problem`] when the sample is no pair.
    pub fn pair(&self) -> Result<Pair<'_>, Problem> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        let key = printable(&self.key);
        let no = |reason, message| Err(Problem::new(reason, message));
        if !self.has_image {
            let message = format!("sample `{key}` has a caption and no image{}", self.found());
            return no(Unusable::NoImage, message);
        }
        if !self.has_caption && self.captioned {
            let message =
                format!("sample `{key}` has an image and no caption ({key}.txt){}", self.found());
            return no(Unusable::NoCaption, message);
        }
        let image = self.image.bytes();
        if let Err(problem) = image_file::check(image) {
            return no(Unusable::BadImage, format!("the image of sample `{key}` {problem}"));
        }
        let caption = if self.captioned { caption(self.caption.bytes()) } else { Ok("") };
        let extension = image_file::Format::of(image).map_or("", image_file::Format::extension);
        match caption {
            Ok(caption) => Ok(Pair { key: &self.key, caption, image, extension }),
            Err(problem) => {
                no(Unusable::BadCaption, format!("the caption of sample `{key}` {problem}"))
            }
        }
    }

    fn begin(&mut self, key: String, captioned: bool) {
        self.key = key;
        self.captioned = captioned;
        (self.has_image, self.has_caption, self.members, self.problem) = (false, false, 0, None);
        self.others.clear();
        self.dotted = Strays::default();
    }

    /// Whether it has neither image nor caption: its members belong to no pair.
    fn is_empty(&self) -> bool {
        !(self.has_image || self.has_caption && self.captioned)
    }

    /// Names the other files of the sample, for a message that something is missing.
    fn found(&self) -> String {
        if self.others.is_empty() {
            "; the files of a sample must be adjacent".to_owned()
        } else {
            let names: Vec<String> = self.others.iter().map(|name| format!("`{name}`")).collect();
            let what = if self.has_image {
                "captions are read from .txt files"
            } else {
                "images are read from .jpg, .jpeg, .png and .webp files"
            };
            format!("; it has {}, but {what}", names.join(", "))
        }
    }

    fn refuse(&mut self, reason: Unusable, message: String) {
        self.problem.get_or_insert_with(|| Problem::new(reason, message));
    }
}

/// What a member is in its sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Image,
    Caption,
    Other,
}

/// Where a member belongs.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere, and nobody would expect otherwise: a folder, or metadata of the shard.
    Ignored,
    /// To no sample.
    Stray,
    /// To the sample with this key.
    In(String, Field),
}

/// Members that belong to no sample, or to one with neither image nor caption.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strays {
    /// Their number.
    pub members: u64,
    /// The path of the first one, printable; empty when there is none.
    pub example: String,
}

impl Strays {
    fn add(&mut self, members: u64, example: &str) {
        if self.members == 0 && members > 0 {
            self.example = printable(example);
        }
        self.members += members;
    }

    /// Returns a sentence about them; `None` when there are none.
    pub fn sentence(&self) -> Option<String> {
        (self.members > 0).then(|| {
            format!(
                "{} members belong to no image-text pair and are not read, such as `{}`; the key of a \
                 sample is its path up to the first dot of the file name, and the rest must be .txt, \
                 .jpg, .jpeg, .png or .webp",
                self.members, self.example
            )
        })
    }
}

/// A tar file, or several one after another.
#[allow(missing_debug_implementations)]
pub struct Archive<R: Read> {
    tar: tar::Archive<Bounded<R>>,
    contents_end: ContentsEnd,
}

impl<R: Read> Archive<R> {
    /// Creates the archive of a reader.
    pub fn new(reader: R) -> Self {
        let contents_end = ContentsEnd::default();
        let mut tar = tar::Archive::new(Bounded::new(reader, contents_end.clone()));
        // Reads on after the end of an archive: another one may follow.
        tar.set_ignore_zeros(true);
        Self { tar, contents_end }
    }

    /// Returns the samples in order. Without `captioned`, captions are neither required nor read.
    ///
    /// # Errors
    /// When the archive has already been read in part.
    pub fn samples(&mut self, captioned: bool) -> Result<Samples<'_, R>, Damaged> {
        let entries = self.tar.entries().map_err(|error| damaged(0, &error))?;
        Ok(Samples {
            entries,
            contents_end: self.contents_end.clone(),
            captioned,
            current: Sample::default(),
            complete: Sample::default(),
            end: 0,
            members: 0,
            strays: Strays::default(),
            first_member: String::new(),
            ended: false,
        })
    }
}

/// Reads the samples of a shard one by one, and holds two of them in memory.
#[allow(missing_debug_implementations)]
pub struct Samples<'a, R: Read> {
    entries: tar::Entries<'a, Bounded<R>>,
    contents_end: ContentsEnd,
    captioned: bool,
    /// The sample that is being read.
    current: Sample,
    /// The sample that was returned last.
    complete: Sample,
    end: u64,
    members: u64,
    strays: Strays,
    /// Path of the first member of the current sample.
    first_member: String,
    ended: bool,
}

impl<R: Read> Samples<'_, R> {
    /// Returns the next sample; `None` at the end of the shard.
    ///
    /// # Errors
    /// [`Damaged`] when the archive is invalid or cannot be read; only the caller's reader can
    /// distinguish the two.
    pub fn advance(&mut self) -> Result<Option<&Sample>, Damaged> {
        if self.ended {
            return Ok(None);
        }
        while let Some(entry) = self.entries.next() {
            let mut entry = entry.map_err(|error| damaged(self.end, &error))?;
            let (body, size) = (entry.raw_file_position(), entry.size());
            self.end = body.saturating_add(size).div_ceil(512).saturating_mul(512);
            // A sparse file announces more than it stores.
            let is_stored_whole = !entry.header().entry_type().is_gnu_sparse();
            self.contents_end.set(if is_stored_whole { self.end } else { 0 });
            self.members += 1;
            let path = path_of(&entry);
            let place = match is_sparse(&mut entry) {
                true => Err("a member is a sparse file; create the shard without --sparse".into()),
                false => place_of(path.as_deref(), entry.header().entry_type()),
            };
            let (key, field) = match place {
                Ok(Place::Ignored) => continue,
                Ok(Place::Stray) => {
                    self.strays.add(1, path.as_deref().unwrap_or_default());
                    continue;
                }
                Ok(Place::In(key, field)) => (key, field),
                Err(problem) => {
                    let path = entry.path_bytes().escape_ascii().to_string();
                    self.complete.begin(path, self.captioned);
                    self.complete.refuse(Unusable::BadName, problem);
                    return Ok(Some(&self.complete));
                }
            };
            let path = path.unwrap_or_default();
            let mut finished = false;
            if key != self.current.key || self.current.members == 0 {
                finished = self.finish();
                self.current.begin(key, self.captioned);
                self.first_member.clone_from(&path);
            }
            self.current.members += 1;
            add(&mut self.current, &mut entry, field, &path)?;
            if finished {
                return Ok(Some(&self.complete));
            }
        }
        self.ended = true;
        Ok(if self.finish() { Some(&self.complete) } else { None })
    }

    /// Returns the position behind the last member that was read, in bytes.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Returns the number of members that were read.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// Returns the members read so far that belong to no pair.
    pub fn strays(&self) -> &Strays {
        &self.strays
    }

    /// Completes the current sample, if it has an image or a caption.
    fn finish(&mut self) -> bool {
        let is_sample = !self.current.is_empty();
        if is_sample {
            let Strays { members, example } = &self.current.dotted;
            self.strays.add(*members, example);
            std::mem::swap(&mut self.current, &mut self.complete);
        } else {
            self.strays.add(self.current.members, &self.first_member);
        }
        self.current.members = 0;
        is_sample
    }
}

/// Returns whether a path ends like the files of a pair, whatever stands before its last dot.
fn ends_like_a_pair(path: &str) -> bool {
    let end = path.rsplit_once('.').map_or("", |(_, end)| end);
    ["txt", "jpg", "jpeg", "png", "webp"].iter().any(|known| end.eq_ignore_ascii_case(known))
}

/// Adds a member to its sample.
fn add(
    sample: &mut Sample,
    entry: &mut tar::Entry<'_, impl Read>,
    field: Field,
    path: &str,
) -> Result<(), Damaged> {
    let (body, size) = (entry.raw_file_position(), entry.size());
    let key = printable(&sample.key);
    let (there, content, most, twice, too_large) = match field {
        Field::Image => (
            &mut sample.has_image,
            &mut sample.image,
            MAX_IMAGE,
            format!("sample `{key}` has two images"),
            (Unusable::LargeImage, "image", "64 MiB"),
        ),
        Field::Caption if sample.captioned => (
            &mut sample.has_caption,
            &mut sample.caption,
            MAX_CAPTION,
            format!("sample `{key}` has two captions"),
            (Unusable::BadCaption, "caption", "64 KiB"),
        ),
        _ => {
            if sample.others.len() < MAX_OTHERS {
                sample.others.push(printable(path));
            }
            if field == Field::Other && ends_like_a_pair(path) {
                sample.dotted.add(1, path);
            }
            return Ok(());
        }
    };
    if std::mem::replace(there, true) {
        sample.refuse(Unusable::Twice, twice);
    } else if size > most {
        let (reason, what, bound) = too_large;
        sample.refuse(
            reason,
            format!("the {what} of sample `{key}` has {size} bytes, at most {bound} are read"),
        );
    } else {
        // At most 64 MiB.
        content.fill(&mut *entry, size as usize).map_err(|error| damaged(body, &error))?;
        if content.size as u64 != size {
            return Err(Damaged {
                at: body + content.size as u64,
                problem: format!("`{}` is cut off", printable(path)),
                oversized: false,
            });
        }
    }
    Ok(())
}

fn damaged(at: u64, error: &io::Error) -> Damaged {
    let oversized = error.kind() == io::ErrorKind::FileTooLarge;
    let problem = error.to_string();
    // `Bounded` has escaped what it quotes.
    let problem = if oversized { problem } else { printable(&problem) };
    Damaged { at, problem, oversized }
}

/// Returns the path of a member; `None` when it is not UTF-8.
fn path_of<R: Read>(entry: &tar::Entry<'_, R>) -> Option<String> {
    std::str::from_utf8(&entry.path_bytes()).ok().map(str::to_owned)
}

/// Returns whether a member is stored without its zeros, in one of the forms of pax archives.
fn is_sparse<R: Read>(entry: &mut tar::Entry<'_, R>) -> bool {
    let Ok(Some(fields)) = entry.pax_extensions() else { return false };
    fields.flatten().any(|field| field.key_bytes().starts_with(b"GNU.sparse."))
}

/// Returns where a member belongs.
///
/// # Errors
/// A sentence when it is a link or device, or its path leaves the shard.
fn place_of(path: Option<&str>, kind: tar::EntryType) -> Result<Place, String> {
    if kind.is_dir() || kind.is_pax_global_extensions() {
        return Ok(Place::Ignored);
    }
    let path = path.ok_or("a member's name is not UTF-8")?;
    if !kind.is_file() && !kind.is_contiguous() {
        return Err(format!(
            "member `{}` is a link or device; a shard holds plain files",
            printable(path)
        ));
    }
    let parts: Vec<&str> = path.trim_start_matches("./").split('/').collect();
    if path.starts_with('/')
        || parts.iter().any(|part| part.is_empty() || *part == "..")
        || path.len() > MAX_PATH
    {
        return Err(format!(
            "member `{}` has an absolute, upward or overlong path",
            printable(path)
        ));
    }
    let last = parts[parts.len() - 1];
    let is_meta = |name: &str| name.starts_with("__") && name.ends_with("__");
    let is_meta_folder = parts.len() > 1 && parts[0].len() >= 4 && is_meta(parts[0]);
    if (parts.len() == 1 && is_meta(last)) || (is_meta_folder && path.starts_with("__")) {
        return Ok(Place::Ignored);
    }
    // `.DS_Store`, `._1.png` and similar files belong to no sample.
    let Some((stem, extension)) = last.split_once('.').filter(|(stem, _)| !stem.is_empty()) else {
        return Ok(Place::Stray);
    };
    let mut key = parts[..parts.len() - 1].join("/");
    if !key.is_empty() {
        key.push('/');
    }
    key.push_str(stem);
    let extension = extension.to_ascii_lowercase();
    let field = if IMAGES.contains(&extension.as_str()) {
        Field::Image
    } else if extension == "txt" {
        Field::Caption
    } else {
        Field::Other
    };
    Ok(Place::In(key, field))
}

/// Returns the text of a caption: UTF-8 without a byte-order mark and surrounding white space.
///
/// # Errors
/// A message that completes a sentence about the caption.
pub fn caption(bytes: &[u8]) -> Result<&str, String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
        return Err("is UTF-16 text; save it as UTF-8".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    if text.contains('\0') {
        return Err("holds U+0000: it may be UTF-16 text; save it as UTF-8".to_owned());
    }
    let text = trimmed(text);
    if text.is_empty() {
        Err("is empty".to_owned())
    } else if text.chars().all(|letter| letter.is_whitespace() || is_hidden(letter)) {
        Err(format!("holds only invisible characters (`{}`)", printable(text)))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests;

//! Output of a curation, written from records and spooled pairs. The bytes do not depend on the
//! order in which shards were read.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use lethe_shared::digest::{Digest, Hasher};
use lethe_shared::manifest::is_id;
use lethe_store::Source;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::sample::{Limits, Priority, Selection};
use super::tally::Tally;
use super::work::{Pairs, Place, Work, local};
use crate::failure::Failure;

/// Largest number of pairs in a retain or validation shard: full batches for all usual batch sizes.
const SHARD_PAIRS: usize = 2048;
/// Largest size of the images in a retain or validation shard, bytes, unless a single image is
/// larger.
const SHARD_BYTES: u64 = 1 << 30;

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its path in the output folder.
    pub name: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// SHA-256.
    pub digest: Digest,
}

/// The selected pairs, and their locations.
#[derive(Debug)]
pub struct Selected<'a> {
    sources: &'a [Source],
    selection: Selection,
    /// Pairs that went to the retain set instead of the validation set.
    pub moved: usize,
    found: HashMap<Priority, Copies>,
}

/// The copies of one pair.
#[derive(Debug, Default)]
struct Copies {
    /// Its bytes: the index of the shard, and the place in that shard's spool.
    bytes: Option<(usize, Place)>,
    /// The first copy in the order of shard addresses: index of the shard, and key.
    first: Option<(usize, String)>,
}

impl<'a> Selected<'a> {
    /// Reads the selection and the counts from the records. `sources` are sorted and have records.
    ///
    /// # Errors
    /// [`Failure`] when a record is missing.
    pub fn read(
        work: &Work,
        sources: &'a [Source],
        concepts: usize,
        limits: Limits,
    ) -> Result<(Self, Tally), Failure> {
        let record = |source: &Source| {
            let gone = || {
                Failure::Infrastructure(format!(
                    "{}: its record is gone; run again",
                    source.address
                ))
            };
            work.record(source)?.ok_or_else(gone)
        };
        let (mut selection, mut tally) = (Selection::new(concepts, limits), Tally::default());
        for source in sources {
            let record = record(source)?;
            tally.add(&record.tally);
            for entry in record.entries.iter().filter(|entry| entry.bytes.is_some()) {
                selection.offer(entry.priority, &entry.concepts, entry.class);
            }
        }
        let moved = selection.limit_validation();
        let forget = (0..concepts).flat_map(|concept| selection.forget(concept));
        let rest = selection
            .retain()
            .chain(selection.validation().into_iter().map(|(priority, _)| priority))
            .collect::<Vec<_>>();
        let mut found: HashMap<Priority, Copies> =
            forget.chain(rest).map(|priority| (priority, Copies::default())).collect();
        for (position, source) in sources.iter().enumerate() {
            for entry in record(source)?.entries {
                let Some(copies) = found.get_mut(&entry.priority) else { continue };
                copies.first.get_or_insert((position, entry.key));
                if copies.bytes.is_none() {
                    copies.bytes = entry.bytes.map(|place| (position, place));
                }
            }
        }
        Ok((Self { sources, selection, moved, found }, tally))
    }

    /// Returns the number of pairs selected for a concept.
    pub fn taken(&self, concept: usize) -> usize {
        self.selection.forget(concept).len()
    }
}

/// Writes files into a folder, each under a temporary name first.
#[derive(Debug)]
pub struct Output<'a> {
    work: &'a Work,
    into: &'a Path,
    files: Vec<Written>,
    /// Rows of `pairs.csv`: the origin of each pair of each set.
    origins: csv::Writer<Vec<u8>>,
    /// Open spools by shard, at most [`OPEN`].
    open: HashMap<usize, Pairs>,
}

/// Largest number of open spools.
const OPEN: usize = 128;

impl<'a> Output<'a> {
    /// Creates a writer without files.
    pub fn new(work: &'a Work, into: &'a Path) -> Self {
        let mut origins = csv::Writer::from_writer(Vec::new());
        // Writing to memory cannot fail.
        let _ = origins.write_record(["set", "pair", "shard", "sample"]);
        Self { work, into, files: Vec::new(), origins, open: HashMap::new() }
    }

    /// Returns the files written so far.
    pub fn files(self) -> Vec<Written> {
        self.files
    }

    /// Writes one complete file.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be written.
    pub fn file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let (path, staged) = (self.into.join(name), self.work.staged("output"));
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let mut file = Hashed {
                inner: BufWriter::with_capacity(1 << 18, File::create(&staged)?),
                hasher: Hasher::new(),
                bytes: 0,
            };
            fill(&mut file)?;
            file.inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&staged, &path)?;
            Ok((file.bytes, file.hasher.finish()))
        };
        let (bytes, digest) = write().map_err(|error: io::Error| local(&path, error))?;
        self.files.push(Written { name: name.to_owned(), bytes, digest });
        Ok(())
    }

    /// Writes a concept's forget shard.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be written.
    pub fn forget(
        &mut self,
        selected: &Selected<'_>,
        id: &str,
        concept: usize,
    ) -> Result<(), Failure> {
        let pairs: Vec<_> =
            selected.selection.forget(concept).map(|priority| (priority, None)).collect();
        self.shard(selected, &format!("forget/{id}"), &pairs, u64::MAX).map(drop)
    }

    /// Writes the retain shards. Returns the number of pairs, and of shards.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when a file cannot be written.
    pub fn retain(&mut self, selected: &Selected<'_>) -> Result<(usize, usize), Failure> {
        let pairs: Vec<_> = selected.selection.retain().map(|priority| (priority, None)).collect();
        Ok((pairs.len(), self.shards(selected, "retain", &pairs)?))
    }

    /// Writes the validation shards with class names as captions. Returns the number of pairs, and
    /// of shards.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when a file cannot be written.
    pub fn validation(
        &mut self,
        selected: &Selected<'_>,
        names: &Names,
    ) -> Result<(usize, usize), Failure> {
        let pairs: Vec<_> = selected.selection.validation();
        let pairs: Vec<_> = pairs
            .iter()
            .map(|&(priority, class)| {
                (priority, Some(names.classes.names()[class as usize].as_str()))
            })
            .collect();
        Ok((pairs.len(), self.shards(selected, "validation", &pairs)?))
    }

    fn shards(
        &mut self,
        selected: &Selected<'_>,
        set: &str,
        mut pairs: &[(Priority, Option<&str>)],
    ) -> Result<usize, Failure> {
        let mut number = 0;
        while !pairs.is_empty() {
            let written = self.shard(
                selected,
                &format!("{set}-{number:05}"),
                &pairs[..pairs.len().min(SHARD_PAIRS)],
                SHARD_BYTES,
            )?;
            pairs = &pairs[written..];
            number += 1;
        }
        Ok(number)
    }

    /// Writes pairs into a shard until it has `most` bytes, and returns their number. A caption
    /// given with a pair replaces the pair's own.
    fn shard(
        &mut self,
        selected: &Selected<'_>,
        name: &str,
        pairs: &[(Priority, Option<&str>)],
        most: u64,
    ) -> Result<usize, Failure> {
        let staged = self.work.staged("shard");
        let begin = |error| local(&staged, error);
        let mut tar = tar::Builder::new(Hashed {
            inner: BufWriter::with_capacity(1 << 18, File::create(&staged).map_err(begin)?),
            hasher: Hasher::new(),
            bytes: 0,
        });
        let mut written = 0;
        for (priority, label) in pairs {
            let lost = || {
                Failure::Infrastructure(format!("pair {priority}: its record is gone; run again"))
            };
            let copies = selected.found.get(priority).ok_or_else(lost)?;
            let ((position, place), (first, key)) =
                copies.bytes.as_ref().zip(copies.first.as_ref()).ok_or_else(lost)?;
            if written > 0 && tar.get_ref().bytes + u64::from(place.image) > most {
                break;
            }
            let (caption, image) = self.pairs(selected, *position)?.get(place)?;
            let caption = label.unwrap_or(&caption);
            add(&mut tar, &format!("{priority}.{}", place.ending), &image).map_err(begin)?;
            add(&mut tar, &format!("{priority}.txt"), caption.as_bytes()).map_err(begin)?;
            let row =
                [name, &priority.to_string(), &selected.sources[*first].address.to_string(), key];
            self.origins
                .write_record(row)
                .map_err(|error| Failure::Infrastructure(error.to_string()))?;
            written += 1;
        }
        let path = self.into.join(format!("{name}.tar"));
        let end = || {
            let file = tar.into_inner()?;
            file.inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::rename(&staged, &path)?;
            Ok((file.bytes, file.hasher.finish()))
        };
        let (bytes, digest) = end().map_err(|error: io::Error| local(&path, error))?;
        self.files.push(Written { name: format!("{name}.tar"), bytes, digest });
        Ok(written)
    }

    fn pairs(&mut self, selected: &Selected<'_>, position: usize) -> Result<&mut Pairs, Failure> {
        if self.open.len() >= OPEN && !self.open.contains_key(&position) {
            self.open.clear();
        }
        match self.open.entry(position) {
            std::collections::hash_map::Entry::Occupied(open) => Ok(open.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                Ok(free.insert(self.work.pairs(&selected.sources[position].address)?))
            }
        }
    }

    /// Writes `pairs.csv`, the origin of each pair.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be written.
    pub fn origins(&mut self) -> Result<(), Failure> {
        let origins = std::mem::replace(&mut self.origins, csv::Writer::from_writer(Vec::new()));
        let bytes =
            origins.into_inner().map_err(|error| Failure::Infrastructure(error.to_string()))?;
        self.file("pairs.csv", |file| file.write_all(&bytes))
    }

    /// Writes a table.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be written.
    pub fn table<const N: usize>(
        &mut self,
        name: &str,
        header: [&str; N],
        rows: impl Iterator<Item = [String; N]>,
    ) -> Result<(), Failure> {
        self.file(name, |file| {
            let mut table = csv::Writer::from_writer(file);
            table.write_record(header)?;
            for row in rows {
                table.write_record(&row)?;
            }
            table.flush()
        })
    }
}

fn add(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

/// A writer that counts and hashes its bytes.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns the initial manifest, complete except for the model.
pub fn manifest(into: &Path, has_validation: bool) -> String {
    let name = into
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| is_id(name))
        .unwrap_or("curated");
    let mut text = format!(
        "# Fill in the model; then `lethe plan` checks everything, and `lethe run` removes the concepts.\nversion = 1\nname = \"{name}\"\n\n\
         [model]\nuri = \"\"                           # folder of a CLIP or SigLIP as transformers or open_clip writes it\n\n\
         [data]\nretain = [\"retain-*.tar\"]\n"
    );
    if has_validation {
        text += "validation = [\"validation-*.tar\"]\n";
    }
    let _ = write!(text, "classes = \"classes.txt\"\n\n[concepts]\ntable = \"concepts.csv\"\n");
    text
}

/// Returns the first file that is missing or has another size than when it was written.
pub fn missing(into: &Path, files: &[Written]) -> Option<PathBuf> {
    let there = |file: &Written| {
        std::fs::metadata(into.join(&file.name)).is_ok_and(|metadata| metadata.len() == file.bytes)
    };
    files.iter().find(|file| !there(file)).map(|file| into.join(&file.name))
}

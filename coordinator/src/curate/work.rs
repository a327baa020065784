//! State on disk: for each shard that was read to its end, a record of its contents and the pairs
//! of it that may be selected.
//!
//! `OUT/.curating/` contains `job.json` (the input), `<shard>.json` and `<shard>.pairs`. A record
//! is written after its pairs and renamed into place, so that a shard has a complete record or
//! none. A shard without a record is read again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_store::Source;
use serde::{Deserialize, Serialize};

use super::pairs::Pair;
use super::sample::Priority;
use super::tally::Tally;
use crate::failure::Failure;

/// Name of the folder.
const FOLDER: &str = ".curating";

/// A pair that may be selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its priority.
    pub priority: Priority,
    /// Its key in the shard.
    pub key: String,
    /// The place of its bytes; `None` if a shard that was finished before has the same pair.
    pub bytes: Option<Place>,
    /// The concepts it mentions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concepts: Vec<u32>,
    /// The class, if the caption names exactly one and no concept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u32>,
}

/// The place of a pair's bytes in a spool: the caption, then the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Offset of the caption, bytes.
    pub at: u64,
    /// Length of the caption, bytes.
    pub caption: u32,
    /// Length of the image, bytes.
    pub image: u32,
    /// File extension of the image.
    pub ending: String,
}

impl Place {
    fn end(&self) -> Option<u64> {
        self.at.checked_add(u64::from(self.caption) + u64::from(self.image))
    }
}

/// The contents of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shard as it was when it was read.
    pub source: Source,
    /// Its counts.
    pub tally: Tally,
    /// Pairs that may be selected, in the shard's order.
    pub entries: Vec<Entry>,
}

/// The locked working folder.
#[derive(Debug)]
pub struct Work {
    folder: PathBuf,
    /// Numbers of concepts and classes.
    bounds: (usize, usize),
    _lock: File,
}

/// Returns the failure for a file on this machine.
pub fn local(path: &Path, error: io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull => Failure::Infrastructure(format!(
            "{shown}: no space left on the device; free some and run again, what is finished stays"
        )),
        _ => Failure::Infrastructure(format!("{shown}: {error}")),
    }
}

impl Work {
    /// Opens the working folder in `into`, or creates it. `job` is the digest of all inputs that
    /// are the same for every shard, `bounds` are the numbers of concepts and classes.
    ///
    /// # Errors
    /// [`Failure`] when the folder belongs to another job, holds other files, or is locked by
    /// another process.
    pub fn open(into: &Path, job: Digest, bounds: (usize, usize)) -> Result<Self, Failure> {
        let folder = into.join(FOLDER);
        let failed = |error| local(&folder, error);
        if !folder.try_exists().map_err(failed)? {
            let mut there = match std::fs::read_dir(into) {
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::fs::create_dir_all(into).map_err(failed)?;
                    std::fs::read_dir(into).map_err(failed)?
                }
                Err(error) => {
                    return Err(Failure::input(format!("--into {}: {error}", into.display())));
                }
            };
            if there.next().is_some() {
                let problem = "is not empty, and nothing was curated into it; give a new folder";
                return Err(Failure::input(format!("--into {}: {problem}", into.display())));
            }
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Failure::input(format!(
                    "--into {}: another process curates into it; wait for it",
                    into.display()
                )));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let work = Self { folder, bounds, _lock: lock };
        let known = work.folder.join("job.json");
        match std::fs::read(&known) {
            Ok(bytes)
                if serde_json::from_slice::<Digest>(&bytes).is_ok_and(|there| there == job) => {}
            Ok(_) => {
                let problem = "was begun with another table, other classes, limits or another seed; go on with these, or remove it and begin anew";
                return Err(Failure::input(format!("--into {}: {problem}", into.display())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                work.write_whole("job.json", &job)?
            }
            Err(error) => return Err(local(&known, error)),
        }
        Ok(work)
    }

    fn path(&self, address: &Address, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", Digest::of(address.to_string().as_bytes())))
    }

    fn write_whole<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Failure> {
        let (path, staged) = (self.folder.join(name), self.folder.join(format!("{name}.part")));
        let write = || {
            let mut file = BufWriter::new(File::create(&staged)?);
            serde_json::to_writer(&mut file, value)?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            std::fs::rename(&staged, &path)
        };
        write().map_err(|error| local(&path, error))
    }

    /// Returns a temporary path for a file that is not complete yet.
    pub fn staged(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.part"))
    }

    /// Returns the record of a shard that was read to its end. An incomplete record, or one with
    /// incomplete pairs, counts as none.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the shard has changed since: the selection from other shards may
    /// depend on it.
    pub fn record(&self, source: &Source) -> Result<Option<Record>, Failure> {
        let path = self.path(&source.address, "json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(local(&path, error)),
        };
        let Ok(record) = serde_json::from_reader::<_, Record>(BufReader::new(file)) else {
            return Ok(None);
        };
        if record.source != *source {
            return Err(Failure::input(format!(
                "{}: has changed since it was read; remove {} and begin anew",
                source.address,
                self.folder.parent().unwrap_or(&self.folder).display()
            )));
        }
        let there = std::fs::metadata(self.path(&source.address, "pairs"))
            .map(|metadata| metadata.len())
            .unwrap_or_default();
        let whole = record
            .entries
            .iter()
            .filter_map(|entry| entry.bytes.as_ref())
            .all(|place| place.end().is_some_and(|end| end <= there));
        Ok((whole && self.knows(&record)).then_some(record))
    }

    /// Returns whether all concepts and classes in a record are within bounds.
    fn knows(&self, record: &Record) -> bool {
        let (concepts, classes) = self.bounds;
        let concept = |concept: &u32| (*concept as usize) < concepts;
        let entry = |entry: &Entry| {
            entry.concepts.iter().all(concept)
                && entry.class.is_none_or(|class| (class as usize) < classes)
        };
        let tally = &record.tally;
        let overlaps =
            tally.overlaps.iter().all(|(first, row)| concept(first) && row.keys().all(concept));
        record.entries.iter().all(entry) && tally.concepts.keys().all(concept) && overlaps
    }

    /// Fails if there are records of shards that are no longer named: the selection from other
    /// shards may depend on them.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is such a record.
    pub fn only(&self, sources: &[Source]) -> Result<(), Failure> {
        let known: std::collections::BTreeSet<PathBuf> =
            sources.iter().map(|source| self.path(&source.address, "json")).collect();
        let failed = |error| local(&self.folder, error);
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_record = path.extension().is_some_and(|end| end == "json")
                && path.file_stem().is_some_and(|stem| stem != "job");
            if is_record && !known.contains(&path) {
                let into = self.folder.parent().unwrap_or(&self.folder).display();
                return Err(Failure::input(format!(
                    "--pairs: a shard that was read into {into} is no longer named; name it too, or remove {into} and begin anew"
                )));
            }
        }
        Ok(())
    }

    /// Creates the spool for the pairs of a shard.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be created.
    pub fn spool(&self, address: &Address) -> Result<Spool, Failure> {
        let path = self.path(address, "pairs");
        let file = File::create(&path).map_err(|error| local(&path, error))?;
        Ok(Spool { file: BufWriter::with_capacity(1 << 18, file), path, at: 0 })
    }

    /// Completes a shard: writes its pairs to disk, then its record.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when a file cannot be written.
    pub fn finish(&self, spool: Spool, record: &Record) -> Result<(), Failure> {
        let path = spool.path;
        let written = spool
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all());
        written.map_err(|error| local(&path, error))?;
        let name = self.path(&record.source.address, "json");
        let name =
            name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.write_whole(&name, record)
    }

    /// Opens the spooled pairs of a shard.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file is missing.
    pub fn pairs(&self, address: &Address) -> Result<Pairs, Failure> {
        let path = self.path(address, "pairs");
        let file = File::open(&path).map_err(|error| local(&path, error))?;
        Ok(Pairs { file, path })
    }

    /// Removes the folder after the work is done.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the folder cannot be removed.
    pub fn remove(self) -> Result<(), Failure> {
        remove(&self.folder)
    }

    /// Removes the remains of finished work.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when they cannot be removed.
    pub fn sweep(into: &Path) -> Result<(), Failure> {
        remove(&into.join(FOLDER))
    }
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local(folder, error)),
        _ => Ok(()),
    }
}

/// The pairs of a shard that is being read.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    path: PathBuf,
    at: u64,
}

impl Spool {
    /// Adds a pair.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the file cannot be written.
    pub fn add(&mut self, pair: &Pair<'_>) -> Result<Place, Failure> {
        let written = self
            .file
            .write_all(pair.caption.as_bytes())
            .and_then(|()| self.file.write_all(pair.image));
        written.map_err(|error| local(&self.path, error))?;
        // Both lengths are limited, to 64 KiB and 64 MiB.
        let (caption, image) = (pair.caption.len() as u32, pair.image.len() as u32);
        let place = Place { at: self.at, caption, image, ending: pair.extension.to_owned() };
        self.at += u64::from(caption) + u64::from(image);
        Ok(place)
    }
}

/// A reader of the spooled pairs of a shard.
#[derive(Debug)]
pub struct Pairs {
    file: File,
    path: PathBuf,
}

impl Pairs {
    /// Returns caption and image of a pair.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when they cannot be read.
    pub fn get(&mut self, place: &Place) -> Result<(String, Vec<u8>), Failure> {
        let mut read = || {
            self.file.seek(SeekFrom::Start(place.at))?;
            let (mut caption, mut image) =
                (vec![0; place.caption as usize], vec![0; place.image as usize]);
            self.file.read_exact(&mut caption)?;
            self.file.read_exact(&mut image)?;
            let caption = String::from_utf8(caption)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok((caption, image))
        };
        read().map_err(|error| local(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> Source {
        Source {
            address: Address::Local(Path::new("/data").join(name)),
            bytes: 10,
            version: "1".into(),
        }
    }

    fn refused(result: Result<impl std::fmt::Debug, Failure>, says: &str) {
        let error = result.unwrap_err();
        assert!(
            matches!(error, Failure::BadInput(_)) && error.to_string().contains(says),
            "{error}"
        );
    }

    #[test]
    fn a_shard_is_finished_when_its_record_is_and_its_pairs_are() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("deep/out");
        let work = Work::open(&into, Digest::of(b"job"), (9, 9)).unwrap();
        let mut spool = work.spool(&source("a").address).unwrap();
        let pair = |caption, image| Pair { key: "k", caption, image, extension: "png" };
        spool.add(&pair("one", b"first")).unwrap();
        let place = spool.add(&pair("two", b"second")).unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), None);
        let entry = Entry {
            priority: Priority(5),
            key: "k".into(),
            bytes: Some(place.clone()),
            concepts: vec![1],
            class: None,
        };
        let record = Record { source: source("a"), tally: Tally::default(), entries: vec![entry] };
        work.finish(spool, &record).unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), Some(record));
        assert_eq!(
            work.pairs(&source("a").address).unwrap().get(&place).unwrap(),
            ("two".into(), b"second".to_vec())
        );

        refused(
            work.record(&Source { version: "2".into(), ..source("a") }),
            "has changed since it was read",
        );
        refused(work.only(&[source("b")]), "no longer named");
        work.only(&[source("a"), source("b")]).unwrap();
        let path = work.path(&source("a").address, "pairs");
        File::options().write(true).open(&path).unwrap().set_len(9).unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), None);
        std::fs::write(work.path(&source("a").address, "json"), "{\"source\":").unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), None);
    }

    #[test]
    fn a_folder_is_one_jobs_and_one_processs() {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::open(folder.path(), Digest::of(b"job"), (9, 9)).unwrap();
        refused(
            Work::open(folder.path(), Digest::of(b"job"), (9, 9)),
            "another process curates into it",
        );
        drop(work);
        Work::open(folder.path(), Digest::of(b"job"), (9, 9)).unwrap();
        refused(
            Work::open(folder.path(), Digest::of(b"other"), (9, 9)),
            "was begun with another table",
        );
        let full = tempfile::tempdir().unwrap();
        std::fs::write(full.path().join("concepts.csv"), "mine").unwrap();
        refused(Work::open(full.path(), Digest::of(b"job"), (9, 9)), "is not empty");
    }
}

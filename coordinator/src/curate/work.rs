//! Work in progress: for each shard that was read to its end a record of what it holds, and the pairs of it that may be taken.
//!
//! `OUT/.curating/` has `job.json` (what is curated), `<shard>.json` and `<shard>.pairs`. A record is written when its pairs are
//! on the disk, under another name first: a shard has a whole record or none, and without one it is read again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::store::Source;
use serde::{Deserialize, Serialize};

use super::pairs::Pair;
use super::sample::Priority;
use super::tally::Tally;
use crate::failure::Failure;

/// Name of the folder.
const FOLDER: &str = ".curating";

/// A pair that may be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its priority.
    pub priority: Priority,
    /// Its key in the shard.
    pub key: String,
    /// Where its bytes are; nowhere when a shard that was finished before has the same pair.
    pub bytes: Option<Place>,
    /// The concepts it mentions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub concepts: Vec<u32>,
    /// The class that it names alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u32>,
}

/// Bytes of a pair: the caption, then the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where the caption begins.
    pub at: u64,
    /// Bytes of the caption.
    pub caption: u32,
    /// Bytes of the image.
    pub image: u32,
    /// The image's ending.
    pub ending: String,
}

impl Place {
    fn end(&self) -> Option<u64> {
        self.at.checked_add(u64::from(self.caption) + u64::from(self.image))
    }
}

/// What a shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shard as it was read.
    pub source: Source,
    /// What was counted in it.
    pub tally: Tally,
    /// Pairs that may be taken, in the shard's order.
    pub entries: Vec<Entry>,
}

/// The folder of work in progress, locked.
#[derive(Debug)]
pub struct Work {
    folder: PathBuf,
    /// How many concepts and classes there are.
    bounds: (usize, usize),
    _lock: File,
}

/// A problem with a file on this machine.
pub fn local(path: &Path, error: io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull => {
            Failure::Infrastructure(format!("{shown}: no space left on the device; free some and run again, what is finished stays"))
        }
        _ => Failure::Infrastructure(format!("{shown}: {error}")),
    }
}

impl Work {
    /// Opens the work in `into` or begins it. `job` is the digest of everything that is the same for all shards, `bounds`
    /// are the numbers of concepts and classes.
    ///
    /// # Errors
    /// When the folder is another job's, or holds something else, or another process is at it.
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
                Err(error) => return Err(Failure::input(format!("--into {}: {error}", into.display()))),
            };
            if there.next().is_some() {
                let problem = "is not empty, and nothing was curated into it; give a new folder";
                return Err(Failure::input(format!("--into {}: {problem}", into.display())));
            }
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Failure::input(format!("--into {}: another process curates into it; wait for it", into.display())));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let work = Self { folder, bounds, _lock: lock };
        let known = work.folder.join("job.json");
        match std::fs::read(&known) {
            Ok(bytes) if serde_json::from_slice::<Digest>(&bytes).is_ok_and(|there| there == job) => {}
            Ok(_) => {
                let problem =
                    "was begun with another table, other classes, limits or another seed; go on with these, or remove it and begin anew";
                return Err(Failure::input(format!("--into {}: {problem}", into.display())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => work.write_whole("job.json", &job)?,
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

    /// A new name for a file that is not whole yet.
    pub fn staged(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.part"))
    }

    /// The record of a shard, when it was read to its end; one that is not whole, or whose pairs are not, is none.
    ///
    /// # Errors
    /// When the shard has changed since: what was kept of others may have depended on it.
    pub fn record(&self, source: &Source) -> Result<Option<Record>, Failure> {
        let path = self.path(&source.address, "json");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(local(&path, error)),
        };
        let Ok(record) = serde_json::from_reader::<_, Record>(BufReader::new(file)) else { return Ok(None) };
        if record.source != *source {
            return Err(Failure::input(format!(
                "{}: has changed since it was read; remove {} and begin anew",
                source.address,
                self.folder.parent().unwrap_or(&self.folder).display()
            )));
        }
        let there = std::fs::metadata(self.path(&source.address, "pairs")).map(|metadata| metadata.len()).unwrap_or_default();
        let whole = record.entries.iter().filter_map(|entry| entry.bytes.as_ref()).all(|place| place.end().is_some_and(|end| end <= there));
        Ok((whole && self.knows(&record)).then_some(record))
    }

    /// Whether a record speaks of concepts and classes that there are.
    fn knows(&self, record: &Record) -> bool {
        let (concepts, classes) = self.bounds;
        let concept = |concept: &u32| (*concept as usize) < concepts;
        let entry = |entry: &Entry| entry.concepts.iter().all(concept) && entry.class.is_none_or(|class| (class as usize) < classes);
        let tally = &record.tally;
        let overlaps = tally.overlaps.iter().all(|(first, row)| concept(first) && row.keys().all(concept));
        record.entries.iter().all(entry) && tally.concepts.keys().all(concept) && overlaps
    }

    /// Refuses records of shards that are no longer named: what was kept of others may have depended on them.
    ///
    /// # Errors
    /// When there is one.
    pub fn only(&self, sources: &[Source]) -> Result<(), Failure> {
        let known: std::collections::BTreeSet<PathBuf> = sources.iter().map(|source| self.path(&source.address, "json")).collect();
        let failed = |error| local(&self.folder, error);
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_record = path.extension().is_some_and(|end| end == "json") && path.file_stem().is_some_and(|stem| stem != "job");
            if is_record && !known.contains(&path) {
                let into = self.folder.parent().unwrap_or(&self.folder).display();
                return Err(Failure::input(format!(
                    "--pairs: a shard that was read into {into} is no longer named; name it too, or remove {into} and begin anew"
                )));
            }
        }
        Ok(())
    }

    /// Where the pairs of a shard go while it is read.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn spool(&self, address: &Address) -> Result<Spool, Failure> {
        let path = self.path(address, "pairs");
        let file = File::create(&path).map_err(|error| local(&path, error))?;
        Ok(Spool { file: BufWriter::with_capacity(1 << 18, file), path, at: 0 })
    }

    /// A shard is read to its end.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(&self, spool: Spool, record: &Record) -> Result<(), Failure> {
        let path = spool.path;
        let written = spool.file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
        written.map_err(|error| local(&path, error))?;
        let name = self.path(&record.source.address, "json");
        let name = name.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.write_whole(&name, record)
    }

    /// The spooled pairs of a shard.
    ///
    /// # Errors
    /// When they are gone.
    pub fn pairs(&self, address: &Address) -> Result<Pairs, Failure> {
        let path = self.path(address, "pairs");
        let file = File::open(&path).map_err(|error| local(&path, error))?;
        Ok(Pairs { file, path })
    }

    /// Takes the folder away: everything is done.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(self) -> Result<(), Failure> {
        remove(&self.folder)
    }

    /// Takes away what may be left of work that is done.
    ///
    /// # Errors
    /// When the disk refuses.
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
    /// When the disk refuses.
    pub fn add(&mut self, pair: &Pair<'_>) -> Result<Place, Failure> {
        let written = self.file.write_all(pair.caption.as_bytes()).and_then(|()| self.file.write_all(pair.image));
        written.map_err(|error| local(&self.path, error))?;
        // Both are bounded: 64 KiB and 64 MiB.
        let (caption, image) = (pair.caption.len() as u32, pair.image.len() as u32);
        let place = Place { at: self.at, caption, image, ending: pair.ending.to_owned() };
        self.at += u64::from(caption) + u64::from(image);
        Ok(place)
    }
}

/// The spooled pairs of a shard, to be read.
#[derive(Debug)]
pub struct Pairs {
    file: File,
    path: PathBuf,
}

impl Pairs {
    /// Caption and image of a pair.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn get(&mut self, place: &Place) -> Result<(String, Vec<u8>), Failure> {
        let mut read = || {
            self.file.seek(SeekFrom::Start(place.at))?;
            let (mut caption, mut image) = (vec![0; place.caption as usize], vec![0; place.image as usize]);
            self.file.read_exact(&mut caption)?;
            self.file.read_exact(&mut image)?;
            let caption = String::from_utf8(caption).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok((caption, image))
        };
        read().map_err(|error| local(&self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> Source {
        Source { address: Address::Local(Path::new("/data").join(name)), bytes: 10, version: "1".into() }
    }

    fn refused(result: Result<impl std::fmt::Debug, Failure>, says: &str) {
        let error = result.unwrap_err();
        assert!(matches!(error, Failure::BadInput(_)) && error.to_string().contains(says), "{error}");
    }

    #[test]
    fn a_shard_is_finished_when_its_record_is_and_its_pairs_are() {
        let folder = tempfile::tempdir().unwrap();
        let into = folder.path().join("deep/out");
        let work = Work::open(&into, Digest::of(b"job"), (9, 9)).unwrap();
        let mut spool = work.spool(&source("a").address).unwrap();
        let pair = |caption, image| Pair { key: "k", caption, image, ending: "png" };
        spool.add(&pair("one", b"first")).unwrap();
        let place = spool.add(&pair("two", b"second")).unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), None);
        let entry = Entry { priority: Priority(5), key: "k".into(), bytes: Some(place.clone()), concepts: vec![1], class: None };
        let record = Record { source: source("a"), tally: Tally::default(), entries: vec![entry] };
        work.finish(spool, &record).unwrap();
        assert_eq!(work.record(&source("a")).unwrap(), Some(record));
        assert_eq!(work.pairs(&source("a").address).unwrap().get(&place).unwrap(), ("two".into(), b"second".to_vec()));

        refused(work.record(&Source { version: "2".into(), ..source("a") }), "has changed since it was read");
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
        refused(Work::open(folder.path(), Digest::of(b"job"), (9, 9)), "another process curates into it");
        drop(work);
        Work::open(folder.path(), Digest::of(b"job"), (9, 9)).unwrap();
        refused(Work::open(folder.path(), Digest::of(b"other"), (9, 9)), "was begun with another table");
        let full = tempfile::tempdir().unwrap();
        std::fs::write(full.path().join("concepts.csv"), "mine").unwrap();
        refused(Work::open(full.path(), Digest::of(b"job"), (9, 9)), "is not empty");
    }
}

//! The pass over all shards: several at once, each read once from start to end.

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use lethe_shared::shard::not_a_tar;
use lethe_store::Source;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::names::Names;
use super::pairs::{self, Found, Pair};
use super::sample::{Limits, Lottery, Selection, Verdict};
use super::tally::Tally;
use super::work::{Entry, Record, Spool, Work};
use crate::failure::Failure;
use crate::progress::Progress;

/// Settings of a pass.
#[derive(Debug)]
pub struct Pass<'a> {
    /// The names to find.
    pub names: &'a Names,
    /// Largest number of pairs in each set.
    pub limits: Limits,
    /// Seed of the selection.
    pub seed: u64,
    /// Shards read at once.
    pub workers: usize,
    /// The working folder, which receives the records.
    pub work: &'a Work,
    /// The runtime that fetches remote shards.
    pub runtime: Handle,
    /// Stops the pass.
    pub cancel: CancellationToken,
}

impl Pass<'_> {
    /// Reads the shards that have no record yet, and returns their number.
    ///
    /// The record of a shard depends only on that shard and on shards finished before. An
    /// unfinished shard may therefore change, or be left out, before the same command resumes.
    ///
    /// # Errors
    /// [`Failure::BadInput`] with up to twenty problems of damaged shards;
    /// [`Failure::Infrastructure`] for disk and network; [`Failure::Cancelled`]. Finished shards
    /// keep their records.
    pub fn run(&self, sources: &[Source]) -> Result<usize, Failure> {
        let finished = RwLock::new(Selection::new(self.names.concepts.len(), self.limits));
        let mut left = Vec::new();
        for source in sources {
            match self.work.record(source)? {
                Some(record) => learn(&finished, &record),
                None => left.push(source),
            }
        }
        let progress = Mutex::new(Progress::counting("curate", "shards"));
        lock(&progress).start(sources.len(), sources.len() - left.len());
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(sources.len() - left.len()));
        let stop = self.cancel.child_token();
        let ends: Mutex<(Vec<String>, Option<Failure>)> = Mutex::default();
        let work = || {
            while !stop.is_cancelled() {
                let Some(source) = left.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                match self.shard(source, &finished, &stop) {
                    Ok(record) => {
                        learn(&finished, &record);
                        lock(&progress).advance(1 + done.fetch_add(1, Ordering::Relaxed));
                    }
                    // The other shards are still read, so that all problems are reported at once.
                    Err(Failure::BadInput(problems)) => lock(&ends).0.extend(problems),
                    Err(other) => {
                        lock(&ends).1.get_or_insert(other);
                        stop.cancel();
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.workers.clamp(1, left.len().max(1)) {
                scope.spawn(work);
            }
        });
        let (mut problems, other) = ends.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        if let Some(other) = other {
            return Err(other);
        }
        if !problems.is_empty() {
            problems.sort();
            problems.truncate(20);
            return Err(Failure::BadInput(problems));
        }
        lock(&progress).finish();
        Ok(left.len())
    }

    fn shard(
        &self,
        source: &Source,
        finished: &RwLock<Selection>,
        stop: &CancellationToken,
    ) -> Result<Record, Failure> {
        let mut stream = BufReader::with_capacity(1 << 20, source.open(&self.runtime)?);
        let damaged = |problem: String| Failure::input(format!("{}: {problem}", source.address));
        match stream.fill_buf().map(not_a_tar) {
            Ok(None) => {}
            Ok(Some(problem)) => return Err(damaged(problem.to_owned())),
            Err(error) => {
                return Err(stream
                    .get_mut()
                    .failure()
                    .map_or_else(|| damaged(error.to_string()), Failure::from));
            }
        }
        let shown = source.address.to_string();
        let mut reading = Reading {
            pass: self,
            finished,
            own: Selection::new(self.names.concepts.len(), self.limits),
            lottery: Lottery::new(self.seed),
            spool: self.work.spool(&source.address)?,
            tally: Tally::default(),
            entries: Vec::new(),
            failure: None,
        };
        let read = pairs::read(&mut stream, |found| {
            if stop.is_cancelled() {
                return ControlFlow::Break(());
            }
            match found {
                Found::Unusable(why, key) => reading.tally.pass_over(why, &shown, key),
                Found::Strays(strays) => reading.tally.pass_over_strays(strays, &shown),
                Found::Pair(pair) => {
                    if let Err(failure) = reading.pair(&pair) {
                        reading.failure = Some(failure);
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        });
        if let Some(failure) = reading.failure {
            return Err(failure);
        }
        let ended = match read {
            Err(error) => Err(error.to_string()),
            Ok(ControlFlow::Break(())) => return Err(Failure::Cancelled),
            // The end of the archive is read too: without its end marker, a file that was cut
            // between two members looks complete.
            Ok(ControlFlow::Continue(())) => match std::io::copy(&mut stream, &mut std::io::sink())
            {
                Err(error) => Err(error.to_string()),
                Ok(_)
                    if source.bytes < 1024
                        || stream.get_ref().tail().iter().any(|&byte| byte != 0) =>
                {
                    Err(format!(
                        "is cut off at byte {}: the end of the archive is missing; write it again",
                        source.bytes
                    ))
                }
                Ok(_) => Ok(()),
            },
        };
        if let Err(problem) = ended {
            return Err(stream.get_mut().failure().map_or_else(|| damaged(problem), Failure::from));
        }
        let record =
            Record { source: source.clone(), tally: reading.tally, entries: reading.entries };
        self.work.finish(reading.spool, &record)?;
        Ok(record)
    }
}

/// A shard that is being read.
struct Reading<'a> {
    pass: &'a Pass<'a>,
    finished: &'a RwLock<Selection>,
    own: Selection,
    lottery: Lottery,
    spool: Spool,
    tally: Tally,
    entries: Vec<Entry>,
    failure: Option<Failure>,
}

impl Reading<'_> {
    fn pair(&mut self, pair: &Pair<'_>) -> Result<(), Failure> {
        let mentions = self.pass.names.find(pair.caption);
        let (concepts, class) = (mentions.concepts, mentions.class);
        self.tally.count(&concepts);
        let priority = self.lottery.draw(pair);
        let known = match self
            .finished
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .judge(priority, &concepts, class)
        {
            Verdict::Out => return Ok(()),
            verdict => verdict == Verdict::Known,
        };
        if self.own.offer(priority, &concepts, class) == Verdict::New {
            let bytes = if known { None } else { Some(self.spool.add(pair)?) };
            self.entries.push(Entry { priority, key: pair.key.to_owned(), bytes, concepts, class });
        }
        Ok(())
    }
}

/// Adds the pairs of a finished shard, which rule out pairs of others.
fn learn(finished: &RwLock<Selection>, record: &Record) {
    let mut finished = finished.write().unwrap_or_else(PoisonError::into_inner);
    for entry in record.entries.iter().filter(|entry| entry.bytes.is_some()) {
        finished.offer(entry.priority, &entry.concepts, entry.class);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

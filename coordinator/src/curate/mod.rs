//! `lethe curate`: from a table of names and shards of image-text pairs to all files that a
//! manifest names, except the model.
//!
//! One pass reads every shard once, from start to end. For each pair it finds the concepts that the
//! caption mentions, and keeps the pair on this machine while it may still be selected. The
//! selection is final once all shards are read.
//!
//! | module | content |
//! |---|---|
//! | [`table`] | the table of concepts with their names |
//! | [`names`] | finds all names in a caption at once |
//! | [`pairs`] | the pairs of a shard, read as a stream |
//! | [`sample`] | selection of pairs: pure, and independent of their order |
//! | [`tally`] | counts and overlaps |
//! | [`work`] | state on disk, from which an interrupted command resumes |
//! | [`pass`] | the pass over all shards, several at once |
//! | [`output`] | the files that are written |
//!
//! `curation.json` is written last: an output folder without it is incomplete.

pub mod names;
pub mod output;
pub mod pairs;
pub mod pass;
pub mod sample;
pub mod table;
pub mod tally;
pub mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::manifest::concepts::MAX_TABLE;
use lethe_shared::manifest::{Classes, Error};
use lethe_store as store;
use lethe_store::{Pins, Source};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::names::Names;
use self::output::{Output, Selected, Written};
use self::pairs::Unusable;
use self::pass::Pass;
use self::sample::{FIRST_RETAINED as BATCH, Limits, VALIDATION_SHARE};
use self::tally::{PassedOver, Tally};
use self::work::{Work, local};
use crate::failure::{Failure, Problems};
use crate::intake::files::read_file;

/// Version of the algorithm. Increases when the same input would give another output.
const VERSION: u32 = 3;
/// Name of the record file.
pub const RECORD: &str = "curation.json";
/// Largest class list, bytes.
const MAX_CLASSES: u64 = 256 << 20;
/// Largest record read, bytes.
const MAX_RECORD: u64 = 256 << 20;

/// Options of a curation.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address of the table of concepts.
    pub table: Address,
    /// Addresses of shards, with wildcards in the last part.
    pub pairs: Vec<Address>,
    /// Output folder.
    pub into: PathBuf,
    /// Address of the class list.
    pub classes: Option<Address>,
    /// Largest number of pairs in each set.
    pub limits: Limits,
    /// Concepts with fewer pairs are reported.
    pub few: usize,
    /// Seed of the selection.
    pub seed: u64,
    /// Shards read at once; 0: one per core.
    pub workers: usize,
    /// Folder for copies of small remote files.
    pub cache: PathBuf,
}

/// Whether a concept has enough pairs for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has enough pairs.
    Ok,
    /// It has few pairs.
    Few,
    /// It has no pair, and is left out of the table that is written.
    None,
}

/// The pairs found for a concept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CuratedConcept {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Pairs that mention it.
    pub pairs: u64,
    /// Of these, pairs that also mention another concept.
    pub shared: u64,
    /// Pairs in its forget shard.
    pub taken: usize,
    /// Whether these are enough.
    pub status: Status,
}

/// The record: inputs, settings and results. It does not depend on time, place or the number of
/// interruptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curation {
    /// Version of the algorithm.
    pub version: u32,
    /// Digest of table, classes, limits and seed.
    pub job: Digest,
    /// Largest number of pairs in each set.
    pub limits: Limits,
    /// Seed of the selection.
    pub seed: u64,
    /// The shards, sorted by address.
    pub shards: Vec<Source>,
    /// Pairs in the shards.
    pub pairs: u64,
    /// Pairs that mention a concept.
    pub mentioning: u64,
    /// Unusable samples, by reason.
    pub unusable: BTreeMap<Unusable, PassedOver>,
    /// Members of shards that belong to no pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strays: Option<PassedOver>,
    /// Concepts by id.
    pub concepts: Vec<CuratedConcept>,
    /// Number of concept pairs that share a caption.
    pub overlaps: usize,
    /// Classes of concepts that the class list lacked.
    pub classes_added: Vec<String>,
    /// Number of retain pairs, and of their shards.
    pub retain: (usize, usize),
    /// Number of validation pairs, and of their shards.
    pub validation: (usize, usize),
    /// Pairs that went to the retain set because validation had its share.
    #[serde(default)]
    pub moved_to_retain: usize,
    /// All other files that were written.
    pub files: Vec<Written>,
}

impl Curation {
    /// Returns the concepts of a status, by id.
    pub fn with(&self, status: Status) -> impl Iterator<Item = &CuratedConcept> {
        self.concepts.iter().filter(move |concept| concept.status == status)
    }

    /// Returns warnings for people, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let ids = |status| {
            let ids: Vec<&str> = self.with(status).map(|concept| concept.id.as_str()).collect();
            let more = if ids.len() > 10 {
                format!(" and {} more", ids.len() - 10)
            } else {
                String::new()
            };
            (ids.len(), format!("{}{more}", ids[..ids.len().min(10)].join(", ")))
        };
        let (count, some) = ids(Status::Few);
        if count > 0 {
            warnings.push(format!(
                "few pairs for {count} of {} concepts: {some}; counts.csv has the numbers",
                self.concepts.len()
            ));
        }
        let (count, some) = ids(Status::None);
        if count > 0 {
            let them = "give aliases that captions use, or more shards";
            warnings.push(format!(
                "no pair for {count} of {} concepts, which concepts.csv leaves out: {some}; {them}",
                self.concepts.len()
            ));
        }
        for (why, passed) in &self.unusable {
            let why = serde_json::to_string(why).unwrap_or_default();
            warnings.push(format!(
                "{} samples passed over ({}), such as {}",
                passed.samples,
                why.trim_matches('"'),
                passed.example
            ));
        }
        if let Some(strays) = &self.strays {
            warnings.push(format!(
                "{} members of shards belong to no image-text pair, such as {}; the key of a sample \
                 is its path up to the first dot of the file name",
                strays.samples, strays.example
            ));
        }
        if !self.classes_added.is_empty() {
            let some = self.classes_added[..self.classes_added.len().min(5)].join(", ");
            warnings.push(format!(
                "{} classes of concepts are added to the class list: {some}{}",
                self.classes_added.len(),
                if self.classes_added.len() > 5 { " …" } else { "" }
            ));
        }
        if self.retain.0 < BATCH {
            warnings.push(format!(
                "{} retain pairs, fewer than a batch of {BATCH}: give more shards, or set method.batch_size lower",
                self.retain.0
            ));
        }
        if self.moved_to_retain > 0 {
            warnings.push(format!(
                "validation takes at most one in {VALIDATION_SHARE} of the pairs without a concept, so {} more went to the retain set; give more shards for up to {} pairs of each class",
                self.moved_to_retain, self.limits.validation
            ));
        } else if self.validation.0 == 0 {
            warnings.push("no validation pairs: they come of captions that name one class of --classes and no concept".to_owned());
        }
        warnings
    }
}

/// Curates, or resumes an interrupted curation. Returns the record and the number of shards read by
/// this call.
///
/// # Errors
/// [`Failure::BadInput`] with every problem of table, classes and shards;
/// [`Failure::Infrastructure`] for disk and network; [`Failure::Cancelled`].
pub async fn curate(
    options: Options,
    cancel: CancellationToken,
) -> Result<(Curation, usize), Failure> {
    let names = read_names(&options).await?;
    let sources = find(&options.pairs).await?;
    let texts: Vec<_> = names
        .concepts
        .iter()
        .map(|c| (&c.id, &c.name, &c.class, c.strength, &c.group, c.stop, c.tolerance))
        .collect();
    let job = Digest::of_json(&(
        VERSION,
        texts,
        &names.texts,
        names.classes.names(),
        options.limits,
        options.few,
        options.seed,
    ));
    let runtime = Handle::current();
    let work = move || of(&options, &names, &sources, job, runtime, cancel);
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
}

fn of(
    options: &Options,
    names: &Names,
    sources: &[Source],
    job: Digest,
    runtime: Handle,
    cancel: CancellationToken,
) -> Result<(Curation, usize), Failure> {
    if let Some(done) = done_before(&options.into, job, sources)? {
        // A process killed between the record and the cleanup leaves its working folder behind.
        Work::sweep(&options.into)?;
        return Ok((done, 0));
    }
    let work = Work::open(&options.into, job, (names.concepts.len(), names.classes.names().len()))?;
    work.only(sources)?;
    let workers = match options.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        some => some,
    };
    let pass = Pass {
        names,
        limits: options.limits,
        seed: options.seed,
        workers,
        work: &work,
        runtime,
        cancel,
    };
    let read = pass.run(sources)?;
    let (selected, tally) = Selected::read(&work, sources, names.concepts.len(), options.limits)?;
    let curation = write(options, names, sources, job, &work, &selected, &tally)?;
    work.remove()?;
    Ok((curation, read))
}

/// Returns the record of a finished curation of the same input.
fn done_before(into: &Path, job: Digest, sources: &[Source]) -> Result<Option<Curation>, Failure> {
    let path = into.join(RECORD);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() <= MAX_RECORD => {}
        Ok(_) => {
            return Err(Failure::input(format!("{}: is no record of curating", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::input(format!("{}: {error}", path.display()))),
    }
    let bytes = std::fs::read(&path).map_err(|error| local(&path, error))?;
    let again = "remove the folder and curate again, or give a new one";
    let record: Curation = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::input(format!("{}: is no record of curating ({error}); {again}", path.display()))
    })?;
    if (record.job, record.shards.as_slice()) != (job, sources) {
        let what = if record.job == job {
            "other shards"
        } else {
            "another table, other classes, limits or another seed"
        };
        return Err(Failure::input(format!(
            "--into {}: was curated with {what}; {again}",
            into.display()
        )));
    }
    match output::missing(into, &record.files) {
        Some(file) => {
            Err(Failure::input(format!("{}: is not as it was written; {again}", file.display())))
        }
        None => Ok(Some(record)),
    }
}

async fn read_names(options: &Options) -> Result<Names, Failure> {
    let problems =
        |problems: Vec<Error>| Failure::BadInput(problems.iter().map(Error::to_string).collect());
    let file = options.table.to_string();
    let bytes = read_file("CONCEPTS", &options.table, MAX_TABLE, &options.cache).await?;
    let table = table::parse(&bytes, &file).map_err(problems)?;
    let given = match &options.classes {
        None => None,
        Some(address) => {
            let bytes = read_file("--classes", address, MAX_CLASSES, &options.cache).await?;
            Some(Classes::parse(&bytes, &address.to_string())?)
        }
    };
    Names::new(table, given.as_ref(), &file).map_err(problems)
}

/// Returns the shards that patterns match, inspected, sorted by address, without duplicates.
async fn find(patterns: &[Address]) -> Result<Vec<Source>, Failure> {
    use futures::StreamExt;
    let bad = |error: store::Error| match error {
        store::Error::Unavailable { .. } => Failure::Infrastructure(format!("--pairs: {error}")),
        other => Failure::input(format!("--pairs: {other}")),
    };
    let mut problems = Problems::default();
    let mut addresses = std::collections::BTreeSet::new();
    let pins = Pins::default();
    for pattern in patterns {
        let expanded = async { store::expand(&pins.pin(pattern).await?).await };
        addresses.extend(problems.take(expanded.await.map_err(bad))?.unwrap_or_default());
    }
    let looks = addresses
        .into_iter()
        .map(|address| async move { Source::look(&address).await.map_err(bad) });
    let mut looks = futures::stream::iter(looks).buffered(16);
    let mut sources = Vec::new();
    while let Some(looked) = looks.next().await {
        sources.extend(problems.take(looked)?);
    }
    problems.finish()?;
    Ok(sources)
}

fn write(
    options: &Options,
    names: &Names,
    sources: &[Source],
    job: Digest,
    work: &Work,
    selected: &Selected<'_>,
    tally: &Tally,
) -> Result<Curation, Failure> {
    let into = &options.into;
    let concepts: Vec<CuratedConcept> = (0u32..)
        .zip(&names.concepts)
        .map(|(position, concept)| {
            let counted = tally.concepts.get(&position).copied().unwrap_or_default();
            let taken = selected.taken(position as usize);
            let status = match taken {
                0 => Status::None,
                few if few < options.few.min(options.limits.forget) => Status::Few,
                _ => Status::Ok,
            };
            let (id, name) = (concept.id.clone(), concept.name.clone());
            CuratedConcept { id, name, pairs: counted.pairs, shared: counted.shared, taken, status }
        })
        .collect();
    let mut output = Output::new(work, into);
    let there = || {
        (0..)
            .zip(&concepts)
            .zip(&names.concepts)
            .filter(|((_, curated), _)| curated.status != Status::None)
    };
    for ((position, _), concept) in there() {
        output.forget(selected, &concept.id, position)?;
    }
    let retain = output.retain(selected)?;
    let validation = output.validation(selected, names)?;
    output.origins()?;
    output.file("classes.txt", |file| {
        names.classes.names().iter().try_for_each(|name| writeln!(file, "{name}"))
    })?;
    let rows = there().map(|(_, c)| {
        let group = c.group.clone().unwrap_or_default();
        let stop = c.stop.map(|stop| stop.name().to_owned()).unwrap_or_default();
        let tolerance = c.tolerance.map(|tolerance| tolerance.to_string()).unwrap_or_default();
        let forget = format!("forget/{}.tar", c.id);
        [
            c.id.clone(),
            c.name.clone(),
            c.aliases.join("|"),
            c.class.clone(),
            forget,
            c.strength.to_string(),
            group,
            stop,
            tolerance,
        ]
    });
    output.table(
        "concepts.csv",
        ["id", "name", "aliases", "class", "forget", "strength", "group", "stop", "tolerance"],
        rows,
    )?;
    let rows = concepts.iter().map(|c| {
        let status = match c.status {
            Status::Ok => "ok",
            Status::Few => "few",
            Status::None => "none",
        };
        [
            c.id.clone(),
            c.name.clone(),
            c.pairs.to_string(),
            (c.pairs - c.shared).to_string(),
            c.shared.to_string(),
            c.taken.to_string(),
            status.into(),
        ]
    });
    output.table(
        "counts.csv",
        ["id", "name", "pairs", "alone", "shared", "taken", "status"],
        rows,
    )?;
    let mut overlaps: Vec<(u64, u32, u32)> = tally
        .overlaps
        .iter()
        .flat_map(|(&first, row)| row.iter().map(move |(&second, &pairs)| (pairs, first, second)))
        .collect();
    overlaps.sort_by_key(|&(pairs, first, second)| (std::cmp::Reverse(pairs), first, second));
    let id = |concept: u32| names.concepts[concept as usize].id.clone();
    let rows =
        overlaps.iter().map(|&(pairs, first, second)| [id(first), id(second), pairs.to_string()]);
    output.table("overlaps.csv", ["first", "second", "pairs"], rows)?;

    let mut curation = Curation {
        version: VERSION,
        job,
        limits: options.limits,
        seed: options.seed,
        shards: sources.to_vec(),
        pairs: tally.pairs,
        mentioning: tally.mentioning,
        unusable: tally.unusable.clone(),
        strays: tally.strays.clone(),
        concepts,
        overlaps: overlaps.len(),
        classes_added: if options.classes.is_some() { names.added.clone() } else { Vec::new() },
        retain,
        validation,
        moved_to_retain: selected.moved,
        files: Vec::new(),
    };
    // The user may edit the manifest, so it is not in the list of files that must stay unchanged.
    let manifest = output::manifest(into, validation.0 > 0);
    let mut last = Output::new(work, into);
    curation.files = output.files();
    last.file("manifest.toml", |file| file.write_all(manifest.as_bytes()))?;
    last.file(RECORD, |file| {
        serde_json::to_writer_pretty(&mut *file, &curation)?;
        file.write_all(b"\n")
    })?;
    Ok(curation)
}

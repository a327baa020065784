//! Data of a manifest: shards of pairs and images, texts, and names to protect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::manifest::concepts::Concept;
use lethe_shared::manifest::{Classes, CompositionMethod, Error, Manifest};
use lethe_shared::phrases::Phrases;
use lethe_shared::record::DataFile;
use lethe_shared::reference::{ClassTexts, ShardRef};
use lethe_shared::shard::{self, Captions};
use lethe_shared::texts;
use lethe_shared::vocabulary::{Tower, Towers};
use lethe_shared::words::{normal_name, words};
use lethe_store as store;

use super::files::{expand, missing, read_file};
use crate::compose::protected::{MAX_FILE, MAX_NAMES, Protected};
use crate::failure::{Failure, Problems};

/// Files that are inspected concurrently.
pub(super) const AT_ONCE: usize = 4;

/// The search in captions, like [`Captions`] but shared between threads.
#[derive(Clone)]
pub(super) enum Wanted {
    Any,
    Classes(Arc<Classes>),
    Naming(Arc<Phrases>),
    Images,
}

/// Numbers of pairs or texts by class. Zero: the words of the class occur without a mention.
pub(super) type ByClass = BTreeMap<u32, u64>;

/// What is said after problems of samples.
const SAMPLES_ADVICE: &str =
    "correct these samples, or let `lethe curate` write shards without them";

/// The shards of a field.
#[derive(Debug, Default)]
pub(super) struct Shards {
    /// The shards, in the manifest's order.
    pub(super) shards: Vec<ShardRef>,
    /// Number of pairs by class over all of them.
    pub(super) by_class: ByClass,
    /// Members that are not read.
    pub(super) warnings: Vec<String>,
}

impl Shards {
    /// Adds a shard, or its problems to `problems`.
    pub(super) fn add(
        &mut self,
        inspected: Result<Inspected, Rejected>,
        problems: &mut Problems,
    ) -> Result<(), Failure> {
        match inspected {
            Ok(inspected) => {
                self.shards.push(inspected.shard);
                for (class, pairs) in inspected.by_class {
                    *self.by_class.entry(class).or_default() += pairs;
                }
                self.warnings.extend(inspected.warning);
            }
            Err(Rejected::Shard { named, count, of_samples }) => {
                problems.add(named, count);
                if of_samples {
                    problems.advise(SAMPLES_ADVICE);
                }
            }
            Err(Rejected::Failure(failure)) => {
                problems.take::<()>(Err(failure))?;
            }
        }
        Ok(())
    }
}

/// A shard that was inspected.
#[derive(Debug)]
pub(super) struct Inspected {
    shard: ShardRef,
    by_class: ByClass,
    warning: Option<String>,
}

/// Why a shard was not accepted.
#[derive(Debug)]
pub(super) enum Rejected {
    /// Its contents; the number of problems, some of which are named.
    Shard { named: Vec<String>, count: u64, of_samples: bool },
    /// It could not be inspected.
    Failure(Failure),
}

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Expands patterns and inspects every file. Problems of the input are added to `problems`.
///
/// # Errors
/// Every other failure.
pub(super) async fn shards(
    manifest: &Manifest,
    field: &str,
    patterns: &[String],
    wanted: Wanted,
    cache: &Path,
    problems: &mut Problems,
) -> Result<Shards, Failure> {
    let place = format!("{}: {field}", manifest.file.display());
    let mut found = Shards::default();
    let Some(addresses) = problems.take(expand(manifest, field, patterns).await)? else {
        return Ok(found);
    };
    let inspections =
        addresses.into_iter().map(|address| inspect(place.clone(), address, wanted.clone(), cache));
    let mut inspected = futures::stream::iter(inspections).buffered(AT_ONCE);
    while let Some(shard) = inspected.next().await {
        found.add(shard, problems)?;
    }
    Ok(found)
}

pub(super) async fn inspect(
    place: String,
    address: Address,
    wanted: Wanted,
    cache: &Path,
) -> Result<Inspected, Rejected> {
    let path: PathBuf =
        store::fetch_file(&address, cache, None).await.map_err(|error| missing(&place, error))?;
    let held = if matches!(wanted, Wanted::Images) { "image" } else { "image-text pair" };
    let inspected = tokio::task::spawn_blocking(move || {
        let captions = match &wanted {
            Wanted::Any => Captions::Any,
            Wanted::Classes(classes) => Captions::Classes(classes),
            Wanted::Naming(phrases) => Captions::Naming(phrases),
            Wanted::Images => Captions::Ignored,
        };
        shard::inspect(&path, captions)
    });
    let info = inspected
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|problems| {
            let at = |problem: String| {
                Error::new(place.clone(), format!("{address}: {problem}")).to_string()
            };
            let (count, of_samples) = (problems.count, problems.of_samples);
            Rejected::Shard {
                named: problems.named.into_iter().map(at).collect(),
                count,
                of_samples,
            }
        })?;
    let strays = info.strays.sentence();
    if info.pairs == 0 {
        let strays = strays.map(|sentence| format!(": {sentence}")).unwrap_or_default();
        let problem = Error::new(place, format!("{address} holds no {held}{strays}"));
        return Err(Failure::input(problem).into());
    }
    let warning = strays.map(|sentence| format!("{address}: {sentence}"));
    Ok(Inspected {
        shard: ShardRef { digest: info.digest, bytes: info.bytes, pairs: info.pairs, address },
        by_class: info.by_class,
        warning,
    })
}

/// Returns the slices of all unlabelled texts, their files, and the number of texts that name each
/// class.
pub(super) async fn read_texts(
    manifest: &Manifest,
    phrases: Arc<Phrases>,
    cache: &Path,
) -> Result<(Vec<Vec<String>>, Vec<DataFile>, ByClass), Failure> {
    let field = "data.retain_texts";
    let place = format!("{}: {field}", manifest.file.display());
    let (mut slices, mut files, mut by_class, mut total) =
        (Vec::new(), Vec::new(), ByClass::new(), 0);
    for address in expand(manifest, field, &manifest.data.retain_texts).await? {
        let bytes = read_file(&place, &address, texts::MAX_FILE, cache).await?;
        total += bytes.len() as u64;
        if total > texts::MAX_TOTAL {
            return Err(Failure::input(Error::new(
                place,
                "the files hold more than 1 GiB; give fewer texts",
            )));
        }
        let (file, phrases) = (address.to_string(), Arc::clone(&phrases));
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let parsed = tokio::task::spawn_blocking(move || {
            let texts = texts::parse(&bytes, &file)?;
            let named: Vec<(u32, bool)> =
                texts.iter().flat_map(|text| phrases.occurrences(text)).collect();
            Ok::<_, Error>((texts, named))
        });
        let (texts, named) =
            parsed.await.map_err(|error| Failure::Infrastructure(error.to_string()))??;
        for (class, is_mention) in named {
            *by_class.entry(class).or_default() += u64::from(is_mention);
        }
        files.push(DataFile { digest, bytes: size, items: texts.len() as u64 });
        slices.extend(texts::slices(texts));
    }
    Ok((slices, files, by_class))
}

/// Returns the shards of unlabelled images.
pub(super) async fn read_images(
    manifest: &Manifest,
    cache: &Path,
    problems: &mut Problems,
) -> Result<Shards, Failure> {
    let field = "data.retain_images";
    let composition = &manifest.composition;
    let looked_at = composition.method().corrects() && composition.towers.include(Tower::Vision);
    if !manifest.data.retain_images.is_empty() && !looked_at {
        let place = format!("{}: {field}", manifest.file.display());
        let problem = "protects nothing here: only composition.method `preconditioned`, `margins` and `null-space` with edits of the vision tower look at \
                       unlabelled images; leave it out, or set composition.towers to \"vision\" or \"both\"";
        return Err(Failure::input(Error::new(place, problem)));
    }
    shards(manifest, field, &manifest.data.retain_images, Wanted::Images, cache, problems).await
}

/// Returns the protected texts.
pub(super) async fn read_protected(
    manifest: &Manifest,
    concepts: &[Concept],
    cache: &Path,
) -> Result<Option<Protected>, Failure> {
    let Some(list) = &manifest.data.protect else { return Ok(None) };
    let place = format!("{}: data.protect", manifest.file.display());
    let wrong = |problem: String| Failure::input(Error::new(place.clone(), problem));
    let composition = &manifest.composition;
    if !composition.method().corrects() || composition.method() == CompositionMethod::LeastSquares {
        let method = composition.method().name();
        return Err(wrong(format!(
            "composition.method `{method}` protects nothing; `preconditioned`, `margins` and `null-space` do"
        )));
    }
    if composition.towers == Towers::Vision {
        return Err(wrong("names texts, and edits of the vision tower move none; leave it out, or change composition.towers".to_owned()));
    }
    let address = manifest.address("data.protect", list)?;
    let bytes = read_file(&place, &address, MAX_FILE, cache).await?;
    let file = address.to_string();
    let mut names = texts::parse(&bytes, &file)?;
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(normal_name(name).into_owned()));
    if names.len() > MAX_NAMES {
        return Err(wrong(format!(
            "{file} holds {} names, at most {MAX_NAMES} leave edits any room; data.retain_texts protects any number, but not to a bound",
            names.len()
        )));
    }
    for name in &names {
        let key = words(name);
        let same = |other: &str| {
            normal_name(name) == normal_name(other) || key != " " && key == words(other)
        };
        if let Some(concept) =
            concepts.iter().find(|concept| same(&concept.class) || same(&concept.name))
        {
            return Err(wrong(format!(
                "`{name}` must not change, and is to be removed as concept `{}`",
                concept.id
            )));
        }
    }
    let data = DataFile {
        digest: Digest::of(&bytes),
        bytes: bytes.len() as u64,
        items: names.len() as u64,
    };
    let texts = ClassTexts { names, template: manifest.data.template.clone() };
    Ok(Some(Protected { prompts: texts.prompts().collect(), names: texts.names, file: data }))
}

pub(super) fn retain_warnings(
    retain: &[ShardRef],
    manifest: &Manifest,
) -> Result<Vec<String>, Failure> {
    let batch = u64::from(manifest.method.batch_size);
    let small: Vec<&ShardRef> = retain.iter().filter(|shard| shard.pairs < batch).collect();
    if small.len() == retain.len() {
        return Err(Failure::input(Error::new(
            format!("{}: data.retain", manifest.file.display()),
            format!(
                "no retain shard holds a full batch of {batch} pairs; give larger shards, or set method.batch_size lower"
            ),
        )));
    }
    let warning = |shard: &&ShardRef| {
        format!(
            "{} has {} pairs, less than a batch of {batch}: it adds nothing to the retain gradient",
            shard.address, shard.pairs
        )
    };
    Ok(small.iter().map(warning).collect())
}

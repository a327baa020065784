//! Writes a target's files into a release: edited files are rewritten, and the others are copied,
//! by the store itself where it can. No file is read into memory as a whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use lethe_shared::digest::Digest;
use lethe_shared::manifest::PassThrough;
use lethe_shared::record::targets::{TARGET_FILE, TargetRecord, TargetTower};
use lethe_shared::reference::ArtifactRef;
use lethe_store::Store;
use serde::Serialize;

use super::apply::Edited;
use super::encoder::Encoder;
use super::target::Target;
use crate::failure::Failure;

/// A target that is ready to be written.
#[derive(Debug)]
pub struct Staged<'a> {
    target: &'a Target,
    /// Temporary folder with the rewritten files.
    written: tempfile::TempDir,
    /// The target's entry in the release's record.
    pub record: TargetRecord,
}

/// [`TARGET_FILE`]: the target's files that are stored elsewhere.
#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    name: &'a str,
    kind: &'static str,
    /// Address of the folder that holds the referenced files.
    source: &'a str,
    /// Files in the release that replace files of the same name there.
    changed: &'a BTreeMap<String, ArtifactRef>,
    /// Files that are referenced there.
    referenced: BTreeMap<&'a str, ArtifactRef>,
}

/// Writes the edited files of a target into a temporary folder, and computes the digests of all
/// files.
///
/// # Errors
/// [`Failure`] when a file cannot be read or written.
pub async fn stage<'a>(
    target: &'a Target,
    edited: Edited,
    store: &Store,
) -> Result<Staged<'a>, Failure> {
    let written = tempfile::tempdir().map_err(|error| {
        Failure::Infrastructure(format!("no folder for temporary files: {error}"))
    })?;
    let (mut changed, mut towers) = (BTreeMap::new(), Vec::new());
    for (encoder, sets) in target.encoders.iter().zip(edited.sets) {
        let folder = written.path().join(&encoder.folder);
        std::fs::create_dir_all(&folder).map_err(|error| local(&folder, &error))?;
        let mut tensors = BTreeMap::new();
        for (set, edited) in encoder.sets.iter().zip(sets) {
            for name in set.checkpoint.write_touched(&edited.change, &folder)? {
                let file = hash(folder.join(&name)).await?;
                changed.insert(below(&encoder.folder, &name), file);
            }
            tensors.insert(set.name.clone(), edited.tensors);
        }
        towers.push(tower(encoder, target, tensors));
    }
    let mut source = BTreeMap::new();
    for (name, bytes) in target.passed() {
        let found = match target
            .folder
            .store()
            .filter(|_| !changed.contains_key(name) && copied(target, store))
        {
            Some(remote) => remote.hash(name).await?,
            None => hash(target.folder.bring([name]).await?.join(name)).await?,
        };
        if found.bytes != bytes || !target.folder.is_unchanged(name).await? {
            return Err(moved(target, name));
        }
        source.insert(name.to_owned(), found);
    }
    let mut record = TargetRecord {
        name: target.request.name.clone(),
        kind: target.request.kind,
        architecture: target.architecture.clone(),
        address: target.address.to_string(),
        pass_through: target.request.pass_through,
        tolerance: target.request.tolerance,
        towers,
        unedited: target.unedited.clone(),
        without: edited.without,
        source,
        changed,
        listing: None,
        left_out: target.left_out.iter().cloned().collect(),
    };
    if record.pass_through == PassThrough::Reference {
        let path = written.path().join(TARGET_FILE);
        std::fs::write(&path, listing(&record)?).map_err(|error| local(&path, &error))?;
        record.listing = Some(hash(path).await?);
    }
    Ok(Staged { target, written, record })
}

/// Returns whether the store copies unchanged files itself, or they are not copied at all. They are
/// not downloaded then.
fn copied(target: &Target, store: &Store) -> bool {
    target.request.pass_through == PassThrough::Reference || store.can_copy_from(&target.address)
}

fn listing(record: &TargetRecord) -> Result<Vec<u8>, Failure> {
    let referenced = record.source.iter().filter(|(name, _)| !record.changed.contains_key(*name));
    let listing = Listing {
        version: 1,
        name: &record.name,
        kind: record.kind.name(),
        source: &record.address,
        changed: &record.changed,
        referenced: referenced.map(|(name, file)| (name.as_str(), *file)).collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&listing).map_err(Failure::input)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn tower(
    encoder: &Encoder,
    target: &Target,
    tensors: BTreeMap<String, BTreeMap<String, lethe_shared::record::targets::ChangedTensor>>,
) -> TargetTower {
    TargetTower {
        folder: encoder.folder.clone(),
        tower: target.tower(),
        blocks: encoder.blocks,
        blocks_used: encoder.reach.blocks,
        reads: encoder.reads.clone(),
        distance: encoder.distance,
        tensors,
    }
}

fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn local(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Infrastructure(format!("{}: {error}", path.display()))
}

fn moved(target: &Target, name: &str) -> Failure {
    Failure::input(format!(
        "target `{}`: {}/{name} has changed while it was being released; run the same command again",
        target.request.name, target.address
    ))
}

/// Returns digest and size of a local file.
async fn hash(path: PathBuf) -> Result<ArtifactRef, Failure> {
    let shown = path.clone();
    let hashed = tokio::task::spawn_blocking(move || {
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(ArtifactRef { digest: Digest::of_reader(file)?, bytes })
    });
    hashed
        .await
        .map_err(|error| Failure::Infrastructure(error.to_string()))?
        .map_err(|error| local(&shown, &error))
}

/// Share of a change lost to rounding from which on a warning is given.
const MUCH: f64 = 0.5;

impl Staged<'_> {
    /// Returns warnings for publishers of the release, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let record = &self.record;
        let mut warnings = Vec::new();
        if !record.without.is_empty() {
            let (some, more) = (
                record.without.iter().take(10).cloned().collect::<Vec<_>>().join(", "),
                record.without.len().saturating_sub(10),
            );
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            warnings
                .push(format!("target `{}`: edits of {some}{more} cannot act in it", record.name));
        }
        for (set, tensors) in record.towers.iter().flat_map(|tower| &tower.tensors) {
            for (tensor, of) in tensors.iter().filter(|(_, of)| of.rounding > MUCH) {
                let lost = 100.0 * of.rounding.min(1.0);
                warnings.push(format!(
                    "target `{}`: {lost:.0} % of the change of `{tensor}` is lost by rounding to what {set} stores",
                    record.name
                ));
            }
        }
        warnings
    }

    /// Writes the target's files into a release's folder.
    ///
    /// # Errors
    /// [`Failure`] when the store cannot be written, or a file differs from the record.
    pub async fn put(&self, store: &Store, release: &str) -> Result<(), Failure> {
        let Self { target, written, record } = self;
        for (name, file) in record.files() {
            let key = format!("{release}/{}/{name}", record.folder());
            let anew = record.changed.contains_key(&name) || name == TARGET_FILE;
            if !anew && store.copy_from(&target.address, &name, &key).await? {
                if !target.folder.is_unchanged(&name).await? {
                    return Err(moved(target, &name));
                }
                continue;
            }
            let path = if anew {
                written.path().join(&name)
            } else {
                target.folder.bring([name.as_str()]).await?.join(&name)
            };
            if store.put_file(&key, &path).await? != file {
                return Err(moved(target, &name));
            }
        }
        Ok(())
    }
}

//! Writes a release: all other files first, `composition.json` last. A folder without that file is
//! not a release.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::Edit;
use lethe_shared::record::{Composition, ReleaseRef};
use lethe_shared::reference::ArtifactRef;
use lethe_store::Store;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use super::{edits as edits_file, publish};
use crate::attest::{provenance, receipts};
use crate::compose::apply::{Change, Directions};
use crate::compose::effect_matrix::EffectMatrix;
use crate::downstream::Staged;
use crate::failure::Failure;
use crate::layout::{
    CARD, CONCEPTS, EDITS, EFFECT, IMAGE_ROWS, INTERFERENCE, PROTECTED, PROVENANCE, RECEIPTS,
    RECORD, REPORT, THUMBNAILS,
};
use crate::lease::fence::Fence;
use crate::present::card;
use crate::present::report::{self, ProbePictures, Thumbnails};
use crate::release::publish::Published;

/// The contents of a release, besides base and record.
#[derive(Debug)]
pub struct Contents<'a, D> {
    /// The changed tensors.
    pub change: &'a Change,
    /// The edits, including those with strength 0.
    pub edits: &'a [Edit],
    /// Source of their directions.
    pub directions: &'a D,
    /// The effect matrix in the order of the record's concepts, if coefficients are solved.
    pub effect_matrix: Option<&'a EffectMatrix>,
    /// The bytes of [`PROTECTED`].
    pub protected: Option<&'a Bytes>,
    /// Thumbnails by concept.
    pub thumbnails: &'a Thumbnails,
    /// Targets: other models with the edits applied.
    pub targets: Vec<Staged<'a>>,
}

/// Writes a release and gives it its number. Returns its address, record and number. `record` is
/// complete except for digest, files and targets, which this function adds.
///
/// # Errors
/// [`Failure::Infrastructure`] when another coordinator has taken the run over, or the store or the
/// temporary folder cannot be written. An incomplete release never becomes visible.
pub async fn write<D: Directions>(
    store: &Store,
    fence: &Fence,
    checkpoint: &Checkpoint,
    contents: Contents<'_, D>,
    mut record: Composition,
) -> Result<(String, Composition, Published), Failure> {
    // Writing takes minutes; a coordinator that has lost its run stops before.
    fence.check().await?;
    let Contents { change, edits, directions, effect_matrix, protected, thumbnails, targets } =
        contents;
    let staging = store.staging().await?;
    let folder = staging.path();
    let written = checkpoint.write_changed(change, folder)?;
    record.digest = written.digest;
    record.targets = targets.iter().map(|target| target.record.clone()).collect();
    let weight_files: Vec<String> = written.files.keys().cloned().collect();
    let mut names = checkpoint.companions()?;
    for name in &names {
        copy(&checkpoint.folder().join(name), &folder.join(name))
            .map_err(|error| Failure::local(folder, error))?;
    }
    edits_file::write(&folder.join(EDITS), checkpoint, edits, directions).await?;
    if let Some(effect_matrix) = effect_matrix {
        write_interference(&folder.join(INTERFERENCE), &record, effect_matrix)?;
        names.push(INTERFERENCE.to_owned());
    }
    if let Some(protected) = protected {
        std::fs::write(folder.join(PROTECTED), protected)
            .map_err(|error| Failure::local(folder, error))?;
        names.push(PROTECTED.to_owned());
    }
    if !thumbnails.is_empty() {
        write_thumbnails(&folder.join(THUMBNAILS), thumbnails)?;
        names.push(THUMBNAILS.to_owned());
    }
    write_text(
        &folder.join(CARD),
        &card::render(&record, &[weight_files.as_slice(), &names].concat()),
    )?;
    let pictures = &ProbePictures::new();
    let page = report::Source { record: &record, effect_matrix, thumbnails, pictures, run: None };
    write_text(&folder.join(REPORT), &report::render(&page))?;
    names.extend([EDITS, CARD, REPORT].map(str::to_owned));
    names.sort();
    names.dedup();

    record.files = digests(folder, &names)?;
    record.files.extend(written.files);
    let receipts = receipts::lines(&record, &weight_files);
    state(folder, RECEIPTS, &receipts, &mut record)?;
    let provenance = provenance::statement(&record).to_string() + "\n";
    state(folder, PROVENANCE, &provenance, &mut record)?;
    let bytes = encode(&record)?;
    let digest = Digest::of(&bytes);
    let release = ReleaseRef { name: record.name.clone(), record: digest };
    let prefix = publish::prefix(&release);
    // A release with a number is complete. Without one, `release gc` may be removing its files, so
    // all of them are written again.
    let is_there =
        store.get(&format!("{prefix}/{RECORD}")).await?.is_some_and(|there| there == bytes);
    if !is_there
        || !publish::published(store, &record.name)
            .await?
            .values()
            .any(|one| one.release == release)
    {
        for name in record.files.keys() {
            store.put_staged(&format!("{prefix}/{name}"), &staging, name).await?;
        }
        for target in &targets {
            target.put(store, &prefix).await?;
        }
        require_whole(store, &prefix, &record).await?;
        fence.check().await?;
        store.create(&format!("{prefix}/{RECORD}"), bytes).await?;
    }
    let published = publish::publish(store, fence, &record, digest).await?;
    Ok((format!("{}/{prefix}", store.name()), record, published))
}

/// Fails if a release's folder lacks a file that was written into it: after a long suspension of
/// this process, `release gc` may have removed the folder as a leftover.
async fn require_whole(store: &Store, prefix: &str, record: &Composition) -> Result<(), Failure> {
    let there: BTreeMap<String, u64> = store
        .list_objects(prefix)
        .await?
        .into_iter()
        .map(|object| (object.key, object.bytes))
        .collect();
    let of_targets = record.targets.iter().flat_map(|target| {
        let files = target.files().into_iter();
        files.map(|(name, file)| (format!("{}/{name}", target.folder()), file))
    });
    let mut files = record.files.iter().map(|(name, file)| (name.clone(), *file)).chain(of_targets);
    let is_missing = |(name, file): &(String, ArtifactRef)| {
        there.get(&format!("{prefix}/{name}")) != Some(&file.bytes)
    };
    match files.find(is_missing) {
        None => Ok(()),
        Some((name, _)) => Err(Failure::Infrastructure(format!(
            "{}/{prefix}/{name} was removed while the release was written (by `lethe release gc`?); run the same command again",
            store.name()
        ))),
    }
}

fn encode(record: &Composition) -> Result<Bytes, Failure> {
    let mut bytes = serde_json::to_vec_pretty(record)
        .map_err(|error| Failure::input(format!("{RECORD}: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn write_interference(
    path: &Path,
    record: &Composition,
    effect_matrix: &EffectMatrix,
) -> Result<(), Failure> {
    let ids: Vec<&str> = record.concepts.iter().map(|concept| concept.id.as_str()).collect();
    let n = ids.len();
    let float = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> =
        vec![(EFFECT, Dtype::F64, vec![n, n], float(effect_matrix.effects()))];
    if let Some(images) = effect_matrix.images() {
        let rows = images.len();
        let concept =
            images.concept.iter().flat_map(|&concept| (concept as i64).to_le_bytes()).collect();
        let [effect, of, weight, target, penalty] = IMAGE_ROWS;
        tensors.extend([
            (effect, Dtype::F64, vec![rows, n], float(&images.effect)),
            (of, Dtype::I64, vec![rows], concept),
            (weight, Dtype::F64, vec![rows], float(&images.weight)),
            (target, Dtype::F64, vec![rows], float(&images.target)),
            (penalty, Dtype::F64, vec![1], float(&[images.penalty])),
        ]);
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, shape, bytes) in &tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .map_err(|error| Failure::input(format!("{INTERFERENCE}: {error}")))?;
        views.push((*name, view));
    }
    // A single key, because the order of several would vary.
    let header = HashMap::from([(
        CONCEPTS.to_owned(),
        serde_json::to_string(&ids).map_err(Failure::input)?,
    )]);
    write_tensors(path, views, Some(header))
}

/// Writes a statement about the release, and adds it to the record.
fn state(folder: &Path, name: &str, text: &str, record: &mut Composition) -> Result<(), Failure> {
    record.files.insert(
        name.to_owned(),
        ArtifactRef { digest: Digest::of(text.as_bytes()), bytes: text.len() as u64 },
    );
    write_text(&folder.join(name), text)
}

fn write_thumbnails(path: &Path, thumbnails: &Thumbnails) -> Result<(), Failure> {
    let mut views = Vec::with_capacity(thumbnails.len());
    for (id, bytes) in thumbnails {
        let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes)
            .map_err(|error| Failure::input(format!("{THUMBNAILS}: {error}")))?;
        views.push((id.as_str(), view));
    }
    write_tensors(path, views, None)
}

/// Writes a safetensors file with the permissions of the umask. The safetensors library's own
/// function gives them to the owner only.
fn write_tensors(
    path: &Path,
    views: Vec<(&str, TensorView<'_>)>,
    header: Option<HashMap<String, String>>,
) -> Result<(), Failure> {
    let bytes = serialize(views, header)
        .map_err(|error| Failure::Infrastructure(format!("{}: {error}", path.display())))?;
    std::fs::write(path, bytes).map_err(|error| Failure::local(path, error))
}

/// Copies a file's bytes; the copy's permissions are those of the umask, not the original's.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut copied = std::fs::File::create(to)?;
    std::io::copy(&mut std::fs::File::open(from)?, &mut copied).map(drop)
}

fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| Failure::local(path, error))
}

fn digests(folder: &Path, names: &[String]) -> Result<BTreeMap<String, ArtifactRef>, Failure> {
    let mut files = BTreeMap::new();
    for name in names {
        let path = folder.join(name);
        let file = std::fs::File::open(&path).map_err(|error| Failure::local(&path, error))?;
        let bytes = file.metadata().map_err(|error| Failure::local(&path, error))?.len();
        let digest = Digest::of_reader(file).map_err(|error| Failure::local(&path, error))?;
        files.insert(name.clone(), ArtifactRef { digest, bytes });
    }
    Ok(files)
}

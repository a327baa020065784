//! Writing a release: every file first, `composition.json` last. A release without it does not exist.
//!
//! | file | what |
//! |---|---|
//! | `release/edits.rs` | the file of all directions |
//! | `release/read.rs` | a release that is there: its record, and files checked against it |
//! | `release/verify.rs` | whether it is what was released |
//! | `release/evaluation.rs` | numbers that were measured on it later |
//! | `release/publish.rs` | its number, and the channels that lead to it |

mod edits;
pub mod evaluation;
pub mod publish;
pub mod read;
pub mod verify;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::Edit;
use lethe_shared::job::ArtifactRef;
use lethe_shared::record::{Composition, ReleaseRef};
use lethe_shared::store::Store;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use crate::attest::{PROVENANCE, RECEIPTS, provenance, receipts};
use crate::compose::{Change, Directions};
use crate::dosing::Interference;
use crate::failure::Failure;
use crate::release::publish::Published;
use crate::target::Staged;
use crate::{card, report};

/// The record's name in a release.
pub const RECORD: &str = "composition.json";
/// The edits' name in a release.
pub const EDITS: &str = "edits.safetensors";
/// The name of what edits do to concepts in a release, where doses are solved: the float64 matrix [`EFFECT`], row i and column j by
/// the order of the ids in the header's [`CONCEPTS`], a JSON list.
pub const INTERFERENCE: &str = "interference.safetensors";
/// The matrix in [`INTERFERENCE`].
pub const EFFECT: &str = "effect";
/// The order of concepts in [`INTERFERENCE`].
pub const CONCEPTS: &str = "concepts";

/// The name of what texts that must not change put into the edited layers, as
/// [`ProtectResult::inputs`](lethe_shared::outcome::ProtectResult::inputs) has it, where there are some.
pub const PROTECTED: &str = "protected.safetensors";

/// The model card's name in a release.
const CARD: &str = "README.md";
/// The report's name in a release.
const REPORT: &str = "report.html";

/// The name of the concepts' thumbnails in a release: by id, the bytes of a JPEG as
/// [`ConceptResult::thumbnails`](lethe_shared::outcome::ConceptResult::thumbnails) has them.
pub const THUMBNAILS: &str = "thumbnails.safetensors";

/// Thumbnails by concept: JPEG files.
pub type Thumbnails = BTreeMap<String, Bytes>;

/// What a release is made of beside base and record.
#[derive(Debug)]
pub struct Contents<'a, D> {
    /// The changed tensors.
    pub change: &'a Change,
    /// The edits, strength 0 included.
    pub edits: &'a [Edit],
    /// Where their directions are.
    pub directions: &'a D,
    /// What edits do to the record's concepts, in their order, where doses are solved.
    pub interference: Option<&'a Interference>,
    /// The bytes of [`PROTECTED`].
    pub protected: Option<&'a Bytes>,
    /// Pictures by concept.
    pub thumbnails: &'a Thumbnails,
    /// Other models with the edits in them.
    pub targets: Vec<Staged<'a>>,
}

/// Writes a release, gives it its number, and returns its address. `record` is complete but for its digest, files and targets, which
/// are filled in.
///
/// # Errors
/// When the store or the folder for files on their way cannot be written; no half-written release becomes visible.
pub async fn write<D: Directions>(
    store: &Store,
    checkpoint: &Checkpoint,
    contents: Contents<'_, D>,
    mut record: Composition,
) -> Result<(String, Composition, Published), Failure> {
    let Contents { change, edits, directions, interference, protected, thumbnails, targets } = contents;
    let staging = store.staging().await?;
    let folder = staging.path();
    let written = checkpoint.write_changed(change, folder)?;
    record.digest = written.digest;
    record.targets = targets.iter().map(|target| target.record.clone()).collect();
    let weight_files: Vec<String> = written.files.keys().cloned().collect();
    let mut names = checkpoint.companions()?;
    for name in &names {
        std::fs::copy(checkpoint.folder().join(name), folder.join(name)).map_err(|error| local(folder, error))?;
    }
    edits::write(&folder.join(EDITS), checkpoint, edits, directions).await?;
    if let Some(interference) = interference {
        write_interference(&folder.join(INTERFERENCE), &record, interference)?;
        names.push(INTERFERENCE.to_owned());
    }
    if let Some(protected) = protected {
        std::fs::write(folder.join(PROTECTED), protected).map_err(|error| local(folder, error))?;
        names.push(PROTECTED.to_owned());
    }
    if !thumbnails.is_empty() {
        write_thumbnails(&folder.join(THUMBNAILS), thumbnails)?;
        names.push(THUMBNAILS.to_owned());
    }
    write_text(&folder.join(CARD), &card::render(&record, &[weight_files.as_slice(), &names].concat()))?;
    let page = report::Source { record: &record, interference, thumbnails, run: None };
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
    let prefix = publish::prefix(&ReleaseRef { name: record.name.clone(), record: digest });
    // The same bytes may be there from before.
    if store.get(&format!("{prefix}/{RECORD}")).await?.is_none_or(|there| there != bytes) {
        for name in record.files.keys() {
            store.put_staged(&format!("{prefix}/{name}"), &staging, name).await?;
        }
        for target in &targets {
            target.put(store, &prefix).await?;
        }
        store.create(&format!("{prefix}/{RECORD}"), bytes).await?;
    }
    let published = publish::publish(store, &record, digest).await?;
    Ok((format!("{}/{prefix}", store.name()), record, published))
}

fn encode(record: &Composition) -> Result<Bytes, Failure> {
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|error| Failure::input(format!("{RECORD}: {error}")))?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn write_interference(path: &Path, record: &Composition, interference: &Interference) -> Result<(), Failure> {
    let ids: Vec<&str> = record.concepts.iter().map(|concept| concept.id.as_str()).collect();
    let bytes: Vec<u8> = interference.effects().iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F64, vec![ids.len(), ids.len()], &bytes)
        .map_err(|error| Failure::input(format!("{INTERFERENCE}: {error}")))?;
    // One key: several would stand in another order every time.
    let header = HashMap::from([(CONCEPTS.to_owned(), serde_json::to_string(&ids).map_err(Failure::input)?)]);
    serialize_to_file([(EFFECT, view)], Some(header), path).map_err(|error| Failure::Infrastructure(format!("{}: {error}", path.display())))
}

/// Writes a statement about the release, and puts it on record.
fn state(folder: &Path, name: &str, text: &str, record: &mut Composition) -> Result<(), Failure> {
    record.files.insert(name.to_owned(), ArtifactRef { digest: Digest::of(text.as_bytes()), bytes: text.len() as u64 });
    write_text(&folder.join(name), text)
}

fn write_thumbnails(path: &Path, thumbnails: &Thumbnails) -> Result<(), Failure> {
    let mut views = Vec::with_capacity(thumbnails.len());
    for (id, bytes) in thumbnails {
        let view =
            TensorView::new(Dtype::U8, vec![bytes.len()], bytes).map_err(|error| Failure::input(format!("{THUMBNAILS}: {error}")))?;
        views.push((id.as_str(), view));
    }
    serialize_to_file(views, None, path).map_err(|error| local(path, std::io::Error::other(error)))
}

fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| local(path, error))
}

fn local(path: &Path, error: std::io::Error) -> Failure {
    Failure::Infrastructure(format!("{}: {error}", path.display()))
}

fn digests(folder: &Path, names: &[String]) -> Result<BTreeMap<String, ArtifactRef>, Failure> {
    let mut files = BTreeMap::new();
    for name in names {
        let path = folder.join(name);
        let file = std::fs::File::open(&path).map_err(|error| local(&path, error))?;
        let bytes = file.metadata().map_err(|error| local(&path, error))?.len();
        let digest = Digest::of_reader(file).map_err(|error| local(&path, error))?;
        files.insert(name.clone(), ArtifactRef { digest, bytes });
    }
    Ok(files)
}

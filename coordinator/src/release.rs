//! Writing a release: every file first, `composition.json` last. A release without it does not exist.
//!
//! | file | what |
//! |---|---|
//! | `release/read.rs` | a release that is there: its record, and files checked against it |
//! | `release/verify.rs` | whether it is what was released |
//! | `release/evaluation.rs` | numbers that were measured on it later |
//! | `release/publish.rs` | its number, and the channels that lead to it |

pub mod evaluation;
pub mod publish;
pub mod read;
pub mod verify;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{self, Direction};
use lethe_shared::job::ArtifactRef;
use lethe_shared::record::{Composition, ReleaseRef};
use lethe_shared::store::Store;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use crate::attest::{PROVENANCE, RECEIPTS, provenance, receipts};
use crate::compose::Change;
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

/// The model card's name in a release.
const CARD: &str = "README.md";
/// The report's name in a release.
const REPORT: &str = "report.html";

/// The name of the concepts' thumbnails in a release: by id, the bytes of a JPEG as
/// [`ConceptResult::thumbnails`](lethe_shared::outcome::ConceptResult::thumbnails) has them.
pub const THUMBNAILS: &str = "thumbnails.safetensors";

/// Thumbnails by concept: JPEG files.
pub type Thumbnails = BTreeMap<String, Bytes>;

/// A tensor of an edit's direction: the whole of it under the concept's id, or one of its factors, `ID.up` and `ID.down`.
#[derive(Debug)]
pub struct DirectionTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Float32, little-endian.
    pub bytes: Vec<u8>,
}

impl DirectionTensor {
    /// The tensors of one concept's direction on a layer of this shape.
    pub fn of(concept: &str, shape: &[usize], direction: Direction) -> Vec<Self> {
        let tensor = |name: String, shape: Vec<usize>, values: Vec<f32>| Self {
            name,
            shape,
            bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
        };
        match direction {
            Direction::Dense(values) => vec![tensor(concept.to_owned(), shape.to_vec(), values)],
            Direction::Factored { up, down, rank } => {
                let (up_name, down_name) = edit::factor_names(concept);
                let (outputs, inputs) = (up.len() / rank.max(1), down.len() / rank.max(1));
                vec![tensor(up_name, vec![outputs, rank], up), tensor(down_name, vec![rank, inputs], down)]
            }
        }
    }
}

/// What a release is made of beside base and record.
#[derive(Debug)]
pub struct Contents<'a> {
    /// The changed tensors.
    pub change: &'a Change,
    /// Every edit's direction.
    pub directions: Vec<DirectionTensor>,
    /// What edits do to the record's concepts, in their order, where doses are solved.
    pub interference: Option<&'a Interference>,
    /// Pictures by concept.
    pub thumbnails: &'a Thumbnails,
    /// Other models with the edits in them.
    pub targets: Vec<Staged<'a>>,
}

/// Writes a release, gives it its number, and returns its address. `record` is complete but for its files and targets.
///
/// # Errors
/// When the store or the folder for temporary files cannot be written; no half-written release becomes visible.
pub async fn write(
    store: &Store,
    checkpoint: &Checkpoint,
    contents: Contents<'_>,
    mut record: Composition,
) -> Result<(String, Composition, Published), Failure> {
    let Contents { change, directions, interference, thumbnails, targets } = contents;
    let staging = tempfile::tempdir().map_err(|error| Failure::Infrastructure(format!("no folder for temporary files: {error}")))?;
    let folder = staging.path();
    record.targets = targets.iter().map(|target| target.record.clone()).collect();
    let mut names = checkpoint.write_changed(change, folder)?;
    for name in checkpoint.companions()? {
        std::fs::copy(checkpoint.folder().join(&name), folder.join(&name)).map_err(|error| local(folder, error))?;
        names.push(name);
    }
    write_edits(&folder.join(EDITS), directions)?;
    if let Some(interference) = interference {
        write_interference(&folder.join(INTERFERENCE), &record, interference)?;
        names.push(INTERFERENCE.to_owned());
    }
    if !thumbnails.is_empty() {
        write_thumbnails(&folder.join(THUMBNAILS), thumbnails)?;
        names.push(THUMBNAILS.to_owned());
    }
    write_text(&folder.join(CARD), &card::render(&record, &names))?;
    let page = report::Source { record: &record, interference, thumbnails, run: None };
    write_text(&folder.join(REPORT), &report::render(&page))?;
    names.extend([EDITS, CARD, REPORT].map(str::to_owned));
    names.sort();
    names.dedup();

    record.files = digests(folder, &names)?;
    let receipts = receipts::lines(&record, &checkpoint.weight_files());
    state(folder, RECEIPTS, &receipts, &mut record)?;
    let provenance = provenance::statement(&record).to_string() + "\n";
    state(folder, PROVENANCE, &provenance, &mut record)?;
    names.extend([PROVENANCE, RECEIPTS].map(str::to_owned));
    let bytes = encode(&record)?;
    let digest = Digest::of(&bytes);
    let prefix = publish::prefix(&ReleaseRef { name: record.name.clone(), record: digest });
    // The same bytes may be there from before.
    if store.get(&format!("{prefix}/{RECORD}")).await?.is_none_or(|there| there != bytes) {
        for name in &names {
            store.put_file(&format!("{prefix}/{name}"), &folder.join(name)).await?;
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

fn write_edits(path: &Path, directions: Vec<DirectionTensor>) -> Result<(), Failure> {
    let mut views = HashMap::new();
    for direction in &directions {
        let view = TensorView::new(Dtype::F32, direction.shape.clone(), &direction.bytes)
            .map_err(|error| Failure::input(format!("direction `{}`: {error}", direction.name)))?;
        views.insert(direction.name.as_str(), view);
    }
    serialize_to_file(views, None, path).map_err(|error| Failure::Infrastructure(format!("{}: {error}", path.display())))
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

//! Writing a release: every file first, `composition.json` last. A release without it does not exist.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use lethe_shared::edit::{self, Direction};
use lethe_shared::job::ArtifactRef;
use lethe_shared::record::Composition;
use lethe_shared::store::Store;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};

use crate::compose::Change;
use crate::failure::Failure;
use crate::plan::Plan;
use crate::{card, report};

/// The record's name in a release.
pub const RECORD: &str = "composition.json";
/// The edits' name in a release.
pub const EDITS: &str = "edits.safetensors";

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

/// Writes a release and returns its address. `record` is complete but for its files.
///
/// # Errors
/// When the store or the folder for temporary files cannot be written; no half-written release becomes visible.
pub async fn write(
    store: &Store,
    plan: &Plan,
    change: &Change,
    directions: Vec<DirectionTensor>,
    mut record: Composition,
) -> Result<(String, Composition), Failure> {
    let staging = tempfile::tempdir().map_err(|error| Failure::Infrastructure(format!("no folder for temporary files: {error}")))?;
    let folder = staging.path();
    let mut names = plan.checkpoint.write_changed(change, folder)?;
    for name in plan.checkpoint.companions()? {
        std::fs::copy(plan.checkpoint.folder().join(&name), folder.join(&name)).map_err(|error| local(folder, error))?;
        names.push(name);
    }
    write_edits(&folder.join(EDITS), directions)?;
    write_text(&folder.join("README.md"), &card::render(&record))?;
    write_text(&folder.join("report.html"), &report::render(&record))?;
    names.extend([EDITS, "README.md", "report.html"].map(str::to_owned));
    names.sort();
    names.dedup();

    record.files = digests(folder, &names)?;
    let bytes = encode(&record)?;
    let prefix = format!("releases/{}/{}", record.name, lethe_shared::digest::Digest::of(&bytes).short());
    let address = format!("{}/{prefix}", store.name());
    // The same bytes were released before: nothing is left to do.
    if store.get(&format!("{prefix}/{RECORD}")).await?.is_some_and(|there| there == bytes) {
        return Ok((address, record));
    }
    for name in &names {
        store.put_file(&format!("{prefix}/{name}"), &folder.join(name)).await?;
    }
    store.create(&format!("{prefix}/{RECORD}"), bytes).await?;
    Ok((address, record))
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
        let digest = lethe_shared::digest::Digest::of_reader(file).map_err(|error| local(&path, error))?;
        files.insert(name.clone(), ArtifactRef { digest, bytes });
    }
    Ok(files)
}

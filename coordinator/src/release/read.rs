//! An existing release: reads its record, and checks its files against it.

use bytes::Bytes;
use lethe_shared::address::Address;
use lethe_shared::checkpoint::read_tensors;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{self, Direction};
use lethe_shared::json;
use lethe_shared::manifest::{CompositionMethod, is_id};
use lethe_shared::record::{self, Composition, ConceptRecord, ReleaseRef};
use lethe_store::Store;
use safetensors::{Dtype, SafeTensors};

use crate::compose::effect_matrix::ImageRows;
use crate::compose::recipe::{Part, Recipe};
use crate::failure::Failure;
use crate::layout::{
    BESIDE, CONCEPTS, EDITS, EFFECT, IMAGE_ROWS, INTERFERENCE, RECORD, THUMBNAILS,
};
use crate::present::report::Thumbnails;

/// Largest file that is read into memory, bytes. (Weights are not read into memory.)
const MAX_FILE: u64 = 16 << 30;
/// Largest record, bytes.
const MAX_RECORD: u64 = 256 << 20;

/// A release with its record.
#[derive(Debug, Clone)]
pub struct Release {
    /// The store that contains it; for a separate folder, the folder's parent.
    pub store: Store,
    /// Its folder in the store; empty for a repository of a model hub, which is the store.
    pub prefix: String,
    /// Whether the store is one of Lethe's, with artifacts and other releases.
    pub stored: bool,
    /// Its record.
    pub record: Composition,
    /// SHA-256 of `composition.json`.
    pub digest: Digest,
}

/// Location of a release that may exist.
#[derive(Debug, Clone)]
pub struct Place {
    store: Store,
    prefix: String,
    stored: bool,
}

impl Place {
    /// Returns a release's location in one of Lethe's stores.
    pub fn stored(store: Store, prefix: String) -> Self {
        Self { store, prefix, stored: true }
    }

    /// Returns the start of the record's digest if the folder is named after it.
    pub fn named_after(&self) -> Option<&str> {
        self.prefix.rsplit('/').next().filter(|_| self.stored)
    }

    /// Returns the unparsed record.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is no record.
    pub async fn record_bytes(&self) -> Result<Bytes, Failure> {
        let key = key(&self.prefix, RECORD);
        match self.store.size(&key).await? {
            Some(size) if size > MAX_RECORD => {
                Err(self.wrong(&format!("has {size} bytes; no record is that large")))
            }
            Some(_) => self.store.get(&key).await?.ok_or_else(|| self.absent()),
            None => Err(self.absent()),
        }
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is no record, or it is invalid.
    pub async fn open(self) -> Result<Release, Failure> {
        let bytes = self.record_bytes().await?;
        let record: Composition = json::parse(&bytes).map_err(|error| {
            self.wrong(&format!("is no record of a release that this lethe reads ({error})"))
        })?;
        if record.version != record::VERSION {
            return Err(self.wrong(&format!(
                "is of version {}; this lethe reads version {}",
                record.version,
                record::VERSION
            )));
        }
        let ids = record.concepts.iter().map(|concept| &concept.id);
        if let Some(name) = ids.chain([&record.name]).find(|name| !is_id(name)) {
            return Err(self
                .wrong(&format!("`{}` names neither release nor concept", name.escape_default())));
        }
        if let Some(name) = record.files.keys().find(|name| {
            name.contains(['/', '\\'])
                || name.starts_with('.')
                || *name == RECORD
                || BESIDE.contains(&name.as_str())
        }) {
            return Err(self.wrong(&format!("names `{name}`, which is no file of a release")));
        }
        if let Some(problem) = record::targets::problem(&record.targets) {
            return Err(self.wrong(&problem));
        }
        let Self { store, prefix, stored } = self;
        Ok(Release { store, prefix, stored, record, digest: Digest::of(&bytes) })
    }

    fn wrong(&self, problem: &str) -> Failure {
        Failure::input(format!("{}/{RECORD} {problem}", address(&self.store, &self.prefix)))
    }

    fn absent(&self) -> Failure {
        absent(&address(&self.store, &self.prefix))
    }
}

fn absent(folder: &str) -> Failure {
    Failure::input(format!(
        "{folder} holds no release (no {RECORD}); a release stands at STORE/releases/NAME/DIGEST"
    ))
}

impl Release {
    /// Returns the location of a release's folder: `STORE/releases/NAME/DIGEST`, or a copy of one.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the folder does not exist.
    pub fn place(address: &Address) -> Result<Place, Failure> {
        let (root, prefix, stored) = place(address)?;
        // Opening a local store would create its folder.
        if root.as_local().is_some_and(|path| !path.is_dir()) {
            return Err(absent(&address.to_string()));
        }
        Ok(Place { store: Store::reading(&root)?, prefix, stored })
    }

    /// Opens the release in a folder.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is no release, or its record cannot be read.
    pub async fn open(address: &Address) -> Result<Self, Failure> {
        Self::place(address)?.open().await
    }

    /// Returns the names of the files in its folder.
    ///
    /// # Errors
    /// [`Failure::Infrastructure`] when the store cannot be listed.
    pub async fn names(&self) -> Result<Vec<String>, Failure> {
        if self.prefix.is_empty() {
            let objects = self.store.contents().await?;
            return Ok(objects.into_iter().map(|object| object.key).collect());
        }
        let keys = self.store.list(&self.prefix).await?;
        Ok(keys
            .iter()
            .filter_map(|key| Some(key.strip_prefix(&self.prefix)?.strip_prefix('/')?.to_owned()))
            .collect())
    }

    /// Returns the reference by which other records name it.
    pub fn reference(&self) -> ReleaseRef {
        ReleaseRef { name: self.record.name.clone(), record: self.digest }
    }

    /// Returns its address.
    pub fn address(&self) -> String {
        address(&self.store, &self.prefix)
    }

    /// Returns the key of one of its files in its store.
    pub fn key(&self, name: &str) -> String {
        key(&self.prefix, name)
    }

    /// Reads one of its files, checked against the record.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the file is missing or corrupt.
    pub async fn file(&self, name: &str) -> Result<Bytes, Failure> {
        let wrong =
            |problem: String| Failure::input(format!("{}/{name}: {problem}", self.address()));
        let expected = self
            .record
            .files
            .get(name)
            .ok_or_else(|| wrong("the record names no such file".to_owned()))?;
        if expected.bytes > MAX_FILE {
            return Err(wrong(format!(
                "has {} bytes by the record; no such file is that large",
                expected.bytes
            )));
        }
        let key = self.key(name);
        match self.store.size(&key).await? {
            Some(size) if size == expected.bytes => {}
            Some(size) => {
                return Err(wrong(format!("has {size} bytes instead of {}", expected.bytes)));
            }
            None => return Err(wrong("is missing".to_owned())),
        }
        let bytes = self.store.get(&key).await?.ok_or_else(|| wrong("is missing".to_owned()))?;
        if Digest::of(&bytes) == expected.digest {
            Ok(bytes)
        } else {
            Err(wrong("is not what was released".to_owned()))
        }
    }

    /// Returns its recipe.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when the release lacks the effect matrix from which coefficients are
    /// solved.
    pub async fn recipe(&self) -> Result<Recipe, Failure> {
        let parts = self.record.concepts.iter().map(part).collect();
        let wrong = |problem: String| Failure::input(format!("{}: {problem}", self.address()));
        let solved = self.record.concepts.iter().any(|concept| concept.target.is_some());
        if !solved {
            let solves = [
                CompositionMethod::Preconditioned,
                CompositionMethod::NullSpace,
                CompositionMethod::Margins,
            ]
            .iter()
            .any(|method| method.name() == self.record.method);
            if solves && !self.record.concepts.is_empty() {
                return Err(wrong(
                    "its record has no targets of the coefficients: it was made by an earlier lethe; run its manifest again"
                        .to_owned(),
                ));
            }
            return Recipe::sum(parts).map_err(wrong);
        }
        let file = self.file(INTERFERENCE).await?;
        let damaged = |problem: String| {
            Failure::input(format!("{}/{INTERFERENCE}: {problem}", self.address()))
        };
        let (_, metadata) =
            SafeTensors::read_metadata(&file).map_err(|error| damaged(error.to_string()))?;
        let ids = metadata
            .metadata()
            .as_ref()
            .and_then(|header| serde_json::from_str::<Vec<String>>(header.get(CONCEPTS)?).ok());
        if !ids.is_some_and(|ids| {
            ids.iter().eq(self.record.concepts.iter().map(|concept| &concept.id))
        }) {
            return Err(damaged("is not about the concepts of the record".to_owned()));
        }
        let parsed = read_tensors(&file).map_err(&damaged)?;
        match image_rows(&parsed).map_err(&damaged)? {
            Some(images) => Recipe::of_images(parts, images).map_err(damaged),
            None => {
                Recipe::solved(parts, floats(&parsed, EFFECT).map_err(&damaged)?).map_err(damaged)
            }
        }
    }

    /// Returns the thumbnails of its concepts; empty if it was written without.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when they are missing or corrupt.
    pub async fn thumbnails(&self) -> Result<Thumbnails, Failure> {
        if !self.record.files.contains_key(THUMBNAILS) {
            return Ok(Thumbnails::new());
        }
        let file = self.file(THUMBNAILS).await?;
        let parsed = read_tensors(&file).map_err(|problem| {
            Failure::input(format!("{}/{THUMBNAILS}: {problem}", self.address()))
        })?;
        let known = |id: &String| self.record.concepts.iter().any(|concept| concept.id == *id);
        let tensors = parsed.tensors().into_iter().filter(|(id, _)| known(id));
        Ok(tensors.map(|(id, view)| (id, Bytes::copy_from_slice(view.data()))).collect())
    }

    /// Returns its edits, in the format that [`direction`] reads.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when they are missing or corrupt.
    pub async fn edits(&self) -> Result<Bytes, Failure> {
        self.file(EDITS).await
    }
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f64>, String> {
    let view = file.tensor(name).map_err(|error| error.to_string())?;
    edit::widen(name, view.data(), view.dtype()).map_err(|error| error.to_string())
}

/// Reads the margin constraints of a release, if it has any.
fn image_rows(file: &SafeTensors<'_>) -> Result<Option<ImageRows>, String> {
    let [effect, of, weight, target, penalty] = IMAGE_ROWS;
    let Ok(concepts) = file.tensor(of) else { return Ok(None) };
    if concepts.dtype() != Dtype::I64 {
        return Err(format!("`{of}` is not int64"));
    }
    let index = |w: &[u8]| {
        let value = i64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
        usize::try_from(value).map_err(|_| format!("`{of}` holds {value}"))
    };
    Ok(Some(ImageRows {
        effect: floats(file, effect)?,
        concept: concepts.data().chunks_exact(8).map(index).collect::<Result<_, String>>()?,
        weight: floats(file, weight)?,
        target: floats(file, target)?,
        penalty: floats(file, penalty)?.first().copied().unwrap_or(f64::NAN),
    }))
}

/// Returns an edit's direction from a release's edits, by its
/// [name](lethe_shared::edit::Edit::name), for a layer of this
/// shape.
///
/// # Errors
/// [`Failure::BadInput`] when the direction is missing or has another shape.
pub fn direction(edits: &[u8], name: &str, shape: &[usize]) -> Result<Direction, Failure> {
    let parsed =
        read_tensors(edits).map_err(|problem| Failure::input(format!("{EDITS}: {problem}")))?;
    Ok(edit::read_direction(&parsed, name, shape)?)
}

fn part(concept: &ConceptRecord) -> Part {
    Part {
        concept: concept.id.clone(),
        layers: concept.layers().into_iter().map(str::to_owned).collect(),
        step: concept.step,
        strength: concept.strength,
        target: concept.target,
        direction: concept.direction,
    }
}

/// Returns the address of a folder in a store, which may be the whole store.
fn address(store: &Store, folder: &str) -> String {
    if folder.is_empty() { store.name().to_owned() } else { format!("{}/{folder}", store.name()) }
}

/// Returns the key of a file in a folder, which may be the whole store.
fn key(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Returns the store of a release, its folder there, and whether the store is one of Lethe's.
fn place(address: &Address) -> Result<(Address, String, bool), Failure> {
    if address.as_hub().is_some() {
        return Ok((address.clone(), String::new(), false));
    }
    let text = address.to_string();
    let wrong = || Failure::input(format!("{text} is no folder of a release"));
    let parts: Vec<&str> = text.rsplitn(4, '/').collect();
    let (root, prefix, stored) = match parts[..] {
        [digest, name, "releases", root] => (root, format!("releases/{name}/{digest}"), true),
        _ => {
            let (root, name) = text.rsplit_once('/').ok_or_else(wrong)?;
            (root, name.to_owned(), false)
        }
    };
    let root = if root.is_empty() { "/" } else { root };
    Ok((Address::parse(root).map_err(|_| wrong())?, prefix, stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_found_in_stores_and_by_themselves() {
        let of = |text: &str| {
            place(&Address::parse(text).unwrap())
                .map(|(root, prefix, stored)| (root.to_string(), prefix, stored))
                .unwrap()
        };
        assert_eq!(of("/s/t/releases/n/d"), ("/s/t".into(), "releases/n/d".into(), true));
        assert_eq!(of("s3://b/releases/n/d"), ("s3://b".into(), "releases/n/d".into(), true));
        assert_eq!(of("/releases/n/d"), ("/".into(), "releases/n/d".into(), true));
        assert_eq!(of("/models/production"), ("/models".into(), "production".into(), false));
        assert_eq!(of("s3://b/models/clip"), ("s3://b/models".into(), "clip".into(), false));
        let hub = "hf://org/forgetful-clip@v1";
        assert_eq!(of(hub), (hub.into(), String::new(), false));
        assert!(place(&Address::parse("s3://b").unwrap()).is_err());
    }

    #[tokio::test]
    async fn what_is_no_release_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Address::Local(folder.path().join(name));
        for name in ["none/at/all", "here"] {
            let error = Release::open(&at(name)).await.unwrap_err().to_string();
            assert!(error.contains("holds no release"), "{error}");
        }
        assert!(!folder.path().join("none").is_dir(), "looking makes nothing");
        std::fs::create_dir(folder.path().join("odd")).unwrap();
        std::fs::write(folder.path().join("odd/composition.json"), "{}").unwrap();
        assert!(
            Release::open(&at("odd"))
                .await
                .unwrap_err()
                .to_string()
                .contains("is no record of a release")
        );
    }
}

//! A release that is there: its record, and its files checked against it.

use bytes::Bytes;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{self, Direction};
use lethe_shared::manifest::CompositionMethod;
use lethe_shared::manifest::is_id;
use lethe_shared::record::{self, Composition, ConceptRecord, ReleaseRef};
use lethe_shared::store::Store;
use safetensors::SafeTensors;

use super::{CONCEPTS, EDITS, EFFECT, INTERFERENCE, RECORD, THUMBNAILS, Thumbnails};
use crate::attest::BESIDE;
use crate::failure::Failure;
use crate::recipe::{Part, Recipe};

/// Largest file that is read into memory, bytes. (Weights are not.)
const MAX_FILE: u64 = 16 << 30;
/// Largest record, bytes.
const MAX_RECORD: u64 = 256 << 20;

/// A release with its record.
#[derive(Debug, Clone)]
pub struct Release {
    /// The store it is in, or for a folder that stands by itself the one around it.
    pub store: Store,
    /// Where in the store.
    pub prefix: String,
    /// Whether the store is one of Lethe's, with artifacts and other releases.
    pub stored: bool,
    /// Its record.
    pub record: Composition,
    /// SHA-256 of `composition.json`.
    pub digest: Digest,
}

/// Where a release may be.
#[derive(Debug, Clone)]
pub struct Place {
    store: Store,
    prefix: String,
    stored: bool,
}

impl Place {
    /// A release's place in one of Lethe's stores.
    pub fn stored(store: Store, prefix: String) -> Self {
        Self { store, prefix, stored: true }
    }

    /// The start of the record's digest, where the folder is named after it.
    pub fn named_after(&self) -> Option<&str> {
        self.prefix.rsplit('/').next().filter(|_| self.stored)
    }

    /// The record as it is.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is none.
    pub async fn record_bytes(&self) -> Result<Bytes, Failure> {
        let key = format!("{}/{RECORD}", self.prefix);
        match self.store.size(&key).await? {
            Some(size) if size > MAX_RECORD => Err(self.wrong(&format!("has {size} bytes; no record is that large"))),
            Some(_) => self.store.get(&key).await?.ok_or_else(|| self.absent()),
            None => Err(self.absent()),
        }
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is none, or it is not one.
    pub async fn open(self) -> Result<Release, Failure> {
        let bytes = self.record_bytes().await?;
        let record: Composition = serde_json::from_slice(&bytes)
            .map_err(|error| self.wrong(&format!("is no record of a release that this lethe reads ({error})")))?;
        if record.version != record::VERSION {
            return Err(self.wrong(&format!("is of version {}; this lethe reads version {}", record.version, record::VERSION)));
        }
        let ids = record.concepts.iter().map(|concept| &concept.id);
        if let Some(name) = ids.chain([&record.name]).find(|name| !is_id(name)) {
            return Err(self.wrong(&format!("`{}` names neither release nor concept", name.escape_default())));
        }
        if let Some(name) = record
            .files
            .keys()
            .find(|name| name.contains(['/', '\\']) || name.starts_with('.') || *name == RECORD || BESIDE.contains(&name.as_str()))
        {
            return Err(self.wrong(&format!("names `{name}`, which is no file of a release")));
        }
        if let Some(problem) = record::targets::problem(&record.targets) {
            return Err(self.wrong(&problem));
        }
        let Self { store, prefix, stored } = self;
        Ok(Release { store, prefix, stored, record, digest: Digest::of(&bytes) })
    }

    fn wrong(&self, problem: &str) -> Failure {
        Failure::input(format!("{}/{}/{RECORD} {problem}", self.store.name(), self.prefix))
    }

    fn absent(&self) -> Failure {
        absent(&format!("{}/{}", self.store.name(), self.prefix))
    }
}

fn absent(folder: &str) -> Failure {
    Failure::input(format!("{folder} holds no release (no {RECORD}); a release stands at STORE/releases/NAME/DIGEST"))
}

impl Release {
    /// Where the release of a folder is: `STORE/releases/NAME/DIGEST`, or a copy of one.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is nothing.
    pub fn place(address: &Address) -> Result<Place, Failure> {
        let (root, prefix, stored) = place(address)?;
        // Opening a store makes its folder.
        if root.as_local().is_some_and(|path| !path.is_dir()) {
            return Err(absent(&address.to_string()));
        }
        Ok(Place { store: Store::open(&root)?, prefix, stored })
    }

    /// Opens the release in a folder.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when there is none, or its record cannot be read.
    pub async fn open(address: &Address) -> Result<Self, Failure> {
        Self::place(address)?.open().await
    }

    /// Names of what stands in its folder.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn names(&self) -> Result<Vec<String>, Failure> {
        let keys = self.store.list(&self.prefix).await?;
        Ok(keys.iter().filter_map(|key| Some(key.strip_prefix(&self.prefix)?.strip_prefix('/')?.to_owned())).collect())
    }

    /// What other records call it.
    pub fn reference(&self) -> ReleaseRef {
        ReleaseRef { name: self.record.name.clone(), record: self.digest }
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("{}/{}", self.store.name(), self.prefix)
    }

    /// Reads one of its files, checked against the record.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it is missing or damaged.
    pub async fn file(&self, name: &str) -> Result<Bytes, Failure> {
        let wrong = |problem: String| Failure::input(format!("{}/{name}: {problem}", self.address()));
        let expected = self.record.files.get(name).ok_or_else(|| wrong("the record names no such file".to_owned()))?;
        if expected.bytes > MAX_FILE {
            return Err(wrong(format!("has {} bytes by the record; no such file is that large", expected.bytes)));
        }
        let key = format!("{}/{name}", self.prefix);
        match self.store.size(&key).await? {
            Some(size) if size == expected.bytes => {}
            Some(size) => return Err(wrong(format!("has {size} bytes instead of {}", expected.bytes))),
            None => return Err(wrong("is missing".to_owned())),
        }
        let bytes = self.store.get(&key).await?.ok_or_else(|| wrong("is missing".to_owned()))?;
        if Digest::of(&bytes) == expected.digest { Ok(bytes) } else { Err(wrong("is not what was released".to_owned())) }
    }

    /// What it was composed of.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when it lacks what doses are solved from.
    pub async fn recipe(&self) -> Result<Recipe, Failure> {
        let parts = self.record.concepts.iter().map(part).collect();
        let wrong = |problem: String| Failure::input(format!("{}: {problem}", self.address()));
        let solved = self.record.concepts.iter().any(|concept| concept.target.is_some());
        if !solved {
            let solves =
                [CompositionMethod::Preconditioned, CompositionMethod::NullSpace].iter().any(|method| method.name() == self.record.method);
            if solves && !self.record.concepts.is_empty() {
                return Err(wrong(
                    "its record does not say what doses were solved for: it was made by an earlier lethe; run its manifest again"
                        .to_owned(),
                ));
            }
            return Recipe::sum(parts).map_err(wrong);
        }
        let file = self.file(INTERFERENCE).await?;
        let damaged = |problem: String| Failure::input(format!("{}/{INTERFERENCE}: {problem}", self.address()));
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(|error| damaged(error.to_string()))?;
        let ids = metadata.metadata().as_ref().and_then(|header| serde_json::from_str::<Vec<String>>(header.get(CONCEPTS)?).ok());
        if !ids.is_some_and(|ids| ids.iter().eq(self.record.concepts.iter().map(|concept| &concept.id))) {
            return Err(damaged("is not about the concepts of the record".to_owned()));
        }
        let parsed = SafeTensors::deserialize(&file).map_err(|error| damaged(error.to_string()))?;
        let view = parsed.tensor(EFFECT).map_err(|error| damaged(error.to_string()))?;
        Recipe::solved(parts, edit::widen(EFFECT, view.data(), view.dtype())?).map_err(damaged)
    }

    /// Thumbnails of its concepts; none where it was written without.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when they are missing or damaged.
    pub async fn thumbnails(&self) -> Result<Thumbnails, Failure> {
        if !self.record.files.contains_key(THUMBNAILS) {
            return Ok(Thumbnails::new());
        }
        let file = self.file(THUMBNAILS).await?;
        let damaged = |error: safetensors::SafeTensorError| Failure::input(format!("{}/{THUMBNAILS}: {error}", self.address()));
        let parsed = SafeTensors::deserialize(&file).map_err(damaged)?;
        let known = |id: &String| self.record.concepts.iter().any(|concept| concept.id == *id);
        let tensors = parsed.tensors().into_iter().filter(|(id, _)| known(id));
        Ok(tensors.map(|(id, view)| (id, Bytes::copy_from_slice(view.data()))).collect())
    }

    /// Its edits, as a file that [`direction`] reads.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when they are missing or damaged.
    pub async fn edits(&self) -> Result<Bytes, Failure> {
        self.file(EDITS).await
    }
}

/// A concept's direction out of a release's edits, for a layer of this shape.
///
/// # Errors
/// [`Failure::BadInput`] when it is not there or does not fit.
pub fn direction(edits: &[u8], concept: &str, shape: &[usize]) -> Result<Direction, Failure> {
    let parsed = SafeTensors::deserialize(edits).map_err(|error| Failure::input(format!("{EDITS}: {error}")))?;
    Ok(edit::read_direction(&parsed, concept, shape)?)
}

fn part(concept: &ConceptRecord) -> Part {
    Part {
        concept: concept.id.clone(),
        layer: concept.layer.clone(),
        step: concept.step,
        strength: concept.strength,
        target: concept.target,
        direction: concept.direction,
    }
}

/// The store a release is in, its place there, and whether it is one of Lethe's.
fn place(address: &Address) -> Result<(Address, String, bool), Failure> {
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
        let of =
            |text: &str| place(&Address::parse(text).unwrap()).map(|(root, prefix, stored)| (root.to_string(), prefix, stored)).unwrap();
        assert_eq!(of("/s/t/releases/n/d"), ("/s/t".into(), "releases/n/d".into(), true));
        assert_eq!(of("s3://b/releases/n/d"), ("s3://b".into(), "releases/n/d".into(), true));
        assert_eq!(of("/releases/n/d"), ("/".into(), "releases/n/d".into(), true));
        assert_eq!(of("/models/production"), ("/models".into(), "production".into(), false));
        assert_eq!(of("s3://b/models/clip"), ("s3://b/models".into(), "clip".into(), false));
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
        assert!(Release::open(&at("odd")).await.unwrap_err().to_string().contains("is no record of a release"));
    }
}

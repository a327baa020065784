//! Fetching files and folders from addresses to this machine.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use lethe_shared::address::Address;
use lethe_shared::digest::{Digest, Hasher};
use lethe_shared::reference::ArtifactRef;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::io::AsyncWriteExt;

use crate::braces;
use crate::error::Error;
use crate::hub::Repository;
use crate::local::{self, blocking, staged};
use crate::store::{REQUESTS, Store};

/// Most files that a pattern may match.
const MAX_MATCHES: usize = 1_000_000;

/// Returns a local path of the file at `address`. A local file is used in place; a remote one is
/// downloaded once into `cache`. Digest and size are checked against the expected ones.
///
/// # Cancel safety
/// A cancelled call may leave a temporary file in `cache`. The copy itself is whole or absent.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Corrupt`] when the file is not the expected one.
pub async fn fetch_file(
    address: &Address,
    cache: &Path,
    expected: Option<(Digest, u64)>,
) -> Result<PathBuf, Error> {
    match address {
        Address::Local(path) => {
            if let Some((digest, bytes)) = expected {
                check(path, digest, bytes).await?;
            } else {
                tokio::fs::metadata(path)
                    .await
                    .map_err(|error| Error::from_io(&path.display().to_string(), error))?;
            }
            Ok(path.clone())
        }
        Address::Remote(_) if address.as_hub().is_some() => fetch_hub_file(address, expected).await,
        Address::Remote(url) => {
            let (store, key) = parent(url)?;
            let meta =
                store.inner.head(&key).await.map_err(|error| store.error(key.as_ref(), error))?;
            // Without a digest, the metadata of the object names the copy.
            let name = match expected {
                Some((digest, _)) => digest,
                None => Digest::of(
                    format!("{url}\n{:?}\n{}\n{}", meta.e_tag, meta.last_modified, meta.size)
                        .as_bytes(),
                ),
            };
            let path = cache.join(name.to_string());
            if tokio::fs::try_exists(&path)
                .await
                .map_err(|error| Error::from_io(&path.display().to_string(), error))?
            {
                match expected {
                    None => return Ok(path),
                    // A damaged copy is downloaded again.
                    Some((digest, bytes)) if check(&path, digest, bytes).await.is_ok() => {
                        return Ok(path);
                    }
                    Some(_) => {}
                }
            }
            REQUESTS.run(|| download(&store, &key, &path, expected)).await?;
            Ok(path)
        }
    }
}

/// Returns the copy of a file of a model hub in the hub's cache.
async fn fetch_hub_file(
    address: &Address,
    expected: Option<(Digest, u64)>,
) -> Result<PathBuf, Error> {
    let (store, key) = parent(&address.to_string())?;
    let repository = store.repository.ok_or_else(|| not_a_file(&store.name))?;
    let path = repository.fetch(key.as_ref()).await?;
    let Some((digest, bytes)) = expected else { return Ok(path) };
    match check(&path, digest, bytes).await {
        Ok(()) => Ok(path),
        Err(error) => {
            // A damaged copy is downloaded again.
            if !repository.forget_damaged(&path).await? {
                return Err(error);
            }
            let path = repository.fetch(key.as_ref()).await?;
            check(&path, digest, bytes).await.map(|()| path)
        }
    }
}

/// Makes `path` a link to a file of the hub's cache.
pub(crate) async fn link(file: &Path, path: &Path) -> Result<(), Error> {
    let (file, path) = (file.to_owned(), path.to_owned());
    let shown = path.display().to_string();
    blocking(move || local::link(&std::fs::canonicalize(file)?, &path))
        .await?
        .map_err(|error| Error::from_io(&shown, error))
}

/// Downloads to a temporary name and renames: the target is whole or absent.
pub(crate) async fn download(
    store: &Store,
    key: &Key,
    path: &Path,
    expected: Option<(Digest, u64)>,
) -> Result<(), Error> {
    let local = |error: std::io::Error| Error::from_io(&path.display().to_string(), error);
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(local)?;
    }
    let staged = staged(path);
    let fetched = async {
        let found = copy(store, key, &staged).await?;
        if expected.is_some_and(|expected| expected != found) {
            return Err(changed(&format!("{}/{key}", store.name)));
        }
        tokio::fs::rename(&staged, path).await.map_err(local)
    };
    let result = fetched.await;
    if result.is_err() {
        // The first error is the one to report.
        let _ = tokio::fs::remove_file(&staged).await;
    }
    result
}

impl Store {
    /// Downloads an object into a local file. Returns its digest and size.
    ///
    /// # Cancel safety
    /// A cancelled call may leave a partial file at `path`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; when the store cannot be read or the file cannot be written.
    pub async fn get_file(&self, key: &str, path: &Path) -> Result<ArtifactRef, Error> {
        let from = self.key(key)?;
        let (digest, bytes) = REQUESTS.run(|| copy(self, &from, path)).await?;
        Ok(ArtifactRef { digest, bytes })
    }
}

/// Copies an object into a file and returns its digest and size.
async fn copy(store: &Store, key: &Key, path: &Path) -> Result<(Digest, u64), Error> {
    let local = |error: std::io::Error| Error::from_io(&path.display().to_string(), error);
    let mut file = tokio::fs::File::create(path).await.map_err(local)?;
    let mut stream =
        store.inner.get(key).await.map_err(|error| store.error(key.as_ref(), error))?.into_stream();
    let (mut hasher, mut size) = (Hasher::new(), 0u64);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| store.error(key.as_ref(), error))?;
        hasher.update(&piece);
        size += piece.len() as u64;
        file.write_all(&piece).await.map_err(local)?;
    }
    file.sync_all().await.map_err(local)?;
    Ok((hasher.finish(), size))
}

async fn check(path: &Path, digest: Digest, bytes: u64) -> Result<(), Error> {
    let owned = path.to_owned();
    let found = blocking(move || {
        let file = std::fs::File::open(&owned)?;
        let size = file.metadata()?.len();
        Ok((if size == bytes { Some(Digest::of_reader(file)?) } else { None }, size))
    })
    .await?
    .map_err(|error| Error::from_io(&path.display().to_string(), error))?;
    if found == (Some(digest), bytes) { Ok(()) } else { Err(changed(&path.display().to_string())) }
}

fn changed(object: &str) -> Error {
    Error::Invalid {
        what: object.to_owned(),
        problem: "has changed since the run was planned; plan the run again".to_owned(),
    }
}

/// Returns the store that holds an object, and its key there.
pub(crate) fn parent(url: &str) -> Result<(Store, Key), Error> {
    let wrong = || not_a_file(url);
    let (folder, name) = url.rsplit_once('/').ok_or_else(wrong)?;
    let folder = Address::parse(folder).map_err(|_| wrong())?;
    // Only keys that Lethe writes are restricted to plain ASCII. A URL of a web server is
    // percent-encoded already.
    let key = if folder.is_web() { Key::from_url_path(name) } else { Key::parse(name) };
    let key =
        key.map_err(|error| Error::Invalid { what: url.to_owned(), problem: error.to_string() })?;
    Ok((Store::reading(&folder)?, key))
}

fn not_a_file(url: &str) -> Error {
    Error::Invalid {
        what: url.to_owned(),
        problem: "names a bucket, a repository or a host, not a file".to_owned(),
    }
}

/// Returns a local folder with the files directly under `address`; remote files are downloaded
/// once.
///
/// # Cancel safety
/// A cancelled call may have downloaded some of the files, each of them whole. Calling it again
/// downloads the others.
///
/// # Errors
/// [`Error::NotFound`] when nothing is there.
pub async fn fetch_folder(address: &Address, cache: &Path) -> Result<PathBuf, Error> {
    let url = match address {
        Address::Local(path) => return Ok(path.clone()),
        Address::Remote(_) if address.is_web() => return Err(no_folder(address)),
        Address::Remote(url) => url,
    };
    let store = Store::reading(address)?;
    if let Some(repository) = &store.repository {
        return fetch_hub_folder(repository).await;
    }
    let listed =
        store.inner.list_with_delimiter(None).await.map_err(|error| store.error("", error))?;
    if listed.objects.is_empty() {
        return Err(Error::NotFound { object: url.clone(), stored: None });
    }
    let mut names: Vec<_> = listed.objects.iter().collect();
    names.sort_by(|a, b| a.location.cmp(&b.location));
    let identity: Vec<String> = names
        .iter()
        .map(|m| format!("{} {:?} {} {}", m.location, m.e_tag, m.last_modified, m.size))
        .collect();
    let folder = cache.join(format!(
        "folder-{}",
        Digest::of(format!("{url}\n{}", identity.join("\n")).as_bytes())
    ));
    for meta in names {
        let path = folder.join(meta.location.as_ref());
        if !tokio::fs::try_exists(&path)
            .await
            .map_err(|error| Error::from_io(&path.display().to_string(), error))?
        {
            download(&store, &meta.location, &path, None).await?;
        }
    }
    Ok(folder)
}

/// Brings the files directly in a folder of a model hub into the hub's cache, and returns the folder
/// there. Hidden files are left out, and weights in other formats where there are safetensors.
async fn fetch_hub_folder(repository: &Repository) -> Result<PathBuf, Error> {
    for name in repository.model_files().await? {
        repository.fetch(&name).await?;
    }
    repository.snapshot().await
}

fn no_folder(address: &Address) -> Error {
    Error::Invalid {
        what: address.to_string(),
        problem: "is the address of a web server, which lists no folders; give the address of one file, or hf://ORG/NAME for a repository"
            .to_owned(),
    }
}

/// Removes the copy of a remote folder from the cache, so that [`fetch_folder`] downloads it again.
/// Returns whether there was a copy; `false` for a local folder. Of a model hub's folder, only
/// damaged files are removed.
///
/// # Cancel safety
/// A cancelled call may have removed some of the files. They are downloaded again.
///
/// # Errors
/// When a copy cannot be removed.
pub async fn forget_folder(address: &Address, cache: &Path) -> Result<bool, Error> {
    if address.as_local().is_some() {
        return Ok(false);
    }
    let folder = fetch_folder(address, cache).await?;
    if let Some(repository) = &Store::reading(address)?.repository {
        let mut damaged = false;
        for name in repository.model_files().await? {
            damaged |= repository.forget_damaged(&folder.join(name)).await?;
        }
        return Ok(damaged);
    }
    match tokio::fs::remove_dir_all(&folder).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::from_io(&folder.display().to_string(), error)),
    }
}

/// Escapes an address, so that as a pattern it matches only itself.
pub fn literally(address: &Address) -> String {
    let text = address.to_string();
    let escaped = match text.rsplit_once('/') {
        Some((folder, last)) => format!("{folder}/{}", glob::Pattern::escape(last)),
        None => text,
    };
    braces::escape(&escaped)
}

/// Returns the files that an address names. A local file with that very name is taken as it is.
/// Otherwise braces are expanded first, as by the `webdataset` package (`{000..127}`, `{a,b}`);
/// then `*`, `?` and `[…]` in the last part match files, sorted. An address without either is
/// returned as it is.
///
/// # Cancel safety
/// A cancelled call has no effect.
///
/// # Errors
/// [`Error::NotFound`] when a pattern matches nothing; [`Error::Invalid`] when a wildcard stands
/// before the last part.
pub async fn expand(pattern: &Address) -> Result<Vec<Address>, Error> {
    let text = pattern.to_string();
    if let Address::Local(path) = pattern
        && text.contains(['{', '*', '?', '['])
        && tokio::fs::try_exists(path).await.unwrap_or(false)
    {
        return Ok(vec![pattern.clone()]);
    }
    let wrong = |problem: String| Error::Invalid { what: text.clone(), problem };
    let texts = braces::expand(&text, MAX_MATCHES).map_err(wrong)?;
    let mut addresses = Vec::new();
    for expanded in texts {
        let expanded = Address::parse(&expanded).map_err(|error| wrong(error.to_string()))?;
        addresses.extend(matching(&expanded).await?);
        if addresses.len() > MAX_MATCHES {
            return Err(wrong("matches more than a million files".to_owned()));
        }
    }
    Ok(addresses)
}

/// Returns the files that match an address without braces.
async fn matching(pattern: &Address) -> Result<Vec<Address>, Error> {
    let text = pattern.to_string();
    if !text.contains(['*', '?', '[']) {
        return Ok(vec![pattern.clone()]);
    }
    let wrong = |problem: &str| Error::Invalid { what: text.clone(), problem: problem.to_owned() };
    let (folder, last) = text.rsplit_once('/').ok_or_else(|| wrong("is no path"))?;
    if folder.contains(['*', '?', '[']) {
        return Err(wrong("wildcards may stand in the last part of a path only"));
    }
    let matcher = glob::Pattern::new(last).map_err(|error| wrong(&error.to_string()))?;
    let names: Vec<String> = match pattern {
        Address::Local(_) => {
            let owned = folder.to_owned();
            let read = move || -> std::io::Result<Vec<String>> {
                std::fs::read_dir(&owned)?
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect()
            };
            blocking(read).await?.map_err(|error| Error::from_io(folder, error))?
        }
        Address::Remote(_) if pattern.is_web() => {
            return Err(wrong(
                "has a wildcard, and web servers list no folders; name each file, or use braces: {000..127}",
            ));
        }
        Address::Remote(_) => {
            let folder = Address::parse(folder).map_err(|error| wrong(&error.to_string()))?;
            let store = Store::reading(&folder)?;
            // A listing that ends early is retried.
            let list = || async {
                store.inner.list_with_delimiter(None).await.map_err(|error| store.error("", error))
            };
            REQUESTS
                .run(list)
                .await?
                .objects
                .into_iter()
                .map(|meta| meta.location.to_string())
                .collect()
        }
    };
    let mut names: Vec<String> = names.into_iter().filter(|name| matcher.matches(name)).collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::NotFound { object: format!("{text} (no file matches)"), stored: None });
    }
    if names.len() > MAX_MATCHES {
        return Err(wrong("matches more than a million files"));
    }
    names
        .iter()
        .map(|name| {
            Address::parse(&format!("{folder}/{name}")).map_err(|error| wrong(&error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn patterns_match_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b-2.tar", "b-1.tar", "a.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let at = |name: &str| Address::Local(folder.path().join(name));
        assert_eq!(expand(&at("b-*.tar")).await.unwrap(), [at("b-1.tar"), at("b-2.tar")]);
        assert_eq!(expand(&at("b-{1..2}.tar")).await.unwrap(), [at("b-1.tar"), at("b-2.tar")]);
        assert_eq!(expand(&at("{b-2.t,a.}*")).await.unwrap(), [at("b-2.tar"), at("a.txt")]);
        assert_eq!(expand(&at("n-{08..10}.tar")).await.unwrap().len(), 3);
        assert!(matches!(expand(&at("n-{1..2.tar")).await, Err(Error::Invalid { .. })));
        std::fs::write(folder.path().join("d{1,2}.tar"), "").unwrap();
        assert_eq!(expand(&at("d{1,2}.tar")).await.unwrap(), [at("d{1,2}.tar")]);
        let literal = Address::parse(&literally(&at("d{1,2}.tar"))).unwrap();
        assert_eq!(expand(&literal).await.unwrap(), [at("d{1,2}.tar")]);
        let odd = folder.path().join("c[1]*.tar");
        std::fs::write(&odd, "").unwrap();
        std::fs::write(folder.path().join("c1.tar"), "").unwrap();
        let literal = Address::parse(&literally(&Address::Local(odd.clone()))).unwrap();
        assert_eq!(expand(&literal).await.unwrap(), [Address::Local(odd)]);
        std::fs::write(folder.path().join("pairs [1].tar"), "").unwrap();
        assert_eq!(expand(&at("pairs [1].tar")).await.unwrap(), [at("pairs [1].tar")]);
        assert_eq!(literally(&at("none.tar")), at("none.tar").to_string());
        assert_eq!(expand(&at("none.tar")).await.unwrap(), [at("none.tar")]);
        assert!(matches!(expand(&at("c-*.tar")).await, Err(Error::NotFound { .. })));
        assert!(matches!(expand(&at("*/b.tar")).await, Err(Error::Invalid { .. })));
    }

    #[tokio::test]
    async fn a_local_folder_is_nobody_s_copy() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Local(folder.path().to_owned());
        assert!(!forget_folder(&address, folder.path()).await.unwrap());
        assert!(tokio::fs::try_exists(folder.path()).await.unwrap());
    }

    #[tokio::test]
    async fn a_changed_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        std::fs::write(&path, "then").unwrap();
        let (address, then) = (Address::Local(path.clone()), Some((Digest::of(b"then"), 4)));
        assert_eq!(fetch_file(&address, folder.path(), then).await.unwrap(), path);
        std::fs::write(&path, "now!").unwrap();
        assert!(matches!(
            fetch_file(&address, folder.path(), then).await,
            Err(Error::Invalid { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            fetch_file(&address, folder.path(), then).await,
            Err(Error::NotFound { .. })
        ));
    }
}

//! A repository at an address: its commit, its files, and their local copies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use lethe_shared::checkpoint::OTHER_WEIGHTS;
use lethe_shared::hub::HubAddress;
use reqwest::StatusCode;
use tokio::sync::OnceCell;

use super::cache::Cache;
use super::client::{Client, unreachable};
use super::download::{HUB_REQUESTS, download};
use super::listing::{File, is_safe};
use super::settings::Settings;
use crate::error::Error;
use crate::local::blocking;

/// Most files of a folder.
const MAX_FILES: usize = 1_000_000;
/// Lists of files that a process keeps.
const MAX_LISTS: usize = 64;

/// Lists of files by endpoint, folder with its commit, and depth. A commit never changes.
static LISTS: Mutex<BTreeMap<String, Arc<Vec<File>>>> = Mutex::new(BTreeMap::new());

/// A folder of a repository, or a whole one.
#[derive(Debug)]
pub(crate) struct Repository {
    address: HubAddress,
    settings: Settings,
    client: Client,
    cache: Cache,
    commit: OnceCell<String>,
}

impl Repository {
    /// Opens the repository at an address, with the settings in the environment. Nothing is
    /// requested yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a setting is wrong.
    pub(crate) fn open(address: &HubAddress) -> Result<Self, Error> {
        let settings = Settings::read(|name| std::env::var(name).ok())
            .map_err(|problem| Error::Invalid { what: address.to_string(), problem })?;
        Self::with(address, settings)
    }

    /// Opens the repository at an address.
    pub(super) fn with(address: &HubAddress, settings: Settings) -> Result<Self, Error> {
        Ok(Self {
            address: address.clone(),
            client: Client::new(settings.clone())?,
            cache: Cache::of(&settings.cache, address),
            settings,
            commit: OnceCell::new(),
        })
    }

    /// Returns the address with the commit that its revision has; the first answer stays.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such repository or revision; when the hub cannot be
    /// reached.
    pub(crate) async fn pinned(&self) -> Result<HubAddress, Error> {
        let commit = self.commit.get_or_try_init(|| self.resolve()).await?;
        Ok(self.address.at(commit))
    }

    async fn resolve(&self) -> Result<String, Error> {
        let address = &self.address;
        if let Some(commit) = address.commit() {
            return Ok(commit.to_owned());
        }
        if self.settings.offline {
            return self.cache.commit(address.revision()).ok_or_else(|| {
                self.not_cached(&format!("the commit of `{}`", address.revision()))
            });
        }
        let commit = HUB_REQUESTS.run(|| self.client.commit(address)).await?;
        self.cache.remember(address.revision(), &commit)?;
        Ok(commit)
    }

    /// Lists the files of the folder at the address and, with `recursive`, below it, sorted by path.
    /// Paths are those in the repository. Offline, the files are those in the cache.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such folder.
    pub(super) async fn list(&self, recursive: bool) -> Result<Arc<Vec<File>>, Error> {
        self.list_at(&self.pinned().await?, recursive).await
    }

    async fn list_at(&self, pinned: &HubAddress, recursive: bool) -> Result<Arc<Vec<File>>, Error> {
        if self.settings.offline {
            let cached = self.cache.list(pinned.revision(), pinned.path(), recursive)?;
            return if cached.is_empty() {
                Err(self.not_cached("this commit's files"))
            } else {
                Ok(Arc::new(cached))
            };
        }
        let key = format!("{} {pinned} {recursive}", self.settings.endpoint);
        if let Some(list) = lists().get(&key) {
            return Ok(Arc::clone(list));
        }
        let (mut files, mut next) = (Vec::new(), None);
        loop {
            let ask = || self.client.page(pinned, recursive, next.as_deref());
            let page = HUB_REQUESTS.run(ask).await?;
            files.extend(page.files);
            if files.len() > MAX_FILES {
                return Err(Error::Refused {
                    object: pinned.to_string(),
                    problem: "holds more than a million files; give a smaller folder".to_owned(),
                });
            }
            // An empty page with a successor would never end.
            match page.next {
                Some(query) if next.as_ref() != Some(&query) => next = Some(query),
                _ => break,
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let files = Arc::new(files);
        let mut lists = lists();
        if lists.len() >= MAX_LISTS {
            lists.clear();
        }
        lists.insert(key, Arc::clone(&files));
        Ok(files)
    }

    /// Returns the names of the files directly in the folder at the address that belong to a model:
    /// no hidden ones, and no weights in other formats where there are safetensors.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub(crate) async fn model_files(&self) -> Result<Vec<String>, Error> {
        let list = self.list(false).await?;
        let mut names: Vec<&str> =
            list.iter().filter_map(|file| file.path.rsplit('/').next()).collect();
        names.retain(|name| !name.starts_with('.'));
        let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        if names.iter().any(|name| ending(name) == "safetensors") {
            names.retain(|name| !OTHER_WEIGHTS.contains(&ending(name).as_str()));
        }
        if names.is_empty() {
            return Err(Error::NotFound {
                object: format!("{} (no file of a model)", self.address),
                stored: None,
            });
        }
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    /// Returns a file by its path below the address, as the hub or, offline, the cache lists it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub(super) async fn look(&self, name: &str) -> Result<File, Error> {
        let file = self.file(name).await?;
        let folder = file.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let folder = self.at(&self.pinned().await?, folder)?;
        let missing = || Error::NotFound { object: file.to_string(), stored: None };
        let list = match self.list_at(&folder, false).await {
            Err(Error::NotFound { .. }) => return Err(missing()),
            list => list?,
        };
        let found = list.binary_search_by(|one| one.path.as_str().cmp(file.path()));
        found.map(|index| list[index].clone()).map_err(|_| missing())
    }

    /// Returns the local copy of a file by its path below the address; it is downloaded if
    /// necessary.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; [`Error::Refused`] when it may not be read, or is
    /// not in the cache of a process that is offline.
    ///
    /// # Cancel safety
    /// A cancelled call leaves a partial content in the cache, which the next one continues.
    pub(crate) async fn fetch(&self, name: &str) -> Result<PathBuf, Error> {
        let address = self.file(name).await?;
        if let Some(path) = self.cached(&address) {
            return Ok(path);
        }
        if self.settings.offline {
            return Err(self.not_cached(address.path()));
        }
        let file = self.look(name).await?;
        download(&self.client, &self.cache, &address, &file).await?;
        self.cache.link(address.revision(), address.path(), &file.content)
    }

    /// Returns the local copy of a file, if the cache has it.
    fn cached(&self, address: &HubAddress) -> Option<PathBuf> {
        self.cache.file(address.revision(), address.path())
    }

    /// Returns the local copy of a file by its path below the address, if the cache has it.
    pub(super) async fn local(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        Ok(self.cached(&self.file(name).await?))
    }

    /// Returns the folder of the address's commit in the cache.
    pub(crate) async fn snapshot(&self) -> Result<PathBuf, Error> {
        let pinned = self.pinned().await?;
        Ok(self.cache.snapshot(pinned.revision()).join(pinned.path()))
    }

    /// Reads a part of a file without a local copy.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the hub does not answer range requests.
    pub(super) async fn range(&self, name: &str, range: Range<u64>) -> Result<Bytes, Error> {
        let address = self.file(name).await?;
        HUB_REQUESTS.run(|| self.receive(&address, range.clone())).await
    }

    async fn receive(&self, address: &HubAddress, range: Range<u64>) -> Result<Bytes, Error> {
        let (wanted, header) =
            (range.end - range.start, format!("bytes={}-{}", range.start, range.end - 1));
        let mut response = self.client.file(address, Some(&header)).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(Error::Unsupported {
                object: address.to_string(),
                problem: "the hub does not answer requests for parts of files; check HF_ENDPOINT"
                    .to_owned(),
            });
        }
        let mut bytes = BytesMut::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| unreachable(address, error))?
        {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > wanted {
                break;
            }
        }
        if bytes.len() as u64 == wanted {
            return Ok(bytes.freeze());
        }
        Err(Error::Unavailable {
            object: address.to_string(),
            cause: format!("{} bytes arrive where {wanted} were asked for", bytes.len()),
        })
    }

    /// Removes the local copy of a file if it is damaged. Returns whether it was.
    ///
    /// # Errors
    /// When it cannot be read or removed.
    pub(crate) async fn forget_damaged(&self, file: &Path) -> Result<bool, Error> {
        let (cache, file) = (self.cache.clone(), file.to_owned());
        blocking(move || cache.remove_if_damaged(&file)).await?
    }

    /// Returns the address of a file by its path below this one.
    async fn file(&self, name: &str) -> Result<HubAddress, Error> {
        let pinned = self.pinned().await?;
        let path = match pinned.path() {
            "" => name.to_owned(),
            folder => format!("{folder}/{name}"),
        };
        self.at(&pinned, &path)
    }

    /// Returns the address of a path in this repository.
    fn at(&self, pinned: &HubAddress, path: &str) -> Result<HubAddress, Error> {
        if path.is_empty() || is_safe(path) {
            return Ok(pinned.with_path(path));
        }
        Err(Error::Invalid {
            what: self.address.to_string(),
            problem: format!("`{}` is no path of a file in it", path.escape_debug()),
        })
    }

    fn not_cached(&self, what: &str) -> Error {
        Error::Refused {
            object: self.address.to_string(),
            problem: format!(
                "HF_HUB_OFFLINE is set, and the cache at {} does not have {what}; unset it, or download the repository first",
                self.cache.folder().display()
            ),
        }
    }
}

fn lists() -> std::sync::MutexGuard<'static, BTreeMap<String, Arc<Vec<File>>>> {
    LISTS.lock().unwrap_or_else(PoisonError::into_inner)
}

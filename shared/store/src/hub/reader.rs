//! A repository as a read-only object store, so that everything that reads stores reads it.

use std::fmt;
use std::path::Path as LocalPath;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};

use super::listing::File;
use super::repository::Repository;
use crate::error::Error;

/// Name of this store in errors.
const HUB: &str = "hub";
/// Files up to this size are downloaded when a part is read, bytes.
const SMALL: u64 = 1 << 20;

/// A repository as an object store.
#[derive(Debug)]
pub(crate) struct Reader {
    repository: std::sync::Arc<Repository>,
    /// The path of its folder in the repository.
    folder: String,
}

impl Reader {
    /// Wraps a repository, whose folder is `folder`.
    pub(crate) fn over(repository: std::sync::Arc<Repository>, folder: &str) -> Self {
        Self { repository, folder: folder.to_owned() }
    }

    /// Returns the key of a file: its path below the folder.
    fn key<'a>(&self, file: &'a File) -> &'a str {
        let below = file.path.strip_prefix(&self.folder).unwrap_or(&file.path);
        below.strip_prefix('/').unwrap_or(below)
    }

    fn meta(&self, file: &File) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            location: Path::parse(self.key(file))?,
            // A commit has files, not times.
            last_modified: std::time::UNIX_EPOCH.into(),
            size: file.bytes,
            e_tag: Some(file.content.to_string()),
            version: None,
        })
    }

    /// Lists the files below a prefix.
    async fn files(&self, prefix: Option<&Path>, recursive: bool) -> Result<Vec<ObjectMeta>> {
        let list = match self.repository.list(recursive).await {
            // As in object stores, a folder that is not there has no files.
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            list => list.map_err(carried)?,
        };
        let prefix = prefix.map(|prefix| format!("{prefix}/")).unwrap_or_default();
        list.iter()
            .filter(|file| self.key(file).starts_with(&prefix))
            .map(|file| self.meta(file))
            .collect()
    }
}

/// Carries an error through the interface of object stores; `Error::from_store` takes it out.
fn carried(error: Error) -> StoreError {
    StoreError::Generic { store: HUB, source: Box::new(error) }
}

fn read_only(operation: &str) -> StoreError {
    StoreError::NotSupported {
        source: format!("a model hub is read only here: {operation} is not possible").into(),
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HUB)
    }
}

#[async_trait]
impl ObjectStore for Reader {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let name = location.as_ref();
        let file = self.repository.look(name).await.map_err(carried)?;
        let meta = self.meta(&file)?;
        let all = 0..meta.size;
        let range = match (&options.range, options.head) {
            (Some(range), false) => range
                .as_range(meta.size)
                .map_err(|error| StoreError::Generic { store: HUB, source: Box::new(error) })?,
            _ => all.clone(),
        };
        let payload = if options.head {
            GetResultPayload::Stream(futures::stream::empty().boxed())
        } else if let Some(path) = self.repository.local(name).await.map_err(carried)? {
            opened(&path)?
        } else if range != all && meta.size > SMALL {
            // Whoever reads parts may not have the room for the whole.
            let bytes: Bytes = self.repository.range(name, range.clone()).await.map_err(carried)?;
            GetResultPayload::Stream(futures::stream::once(async { Ok(bytes) }).boxed())
        } else {
            opened(&self.repository.fetch(name).await.map_err(carried)?)?
        };
        Ok(GetResult {
            payload,
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (repository, folder, prefix) =
            (std::sync::Arc::clone(&self.repository), self.folder.clone(), prefix.cloned());
        futures::stream::once(async move {
            let reader = Self { repository, folder };
            let files = reader.files(prefix.as_ref(), true).await?;
            Ok::<_, StoreError>(futures::stream::iter(files.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let recursive = prefix.is_some();
        let depth = prefix.map_or(0, |prefix| prefix.parts().count());
        let mut objects = self.files(prefix, recursive).await?;
        objects.retain(|meta| meta.location.parts().count() == depth + 1);
        Ok(ListResult { common_prefixes: Vec::new(), objects, extensions: Default::default() })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only("writing"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only("writing"))
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        futures::stream::once(async { Err(read_only("deleting")) }).boxed()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only("writing"))
    }
}

fn opened(path: &LocalPath) -> Result<GetResultPayload> {
    let file = std::fs::File::open(path)
        .map_err(|error| carried(Error::from_io(&path.display().to_string(), error)))?;
    Ok(GetResultPayload::File(file, path.to_owned()))
}

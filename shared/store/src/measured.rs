//! A wrapper that counts the requests and bytes of a store.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use lethe_operations::metrics;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};

/// A store whose requests are counted.
#[derive(Debug)]
pub(crate) struct Measured {
    inner: Arc<dyn ObjectStore>,
}

impl Measured {
    pub(crate) fn over(inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        Arc::new(Self { inner })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Counts the result of a request and passes it through.
fn answered<T>(operation: &'static str, result: Result<T>) -> Result<T> {
    let how = match &result {
        Ok(_) => "ok",
        Err(Error::NotFound { .. }) => "missing",
        Err(Error::AlreadyExists { .. }) => "exists",
        Err(_) => "error",
    };
    metrics().store_answered(operation, how);
    result
}

#[async_trait]
impl ObjectStore for Measured {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let operation = if options.mode == PutMode::Create { "create" } else { "put" };
        let bytes = payload.content_length() as u64;
        let result = answered(operation, self.inner.put_opts(location, payload, options).await);
        if result.is_ok() {
            metrics().store_moved("write", bytes);
        }
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = answered("multipart", self.inner.put_multipart_opts(location, options).await)?;
        Ok(Box::new(MeasuredUpload { upload }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = answered(
            if head { "head" } else { "get" },
            self.inner.get_opts(location, options).await,
        )?;
        if head {
            return Ok(result);
        }
        let payload = match result.payload {
            GetResultPayload::Stream(stream) => {
                GetResultPayload::Stream(stream.inspect(count_piece).boxed())
            }
            // The caller reads a local file itself, so all of it is counted.
            file => {
                metrics().store_moved("read", result.range.end - result.range.start);
                file
            }
        };
        Ok(GetResult { payload, ..result })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let result = answered("get", self.inner.get_ranges(location, ranges).await)?;
        metrics().store_moved("read", result.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(result)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations).map(|result| answered("delete", result)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        metrics().store_answered("list", "ok");
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        metrics().store_answered("list", "ok");
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        answered("list", self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        answered("copy", self.inner.copy_opts(from, to, options).await)
    }
}

/// Counts bytes as they come.
fn count_piece(piece: &Result<Bytes>) {
    match piece {
        Ok(bytes) => metrics().store_moved("read", bytes.len() as u64),
        Err(_) => metrics().store_answered("get", "error"),
    }
}

/// An upload in parts whose requests are counted.
#[derive(Debug)]
struct MeasuredUpload {
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for MeasuredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length() as u64;
        let part = self.upload.put_part(data);
        Box::pin(async move {
            let result = answered("part", part.await);
            if result.is_ok() {
                metrics().store_moved("write", bytes);
            }
            result
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        answered("complete", self.upload.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        answered("abort", self.upload.abort().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn requests_and_bytes_are_counted() {
        let counted = |line: &str| {
            let text = metrics().encode();
            let found =
                text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u64>().ok());
            found.unwrap_or(0)
        };
        // Other tests of this process use stores too, so that counters are lower bounds.
        let before = counted("lethe_store_bytes_total{operation=\"write\"}");
        let store = Store::in_memory();
        store.put("a/b", Bytes::from_static(b"twelve bytes")).await.unwrap();
        assert_eq!(store.get("a/b").await.unwrap().unwrap().len(), 12);
        assert_eq!(store.get("a/c").await.unwrap(), None);
        assert!(counted("lethe_store_bytes_total{operation=\"write\"}") >= before + 12);
        assert!(counted("lethe_store_bytes_total{operation=\"read\"}") >= 12);
        assert!(counted("lethe_store_operations_total{operation=\"get\",result=\"missing\"}") >= 1);
    }
}

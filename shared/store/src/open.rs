//! Opens the object store at an address.

use std::sync::Arc;

use lethe_shared::address::Address;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;

use crate::answers::Connector;
use crate::client::{allows_http, options, retries};
use crate::credentials;
use crate::error::Error;
use crate::web;

pub(crate) fn open(address: &Address) -> Result<Arc<dyn ObjectStore>, Error> {
    match address {
        Address::Local(path) => {
            std::fs::create_dir_all(path)
                .map_err(|error| Error::from_io(&path.display().to_string(), error))?;
            let local = LocalFileSystem::new_with_prefix(path)
                .map_err(|error| Error::from_store(&path.display().to_string(), error))?;
            Ok(Arc::new(local.with_fsync(true)))
        }
        Address::Remote(url) if address.is_web() => web::open(url, allows_http()),
        Address::Remote(url) => open_remote(url),
    }
}

fn open_remote(url: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    let wrong = |error: object_store::Error| Error::Invalid {
        what: url.to_owned(),
        problem: error.to_string(),
    };
    let missing = || Error::Invalid {
        what: url.to_owned(),
        problem: "is not an object-store URL".to_owned(),
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(missing)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    credentials::check(scheme, |name| std::env::var(name).ok())
        .map_err(|problem| Error::Invalid { what: url.to_owned(), problem })?;
    let options = options(allows_http());
    let retry = retries();
    let store: Arc<dyn ObjectStore> = match scheme {
        "s3" => Arc::new(
            AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(Connector)
                .build()
                .map_err(wrong)?,
        ),
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            Arc::new(
                builder
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(Connector)
                    .build()
                    .map_err(wrong)?,
            )
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            Arc::new(
                builder
                    .with_client_options(options)
                    .with_retry(retry)
                    .with_http_connector(Connector)
                    .build()
                    .map_err(wrong)?,
            )
        }
        _ => return Err(missing()),
    };
    below(store, prefix, url)
}

/// Restricts a store to the keys below a prefix, which is taken as typed. A conversion of text into
/// a key would percent-encode it, and existing objects would not be found.
fn below(
    store: Arc<dyn ObjectStore>,
    prefix: &str,
    url: &str,
) -> Result<Arc<dyn ObjectStore>, Error> {
    if prefix.is_empty() {
        return Ok(store);
    }
    let prefix = Key::parse(prefix).map_err(|error| Error::Invalid {
        what: url.escape_debug().to_string(),
        problem: error.to_string(),
    })?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;
    use crate::store::Store;

    /// Folder names that a percent-encoding changes, or that look like one.
    const TYPED: [&str; 6] =
        ["müller/models v1", "100%/a%20b", "[v1] {x}~", "日本語", "a+b&c=d", "cafe\u{301}"];

    #[tokio::test]
    async fn a_prefix_is_the_path_as_typed() {
        for typed in TYPED {
            let all: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let there = Key::parse(format!("{typed}/there.txt")).unwrap();
            all.put(&there, PutPayload::from_static(b"old")).await.unwrap();
            let url = format!("s3://bucket/{typed}");
            let store = Store::over(below(Arc::clone(&all), typed, &url).unwrap(), &url);
            assert_eq!(store.get("there.txt").await.unwrap().unwrap(), "old", "{typed}");
            store.put("new.txt", Bytes::from_static(b"new")).await.unwrap();
            let new = Key::parse(format!("{typed}/new.txt")).unwrap();
            assert_eq!(all.head(&new).await.unwrap().size, 3, "{typed}");
            let listed: Vec<String> =
                store.contents().await.unwrap().into_iter().map(|object| object.key).collect();
            assert_eq!(listed, ["new.txt", "there.txt"], "{typed}");
            let error = store.hash("none.txt").await.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{url}/none.txt")), "{error}");
        }
    }

    #[tokio::test]
    async fn a_local_folder_is_the_path_as_typed() {
        let folder = tempfile::tempdir().unwrap();
        for typed in TYPED {
            let path = folder.path().join(typed);
            for address in [path.display().to_string(), format!("file://{}", path.display())] {
                let store = Store::open(&Address::parse(&address).unwrap()).unwrap();
                store.put("new.txt", Bytes::from_static(b"new")).await.unwrap();
                assert_eq!(std::fs::read(path.join("new.txt")).unwrap(), b"new", "{address}");
                assert_eq!(store.contents().await.unwrap()[0].key, "new.txt", "{address}");
            }
        }
    }

    #[test]
    fn a_prefix_with_control_characters_is_refused() {
        let error = below(Arc::new(InMemory::new()), "a/\u{1b}[2J", "s3://b/a/\u{1b}[2J");
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("s3://b/a/\\u{1b}[2J: "), "{error}");
    }
}

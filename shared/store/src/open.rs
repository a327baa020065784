//! Opens the object store at an address.

use std::sync::Arc;
use std::time::Duration;

use lethe_shared::address::Address;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::answers::Connector;
use crate::error::Error;

pub(crate) fn open(address: &Address) -> Result<Arc<dyn ObjectStore>, Error> {
    match address {
        Address::Local(path) => {
            std::fs::create_dir_all(path)
                .map_err(|error| Error::from_io(&path.display().to_string(), error))?;
            let local = LocalFileSystem::new_with_prefix(path)
                .map_err(|error| Error::from_store(&path.display().to_string(), error))?;
            Ok(Arc::new(local.with_fsync(true)))
        }
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
    // The request timeout covers the whole body, and large objects need minutes. The read timeout
    // detects a silent server.
    let options = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(600))
        .with_read_timeout(Duration::from_secs(30))
        .with_allow_http(
            std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1"),
        );
    let retry = RetryConfig {
        max_retries: 10,
        retry_timeout: Duration::from_secs(180),
        ..RetryConfig::default()
    };
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
    Ok(if prefix.is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) })
}

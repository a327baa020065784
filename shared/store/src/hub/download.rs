//! Downloads of single files into the cache: resumed where an earlier one ended, and checked before
//! they get their name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lethe_shared::hub::HubAddress;
use lethe_shared::retry::{GiveUp, RetryPolicy, Transient};
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::io::AsyncWriteExt;

use super::cache::{Cache, failed};
use super::client::{Client, unreachable};
use super::listing::{Content, File};
use crate::error::Error;
use crate::local::blocking;

/// Attempts at a request to the hub: about fifteen seconds in all. The client does not retry by
/// itself, unlike those of stores.
pub(super) const HUB_REQUESTS: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(500),
    most: Duration::from_secs(8),
    give_up: GiveUp::Attempts(6),
};

/// Downloads the content of a file, unless the cache has it, and returns its path there. `address`
/// names the file and its commit.
///
/// # Cancel safety
/// A cancelled call leaves a partial content, which the next one continues.
pub(super) async fn download(
    client: &Client,
    cache: &Cache,
    address: &HubAddress,
    file: &File,
) -> Result<PathBuf, Error> {
    let _lock = cache.lock(&file.content).await?;
    let (blob, partial) = (cache.blob(&file.content), cache.partial(&file.content));
    if blob.is_file() {
        return Ok(blob);
    }
    let folder = blob.parent().unwrap_or(Path::new("/"));
    tokio::fs::create_dir_all(folder).await.map_err(|error| failed(folder, error))?;
    loop {
        let resumed = length(&partial) > 0;
        receive_all(client, address, file, &partial).await?;
        let (content, path) = (file.content.clone(), partial.clone());
        let found = blocking(move || content.of_file(&path))
            .await?
            .map_err(|error| failed(&partial, error))?;
        if found == file.content {
            break;
        }
        tokio::fs::remove_file(&partial).await.map_err(|error| failed(&partial, error))?;
        // The beginning may be damaged, so everything is downloaded once more.
        if !resumed {
            return Err(mismatch(address, &found, &file.content));
        }
    }
    tokio::fs::rename(&partial, &blob).await.map_err(|error| failed(&blob, error))?;
    Ok(blob)
}

/// The error when the bytes that arrive are not those that the hub lists.
fn mismatch(address: &HubAddress, found: &Content, listed: &Content) -> Error {
    let algorithm = match listed {
        Content::Sha256(_) => "SHA-256",
        Content::Git(_) => "Git digest",
    };
    Error::Unavailable {
        object: address.to_string(),
        cause: format!(
            "the downloaded bytes have the {algorithm} {found}, the hub lists {listed}; nothing was kept: try again, and check proxy and HF_ENDPOINT"
        ),
    }
}

/// Receives the rest of a file. Attempts are counted anew whenever some bytes arrive.
async fn receive_all(
    client: &Client,
    address: &HubAddress,
    file: &File,
    partial: &Path,
) -> Result<(), Error> {
    let mut attempts = HUB_REQUESTS.attempts();
    loop {
        let before = length(partial);
        let error = match receive(client, address, file, partial).await {
            Err(error) if error.is_transient() => error,
            other => return other,
        };
        if length(partial) > before {
            attempts = HUB_REQUESTS.attempts();
        }
        let Some(pause) = attempts.failed() else { return Err(error) };
        tokio::time::sleep(pause).await;
    }
}

/// Makes one attempt to receive the rest of a file.
async fn receive(
    client: &Client,
    address: &HubAddress,
    file: &File,
    partial: &Path,
) -> Result<(), Error> {
    let local = |error: std::io::Error| failed(partial, error);
    let mut there = length(partial);
    if there == file.bytes && there > 0 {
        return Ok(());
    }
    if there > file.bytes {
        there = 0;
    }
    let range = (there > 0).then(|| format!("bytes={there}-"));
    let mut response = client.file(address, range.as_deref()).await?;
    let continues = response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(&format!("bytes {there}-")));
    let mut options = tokio::fs::OpenOptions::new();
    options.create(true).write(true);
    let mut received = if continues { there } else { 0 };
    let mut output = if continues {
        options.append(true).open(partial).await.map_err(local)?
    } else {
        options.truncate(true).open(partial).await.map_err(local)?
    };
    let result = loop {
        match response.chunk().await {
            Ok(Some(piece)) => {
                received += piece.len() as u64;
                if received > file.bytes {
                    break Err(Error::Unavailable {
                        object: address.to_string(),
                        cause: format!(
                            "more than the {} bytes that the hub lists arrive",
                            file.bytes
                        ),
                    });
                }
                output.write_all(&piece).await.map_err(local)?;
            }
            Ok(None) if received < file.bytes => {
                break Err(Error::Unavailable {
                    object: address.to_string(),
                    cause: format!("the download ended after {received} of {} bytes", file.bytes),
                });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(unreachable(address, error)),
        }
    };
    output.sync_all().await.map_err(local)?;
    result
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

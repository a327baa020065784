//! What something is: a folder by the files in it, a file by its name and its first bytes.

use std::io::Read;
use std::path::Path;

use lethe_shared::address::Address;
use lethe_shared::image_file::Format;
use lethe_shared::manifest::TargetKind;
use lethe_shared::shard::not_a_tar;
use lethe_store as store;

use crate::downstream::{Folder, kind_of};
use crate::failure::Failure;
use crate::layout;

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A folder with a CLIP model, or with what could be one.
    Model,
    /// The folder of a release.
    Release,
    /// A folder of shards, with the names of the shards.
    Shards(Vec<String>),
    /// A folder with a pipeline or a vision-language model.
    Target(TargetKind),
    /// A shard of image-text pairs.
    Shard,
    /// A weight file.
    Weights,
    /// An image.
    Image,
    /// A concept table.
    Table,
    /// A class list, or texts.
    Names,
    /// A manifest.
    Manifest,
    /// Something that Lethe does not read.
    Refused {
        /// What it is.
        is: &'static str,
        /// Why it is refused, and what to do.
        problem: String,
    },
}

/// What a path may lead to, for messages.
const READ: &str = "Lethe reads model folders, shards (.tar), concept tables (.csv, .tsv, .jsonl), lists of names (.txt), manifests (.toml, \
                    .json), weights (.safetensors) and images (.png, .jpg, .webp)";
/// Extensions of pickles.
const PICKLES: [&str; 6] = ["bin", "ckpt", "pickle", "pkl", "pt", "pth"];
/// First bytes that are looked at.
const START: usize = 512;

/// Finds what is at an address. A remote address is a file when its last part has an extension that
/// Lethe reads.
///
/// # Errors
/// [`Failure::BadInput`] when nothing is there; [`Failure::Infrastructure`] when it cannot be
/// reached.
pub(super) async fn find(address: &Address, cache: &Path) -> Result<Kind, Failure> {
    let is_file = match address.as_local() {
        Some(path) => {
            let found = tokio::fs::metadata(path).await;
            let metadata = found.map_err(|error| Failure::input(format!("{address}: {error}")))?;
            metadata.is_file()
        }
        None => by_name(&address.to_string()).is_some(),
    };
    if !is_file {
        let listing =
            Folder::open(address, cache).await.map_err(|failure| named(address, failure))?;
        return folder(&listing).await.map_err(|failure| named(address, failure));
    }
    let path = store::fetch_file(address, cache, None).await.map_err(|error| match error {
        store::Error::NotFound { .. } => Failure::input(error),
        other => named(address, other.into()),
    })?;
    let mut start = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(START as u64).read_to_end(&mut start))
        .map_err(|error| Failure::input(format!("{address}: {error}")))?;
    Ok(by_name(&address.to_string()).unwrap_or_else(|| by_content(&start)))
}

/// Adds the address to problems of the input.
fn named(address: &Address, failure: Failure) -> Failure {
    match failure {
        Failure::BadInput(problems) => Failure::BadInput(
            problems.into_iter().map(|problem| format!("{address}: {problem}")).collect(),
        ),
        other => other,
    }
}

/// Returns what a file is by the extension of its name; `None` when its content decides.
fn by_name(name: &str) -> Option<Kind> {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let extension = file.rsplit_once('.')?.1;
    Some(match extension {
        "tar" => Kind::Shard,
        "safetensors" => Kind::Weights,
        "png" | "jpg" | "jpeg" | "webp" => Kind::Image,
        "csv" | "tsv" | "jsonl" => Kind::Table,
        "txt" => Kind::Names,
        "toml" | "json" => Kind::Manifest,
        pickle if PICKLES.contains(&pickle) => Kind::Refused {
            is: "a pickle, by its name",
            problem: "opening a pickle runs code, so Lethe opens none; load the model in Python where you trust its source, and save it with \
                      save_pretrained(folder, safe_serialization=True) or safetensors.torch.save_file"
                .to_owned(),
        },
        _ => return None,
    })
}

/// Returns what a file is by its first bytes.
fn by_content(start: &[u8]) -> Kind {
    if let Some(problem) = not_a_tar(start) {
        return Kind::Refused { is: "an archive", problem: problem.to_owned() };
    }
    if start.get(257..262) == Some(b"ustar") {
        return Kind::Shard;
    }
    if Format::of(start).is_some() {
        return Kind::Image;
    }
    Kind::Refused { is: "nothing that Lethe reads", problem: READ.to_owned() }
}

/// Returns what a folder is by its files.
async fn folder(listing: &Folder) -> Result<Kind, Failure> {
    if listing.has(layout::RECORD) {
        return Ok(Kind::Release);
    }
    if let Some(kind) = kind_of(listing).await? {
        return Ok(Kind::Target(kind));
    }
    let names: Vec<&str> = listing.directly_in("").collect();
    let shards: Vec<String> =
        names.iter().filter(|name| name.ends_with(".tar")).map(|&name| name.to_owned()).collect();
    let is_of_model = |name: &&str| name.ends_with("config.json") || name.ends_with(".safetensors");
    if names.iter().any(is_of_model) {
        return Ok(Kind::Model);
    }
    if !shards.is_empty() {
        return Ok(Kind::Shards(shards));
    }
    let is_pickle = |name: &&&str| {
        name.rsplit_once('.').is_some_and(|(_, extension)| PICKLES.contains(&extension))
    };
    Ok(match names.iter().find(is_pickle) {
        // Opening the model explains what to do with pickles.
        Some(_) => Kind::Model,
        None => {
            Kind::Refused { is: "a folder with nothing that Lethe reads", problem: READ.to_owned() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_first_and_then_content() {
        assert_eq!(by_name("s3://b/x/retain-000.TAR"), Some(Kind::Shard));
        assert_eq!(by_name("/x.y/concepts"), None);
        assert!(matches!(by_name("pytorch_model.bin"), Some(Kind::Refused { .. })));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(by_content(&tar), Kind::Shard);
        assert_eq!(by_content(b"\x89PNG\r\n\x1a\n"), Kind::Image);
        for other in [b"\x1f\x8b\x08\x00".as_slice(), b"hello", b""] {
            assert!(matches!(by_content(other), Kind::Refused { .. }));
        }
    }
}

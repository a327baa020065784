//! Results of probes, which are stored beside a release.
//!
//! | key | content |
//! |---|---|
//! | `releases/<name>/evaluations/<record digest>/probes/<probe>/result.json` | the result, created once, after the two pages |
//! | `releases/<name>/evaluations/<record digest>/probes/<probe>/README.md`, `report.html` | the release's card and report with this result |
//!
//! Pictures are artifacts. A probe need not give the same numbers twice, so the first result stays:
//! nobody can repeat a measurement until it pleases.

use std::collections::BTreeMap;

use bytes::Bytes;
use lethe_shared::record::{Composition, ProbePicture, ProbeRecord, ReleaseRef};
use lethe_store as store;
use lethe_store::Store;
use serde::{Deserialize, Serialize};

use super::read::Release;
use crate::failure::Failure;
use crate::layout;
use crate::present::report::{ProbePictures, Source};
use crate::present::{card, report};
use crate::probe::{Probe, ProbeResult};

/// Version of the format.
const VERSION: u32 = 1;
const DOCUMENT: &str = "result.json";

/// The result of a probe on a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// The measured release.
    release: ReleaseRef,
    result: ProbeRecord,
}

/// Returns the folder of the results of all probes on a release.
fn all_folders(release: &ReleaseRef) -> String {
    format!("{}/probes", layout::evaluations(&release.name, &release.record.short().to_string()))
}

/// Returns the folder of a probe's result.
pub fn folder(release: &ReleaseRef, probe: &str) -> String {
    format!("{}/{probe}", all_folders(release))
}

/// Returns the result of a probe on a release, if there is one.
///
/// # Errors
/// [`Failure::BadInput`] when the stored result is of another release.
pub async fn find(
    store: &Store,
    release: &Release,
    probe: &str,
) -> Result<Option<ProbeRecord>, Failure> {
    let key = format!("{}/{DOCUMENT}", folder(&release.reference(), probe));
    let Some(found) = store.get_json::<Stored>(&key).await? else { return Ok(None) };
    if found.version == VERSION
        && found.release == release.reference()
        && found.result.name == probe
    {
        Ok(Some(found.result))
    } else {
        Err(Failure::input(format!("{}/{key} is about another release or probe", store.name())))
    }
}

/// Returns the results of all probes on a release, by name.
///
/// # Errors
/// As [`find`].
pub async fn all(store: &Store, release: &Release) -> Result<Vec<ProbeRecord>, Failure> {
    let prefix = all_folders(&release.reference());
    let mut results = Vec::new();
    for key in store.list(&prefix).await? {
        let name = key.strip_prefix(&format!("{prefix}/")).and_then(|key| key.split_once('/'));
        if let Some((probe, DOCUMENT)) = name {
            results.extend(find(store, release, probe).await?);
        }
    }
    Ok(results)
}

/// Returns the pictures of a record's probes by digest.
///
/// # Errors
/// When the store cannot be read, or a picture is damaged.
pub async fn pictures(store: &Store, record: &Composition) -> Result<ProbePictures, Failure> {
    let mut pictures = BTreeMap::new();
    for picture in record.probes.iter().flat_map(|probe| &probe.pictures) {
        for artifact in picture.before.iter().chain([&picture.after]) {
            pictures.insert(artifact.digest, store.get_artifact(artifact).await?);
        }
    }
    Ok(pictures)
}

/// Stores the result of a probe on a release, with pages that show it. `record` is the release's
/// with its other measurements. Returns the stored result; of two concurrent ones, the first stays.
///
/// # Errors
/// [`Failure`] when the store cannot be written.
pub async fn keep(
    store: &Store,
    release: &Release,
    record: &Composition,
    probe: &Probe,
    result: ProbeResult,
) -> Result<ProbeRecord, Failure> {
    let artifact = async |bytes: &Bytes| store.put_artifact(bytes.clone()).await;
    let mut pictures = Vec::with_capacity(result.pictures.len());
    for picture in &result.pictures {
        let before = match &picture.before {
            Some(bytes) => Some(artifact(bytes).await?),
            None => None,
        };
        let after = artifact(&picture.after).await?;
        pictures.push(ProbePicture { title: picture.title.clone(), before, after });
    }
    let result = ProbeRecord {
        name: probe.name.clone(),
        file: probe.digest,
        command: probe.command.clone(),
        version: result.version,
        exit_code: 0,
        numbers: result.numbers,
        pictures,
        notes: result.notes,
    };
    keep_result(store, release, record, result).await
}

/// Puts the result of a probe into a record, in the place of an earlier one.
pub fn put(record: &mut Composition, result: ProbeRecord) {
    record.probes.retain(|other| other.name != result.name);
    record.probes.push(result);
    record.probes.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Stores the result of a probe whose pictures are stored; see [`keep`].
///
/// # Errors
/// [`Failure`] when the store cannot be written.
pub async fn keep_result(
    store: &Store,
    release: &Release,
    record: &Composition,
    result: ProbeRecord,
) -> Result<ProbeRecord, Failure> {
    let mut record = record.clone();
    put(&mut record, result.clone());
    let files: Vec<String> = record.files.keys().cloned().collect();
    let (recipe, thumbnails) = (release.recipe().await?, release.thumbnails().await?);
    let pictures = self::pictures(store, &record).await?;
    let page = Source {
        record: &record,
        effect_matrix: recipe.effect_matrix(),
        thumbnails: &thumbnails,
        pictures: &pictures,
        run: None,
    };
    let name = result.name.clone();
    let folder = folder(&release.reference(), &name);
    for (name, text) in
        [("README.md", card::render(&record, &files)), ("report.html", report::render(&page))]
    {
        match store.create(&format!("{folder}/{name}"), Bytes::from(text)).await {
            Ok(_) | Err(store::Error::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let stored = Stored { version: VERSION, release: release.reference(), result };
    match store.create_json(&format!("{folder}/{DOCUMENT}"), &stored).await {
        Ok(_) => Ok(stored.result),
        Err(store::Error::Conflict { .. }) => {
            Ok(find(store, release, &name).await?.unwrap_or(stored.result))
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks that a stored result is of this probe file.
///
/// # Errors
/// [`Failure::BadInput`] when another file has measured under the same name.
pub fn is_of(stored: &ProbeRecord, probe: &Probe) -> Result<(), Failure> {
    if stored.file == probe.digest {
        return Ok(());
    }
    Err(Failure::input(format!(
        "another probe file ({}) has measured this release under the name {}, and its result stays; give this probe another name",
        stored.file.short(),
        probe.name
    )))
}

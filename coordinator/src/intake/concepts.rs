//! Concepts and classes of a manifest: reads and checks them, finds their forget shards, and hashes
//! their names if requested.

use std::path::Path;

use futures::StreamExt;
use lethe_shared::address::Address;
use lethe_shared::manifest::concepts::{self, Concept, MAX_TABLE};
use lethe_shared::manifest::table::{self, Purpose};
use lethe_shared::manifest::{Classes, Error, Manifest, Required};
use lethe_store as store;

use super::data::{AT_ONCE, Wanted, inspect};
use super::files::{missing, read_file};
use super::plan::PlannedConcept;
use crate::attest::names::{MAX_SALT, Salt};
use crate::failure::Failure;

/// Largest class list, bytes.
const MAX_CLASSES: u64 = 256 << 20;

pub(super) async fn read_classes(manifest: &Manifest, cache: &Path) -> Result<Classes, Failure> {
    let place = format!("{}: data.classes", manifest.file.display());
    let address = manifest.address("data.classes", &manifest.data.classes)?;
    let bytes = read_file(&place, &address, MAX_CLASSES, cache).await?;
    Ok(Classes::parse(&bytes, &address.to_string())?)
}

pub(super) async fn read_concepts(
    manifest: &Manifest,
    classes: &Classes,
    cache: &Path,
) -> Result<Vec<Concept>, Failure> {
    let problems =
        |problems: Vec<Error>| Failure::BadInput(problems.iter().map(Error::to_string).collect());
    let (rows, file, folder) = match &manifest.concepts.table {
        None => {
            let folder = manifest.file.parent().unwrap_or(Path::new("/"));
            (
                manifest.inline_concepts(),
                format!("{}: concepts.list", manifest.file.display()),
                Address::Local(folder.to_owned()),
            )
        }
        Some(table) => {
            let place = format!("{}: concepts.table", manifest.file.display());
            let address = manifest.address("concepts.table", table)?;
            let bytes = read_file(&place, &address, MAX_TABLE, cache).await?;
            let shown = address.to_string();
            let folder = shown
                .rsplit_once('/')
                .map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder });
            let folder = Address::parse(folder)
                .map_err(|error| Failure::input(Error::new(place, error.to_string())))?;
            let rows = table::read(&bytes, &shown, Purpose::Run).map_err(problems)?;
            (rows.into_iter().map(|found| (found.line, found.row)).collect(), shown, folder)
        }
    };
    let mut concepts = concepts::check(rows, &file, &folder, classes).map_err(problems)?;
    concepts::strengthen(
        &mut concepts,
        &manifest.concepts.groups,
        &manifest.file.display().to_string(),
    )?;
    concepts.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(concepts)
}

/// Checks that the table contains every concept that the policy requires, so that a typing error
/// does not cost a run.
pub(super) fn check_policy(manifest: &Manifest, concepts: &[Concept]) -> Result<(), Failure> {
    let Required::These(ids) = &manifest.policy.required else { return Ok(()) };
    let unknown = ids.iter().find(|id| !concepts.iter().any(|concept| concept.id == **id));
    let place = || format!("{}: policy.required", manifest.file.display());
    unknown.map_or(Ok(()), |id| {
        Err(Failure::input(Error::new(place(), format!("`{id}` is no concept of this manifest"))))
    })
}

pub(super) async fn find_forget_shards(
    concepts: Vec<Concept>,
    manifest: &Manifest,
    cache: &Path,
) -> Result<Vec<PlannedConcept>, Failure> {
    let found: Vec<Result<PlannedConcept, Failure>> =
        futures::stream::iter(concepts.into_iter().map(|concept| async move {
            let place = format!("{}: concept `{}`", concept.place, concept.id);
            let mut forget = Vec::new();
            for pattern in &concept.forget {
                for address in
                    store::expand(pattern).await.map_err(|error| missing(&place, error))?
                {
                    forget.push(inspect(place.clone(), address, Wanted::Any, cache).await?.0);
                }
            }
            let stop = concept.stop.unwrap_or(manifest.method.stop);
            let tolerance = concept.tolerance.unwrap_or(manifest.composition.tolerance);
            Ok(PlannedConcept { concept, forget, stop, tolerance })
        }))
        .buffered(AT_ONCE)
        .collect()
        .await;
    let (mut planned, mut problems) = (Vec::new(), Vec::new());
    for concept in found {
        match concept {
            Ok(concept) => planned.push(concept),
            Err(Failure::BadInput(more)) => problems.extend(more),
            Err(other) => return Err(other),
        }
    }
    problems.truncate(20);
    if problems.is_empty() { Ok(planned) } else { Err(Failure::BadInput(problems)) }
}

/// Reads the salt for name hashes, if names are hashed.
pub(super) async fn read_salt(manifest: &Manifest, cache: &Path) -> Result<Option<Salt>, Failure> {
    let Some(salt) = &manifest.release.salt else { return Ok(None) };
    let place = format!("{}: release.salt", manifest.file.display());
    let address = manifest.address("release.salt", salt)?;
    let bytes = read_file(&place, &address, MAX_SALT, cache).await?;
    Salt::of(&bytes)
        .map(Some)
        .map_err(|problem| Failure::input(Error::new(place, format!("{address} {problem}"))))
}

/// Replaces the names of concepts by their hashes. Jobs, record and everything else that is stored
/// then contains hashes only.
pub(super) fn hide(manifest: &mut Manifest, concepts: &mut [PlannedConcept], salt: &Salt) {
    concepts.iter_mut().for_each(|planned| salt.hide(&mut planned.concept));
    concepts.sort_by(|a, b| a.concept.id.cmp(&b.concept.id));
    if let Required::These(ids) = &mut manifest.policy.required {
        ids.iter_mut().for_each(|id| *id = salt.hash(id));
    }
}

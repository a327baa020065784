//! Concepts and classes of a manifest: reads and checks them, finds their forget shards, and hashes
//! their names if requested.

use std::path::Path;

use futures::StreamExt;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::manifest::concepts::{self, Concept, MAX_TABLE};
use lethe_shared::manifest::table::{self, Purpose};
use lethe_shared::manifest::{Classes, Error, Manifest, Required};
use lethe_store as store;
use lethe_store::Pins;

use super::data::{AT_ONCE, Shards, Wanted, inspect};
use super::files::{missing, read_file};
use super::plan::PlannedConcept;
use crate::attest::names::{MAX_SALT, Salt};
use crate::failure::{Failure, Problems};

/// Largest class list, bytes.
pub const MAX_CLASSES: u64 = 256 << 20;

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

/// Finds and inspects the forget shards of all concepts. Problems of the input are added to
/// `problems`, and members that are not read to `warnings`.
///
/// # Errors
/// Every other failure.
pub(super) async fn find_forget_shards(
    concepts: Vec<Concept>,
    manifest: &Manifest,
    (pins, cache): (&Pins, &Path),
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Result<Vec<PlannedConcept>, Failure> {
    let inspections = concepts.into_iter().map(|concept| async move {
        let place = format!("{}: concept `{}`", concept.place, concept.id);
        let mut forget = Vec::new();
        for pattern in &concept.forget {
            // Addresses in a table are as they were typed.
            let pattern = match pins.pin(pattern).await {
                Ok(pattern) => pattern,
                Err(error) => {
                    forget.push(Err(missing(&place, error).into()));
                    continue;
                }
            };
            match store::expand(&pattern).await {
                Ok(addresses) => {
                    for address in addresses {
                        forget.push(inspect(place.clone(), address, Wanted::Any, cache).await);
                    }
                }
                Err(error) => forget.push(Err(missing(&place, error).into())),
            }
        }
        (concept, forget)
    });
    let mut inspected = futures::stream::iter(inspections).buffered(AT_ONCE);
    let mut planned = Vec::new();
    while let Some((concept, forget)) = inspected.next().await {
        let mut found = Shards::default();
        for shard in forget {
            found.add(shard, problems)?;
        }
        warnings.extend(found.warnings);
        let stop = concept.stop.unwrap_or(manifest.method.stop);
        if let Some(problem) = concept.stop.and_then(|stop| manifest.stop_problem(stop)) {
            problems.add(
                vec![format!("{}: concept `{}`: stop {problem}", concept.place, concept.id)],
                1,
            );
        }
        let tolerance = concept.tolerance.unwrap_or(manifest.composition.tolerance);
        planned.push(PlannedConcept { concept, forget: found.shards, stop, tolerance });
    }
    Ok(planned)
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

/// Returns a digest of the aliases of concepts, in their order; of hashes, where names are hashed, so
/// that no alias can be guessed by it. `None` when there is no alias.
pub(super) fn digest_of_aliases(
    concepts: &[PlannedConcept],
    salt: Option<&Salt>,
) -> Option<Digest> {
    let shown = |name: &String| salt.map_or_else(|| name.clone(), |salt| salt.hash(name));
    let mut aliases = concepts
        .iter()
        .map(|planned| &planned.concept)
        .filter(|concept| !concept.aliases.is_empty())
        .map(|concept| (shown(&concept.id), concept.aliases.iter().map(shown).collect::<Vec<_>>()))
        .peekable();
    aliases.peek()?;
    Some(Digest::of_json(&aliases.collect::<Vec<_>>()))
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

//! The manifest of a run as stored in `runs/<run>/manifest.json`, which holds the addresses of the
//! run's data.
//!
//! It lists every file by its own address and every concept by value, so that it has the same
//! meaning on every machine, independent of the table or folder that the original manifest named.
//! The run's name contains a digest of all inputs that determine the result, which shows whether
//! the data is unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use lethe_shared::manifest::concepts::Row;
use lethe_shared::manifest::{
    ConceptsSection, DataSection, ExecutionSection, Manifest, ModelSection, Names, ReleaseSection,
    ReleaseTarget,
};
use lethe_shared::reference::ShardRef;
use lethe_store as store;
use lethe_store::Store;

use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::lease::fence::Fence;

fn key(run: &str) -> String {
    format!("runs/{run}/manifest.json")
}

/// Returns the manifest of a plan, with every file by its own address.
fn manifest(plan: &Plan) -> Result<Manifest, Failure> {
    let files = |shards: &[ShardRef]| {
        shards.iter().map(|shard| store::literally(&shard.address)).collect::<Vec<String>>()
    };
    let row = |planned: &PlannedConcept| {
        let concept = &planned.concept;
        Row {
            id: concept.id.clone(),
            name: concept.name.clone(),
            aliases: concept.aliases.clone(),
            class: Some(concept.class.clone()),
            forget: files(&planned.forget).join(";"),
            strength: Some(concept.strength),
            group: concept.group.clone(),
            stop: Some(planned.stop),
            tolerance: Some(planned.tolerance),
        }
    };
    let DataSection { retain_texts, protect, classes, template, .. } = &plan.manifest.data;
    let absolute = |field: &str, text: &String| {
        Ok::<_, Failure>(plan.manifest.address(field, text)?.to_string())
    };
    let target = |target: &ReleaseTarget| {
        Ok::<_, Failure>(ReleaseTarget {
            uri: absolute("release.target", &target.uri)?,
            ..target.clone()
        })
    };
    let targets = plan.manifest.release.target.iter().map(target).collect::<Result<_, _>>()?;
    Ok(Manifest {
        model: ModelSection { uri: plan.model.address.to_string() },
        data: DataSection {
            retain: files(&plan.retain),
            retain_texts: retain_texts
                .iter()
                .map(|text| absolute("data.retain_texts", text))
                .collect::<Result<_, _>>()?,
            retain_images: files(&plan.retain_images),
            protect: protect.as_ref().map(|list| absolute("data.protect", list)).transpose()?,
            validation: files(&plan.validation),
            test: files(&plan.test),
            classes: absolute("data.classes", classes)?,
            template: template.clone(),
        },
        // A group's strength is already in the strengths of its concepts.
        concepts: ConceptsSection {
            table: None,
            list: plan.concepts.iter().map(row).collect(),
            groups: BTreeMap::new(),
        },
        execution: ExecutionSection::default(),
        // The targets are part of what the run's name says.
        release: ReleaseSection { target: targets, ..ReleaseSection::default() },
        ..plan.manifest.clone()
    })
}

/// Stores the manifest of a run; the last addresses replace earlier ones. Nothing is stored for a
/// run with hashed names, because its manifest contains the names.
///
/// # Errors
/// [`Failure::Infrastructure`] when another coordinator has taken the run over, or the store cannot
/// be written.
pub async fn keep(store: &Store, fence: &Fence, plan: &Plan) -> Result<(), Failure> {
    if plan.manifest.release.names == Names::Hashed {
        return Ok(());
    }
    let manifest = manifest(plan)?;
    fence.check().await?;
    Ok(store.put_json(&key(&plan.run), &manifest).await?)
}

/// Returns the stored manifest of a run, if there is one.
///
/// # Errors
/// [`Failure::BadInput`] when the stored document is not a manifest.
pub async fn find(store: &Store, run: &str) -> Result<Option<Manifest>, Failure> {
    // Checked like a file. Its name has no folder, so a relative address is rejected.
    let Some(read) = store.get_json::<serde_json::Value>(&key(run)).await? else { return Ok(None) };
    Ok(Some(Manifest::from_json(&read.to_string(), Path::new(&format!("manifest of {run}")))?))
}

/// Copies a run's manifest into another store.
///
/// # Errors
/// [`Failure::Infrastructure`] when a store cannot be read or written.
pub async fn copy(from: &Store, to: &Store, run: &str) -> Result<(), Failure> {
    match from.get(&key(run)).await? {
        Some(bytes) => Ok(to.put(&key(run), bytes).await?),
        None => Ok(()),
    }
}

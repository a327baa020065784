//! The manifest of a run as it is kept in the store, `runs/<run>/manifest.json`: where the run's data is.
//!
//! Every file stands in it by its own address and every concept in its list, so that it means the same wherever it is read, and whatever
//! becomes of the table or the folder that the run's manifest named. Whether the data still is what it was, the run's name tells: it
//! holds a digest of all that determines the run's result.

use std::collections::BTreeMap;
use std::path::Path;

use lethe_shared::job::ShardRef;
use lethe_shared::manifest::concepts::Row;
use lethe_shared::manifest::{ConceptsSection, DataSection, ExecutionSection, Manifest, ModelSection, Names, ReleaseSection};
use lethe_shared::store::{self, Store};

use crate::failure::Failure;
use crate::plan::{Plan, PlannedConcept};

fn key(run: &str) -> String {
    format!("runs/{run}/manifest.json")
}

/// The manifest of a plan, with every file by its own address.
fn manifest(plan: &Plan) -> Result<Manifest, Failure> {
    let files = |shards: &[ShardRef]| shards.iter().map(|shard| store::literally(&shard.address)).collect::<Vec<String>>();
    let row = |planned: &PlannedConcept| {
        let concept = &planned.concept;
        Row {
            id: concept.id.clone(),
            name: concept.name.clone(),
            class: Some(concept.class.clone()),
            forget: files(&planned.forget).join(";"),
            strength: Some(concept.strength),
            group: concept.group.clone(),
            stop: Some(planned.stop),
            tolerance: Some(planned.tolerance),
        }
    };
    let DataSection { retain_texts, protect, classes, template, .. } = &plan.manifest.data;
    let absolute = |field: &str, text: &String| Ok::<_, Failure>(plan.manifest.address(field, text)?.to_string());
    Ok(Manifest {
        model: ModelSection { uri: plan.model.address.to_string() },
        data: DataSection {
            retain: files(&plan.retain),
            retain_texts: retain_texts.iter().map(|text| absolute("data.retain_texts", text)).collect::<Result<_, _>>()?,
            retain_images: files(&plan.retain_images),
            protect: protect.as_ref().map(|list| absolute("data.protect", list)).transpose()?,
            validation: files(&plan.validation),
            test: files(&plan.test),
            classes: absolute("data.classes", classes)?,
            template: template.clone(),
        },
        // A group's strength is in its concepts'.
        concepts: ConceptsSection { table: None, list: plan.concepts.iter().map(row).collect(), groups: BTreeMap::new() },
        execution: ExecutionSection::default(),
        release: ReleaseSection::default(),
        ..plan.manifest.clone()
    })
}

/// Keeps where a run's data is; where it was found last counts. Of a run whose names are hashed nothing is kept: its manifest would
/// name them.
///
/// # Errors
/// When the store cannot be written.
pub async fn keep(store: &Store, plan: &Plan) -> Result<(), Failure> {
    if plan.manifest.release.names == Names::Hashed {
        return Ok(());
    }
    Ok(store.put_json(&key(&plan.run), &manifest(plan)?).await?)
}

/// The manifest of a run, when it was kept.
///
/// # Errors
/// [`Failure::BadInput`] when what is there is no manifest.
pub async fn find(store: &Store, run: &str) -> Result<Option<Manifest>, Failure> {
    // Checked as a file is; under a name without a folder a relative address is refused.
    let Some(read) = store.get_json::<serde_json::Value>(&key(run)).await? else { return Ok(None) };
    Ok(Some(Manifest::from_json(&read.to_string(), Path::new(&format!("manifest of {run}")))?))
}

/// Takes a run's manifest along into another store.
///
/// # Errors
/// When a store cannot be read or written.
pub async fn copy(from: &Store, to: &Store, run: &str) -> Result<(), Failure> {
    match from.get(&key(run)).await? {
        Some(bytes) => Ok(to.put(&key(run), bytes).await?),
        None => Ok(()),
    }
}

//! Measures a release that no run has measured, on the data of the runs that found its edits.
//!
//! The data is located by each run's manifest ([`run_manifest`]) and must be unchanged: a new plan
//! of the manifest has to give the run's name, which contains a digest of all inputs. Nobody can
//! therefore choose the data on which a release is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::manifest::is_id;
use lethe_shared::record::Composition;
use lethe_store::Store;

use crate::compose::apply::Change;
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};
use crate::intake::run_manifest;
use crate::release::read::Release;

/// The data on which a release is measured.
#[derive(Debug)]
pub struct Basis {
    /// The plan of the release's run, with the release's concepts: those that have an edit, and
    /// those that are missing.
    pub plan: Plan,
    edited: BTreeSet<String>,
}

impl Basis {
    /// Finds the data for a release, from the `given` plans and from the manifests that `store`
    /// keeps of its runs.
    ///
    /// # Errors
    /// [`Failure::BadInput`] when a run's manifest is neither stored nor given, or its data has
    /// changed.
    pub async fn find(
        release: &Release,
        store: &Store,
        given: Vec<Plan>,
        cache: &Path,
    ) -> Result<Self, Failure> {
        let record = &release.record;
        let runs: BTreeSet<&String> = record
            .concepts
            .iter()
            .filter_map(|concept| concept.run.as_ref())
            .chain([&record.run])
            .collect();
        let mut plans: BTreeMap<String, Plan> =
            given.into_iter().map(|plan| (plan.run.clone(), plan)).collect();
        if let Some(other) = plans.keys().find(|run| !runs.contains(run)) {
            let runs: Vec<&str> = runs.iter().map(|run| run.as_str()).collect();
            return Err(Failure::input(format!(
                "--manifest plans {other}, and {} is of {}: concepts, data, method, gates or this lethe's algorithm are others",
                release.address(),
                runs.join(", ")
            )));
        }
        for run in runs {
            if !plans.contains_key(run) {
                plans.insert(run.clone(), plan_of(store, run, cache).await?);
            }
        }
        let main = plans
            .get(&record.run)
            .ok_or_else(|| Failure::input(format!("there is no plan of {}", record.run)))?;
        let mut concepts: Vec<PlannedConcept> = Vec::new();
        for concept in &record.concepts {
            let run = concept.run.as_ref().unwrap_or(&record.run);
            let wrong = |problem: &str| {
                Failure::input(format!(
                    "concept `{}` of {}: {problem}",
                    concept.id,
                    release.address()
                ))
            };
            let found = plans[run].concepts.iter().find(|planned| planned.concept.id == concept.id);
            let mut planned =
                found.cloned().ok_or_else(|| wrong(&format!("{run} has no such concept")))?;
            let class = main.classes.find(&concept.class);
            // A release composed again may have other strengths than its run.
            planned.concept.strength = concept.strength;
            planned.concept.class_index = class.ok_or_else(|| {
                wrong(&format!("its class is not in the class list of {}", record.run))
            })?;
            concepts.push(planned);
        }
        let is_missing = |planned: &&PlannedConcept| {
            record.missing.iter().any(|missing| missing.id == planned.concept.id)
        };
        concepts.extend(main.concepts.iter().filter(is_missing).cloned());
        concepts.sort_by(|a, b| a.concept.id.cmp(&b.concept.id));
        let edited = record.concepts.iter().map(|concept| concept.id.clone()).collect();
        let main = plans
            .remove(&record.run)
            .ok_or_else(|| Failure::input(format!("there is no plan of {}", record.run)))?;
        Ok(Self { plan: main.with_concepts(concepts), edited })
    }

    /// Returns the concepts that have an edit, by id.
    pub fn edited(&self) -> Vec<&PlannedConcept> {
        self.plan
            .concepts
            .iter()
            .filter(|planned| self.edited.contains(&planned.concept.id))
            .collect()
    }
}

/// Returns the plan of a run whose manifest a store keeps.
async fn plan_of(store: &Store, run: &str, cache: &Path) -> Result<Plan, Failure> {
    const ELSEWHERE: &str = "--manifest says where its data is";
    let kept = if is_id(run) { run_manifest::find(store, run).await? } else { None };
    let manifest = kept.ok_or_else(|| {
        Failure::input(format!("{} keeps no manifest of {run}; {ELSEWHERE}", store.name()))
    })?;
    let plan = Plan::of(manifest, cache).await.map_err(|failure| match failure {
        Failure::BadInput(mut problems) => {
            problems.push(format!("the data of {run} is no longer where it was; {ELSEWHERE} now"));
            Failure::BadInput(problems)
        }
        other => other,
    })?;
    if plan.run == run {
        return Ok(plan);
    }
    Err(Failure::input(format!(
        "the data of {run} is no longer what it was, or this lethe's algorithm is another: its manifest now plans {}; {ELSEWHERE} as it was",
        plan.run
    )))
}

/// Returns the difference of a release from its base, which is the change that its run would have
/// evaluated: all tensors that differ, and those that the record lists as changed.
///
/// # Errors
/// [`Failure::BadInput`] when the checkpoints are not the record's base and weights.
pub fn change(
    base: &Checkpoint,
    released: &Checkpoint,
    record: &Composition,
) -> Result<Change, Failure> {
    let mut change = Change::new();
    for (name, info) in base.tensors() {
        let there = released.tensor(name)?;
        if (there.dtype, &there.shape) != (info.dtype, &info.shape) {
            return Err(Failure::input(format!(
                "`{name}` of the release is of another type or shape than the base's"
            )));
        }
        let bytes = released.bytes(name)?;
        if record.layers.contains_key(name) || bytes != base.bytes(name)? {
            change.insert(name.clone(), bytes);
        }
    }
    let found = base.digest_with(&change)?;
    if released.tensors().len() == base.tensors().len() && found == record.digest {
        return Ok(change);
    }
    Err(Failure::input(format!(
        "the release's weights are {found}, its record says {}; `lethe verify` says what is wrong",
        record.digest
    )))
}

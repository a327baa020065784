//! One run, phase by phase: retain gradient, concepts, composition, evaluation, release.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use lethe_shared::edit::{self, Edit};
use lethe_shared::job::{ArtifactRef, Job};
use lethe_shared::manifest::{Required, Stop};
use lethe_shared::outcome::{Accuracy, ConceptResult, Hits, Outcome, TaskResult};
use lethe_shared::queue::Cause;
use lethe_shared::record::{self, Base, Composition, ConceptRecord, Measured, Missing, Utility};

use crate::compose::{self, Change};
use crate::dispatch::{Dispatcher, Ended, Lost};
use crate::failure::Failure;
use crate::jobs;
use crate::measure::{self, Spread};
use crate::plan::{Plan, PlannedConcept};
use crate::progress::Progress;
use crate::release::{self, Direction};
use crate::summary::{Phase, Report, Status, Summary};

/// A run in progress.
struct Run<'a> {
    plan: &'a Plan,
    dispatcher: &'a Dispatcher,
    phases: Vec<Phase>,
    began: Instant,
    found: usize,
    done: usize,
    peak_memory: u64,
}

/// Hits on the held-out sets.
#[derive(Default)]
struct HeldOut {
    validation: Option<Hits>,
    test: Option<Hits>,
}

/// A concept that has an edit.
struct Found<'a> {
    planned: &'a PlannedConcept,
    result: &'a ConceptResult,
    edit: Edit,
}

/// Does everything that a plan asks for. `quiet` hides progress.
///
/// # Errors
/// [`Failure`]; a run that ends incomplete is no failure, see [`Report::status`].
pub async fn run(plan: &Plan, dispatcher: &Dispatcher, quiet: bool) -> Result<(Report, Composition), Failure> {
    let mut run = Run { plan, dispatcher, phases: Vec::new(), began: Instant::now(), found: 0, done: 0, peak_memory: 0 };
    let store = &dispatcher.store;
    let text = serde_json::to_vec(&plan.class_texts).map_err(Failure::input)?;
    let classes = store.put_artifact(Bytes::from(text)).await?;

    let shards = jobs::retain_gradients(plan);
    let first: Vec<Job> = shards.iter().cloned().chain(jobs::base_evaluation(plan, classes)).collect();
    let mut outcomes = run.must("retain gradient", &first, quiet).await?;
    let base = held_out(outcomes.split_off(shards.len()));
    let parts: Vec<_> = outcomes.into_iter().filter_map(gradient_sum).collect();
    let reduced = run.must("retain gradient", &[jobs::retain_reduce(plan, &parts)], true).await?;
    let gradient = reduced.into_iter().find_map(retain_gradient).ok_or_else(|| mismatch("retain-reduce"))?;

    let ended = run.phase("concepts", &jobs::concepts(plan, gradient, classes), quiet).await?;
    let (results, mut missing) = concept_results(plan, &ended)?;
    let found: Vec<Found<'_>> =
        plan.concepts.iter().filter_map(|planned| found(planned, results.get(planned.concept.id.as_str())?)).collect();
    for (id, result) in &results {
        if result.chosen.is_none() {
            missing.push(Missing { id: (*id).to_owned(), reason: not_forgotten(plan, result) });
        }
    }
    missing.sort_by(|a, b| a.id.cmp(&b.id));

    let began = Instant::now();
    let directions = fetch_directions(plan, dispatcher, &found).await?;
    let edits: Vec<Edit> = found.iter().map(|found| found.edit.clone()).collect();
    let change = compose::compose(plan.manifest.composition.method, &plan.checkpoint, &edits, |edit, values| {
        Ok(edit::decode_direction(&edit.layer, values, &directions[&edit.concept])?)
    })?;
    let encoded = store.put_artifact(compose::encode(&plan.checkpoint, &change)?.into()).await?;
    run.phases.push(Phase { name: "compose".into(), seconds: began.elapsed().as_secs_f64() });

    let edited: Vec<&PlannedConcept> = found.iter().map(|found| found.planned).collect();
    let evaluated = run.must("evaluate", &jobs::composed_evaluation(plan, &edited, encoded, classes), quiet).await?;
    let mut hits: BTreeMap<String, Hits> = evaluated.into_iter().filter_map(evaluation).flatten().collect();
    let composed = HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) };

    let began = Instant::now();
    let record = make_record(plan, &change, &found, missing, &base, &composed, &hits);
    let directions = stored_directions(plan, &found, &directions)?;
    dispatcher.check_claim().await?;
    let (address, record) = release::write(store, plan, &change, directions, record).await?;
    run.phases.push(Phase { name: "release".into(), seconds: began.elapsed().as_secs_f64() });

    let summary = run.summarise(&record, &ended);
    let status = if satisfies(&plan.manifest.policy.required, &record, plan) { Status::Complete } else { Status::Incomplete };
    let report = Report { run: plan.run.clone(), release: address, digest: record.digest, status, summary };
    store.put_json(&format!("runs/{}/summary.json", plan.run), &report).await?;
    Ok((report, record))
}

impl Run<'_> {
    async fn phase(&mut self, name: &'static str, jobs: &[Job], quiet: bool) -> Result<Vec<Ended>, Failure> {
        let began = Instant::now();
        let mut progress = if quiet { Progress::silent() } else { self.dispatcher.show.progress(name) };
        let (ended, found) = self.dispatcher.run(&self.plan.run, jobs, &mut progress).await?;
        self.found += found;
        self.done += ended.len() - found;
        for outcome in ended.iter().flatten() {
            self.peak_memory = self.peak_memory.max(outcome.execution.peak_memory_bytes);
        }
        let seconds = began.elapsed().as_secs_f64();
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.seconds += seconds,
            None => self.phases.push(Phase { name: name.to_owned(), seconds }),
        }
        Ok(ended)
    }

    /// A phase that every job must come through.
    async fn must(&mut self, name: &'static str, jobs: &[Job], quiet: bool) -> Result<Vec<Outcome>, Failure> {
        let ended = self.phase(name, jobs, quiet).await?;
        let (mut outcomes, mut problems) = (Vec::with_capacity(ended.len()), Vec::new());
        for (job, end) in jobs.iter().zip(ended) {
            match end {
                Ok(outcome) => outcomes.push(outcome),
                Err(Lost { error, cause: Cause::Circumstances }) => return Err(gave_up(&job.label(), &error)),
                Err(Lost { error, cause: Cause::Input }) => problems.push(format!("{}: {error}", job.label())),
            }
        }
        if problems.is_empty() { Ok(outcomes) } else { Err(Failure::BadInput(problems)) }
    }

    fn summarise(&self, record: &Composition, ended: &[Ended]) -> Summary {
        let stop = self.plan.settings.stop;
        let forgotten = |measured: &Measured| is_forgotten(measured.accuracy(), stop);
        let mut drops: Vec<(String, f64)> =
            record.concepts.iter().filter_map(|c| Some((c.id.clone(), 100.0 * (c.before.utility? - c.alone.utility?)))).collect();
        let utility_drop_alone = Spread::of(drops.iter().map(|(_, drop)| *drop).collect());
        drops.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        drops.truncate(10);
        let mut towers: BTreeMap<String, usize> = BTreeMap::new();
        for concept in &record.concepts {
            *towers.entry(concept.tower.name().to_owned()).or_default() += 1;
        }
        let mut stages: BTreeMap<String, f64> = BTreeMap::new();
        let mut seconds = Vec::new();
        for outcome in ended.iter().flatten() {
            seconds.push(outcome.execution.seconds);
            for (stage, time) in &outcome.execution.stages {
                *stages.entry(stage.clone()).or_default() += time;
            }
        }
        let mut phases = self.phases.clone();
        phases.push(Phase { name: "total".into(), seconds: self.began.elapsed().as_secs_f64() });
        Summary {
            concepts: self.plan.concepts.len(),
            edited: record.concepts.len(),
            forgotten_alone: record.concepts.iter().filter(|c| forgotten(&c.alone)).count(),
            forgotten_composed: record.concepts.iter().filter(|c| forgotten(&c.composed)).count(),
            missing: record.missing.clone(),
            utility_drop_alone,
            costliest: drops,
            utility: record.utility.clone(),
            towers,
            phases,
            seconds_per_concept: Spread::of(seconds),
            stages,
            peak_memory_bytes: self.peak_memory,
            jobs_found: self.found,
            jobs_done: self.done,
        }
    }
}

fn is_forgotten(accuracy: Accuracy, stop: Stop) -> bool {
    match stop {
        Stop::Fa1 => accuracy.fa1 == 0.0,
        Stop::Fa5 => accuracy.fa5 == 0.0,
    }
}

fn gave_up(job: &str, error: &str) -> Failure {
    Failure::Infrastructure(format!("{job} was given up: {error}"))
}

fn mismatch(kind: &str) -> Failure {
    Failure::Infrastructure(format!("the store holds an outcome of another kind for a {kind} job; it was written by another program"))
}

fn gradient_sum(outcome: Outcome) -> Option<lethe_shared::outcome::GradientSumResult> {
    match outcome.result {
        TaskResult::RetainGradient(result) => Some(result),
        _ => None,
    }
}

fn retain_gradient(outcome: Outcome) -> Option<ArtifactRef> {
    match outcome.result {
        TaskResult::RetainReduce(result) => Some(result.gradient),
        _ => None,
    }
}

fn evaluation(outcome: Outcome) -> Option<BTreeMap<String, Hits>> {
    match outcome.result {
        TaskResult::Evaluate(result) => Some(result.items),
        _ => None,
    }
}

fn held_out(outcomes: Vec<Outcome>) -> HeldOut {
    let mut hits: BTreeMap<String, Hits> = outcomes.into_iter().filter_map(evaluation).flatten().collect();
    HeldOut { validation: hits.remove(jobs::VALIDATION), test: hits.remove(jobs::TEST) }
}

/// Results by concept, and the concepts whose job is a dead letter.
fn concept_results<'a>(plan: &'a Plan, ended: &'a [Ended]) -> Result<(BTreeMap<&'a str, &'a ConceptResult>, Vec<Missing>), Failure> {
    let (mut results, mut missing) = (BTreeMap::new(), Vec::new());
    for (planned, end) in plan.concepts.iter().zip(ended) {
        let id = planned.concept.id.as_str();
        match end {
            Ok(Outcome { result: TaskResult::Concept(result), .. }) => drop(results.insert(id, &**result)),
            Ok(_) => return Err(mismatch("concept")),
            // Doing it again may help, and finds everything else done.
            Err(Lost { error, cause: Cause::Circumstances }) => return Err(gave_up(&format!("concept {id}"), error)),
            Err(Lost { error, cause: Cause::Input }) => missing.push(Missing { id: id.to_owned(), reason: error.clone() }),
        }
    }
    Ok((results, missing))
}

fn found<'a>(planned: &'a PlannedConcept, result: &'a ConceptResult) -> Option<Found<'a>> {
    let chosen = result.chosen.as_ref()?;
    let edit = Edit {
        concept: planned.concept.id.clone(),
        layer: chosen.answer.layer.clone(),
        step: chosen.answer.step,
        strength: planned.concept.strength,
        direction: chosen.direction,
    };
    Some(Found { planned, result, edit })
}

fn not_forgotten(plan: &Plan, result: &ConceptResult) -> String {
    let layers = result.ranking.iter().filter(|layer| layer.pareto).count();
    let best = result.search.iter().map(|trial| trial.fa5).fold(f64::INFINITY, f64::min);
    format!(
        "none of {layers} front layers forgot within {} evaluations (lowest FA@5 {:.0} %); raise method.search_evaluations",
        plan.settings.search_evaluations,
        100.0 * best
    )
}

/// The files of all directions, checked against their digests; damaged ones are made again.
async fn fetch_directions(plan: &Plan, dispatcher: &Dispatcher, found: &[Found<'_>]) -> Result<BTreeMap<String, Bytes>, Failure> {
    let mut directions = BTreeMap::new();
    for found in found {
        directions.insert(found.edit.concept.clone(), dispatcher.artifact(&plan.run, &found.edit.direction).await?);
    }
    Ok(directions)
}

fn stored_directions(plan: &Plan, found: &[Found<'_>], files: &BTreeMap<String, Bytes>) -> Result<Vec<Direction>, Failure> {
    let direction = |found: &Found<'_>| {
        let info = &plan.checkpoint.tensors()[&found.edit.layer];
        let values = info.shape.iter().product();
        let decoded = edit::decode_direction(&found.edit.layer, values, &files[&found.edit.concept])?;
        let bytes = decoded.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Direction { concept: found.edit.concept.clone(), shape: info.shape.clone(), bytes })
    };
    found.iter().map(direction).collect()
}

fn make_record(
    plan: &Plan,
    change: &Change,
    found: &[Found<'_>],
    missing: Vec<Missing>,
    base: &HeldOut,
    composed: &HeldOut,
    forget: &BTreeMap<String, Hits>,
) -> Composition {
    let concepts = found.iter().map(|found| concept_record(found, base, composed, forget)).collect();
    let names = plan.classes.names();
    let on = |before: &Option<Hits>, after: &Option<Hits>| {
        before.as_ref().zip(after.as_ref()).map(|(before, after)| measure::utility(before, after, plan.retains(), names))
    };
    let retains = plan.retains();
    Composition {
        version: record::VERSION,
        name: plan.manifest.name.clone(),
        run: plan.run.clone(),
        base: Base { address: plan.model.address.to_string(), digest: plan.model.weights },
        digest: plan.checkpoint.digest_with(change),
        method: plan.manifest.composition.method.name().to_owned(),
        search: plan.settings.clone(),
        concepts,
        missing,
        utility: Utility {
            retained_classes: (0..names.len() as u32).filter(|&class| retains(class)).count() as u64,
            validation: on(&base.validation, &composed.validation),
            test: on(&base.test, &composed.test),
        },
        files: BTreeMap::new(),
    }
}

fn concept_record(found: &Found<'_>, base: &HeldOut, composed: &HeldOut, forget: &BTreeMap<String, Hits>) -> ConceptRecord {
    let (concept, result) = (&found.planned.concept, found.result);
    let class = concept.class_index;
    let (before, alone) = measure::alone(result, class, base.validation.as_ref());
    let empty = Hits::default();
    let forget = forget.get(&jobs::forget_item(&concept.id)).unwrap_or(&empty);
    let layer = result.ranking.iter().find(|layer| layer.layer == found.edit.layer);
    let answer = result.chosen.as_ref().map(|chosen| &chosen.answer);
    ConceptRecord {
        id: concept.id.clone(),
        name: concept.name.clone(),
        class: concept.class.clone(),
        group: concept.group.clone(),
        tower: layer.map_or(lethe_shared::outcome::Tower::Vision, |layer| layer.tower),
        layer: found.edit.layer.clone(),
        step: found.edit.step,
        relative_step: answer.map_or(0.0, |answer| answer.relative_step),
        strength: found.edit.strength,
        importance: layer.map_or(0.0, |layer| layer.importance),
        alignment: layer.map_or(0.0, |layer| layer.alignment),
        direction: found.edit.direction,
        pairs: result.pairs,
        before,
        alone: alone.unwrap_or(before),
        composed: measure::composed(forget, class, composed.validation.as_ref()),
        ranking: result.ranking.clone(),
        search: result.search.clone(),
    }
}

/// Whether the concepts that the manifest requires are removed.
fn satisfies(required: &Required, record: &Composition, plan: &Plan) -> bool {
    match required {
        Required::All(_) => record.missing.is_empty(),
        Required::Share(share) => record.concepts.len() as f64 >= share * plan.concepts.len() as f64,
        Required::These(ids) => ids.iter().all(|id| record.concepts.iter().any(|concept| concept.id == *id)),
    }
}

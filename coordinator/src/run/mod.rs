//! One run, phase by phase: statistics, edits, composition, evaluation, release.
//!
//! | file | what |
//! |---|---|
//! | `evaluated.rs` | what is left of what must go, and of what must stay, in a composed model |
//! | `corrected.rs` | edits along corrected directions, doses solved together: `composition.method = "preconditioned"` |
//! | `searched.rs` | edits by SLUG's full search, added up: `composition.method = "sum"` |

mod corrected;
mod evaluated;
mod searched;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lethe_shared::edit::{self, Direction, Edit};
use lethe_shared::job::{ArtifactRef, Job, JobId};
use lethe_shared::manifest::{Names, Required, Stop};
use lethe_shared::outcome::{Accuracy, Answers, Chosen, Outcome, RankedLayer, TaskResult, Trial};
use lethe_shared::queue::Cause;
use lethe_shared::record::{self, Base, Composition, ConceptRecord, DataFile, Measured, Missing, Said};
use lethe_shared::store::Store;

use self::evaluated::{HeldOut, held_out};
pub use self::evaluated::{Judgement, evaluate};

use crate::attest;
use crate::clusters;
use crate::compose::{self, Change, Directions};
use crate::dispatch::{Dispatcher, Ended, Lost};
use crate::failure::Failure;
use crate::gates;
use crate::jobs;
use crate::measure::{self, Spread};
use crate::merge;
use crate::plan::{Plan, PlannedConcept};
use crate::progress::Progress;
use crate::protected;
use crate::recipe::{Part, Recipe};
use crate::release::{self, Contents, Thumbnails, publish};
use crate::run_manifest;
use crate::summary::{Phase, Report, Status, Summary};
use crate::target::{self, Staged};

/// A run in progress.
struct Run<'a> {
    plan: &'a Plan,
    dispatcher: &'a Dispatcher,
    classes: ArtifactRef,
    quiet: bool,
    /// The phase under way, as those who see no bar are told of it.
    current: Option<Current>,
    phases: Vec<Phase>,
    began: Instant,
    found: usize,
    done: usize,
    /// Jobs that earlier phases waited for: they are found again, and count once.
    seen: BTreeSet<JobId>,
    peak_memory: u64,
    /// Seconds and stages of the jobs that are about one concept.
    concept_seconds: BTreeMap<String, f64>,
    stages: BTreeMap<String, f64>,
}

/// What one phase came to so far, over all its rounds.
struct Current {
    name: &'static str,
    jobs: usize,
    found: usize,
    took: Duration,
}

/// A concept that has an edit.
struct Found<'a> {
    planned: &'a PlannedConcept,
    pairs: u64,
    before: Accuracy,
    ranking: Vec<RankedLayer>,
    search: Vec<Trial>,
    chosen: Chosen,
    /// Factors of its gradient at every layer of the run, where directions are corrected.
    gradients: Option<ArtifactRef>,
    /// What the unedited model says of the forget images.
    said: Option<Answers>,
    thumbnails: Option<ArtifactRef>,
}

impl Found<'_> {
    fn part(&self, target: Option<f64>) -> Part {
        Part {
            concept: self.planned.concept.id.clone(),
            layer: self.chosen.answer.layer.clone(),
            step: self.chosen.answer.step,
            strength: self.planned.concept.strength,
            target,
            direction: self.chosen.direction,
        }
    }
}

/// Edits, and the concepts that have none.
struct Edits<'a> {
    found: Vec<Found<'a>>,
    missing: Vec<Missing>,
    /// How they go together; parts as in `found`.
    recipe: Recipe,
    /// What directions were corrected by.
    moments: Vec<ArtifactRef>,
    /// What texts that must not change put into the edited layers.
    protected: Option<ArtifactRef>,
}

/// Edits that are added up as they are.
fn unsolved(found: &[Found<'_>]) -> Result<Recipe, Failure> {
    Recipe::sum(found.iter().map(|found| found.part(None)).collect()).map_err(Failure::Infrastructure)
}

/// Does everything that a plan asks for. `quiet` hides progress.
///
/// # Errors
/// [`Failure`]; a run that ends incomplete is no failure, see [`Report::status`].
pub async fn run(plan: &Plan, dispatcher: &Dispatcher, quiet: bool) -> Result<(Report, Composition), Failure> {
    let store = &dispatcher.store;
    let mut run = Run::new(plan, dispatcher, quiet).await?;
    let (mut edits, base) =
        if plan.manifest.composition.method.corrects() { corrected::edits(&mut run).await? } else { searched::edits(&mut run).await? };
    edits.missing.sort_by(|a, b| a.id.cmp(&b.id));
    let found = &edits.found;

    let directions = Stored::of(plan, dispatcher);
    let dosed = edits.recipe.edits();
    let (change, encoded) = run.compose(&dosed, &directions).await?;
    let edited: Vec<&PlannedConcept> = found.iter().map(|found| found.planned).collect();
    let judgement = run.judge(&edited, &base, encoded).await?;

    let began = Instant::now();
    let mut record = make_record(plan, &change, &edits, &base, judgement)?;
    let protected = match &edits.protected {
        Some(artifact) => Some(dispatcher.artifact(&plan.run, artifact).await?),
        None => None,
    };
    if let Some(texts) = &plan.protected {
        record.protected = protected::moved(&plan.checkpoint, &change, protected.as_deref(), &texts.names)?;
    }
    let thumbnails = match plan.manifest.release.names {
        Names::Plain => fetch_thumbnails(plan, dispatcher, found).await?,
        // A picture is a name too.
        Names::Hashed => Thumbnails::new(),
    };
    let targets = staged(plan, &dosed, &directions, store).await?;
    dispatcher.check_claim().await?;
    let (interference, thumbnails) = (edits.recipe.interference(), &thumbnails);
    let protected = protected.as_ref();
    let contents = Contents { change: &change, edits: &dosed, directions: &directions, interference, protected, thumbnails, targets };
    let (address, record, published) = release::write(store, &plan.checkpoint, contents, record).await?;
    let released = publish::open(store, &published).await?;
    if let Some(key) = &plan.signer {
        attest::sign(&released, key).await?;
    }
    run.took("release", began);

    let summary = run.summarise(&record);
    let mut missed: Vec<String> = plan.gates.iter().flat_map(|gates| gates::missed(gates, &record)).collect();
    missed.extend(gates::unsigned(&plan.gates, &released).await?);
    let status = match satisfies(&plan.manifest.policy.required, &record, plan) {
        _ if !missed.is_empty() => Status::GatesMissed,
        true => Status::Complete,
        false => Status::Incomplete,
    };
    if status == Status::Complete {
        publish::advance(store, &published).await?;
    }
    let report =
        Report { run: plan.run.clone(), release: address, number: published.number, digest: record.digest, status, missed, summary };
    run_manifest::keep(store, plan).await?;
    store.put_json(&format!("runs/{}/summary.json", plan.run), &report).await?;
    Ok((report, record))
}

impl<'a> Run<'a> {
    async fn new(plan: &'a Plan, dispatcher: &'a Dispatcher, quiet: bool) -> Result<Self, Failure> {
        let text = serde_json::to_vec(&plan.class_texts).map_err(Failure::input)?;
        let classes = dispatcher.store.put_artifact(Bytes::from(text)).await?;
        Ok(Self {
            plan,
            dispatcher,
            classes,
            quiet,
            current: None,
            phases: Vec::new(),
            began: Instant::now(),
            found: 0,
            done: 0,
            seen: BTreeSet::new(),
            peak_memory: 0,
            concept_seconds: BTreeMap::new(),
            stages: BTreeMap::new(),
        })
    }

    async fn phase(&mut self, name: &'static str, jobs: &[Job]) -> Result<Vec<Ended>, Failure> {
        let began = Instant::now();
        let mut progress = if self.quiet { Progress::silent() } else { self.dispatcher.show.progress(name, jobs.len()) };
        if self.current.as_ref().is_some_and(|current| current.name != name) {
            self.tell();
        }
        let (ended, found) = self.dispatcher.run(&self.plan.run, jobs, &mut progress).await?;
        let current = self.current.get_or_insert(Current { name, jobs: 0, found: 0, took: Duration::ZERO });
        current.jobs += jobs.len();
        current.found += found;
        current.took += began.elapsed();
        self.found += found - jobs.iter().filter(|job| !self.seen.insert(job.id())).count().min(found);
        self.done += ended.len() - found;
        for (job, outcome) in jobs.iter().zip(&ended) {
            let Ok(outcome) = outcome else { continue };
            self.peak_memory = self.peak_memory.max(outcome.execution.peak_memory_bytes);
            if let Some(concept) = job.concept() {
                *self.concept_seconds.entry(concept.to_owned()).or_default() += outcome.execution.seconds;
                for (stage, seconds) in &outcome.execution.stages {
                    *self.stages.entry(stage.clone()).or_default() += seconds;
                }
            }
        }
        self.took(name, began);
        Ok(ended)
    }

    /// Says how the phase went that has ended.
    fn tell(&mut self) {
        if let Some(Current { name, jobs, found, took }) = self.current.take().filter(|_| !self.quiet) {
            self.dispatcher.show.ended(name, jobs, found, took);
        }
    }

    fn took(&mut self, name: &str, began: Instant) {
        let seconds = began.elapsed().as_secs_f64();
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.seconds += seconds,
            None => self.phases.push(Phase { name: name.to_owned(), seconds }),
        }
    }

    /// A phase that every job must come through.
    async fn must(&mut self, name: &'static str, jobs: &[Job]) -> Result<Vec<Outcome>, Failure> {
        let ended = self.phase(name, jobs).await?;
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

    /// The first statistics: the job that makes the retain gradient of its parts, the hits of the unedited model on the held-out sets,
    /// and the outcomes of what can be done `besides`, so that no worker waits.
    async fn statistics(&mut self, besides: &[Job]) -> Result<(Job, HeldOut, Vec<Outcome>), Failure> {
        let (shards, base) = (jobs::retain_gradients(self.plan), jobs::base_evaluation(self.plan, self.classes));
        // The largest first: who comes to the last job works on it alone.
        let all: Vec<Job> = besides.iter().chain(&shards).chain(&base).cloned().collect();
        let mut outcomes = self.must("statistics", &all).await?;
        let mut gradients = outcomes.split_off(besides.len());
        let held = gradients.split_off(shards.len());
        let part = |outcome: Outcome| match outcome.result {
            TaskResult::RetainGradient(result) => Some(result),
            _ => None,
        };
        let parts: Vec<_> = gradients.into_iter().filter_map(part).collect();
        Ok((jobs::retain_reduce(self.plan, &parts), held_out(held), outcomes))
    }

    /// One job that must come through.
    async fn one(&mut self, name: &'static str, job: Job) -> Result<TaskResult, Failure> {
        let kind = job.kind();
        let outcome = self.must(name, &[job]).await?.pop().ok_or_else(|| mismatch(kind))?;
        Ok(outcome.result)
    }

    /// Puts edits together; the change is an artifact too, for those who evaluate it.
    async fn compose(&mut self, edits: &[Edit], directions: &impl Directions) -> Result<(Change, ArtifactRef), Failure> {
        let began = Instant::now();
        let change = compose::compose(&self.plan.checkpoint, edits, merge::rule(&self.plan.manifest.composition), directions).await?;
        let encoded = self.dispatcher.store.put_artifact(compose::encode(&self.plan.checkpoint, &change)?.into()).await?;
        self.took("compose", began);
        Ok((change, encoded))
    }

    fn summarise(&self, record: &Composition) -> Summary {
        let stops: BTreeMap<&str, Stop> = self.plan.concepts.iter().map(|planned| (planned.concept.id.as_str(), planned.stop)).collect();
        let forgotten = |concept: &ConceptRecord, measured: &Measured| {
            is_forgotten(measured.accuracy(), stops.get(concept.id.as_str()).copied().unwrap_or(self.plan.settings.stop))
        };
        let mut drops: Vec<(String, f64)> =
            record.concepts.iter().filter_map(|c| Some((c.id.clone(), 100.0 * (c.before.utility? - c.alone.utility?)))).collect();
        let utility_drop_alone = Spread::of(drops.iter().map(|(_, drop)| *drop).collect());
        drops.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        drops.truncate(10);
        let mut towers: BTreeMap<String, usize> = BTreeMap::new();
        for concept in &record.concepts {
            *towers.entry(concept.tower.name().to_owned()).or_default() += 1;
        }
        let mut phases = self.phases.clone();
        phases.push(Phase { name: "total".into(), seconds: self.began.elapsed().as_secs_f64() });
        Summary {
            concepts: self.plan.concepts.len(),
            edited: record.concepts.len(),
            forgotten_alone: record.concepts.iter().filter(|c| forgotten(c, &c.alone)).count(),
            forgotten_composed: record
                .concepts
                .iter()
                .filter(|c| c.composed.as_ref().is_some_and(|measured| forgotten(c, measured)))
                .count(),
            missing: record.missing.clone(),
            utility_drop_alone,
            costliest: drops,
            utility: record.utility.clone(),
            towers,
            phases,
            seconds_per_concept: Spread::of(self.concept_seconds.values().copied().collect()),
            stages: self.stages.clone(),
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

/// The results of concepts' jobs with the concepts they are of; a concept whose job is a dead letter by its input is missing.
fn concept_results<'a>(
    concepts: &[&'a PlannedConcept],
    ended: Vec<Ended>,
    missing: &mut Vec<Missing>,
) -> Result<Vec<(&'a PlannedConcept, TaskResult)>, Failure> {
    let mut results = Vec::with_capacity(ended.len());
    for (&planned, end) in concepts.iter().zip(ended) {
        let id = &planned.concept.id;
        match end {
            Ok(outcome) => results.push((planned, outcome.result)),
            // Doing it again may help, and finds everything else done.
            Err(Lost { error, cause: Cause::Circumstances }) => return Err(gave_up(&format!("concept {id}"), &error)),
            Err(Lost { error, cause: Cause::Input }) => missing.push(Missing { id: id.clone(), reason: error }),
        }
    }
    Ok(results)
}

/// The manifest's targets with the edits, ready to be written.
async fn staged<'a>(plan: &'a Plan, edits: &[Edit], directions: &impl Directions, store: &Store) -> Result<Vec<Staged<'a>>, Failure> {
    let mut staged = Vec::with_capacity(plan.targets.len());
    for one in &plan.targets {
        let edited = one.edited(&plan.checkpoint, edits, merge::rule(&plan.manifest.composition), directions).await?;
        let one = target::stage(one, edited, store).await?;
        one.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        staged.push(one);
    }
    Ok(staged)
}

/// Files of directions that stay in memory for the next composition, bytes together; more than that is fetched again.
const KEPT: u64 = 128 << 20;

/// Directions in the run's store, checked against their digests; damaged ones are made again.
struct Stored<'a> {
    run: &'a str,
    dispatcher: &'a Dispatcher,
    kept: Mutex<BTreeMap<ArtifactRef, Bytes>>,
}

impl<'a> Stored<'a> {
    fn of(plan: &'a Plan, dispatcher: &'a Dispatcher) -> Self {
        Self { run: &plan.run, dispatcher, kept: Mutex::default() }
    }

    fn kept<T>(&self, act: impl FnOnce(&mut BTreeMap<ArtifactRef, Bytes>) -> T) -> T {
        // Whole whatever happened: files are only ever added.
        act(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Directions for Stored<'_> {
    async fn direction(&self, edit: &Edit, shape: &[usize]) -> Result<Direction, Failure> {
        let file = match self.kept(|kept| kept.get(&edit.direction).cloned()) {
            Some(file) => file,
            None => {
                let file = self.dispatcher.artifact(self.run, &edit.direction).await?;
                self.kept(|kept| {
                    if kept.keys().map(|artifact| artifact.bytes).sum::<u64>() + edit.direction.bytes <= KEPT {
                        kept.insert(edit.direction, file.clone());
                    }
                });
                file
            }
        };
        Ok(edit::decode_direction(&edit.layer, shape, &file)?)
    }
}

/// The files of all concepts' thumbnails; damaged ones are made again.
async fn fetch_thumbnails(plan: &Plan, dispatcher: &Dispatcher, found: &[Found<'_>]) -> Result<Thumbnails, Failure> {
    let mut thumbnails = Thumbnails::new();
    for found in found {
        if let Some(strip) = &found.thumbnails {
            thumbnails.insert(found.planned.concept.id.clone(), dispatcher.artifact(&plan.run, strip).await?);
        }
    }
    Ok(thumbnails)
}

fn make_record(plan: &Plan, change: &Change, edits: &Edits<'_>, base: &HeldOut, mut judgement: Judgement) -> Result<Composition, Failure> {
    let found = &edits.found;
    let solved = edits.recipe.parts().iter().zip(edits.recipe.by_others());
    let dosed = edits.recipe.edits().into_iter().zip(solved).map(|(edit, (part, by_others))| Dosed {
        target: part.target,
        dose: edit.dose,
        by_others,
    });
    // What a model says are names.
    let plain = plan.manifest.release.names == Names::Plain;
    let record = |(found, dosed): (&Found<'_>, Dosed)| {
        let id = &found.planned.concept.id;
        let (composed, said) = (judgement.concepts.remove(id), judgement.said.remove(id));
        let before = found.said.as_ref().map(|said| measure::said(said, plan.classes.names()));
        let said = if plain { (before, said) } else { (None, None) };
        concept_record(found, dosed, base, composed, said)
    };
    let concepts = found.iter().zip(dosed).map(record).collect();
    Ok(Composition {
        version: record::VERSION,
        name: plan.manifest.name.clone(),
        run: plan.run.clone(),
        parent: None,
        base: Base { address: plan.model.address.to_string(), digest: plan.model.weights },
        // Known when the weights are written.
        digest: plan.model.weights,
        method: plan.manifest.composition.method.name().to_owned(),
        merge: merge::rule(&plan.manifest.composition),
        search: plan.settings.clone(),
        moments: edits.moments.clone(),
        concepts,
        missing: hidden(&edits.missing, plan),
        near_duplicates: clusters::near_duplicates(&edits.recipe),
        utility: judgement.utility,
        protected: Vec::new(),
        layers: compose::sizes(&plan.checkpoint, change)?,
        gates: Some(plan.manifest.gates.clone()).filter(|gates| !gates.is_empty()),
        origin: Some(plan.origin()),
        targets: Vec::new(),
        files: BTreeMap::new(),
    })
}

/// Concepts that are missing. Why may name files, and with that what is to have no name.
fn hidden(missing: &[Missing], plan: &Plan) -> Vec<Missing> {
    let hide = plan.manifest.release.names == Names::Hashed;
    let reason = |missing: &Missing| if hide { "the run's log says why".to_owned() } else { missing.reason.clone() };
    missing.iter().map(|missing| Missing { id: missing.id.clone(), reason: reason(missing) }).collect()
}

/// How one concept came out of the doses.
struct Dosed {
    target: Option<f64>,
    dose: f64,
    by_others: Option<f64>,
}

fn concept_record(
    found: &Found<'_>,
    dosed: Dosed,
    base: &HeldOut,
    composed: Option<Measured>,
    (said_before, said_composed): (Option<Said>, Option<Said>),
) -> ConceptRecord {
    let (concept, answer) = (&found.planned.concept, &found.chosen.answer);
    let class = concept.class_index;
    let (before, alone) = measure::alone(found.before, &found.chosen, class, base.validation.as_ref());
    let layer = found.ranking.iter().find(|layer| layer.layer == answer.layer);
    ConceptRecord {
        id: concept.id.clone(),
        name: concept.name.clone(),
        class: concept.class.clone(),
        group: concept.group.clone(),
        run: None,
        tower: answer.tower,
        layer: answer.layer.clone(),
        step: answer.step,
        relative_step: answer.relative_step,
        strength: concept.strength,
        dose: dosed.dose,
        target: dosed.target,
        by_others: dosed.by_others,
        importance: layer.map_or(0.0, |layer| layer.importance),
        alignment: layer.map_or(0.0, |layer| layer.alignment),
        direction: found.chosen.direction,
        gradients: found.gradients,
        pairs: found.pairs,
        forget: found.planned.forget.iter().map(DataFile::from).collect(),
        before,
        alone,
        composed,
        said_before,
        said_composed,
        ranking: found.ranking.clone(),
        search: found.search.clone(),
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

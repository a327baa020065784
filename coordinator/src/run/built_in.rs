//! The built-in probes: is a removal held under other words, in a rounded model, after merging with
//! the base, after fine-tuning? And what does a random change of the same size do?
//!
//! A probe's result is a function of the plan and of the change. `docs/probes.md` has the numbers
//! of each.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lethe_shared::digest::Digest;
use lethe_shared::manifest::BuiltInProbe;
use lethe_shared::measurement::Hits;
use lethe_shared::record::verdict::Criterion;
use lethe_shared::record::{Group, Measured, ProbeRecord, UtilityOn};
use lethe_shared::reference::ArtifactRef;
use lethe_shared::task::RelearnOutput;
use lethe_shared::words::normal_name;

use super::context::Run;
use super::judgement::{HeldOut, counted, held_out};
use crate::compose::apply::{self, Change};
use crate::compose::controls;
use crate::compose::measure::Judgement;
use crate::compose::rounding::{self, Rounding};
use crate::compose::wording::Wording;
use crate::exec::dispatch::Dispatcher;
use crate::exec::jobs;
use crate::exec::probe_jobs::{self, Training};
use crate::failure::Failure;
use crate::intake::plan::{Plan, PlannedConcept};

/// Version of the probes; raised when one of them measures otherwise.
const VERSION: &str = "1";

/// Numbers of fine-tuning steps after which is measured what has come back.
const STEPS: [u32; 2] = [10, 50];
/// Learning rates of fine-tuning.
const RATES: [f64; 2] = [1e-5, 1e-4];
/// Number of retained classes nearest to each removed one.
const NEIGHBOURS: u32 = 3;

/// Pairs per step of fine-tuning.
const BATCH: u32 = 64;
/// The data of fine-tuning: a name, and how many pairs of each removed concept; 0 for retained
/// pairs alone.
const LESSONS: [(&str, u32); 3] = [("retained", 0), ("1-pair", 1), ("5-pairs", 5)];

/// Results of built-in probes.
#[derive(Debug)]
pub struct Probed {
    /// In the order of their names.
    pub results: Vec<ProbeRecord>,
    /// Jobs whose stored outcome was reused.
    pub jobs_found: usize,
    /// Jobs executed by this invocation.
    pub jobs_done: usize,
}

/// Measures a changed model with built-in probes. `edited` are the plan's concepts that have an
/// edit.
///
/// # Errors
/// As [`run`](super::run).
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn probe_change(
    plan: &Plan,
    dispatcher: &Dispatcher,
    change: &Change,
    edited: &[&PlannedConcept],
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    probe(plan, plan, dispatcher, change, edited, probes).await
}

/// Measures the model of `other`, a plan of the same data and concepts as `plan`, with built-in
/// probes.
///
/// # Errors
/// As [`run`](super::run); [`Failure::BadInput`] when a probe compares the two models and their
/// tensors differ.
///
/// # Cancel safety
/// As [`Dispatcher::run`].
pub async fn probe_model(
    plan: &Plan,
    other: &Plan,
    dispatcher: &Dispatcher,
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    let concepts: Vec<&PlannedConcept> = plan.concepts.iter().collect();
    probe(plan, other, dispatcher, &Change::new(), &concepts, probes).await
}

async fn probe(
    base_plan: &Plan,
    plan: &Plan,
    dispatcher: &Dispatcher,
    change: &Change,
    edited: &[&PlannedConcept],
    probes: &[BuiltInProbe],
) -> Result<Probed, Failure> {
    let mut run = Run::new(plan, dispatcher, false).await?;
    let jobs = jobs::base_evaluation(base_plan, run.classes, run.removed);
    let base = held_out(run.all("base", jobs).await?);
    let subject = Subject { base_plan, change, edited, base: &base };
    let results = run.probes(probes, &subject).await?;
    run.tell();
    Ok(Probed { results, jobs_found: run.found, jobs_done: run.done })
}

/// Returns the digest of what a probe does, which stands in its result for a file.
pub fn digest(probe: BuiltInProbe) -> Digest {
    Digest::of_json(&("built-in probe", probe, VERSION))
}

/// What is measured: the model of a run's plan under a change.
pub(super) struct Subject<'a> {
    /// The plan with the base model; the run's own, unless the model is no release.
    pub(super) base_plan: &'a Plan,
    /// The change of the model.
    pub(super) change: &'a Change,
    /// The plan's concepts that have an edit.
    pub(super) edited: &'a [&'a PlannedConcept],
    /// Hits of the base model on the held-out sets.
    pub(super) base: &'a HeldOut,
}

impl Subject<'_> {
    /// Returns the concepts whose removal users want in some part.
    fn removed(&self) -> Vec<&PlannedConcept> {
        self.edited.iter().copied().filter(|planned| planned.concept.strength > 0.0).collect()
    }
}

/// Numbers by name, and sentences about them.
#[derive(Default)]
struct Found {
    numbers: BTreeMap<String, f64>,
    notes: Vec<String>,
}

impl Run<'_> {
    /// Measures with some probes, in the order of their names.
    pub(super) async fn probes(
        &mut self,
        probes: &[BuiltInProbe],
        subject: &Subject<'_>,
    ) -> Result<Vec<ProbeRecord>, Failure> {
        let mut records = Vec::with_capacity(probes.len());
        for &probe in probes {
            let found = match probe {
                BuiltInProbe::Words => self.words(subject).await?,
                BuiltInProbe::Rounded => self.rounded(subject).await?,
                BuiltInProbe::Halfway => {
                    let (base, model) = (&subject.base_plan.checkpoint, &self.plan.checkpoint);
                    let change = controls::halfway(base, model, subject.change)?;
                    self.under(subject, &change, "").await?
                }
                BuiltInProbe::Random => {
                    let (base, model) = (&subject.base_plan.checkpoint, &self.plan.checkpoint);
                    let change = controls::random(base, model, subject.change)?;
                    self.under(subject, &change, "").await?
                }
                BuiltInProbe::Relearn => self.relearn(subject).await?,
                BuiltInProbe::Features => self.features(subject).await?,
            };
            records.push(ProbeRecord {
                name: probe.name().to_owned(),
                file: digest(probe),
                command: Vec::new(),
                version: VERSION.to_owned(),
                exit_code: 0,
                numbers: found.numbers,
                pictures: Vec::new(),
                notes: found.notes,
            });
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Stores a change for jobs; `None` when it changes nothing.
    async fn stored(&self, change: &Change) -> Result<Option<ArtifactRef>, Failure> {
        if change.is_empty() {
            return Ok(None);
        }
        let file = apply::encode(&self.plan.checkpoint, change)?;
        Ok(Some(self.dispatcher.store.put_artifact(file.into()).await?))
    }

    /// Evaluates the model under another change than the subject's.
    async fn under(
        &mut self,
        subject: &Subject<'_>,
        change: &Change,
        prefix: &str,
    ) -> Result<Found, Failure> {
        let encoded = self.stored(change).await?;
        let judgement = self.judge(subject.edited, subject.base, encoded).await?;
        Ok(Found { numbers: numbers(prefix, subject, &judgement), notes: Vec::new() })
    }

    async fn rounded(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let mut found = Found::default();
        for rounding in Rounding::ALL {
            let change = rounding::rounded(&self.plan.checkpoint, subject.change, rounding)?;
            let prefix = format!("{}.", rounding.name());
            found.numbers.extend(self.under(subject, &change, &prefix).await?.numbers);
        }
        Ok(found)
    }

    /// Evaluates on the forget sets, with the removed names written in other ways. All other names
    /// stay.
    async fn words(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let taken: BTreeSet<_> =
            plan.class_texts.names.iter().map(|name| normal_name(name).into_owned()).collect();
        let mut found = Found::default();
        for wording in Wording::ALL {
            let mut texts = plan.class_texts.clone();
            let mut written = Vec::new();
            for planned in subject.removed() {
                let place = planned.concept.class_index as usize;
                let Some(name) = texts.names.get_mut(place) else { continue };
                // A text that names another class says nothing about this one.
                let other = wording.of(name).filter(|text| !taken.contains(&*normal_name(text)));
                if let Some(text) = other {
                    *name = text;
                    written.push(planned);
                }
            }
            if written.is_empty() {
                continue;
            }
            let texts = serde_json::to_vec(&texts).map_err(Failure::input)?;
            let classes = self.dispatcher.store.put_artifact(Bytes::from(texts)).await?;
            found.numbers.insert(format!("{}.names", wording.name()), written.len() as f64);
            for (when, plan, change) in [("before.", subject.base_plan, None), ("", plan, change)] {
                let jobs = jobs::forget_evaluation(plan, &written, change, classes, None);
                let mut hits = BTreeMap::new();
                for output in self.all("probe", jobs).await? {
                    hits.extend(output.items);
                }
                let (fa1, fa5) = accuracy(&written, &hits)?;
                let name = |measure: &str| format!("{}.{when}{measure}", wording.name());
                found.numbers.extend([(name("fa1"), fa1), (name("fa5"), fa5)]);
            }
        }
        Ok(found)
    }

    /// Compares embeddings, fits a classifier to them, and looks at the nearest retained classes.
    async fn features(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let (classes, lists) = (self.classes, self.removed);
        let removed: BTreeSet<u32> =
            plan.concepts.iter().map(|planned| planned.concept.class_index).collect();
        let of_removed = |class: u32| removed.contains(&class);
        let of_retained = |class: u32| !of_removed(class);
        let jobs = [(subject.base_plan, None), (plan, change)].map(|(plan, change)| {
            probe_jobs::features(plan, subject.edited, change, classes, lists, NEIGHBOURS)
        });
        let mut found = Found::default();
        for (when, output) in ["before.", ""].into_iter().zip(self.all("probe", jobs.into()).await?)
        {
            let hits = &output.class_means;
            let mut add = |name: String, value: f64| found.numbers.insert(name, value);
            for (group, chosen) in
                [("removed", &of_removed as &dyn Fn(u32) -> bool), ("retained", &of_retained)]
            {
                if hits.classes.keys().any(|&class| chosen(class)) {
                    add(format!("class-means.{when}{group}-ta1"), hits.mean_top1(chosen));
                    add(format!("class-means.{when}{group}-ta5"), hits.mean_top5(chosen));
                }
            }
            if when.is_empty() {
                // Of another model, they would be its similarity to itself.
                let similarities =
                    change.map_or([None; 2], |_| [output.text_similarity, output.image_similarity]);
                for (name, similarity) in ["texts", "images"].into_iter().zip(similarities) {
                    if let Some(similarity) = similarity {
                        add(format!("similarity.{name}"), similarity);
                    }
                }
                let near: BTreeSet<u32> = output.neighbours.into_iter().flatten().collect();
                let is_near = |class: u32| near.contains(&class);
                let set = jobs::held_out_evaluation(plan, change, classes, lists);
                let after = held_out(self.all("evaluate", set).await?);
                if let Some((before, after)) = subject.base.on_a_set().zip(after.on_a_set())
                    && before.mean_top1(is_near) > 0.0
                {
                    let kept = after.mean_top1(is_near) / before.mean_top1(is_near);
                    found.numbers.insert("neighbours.kept".to_owned(), kept);
                    found.numbers.insert("neighbours.classes".to_owned(), near.len() as f64);
                }
            }
        }
        Ok(found)
    }

    /// Fine-tunes on every lesson at every rate. Of each lesson, the numbers are those of the rate
    /// and the step at which most of what was removed is back.
    async fn relearn(&mut self, subject: &Subject<'_>) -> Result<Found, Failure> {
        let (plan, change) = (self.plan, self.stored(subject.change).await?);
        let removed = subject.removed();
        let mut found = Found::default();
        if removed.is_empty() {
            return Ok(found);
        }
        for (lesson, pairs) in LESSONS {
            let jobs = RATES.map(|rate| {
                let training = Training { batch_size: BATCH, rate, steps: &STEPS };
                probe_jobs::relearn(plan, &removed, pairs, change, self.classes, training)
            });
            let outputs = self.all("probe", jobs.into()).await?;
            let mut most: Option<Relearned> = None;
            for (rate, RelearnOutput { hits }) in RATES.into_iter().zip(outputs) {
                for (steps, hits) in STEPS.into_iter().zip(hits) {
                    let now = Relearned::of(&removed, rate, steps, &hits)?;
                    if most.as_ref().is_none_or(|most| now.is_more_than(most)) {
                        most = Some(now);
                    }
                }
            }
            if let Some(most) = most {
                found.numbers.extend(most.numbers(lesson));
                found.notes.push(format!(
                    "{lesson}: most is back after {} steps at a rate of {}",
                    most.steps, most.rate
                ));
            }
        }
        Ok(found)
    }
}

/// What a fine-tuned model recognises.
struct Relearned {
    rate: f64,
    steps: u32,
    /// FA@1 and FA@5 on the forget sets.
    forget: (f64, f64),
    /// TA@1 and TA@5 on held-out images of the removed classes, where there are some.
    unseen: Option<(f64, f64)>,
}

impl Relearned {
    fn of(
        removed: &[&PlannedConcept],
        rate: f64,
        steps: u32,
        hits: &BTreeMap<String, Hits>,
    ) -> Result<Self, Failure> {
        let classes: BTreeSet<u32> =
            removed.iter().map(|planned| planned.concept.class_index).collect();
        let of_removed = |class: u32| classes.contains(&class);
        let set = [jobs::TEST, jobs::VALIDATION].into_iter().find_map(|set| hits.get(set));
        let shown = set.filter(|hits| hits.classes.keys().any(|&class| of_removed(class)));
        Ok(Self {
            rate,
            steps,
            forget: accuracy(removed, hits)?,
            unseen: shown.map(|hits| (hits.mean_top1(of_removed), hits.mean_top5(of_removed))),
        })
    }

    /// Returns whether more is back than in another model: on held-out images where there are
    /// some, because forget images may be among those that were learned.
    fn is_more_than(&self, other: &Self) -> bool {
        let measure = |of: &Self| of.unseen.unwrap_or(of.forget);
        let ((one, five), (other_one, other_five)) = (measure(self), measure(other));
        (five, one) > (other_five, other_one)
    }

    fn numbers(&self, lesson: &str) -> Vec<(String, f64)> {
        let mut numbers = vec![
            (format!("{lesson}.fa1"), self.forget.0),
            (format!("{lesson}.fa5"), self.forget.1),
        ];
        if let Some((one, five)) = self.unseen {
            numbers.push((format!("{lesson}.unseen-ta1"), one));
            numbers.push((format!("{lesson}.unseen-ta5"), five));
        }
        numbers
    }
}

/// Returns FA@1 and FA@5 on the forget sets, averaged over concepts.
fn accuracy(
    concepts: &[&PlannedConcept],
    hits: &BTreeMap<String, Hits>,
) -> Result<(f64, f64), Failure> {
    let (mut fa1, mut fa5) = (0.0, 0.0);
    for planned in concepts {
        let hits = counted(hits, planned)?;
        let own = |class: u32| class == planned.concept.class_index;
        fa1 += hits.mean_top1(own);
        fa5 += hits.mean_top5(own);
    }
    let count = concepts.len().max(1) as f64;
    Ok((fa1 / count, fa5 / count))
}

/// Returns the numbers of a judgement.
fn numbers(prefix: &str, subject: &Subject<'_>, judgement: &Judgement) -> BTreeMap<String, f64> {
    let removed = subject.removed();
    let measured: Vec<(&PlannedConcept, &Measured)> = removed
        .iter()
        .filter_map(|planned| Some((*planned, judgement.concepts.get(&planned.concept.id)?)))
        .collect();
    let count = measured.len().max(1) as f64;
    let mean = |share: fn(&Measured) -> f64| {
        measured.iter().map(|(_, measured)| share(measured)).sum::<f64>() / count
    };
    let is_forgotten = |(planned, measured): &&(&PlannedConcept, &Measured)| {
        Criterion { stop: planned.stop, tolerance: planned.tolerance }.is_met(measured)
    };
    let forgotten = measured.iter().filter(is_forgotten).count();
    let mut numbers = BTreeMap::from([
        (format!("{prefix}fa1"), mean(|measured| measured.fa1)),
        (format!("{prefix}fa5"), mean(|measured| measured.fa5)),
        (format!("{prefix}forgotten"), forgotten as f64 / count),
    ]);
    let utility = &judgement.utility;
    if let Some(on) = utility.test.as_ref().or(utility.validation.as_ref()) {
        let UtilityOn { covered, never_seen, .. } = on;
        for (name, group) in [("covered-kept", covered), ("never-seen-kept", never_seen)] {
            if let Some(Group { before, after, .. }) = group.filter(|of| of.before.ta1 > 0.0) {
                numbers.insert(format!("{prefix}{name}"), after.ta1 / before.ta1);
            }
        }
    }
    numbers
}

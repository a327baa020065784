//! The frozen structs of version 1. Never change one: make a version 2. (A kind of task may be added at the end: older
//! programs refuse it.)
//!
//! Separate from the structs that the code works with, so that those can change. Plain data only: no attributes, no maps,
//! no `usize`; digests are bytes, addresses text.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::address::Address;
use crate::control::{Reply, Request};
use crate::digest::Digest;
use crate::job::{
    ArtifactRef, ConceptTask, Correction, DirectionTask, EvaluateItem, InterferencePart, Job, JobId, Label, MethodSettings, ModelRef,
    MomentSource, MomentsPart, MomentsReduceTask, ProtectTask, RetainPart, ShardRef, SurveyTask, Task,
};
use crate::manifest::{Precision, Stop, Towers};
use crate::queue::{Cause, Event, Notice};

#[derive(Serialize, Deserialize)]
pub(super) struct JobV1 {
    run: String,
    algorithm: u32,
    weights: [u8; 32],
    settings: [u8; 32],
    model: String,
    task: TaskV1,
}

/// A job whose model multiplies in less than float32.
#[derive(Serialize, Deserialize)]
pub(super) struct JobInV1 {
    precision: PrecisionV1,
    job: JobV1,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum PrecisionV1 {
    Tf32,
    Bfloat16,
}

#[derive(Serialize, Deserialize)]
struct ArtifactV1 {
    digest: [u8; 32],
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct ShardV1 {
    digest: [u8; 32],
    bytes: u64,
    pairs: u64,
    address: String,
}

#[derive(Serialize, Deserialize)]
struct PartV1 {
    sum: ArtifactV1,
    batches: u64,
    loss_sum: f64,
}

#[derive(Serialize, Deserialize)]
struct ItemV1 {
    name: String,
    shards: Vec<ShardV1>,
    /// `None`: the caption is the class name.
    class: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct ConceptV1 {
    concept: String,
    class: u32,
    forget: Vec<ShardV1>,
    validation: Vec<ShardV1>,
    retain_gradient: ArtifactV1,
    classes: ArtifactV1,
    batch_size: u32,
    search_evaluations: u32,
    search_tolerance: f64,
    stop_top: u8,
    normalisation_gains: bool,
}

#[derive(Serialize, Deserialize)]
enum TaskV1 {
    RetainGradient { shard: ShardV1, batch_size: u32 },
    RetainReduce { parts: Vec<PartV1> },
    Concept(ConceptV1),
    Evaluate { change: Option<ArtifactV1>, items: Vec<ItemV1>, classes: ArtifactV1 },
    Moments(SourceV1),
    MomentsReduce { paired: Vec<MomentsV1>, unlabelled: Vec<MomentsV1>, unlabelled_weight: f64, ridge: f64 },
    Survey { concept: String, forget: Vec<ShardV1>, retain_gradient: ArtifactV1, folds: Vec<ArtifactV1>, method: MethodV1 },
    Direction(DirectionV1),
    Interference { concepts: Vec<InterferenceV1> },
    MomentsNullSpace { paired: Vec<MomentsV1>, unlabelled: Vec<MomentsV1>, unlabelled_weight: f64, energy: f64 },
    MomentsCorrection { paired: Vec<MomentsV1>, unlabelled: Vec<MomentsV1>, unlabelled_weight: f64, correction: CorrectionV1 },
    ConceptAmong { task: ConceptV1, layers: Vec<String> },
    Protect { texts: ArtifactV1, layers: Vec<String>, inverses: Vec<ArtifactV1> },
    RetainGradientOf { shard: ShardV1, batch_size: u32, towers: TowersV1 },
    SurveyOf { survey: SurveyV1, towers: TowersV1 },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum TowersV1 {
    Text,
    Vision,
    Both,
}

#[derive(Serialize, Deserialize)]
struct SurveyV1 {
    concept: String,
    forget: Vec<ShardV1>,
    retain_gradient: ArtifactV1,
    folds: Vec<ArtifactV1>,
    method: MethodV1,
}

#[derive(Serialize, Deserialize)]
enum CorrectionV1 {
    Ridge { inputs: f64, outputs: f64 },
    NullSpace(f64),
}

#[derive(Serialize, Deserialize)]
enum SourceV1 {
    Captions(ShardV1),
    Images(ShardV1),
    Texts(ArtifactV1),
    ImagesAlone(ShardV1),
}

#[derive(Serialize, Deserialize)]
struct MomentsV1 {
    sum: ArtifactV1,
    items: u64,
}

#[derive(Serialize, Deserialize)]
struct MethodV1 {
    batch_size: u32,
    search_evaluations: u32,
    search_tolerance: f64,
    stop_top: u8,
    normalisation_gains: bool,
}

#[derive(Serialize, Deserialize)]
struct DirectionV1 {
    concept: String,
    class: u32,
    forget: Vec<ShardV1>,
    validation: Vec<ShardV1>,
    inverses: Vec<ArtifactV1>,
    classes: ArtifactV1,
    layer: String,
    layers: Vec<String>,
    method: MethodV1,
}

#[derive(Serialize, Deserialize)]
struct InterferenceV1 {
    layer: String,
    gradients: ArtifactV1,
    direction: ArtifactV1,
}

#[derive(Serialize, Deserialize)]
pub(super) struct NoticeV1 {
    run: String,
    job: [u8; 32],
    attempt: u32,
    worker: String,
    event: EventV1,
}

#[derive(Serialize, Deserialize)]
enum EventV1 {
    Started,
    Finished { seconds: f64 },
    Failed { error: String, will_retry: bool },
    Buried { error: String, input_at_fault: bool },
}

impl From<ArtifactRef> for ArtifactV1 {
    fn from(artifact: ArtifactRef) -> Self {
        Self { digest: *artifact.digest.as_bytes(), bytes: artifact.bytes }
    }
}

impl From<ArtifactV1> for ArtifactRef {
    fn from(artifact: ArtifactV1) -> Self {
        Self { digest: Digest::from_bytes(artifact.digest), bytes: artifact.bytes }
    }
}

impl From<&ShardRef> for ShardV1 {
    fn from(shard: &ShardRef) -> Self {
        Self { digest: *shard.digest.as_bytes(), bytes: shard.bytes, pairs: shard.pairs, address: shard.address.to_string() }
    }
}

impl TryFrom<ShardV1> for ShardRef {
    type Error = Error;

    fn try_from(shard: ShardV1) -> Result<Self, Error> {
        Ok(Self { digest: Digest::from_bytes(shard.digest), bytes: shard.bytes, pairs: shard.pairs, address: address(&shard.address)? })
    }
}

fn address(text: &str) -> Result<Address, Error> {
    Address::parse(text).map_err(|error| Error::Invalid(error.to_string()))
}

fn to_wire(shards: &[ShardRef]) -> Vec<ShardV1> {
    shards.iter().map(ShardV1::from).collect()
}

fn from_wire(shards: Vec<ShardV1>) -> Result<Vec<ShardRef>, Error> {
    shards.into_iter().map(ShardRef::try_from).collect()
}

impl From<&Job> for JobV1 {
    fn from(job: &Job) -> Self {
        let task = match &job.task {
            Task::RetainGradient { shard, batch_size, towers: Towers::Both } => {
                TaskV1::RetainGradient { shard: shard.into(), batch_size: *batch_size }
            }
            Task::RetainGradient { shard, batch_size, towers } => {
                TaskV1::RetainGradientOf { shard: shard.into(), batch_size: *batch_size, towers: (*towers).into() }
            }
            Task::RetainReduce { parts } => {
                let part = |p: &RetainPart| PartV1 { sum: p.sum.into(), batches: p.batches, loss_sum: p.loss_sum };
                TaskV1::RetainReduce { parts: parts.iter().map(part).collect() }
            }
            Task::Concept(task) => {
                let concept = ConceptV1 {
                    concept: task.concept.clone(),
                    class: task.class,
                    forget: to_wire(&task.forget),
                    validation: to_wire(&task.validation),
                    retain_gradient: task.retain_gradient.into(),
                    classes: task.classes.into(),
                    batch_size: task.method.batch_size,
                    search_evaluations: task.method.search_evaluations,
                    search_tolerance: task.method.search_tolerance,
                    stop_top: stop_top(task.method.stop),
                    normalisation_gains: task.method.normalisation_gains,
                };
                match &task.layers {
                    None => TaskV1::Concept(concept),
                    Some(layers) => TaskV1::ConceptAmong { task: concept, layers: layers.clone() },
                }
            }
            Task::Evaluate { change, items, classes } => {
                let item = |i: &EvaluateItem| ItemV1 {
                    name: i.name.clone(),
                    shards: to_wire(&i.shards),
                    class: match i.label {
                        Label::Class(class) => Some(class),
                        Label::Caption => None,
                    },
                };
                TaskV1::Evaluate { change: change.map(Into::into), items: items.iter().map(item).collect(), classes: (*classes).into() }
            }
            Task::Moments(source) => TaskV1::Moments(match source {
                MomentSource::Captions(shard) => SourceV1::Captions(shard.into()),
                MomentSource::Images(shard) => SourceV1::Images(shard.into()),
                MomentSource::Texts(texts) => SourceV1::Texts((*texts).into()),
                MomentSource::ImagesAlone(shard) => SourceV1::ImagesAlone(shard.into()),
            }),
            Task::MomentsReduce(task) => {
                let parts = |parts: &[MomentsPart]| parts.iter().map(|p| MomentsV1 { sum: p.sum.into(), items: p.items }).collect();
                let (paired, unlabelled, unlabelled_weight) = (parts(&task.paired), parts(&task.unlabelled), task.unlabelled_weight);
                let correction = match task.correction {
                    Correction::Ridge { inputs, outputs } => CorrectionV1::Ridge { inputs, outputs },
                    Correction::NullSpace(energy) => CorrectionV1::NullSpace(energy),
                };
                TaskV1::MomentsCorrection { paired, unlabelled, unlabelled_weight, correction }
            }
            Task::Survey(task) => TaskV1::SurveyOf {
                survey: SurveyV1 {
                    concept: task.concept.clone(),
                    forget: to_wire(&task.forget),
                    retain_gradient: task.retain_gradient.into(),
                    folds: task.folds.iter().map(|&m| m.into()).collect(),
                    method: (&task.method).into(),
                },
                towers: task.towers.into(),
            },
            Task::Direction(task) => TaskV1::Direction(DirectionV1 {
                concept: task.concept.clone(),
                class: task.class,
                forget: to_wire(&task.forget),
                validation: to_wire(&task.validation),
                inverses: task.inverses.iter().map(|&m| m.into()).collect(),
                classes: task.classes.into(),
                layer: task.layer.clone(),
                layers: task.layers.clone(),
                method: (&task.method).into(),
            }),
            Task::Protect(task) => TaskV1::Protect {
                texts: task.texts.into(),
                layers: task.layers.clone(),
                inverses: task.inverses.iter().map(|&m| m.into()).collect(),
            },
            Task::Interference { concepts } => {
                let part = |p: &InterferencePart| InterferenceV1 {
                    layer: p.layer.clone(),
                    gradients: p.gradients.into(),
                    direction: p.direction.into(),
                };
                TaskV1::Interference { concepts: concepts.iter().map(part).collect() }
            }
        };
        Self {
            run: job.run.clone(),
            algorithm: job.algorithm,
            weights: *job.model.weights.as_bytes(),
            settings: *job.model.settings.as_bytes(),
            model: job.model.address.to_string(),
            task,
        }
    }
}

impl JobInV1 {
    /// `None` for a job in float32, which [`JobV1`] says.
    pub(super) fn of(job: &Job) -> Option<Self> {
        let precision = match job.model.precision {
            Precision::Float32 => return None,
            Precision::Tf32 => PrecisionV1::Tf32,
            Precision::Bfloat16 => PrecisionV1::Bfloat16,
        };
        Some(Self { precision, job: job.into() })
    }
}

impl TryFrom<JobInV1> for Job {
    type Error = Error;

    fn try_from(message: JobInV1) -> Result<Self, Error> {
        let mut job = Self::try_from(message.job)?;
        job.model.precision = match message.precision {
            PrecisionV1::Tf32 => Precision::Tf32,
            PrecisionV1::Bfloat16 => Precision::Bfloat16,
        };
        Ok(job)
    }
}

impl TryFrom<JobV1> for Job {
    type Error = Error;

    fn try_from(job: JobV1) -> Result<Self, Error> {
        let task = match job.task {
            TaskV1::RetainGradient { shard, batch_size } => retain_gradient(shard, batch_size, Towers::Both)?,
            TaskV1::RetainGradientOf { shard, batch_size, towers } => retain_gradient(shard, batch_size, towers.into())?,
            TaskV1::RetainReduce { parts } => {
                let part = |p: PartV1| Ok(RetainPart { sum: p.sum.into(), batches: count(p.batches)?, loss_sum: p.loss_sum });
                Task::RetainReduce { parts: parts.into_iter().map(part).collect::<Result<_, Error>>()? }
            }
            TaskV1::Concept(task) => Task::Concept(Box::new(task.try_into()?)),
            TaskV1::ConceptAmong { task, layers } => Task::Concept(Box::new(ConceptTask { layers: Some(layers), ..task.try_into()? })),
            TaskV1::Evaluate { change, items, classes } => {
                let item = |i: ItemV1| {
                    let label = i.class.map_or(Label::Caption, Label::Class);
                    Ok(EvaluateItem { name: i.name, shards: from_wire(i.shards)?, label })
                };
                let items = items.into_iter().map(item).collect::<Result<_, Error>>()?;
                Task::Evaluate { change: change.map(Into::into), items, classes: classes.into() }
            }
            TaskV1::Moments(source) => Task::Moments(match source {
                SourceV1::Captions(shard) => MomentSource::Captions(shard.try_into()?),
                SourceV1::Images(shard) => MomentSource::Images(shard.try_into()?),
                SourceV1::Texts(texts) => MomentSource::Texts(texts.into()),
                SourceV1::ImagesAlone(shard) => MomentSource::ImagesAlone(shard.try_into()?),
            }),
            TaskV1::MomentsReduce { .. } | TaskV1::MomentsNullSpace { .. } | TaskV1::Survey { .. } => {
                return Err(Error::Invalid("an older release planned this job; run the same release of lethe and lethe-worker".into()));
            }
            TaskV1::MomentsCorrection { paired, unlabelled, unlabelled_weight, correction } => {
                let correction = match correction {
                    CorrectionV1::Ridge { inputs, outputs } => Correction::Ridge { inputs, outputs },
                    CorrectionV1::NullSpace(energy) => Correction::NullSpace(energy),
                };
                moments_reduce(paired, unlabelled, unlabelled_weight, correction)?
            }
            TaskV1::SurveyOf { survey, towers } => Task::Survey(Box::new(SurveyTask {
                concept: survey.concept,
                forget: from_wire(survey.forget)?,
                retain_gradient: survey.retain_gradient.into(),
                folds: survey.folds.into_iter().map(Into::into).collect(),
                towers: towers.into(),
                method: survey.method.try_into()?,
            })),
            TaskV1::Direction(task) => Task::Direction(Box::new(DirectionTask {
                concept: task.concept,
                class: task.class,
                forget: from_wire(task.forget)?,
                validation: from_wire(task.validation)?,
                inverses: task.inverses.into_iter().map(Into::into).collect(),
                classes: task.classes.into(),
                layer: task.layer,
                layers: task.layers,
                method: task.method.try_into()?,
            })),
            TaskV1::Protect { texts, layers, inverses } => {
                Task::Protect(ProtectTask { texts: texts.into(), layers, inverses: inverses.into_iter().map(Into::into).collect() })
            }
            TaskV1::Interference { concepts } => {
                let part =
                    |p: InterferenceV1| InterferencePart { layer: p.layer, gradients: p.gradients.into(), direction: p.direction.into() };
                Task::Interference { concepts: concepts.into_iter().map(part).collect() }
            }
        };
        let model = ModelRef {
            weights: Digest::from_bytes(job.weights),
            settings: Digest::from_bytes(job.settings),
            precision: Precision::Float32,
            address: address(&job.model)?,
        };
        Ok(Self { run: job.run, algorithm: job.algorithm, model, task })
    }
}

impl TryFrom<ConceptV1> for ConceptTask {
    type Error = Error;

    fn try_from(task: ConceptV1) -> Result<Self, Error> {
        let method = MethodV1 {
            batch_size: task.batch_size,
            search_evaluations: task.search_evaluations,
            search_tolerance: task.search_tolerance,
            stop_top: task.stop_top,
            normalisation_gains: task.normalisation_gains,
        };
        Ok(Self {
            concept: task.concept,
            class: task.class,
            forget: from_wire(task.forget)?,
            validation: from_wire(task.validation)?,
            retain_gradient: task.retain_gradient.into(),
            classes: task.classes.into(),
            layers: None,
            method: method.try_into()?,
        })
    }
}

fn retain_gradient(shard: ShardV1, batch_size: u32, towers: Towers) -> Result<Task, Error> {
    at_least_one(batch_size, "batch_size")?;
    Ok(Task::RetainGradient { shard: shard.try_into()?, batch_size, towers })
}

impl From<Towers> for TowersV1 {
    fn from(towers: Towers) -> Self {
        match towers {
            Towers::Text => Self::Text,
            Towers::Vision => Self::Vision,
            Towers::Both => Self::Both,
        }
    }
}

impl From<TowersV1> for Towers {
    fn from(towers: TowersV1) -> Self {
        match towers {
            TowersV1::Text => Self::Text,
            TowersV1::Vision => Self::Vision,
            TowersV1::Both => Self::Both,
        }
    }
}

fn stop_top(stop: Stop) -> u8 {
    match stop {
        Stop::Fa1 => 1,
        Stop::Fa5 => 5,
    }
}

impl From<&MethodSettings> for MethodV1 {
    fn from(method: &MethodSettings) -> Self {
        Self {
            batch_size: method.batch_size,
            search_evaluations: method.search_evaluations,
            search_tolerance: method.search_tolerance,
            stop_top: stop_top(method.stop),
            normalisation_gains: method.normalisation_gains,
        }
    }
}

impl TryFrom<MethodV1> for MethodSettings {
    type Error = Error;

    fn try_from(method: MethodV1) -> Result<Self, Error> {
        at_least_one(method.batch_size, "batch_size")?;
        at_least_one(method.search_evaluations, "search_evaluations")?;
        let stop = match method.stop_top {
            1 => Stop::Fa1,
            5 => Stop::Fa5,
            other => return Err(Error::Invalid(format!("stops at top {other}"))),
        };
        if !(0.0..1.0).contains(&method.search_tolerance) {
            return Err(Error::Invalid(format!("search_tolerance is {}", method.search_tolerance)));
        }
        Ok(Self {
            batch_size: method.batch_size,
            search_evaluations: method.search_evaluations,
            search_tolerance: method.search_tolerance,
            stop,
            normalisation_gains: method.normalisation_gains,
        })
    }
}

/// Parts of a sum: all that one message holds can be added up.
fn count(value: u64) -> Result<u64, Error> {
    if value <= 1 << 48 { Ok(value) } else { Err(Error::Invalid(format!("a count of {value} is out of range"))) }
}

fn at_least_one(value: u32, what: &str) -> Result<(), Error> {
    if value == 0 { Err(Error::Invalid(format!("{what} is 0"))) } else { Ok(()) }
}

impl From<&Notice> for NoticeV1 {
    fn from(notice: &Notice) -> Self {
        let event = match &notice.event {
            Event::Started => EventV1::Started,
            Event::Finished { seconds } => EventV1::Finished { seconds: *seconds },
            Event::Failed { error, will_retry } => EventV1::Failed { error: error.clone(), will_retry: *will_retry },
            Event::Buried { error, cause } => EventV1::Buried { error: error.clone(), input_at_fault: *cause == Cause::Input },
        };
        Self {
            run: notice.run.clone(),
            job: *notice.job.digest().as_bytes(),
            attempt: notice.attempt,
            worker: notice.worker.clone(),
            event,
        }
    }
}

impl From<NoticeV1> for Notice {
    fn from(notice: NoticeV1) -> Self {
        let event = match notice.event {
            EventV1::Started => Event::Started,
            EventV1::Finished { seconds } => Event::Finished { seconds },
            EventV1::Failed { error, will_retry } => Event::Failed { error, will_retry },
            EventV1::Buried { error, input_at_fault } => {
                Event::Buried { error, cause: if input_at_fault { Cause::Input } else { Cause::Circumstances } }
            }
        };
        let job = JobId::from(Digest::from_bytes(notice.job));
        Self { run: notice.run, job, attempt: notice.attempt, worker: notice.worker, event }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum RequestV1 {
    Submit { submission: String },
    Status { run: Option<String> },
    Cancel { run: String },
    Resume { run: String },
}

impl From<&Request> for RequestV1 {
    fn from(request: &Request) -> Self {
        match request.clone() {
            Request::Submit { submission } => Self::Submit { submission },
            Request::Status { run } => Self::Status { run },
            Request::Cancel { run } => Self::Cancel { run },
            Request::Resume { run } => Self::Resume { run },
        }
    }
}

impl From<RequestV1> for Request {
    fn from(request: RequestV1) -> Self {
        match request {
            RequestV1::Submit { submission } => Self::Submit { submission },
            RequestV1::Status { run } => Self::Status { run },
            RequestV1::Cancel { run } => Self::Cancel { run },
            RequestV1::Resume { run } => Self::Resume { run },
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum ReplyV1 {
    Done { json: String },
    Refused { exit_code: u8, problem: String },
}

impl From<&Reply> for ReplyV1 {
    fn from(reply: &Reply) -> Self {
        match reply.clone() {
            Reply::Done { json } => Self::Done { json },
            Reply::Refused { exit_code, problem } => Self::Refused { exit_code, problem },
        }
    }
}

impl From<ReplyV1> for Reply {
    fn from(reply: ReplyV1) -> Self {
        match reply {
            ReplyV1::Done { json } => Self::Done { json },
            ReplyV1::Refused { exit_code, problem } => Self::Refused { exit_code, problem },
        }
    }
}

fn moments_reduce(
    paired: Vec<MomentsV1>,
    unlabelled: Vec<MomentsV1>,
    unlabelled_weight: f64,
    correction: Correction,
) -> Result<Task, Error> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let sensible = match correction {
        Correction::Ridge { inputs, outputs } => positive(inputs) && positive(outputs),
        Correction::NullSpace(energy) => positive(energy),
    };
    if !(unlabelled_weight.is_finite() && unlabelled_weight >= 0.0 && sensible) {
        return Err(Error::Invalid(format!("weight {unlabelled_weight} or {correction:?} is out of range")));
    }
    let parts = |parts: Vec<MomentsV1>| -> Result<Vec<MomentsPart>, Error> {
        parts.into_iter().map(|p| Ok(MomentsPart { sum: p.sum.into(), items: count(p.items)? })).collect()
    };
    Ok(Task::MomentsReduce(MomentsReduceTask { paired: parts(paired)?, unlabelled: parts(unlabelled)?, unlabelled_weight, correction }))
}

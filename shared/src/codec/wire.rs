//! The frozen structs of messages. Never change one; add another version instead.
//!
//! They are separate from the structs that the code works with, so that those can change. Plain
//! data only: no attributes, no maps, no `usize`; digests are bytes, addresses text. The spec of a
//! job's task is bytes here; its own kind and version say what they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::address::Address;
use crate::digest::Digest;
use crate::fault::{Class, Fault, Origin, StoredObject};
use crate::job::Job;
use crate::message::{Event, Notice, Reply, Request};
use crate::reference::{JobId, Locations, ModelSpec};
use crate::task::AnyTask;
use crate::vocabulary::Precision;

#[derive(Serialize, Deserialize)]
pub(super) struct JobV2 {
    run: String,
    concept: Option<String>,
    kind: String,
    version: u32,
    weights: [u8; 32],
    settings: [u8; 32],
    precision: PrecisionV2,
    spec: Vec<u8>,
    model: String,
    files: Vec<([u8; 32], String)>,
    arithmetic: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum PrecisionV2 {
    Float32,
    Tf32,
    Bfloat16,
}

#[derive(Serialize, Deserialize)]
pub(super) struct NoticeV2 {
    run: String,
    job: [u8; 32],
    attempt: u32,
    worker: String,
    event: EventV2,
}

#[derive(Serialize, Deserialize)]
enum EventV2 {
    Started,
    Finished { seconds: f64 },
    Failed { fault: FaultV2, will_retry: bool },
    DeadLettered { fault: FaultV2 },
    Paused { reason: String },
    Resumed,
}

#[derive(Serialize, Deserialize)]
struct FaultV2 {
    class: ClassV2,
    message: String,
}

#[derive(Serialize, Deserialize)]
enum ClassV2 {
    Input,
    Surroundings,
    Computation,
    Device,
    Transient,
    Foreign,
    CorruptArtifact([u8; 32]),
    CorruptOutcome([u8; 32]),
}

fn address(text: &str) -> Result<Address, Error> {
    Address::parse(text).map_err(|error| Error::Invalid(error.to_string()))
}

impl JobV2 {
    pub(super) fn of(job: &Job) -> Result<Self, Error> {
        Ok(Self {
            run: job.run.clone(),
            concept: job.concept.clone(),
            kind: job.task.kind().to_owned(),
            version: job.task.version(),
            weights: *job.model.weights.as_bytes(),
            settings: *job.model.settings.as_bytes(),
            precision: match job.model.precision {
                Precision::Float32 => PrecisionV2::Float32,
                Precision::Tf32 => PrecisionV2::Tf32,
                Precision::Bfloat16 => PrecisionV2::Bfloat16,
            },
            spec: job.task.encode().map_err(Error::Invalid)?,
            model: job.locations.model.to_string(),
            files: job
                .locations
                .files
                .iter()
                .map(|(digest, address)| (*digest.as_bytes(), address.to_string()))
                .collect(),
            arithmetic: job.arithmetic.clone(),
        })
    }
}

impl TryFrom<JobV2> for Job {
    type Error = Error;

    fn try_from(job: JobV2) -> Result<Self, Error> {
        let precision = match job.precision {
            PrecisionV2::Float32 => Precision::Float32,
            PrecisionV2::Tf32 => Precision::Tf32,
            PrecisionV2::Bfloat16 => Precision::Bfloat16,
        };
        let file =
            |(digest, text): ([u8; 32], String)| Ok((Digest::from_bytes(digest), address(&text)?));
        let count = job.files.len();
        let files = job.files.into_iter().map(file).collect::<Result<BTreeMap<_, _>, Error>>()?;
        if files.len() < count {
            return Err(Error::Invalid("a file is named twice".to_owned()));
        }
        Ok(Self {
            task: AnyTask::decode(&job.kind, job.version, &job.spec)?,
            run: job.run,
            concept: job.concept,
            model: ModelSpec {
                weights: Digest::from_bytes(job.weights),
                settings: Digest::from_bytes(job.settings),
                precision,
            },
            locations: Locations { model: address(&job.model)?, files },
            arithmetic: job.arithmetic,
        })
    }
}

impl From<&Fault> for FaultV2 {
    fn from(fault: &Fault) -> Self {
        let class = match fault.class {
            Class::Input => ClassV2::Input,
            Class::Environment(Origin::Surroundings) => ClassV2::Surroundings,
            Class::Environment(Origin::Computation) => ClassV2::Computation,
            Class::Environment(Origin::Device) => ClassV2::Device,
            Class::Transient => ClassV2::Transient,
            Class::Foreign => ClassV2::Foreign,
            Class::Corrupt(StoredObject::Artifact(digest)) => {
                ClassV2::CorruptArtifact(*digest.as_bytes())
            }
            Class::Corrupt(StoredObject::Outcome(job)) => {
                ClassV2::CorruptOutcome(*job.digest().as_bytes())
            }
        };
        Self { class, message: fault.message.clone() }
    }
}

impl From<FaultV2> for Fault {
    fn from(fault: FaultV2) -> Self {
        let class = match fault.class {
            ClassV2::Input => Class::Input,
            ClassV2::Surroundings => Class::Environment(Origin::Surroundings),
            ClassV2::Computation => Class::Environment(Origin::Computation),
            ClassV2::Device => Class::Environment(Origin::Device),
            ClassV2::Transient => Class::Transient,
            ClassV2::Foreign => Class::Foreign,
            ClassV2::CorruptArtifact(digest) => {
                Class::Corrupt(StoredObject::Artifact(Digest::from_bytes(digest)))
            }
            ClassV2::CorruptOutcome(job) => {
                Class::Corrupt(StoredObject::Outcome(Digest::from_bytes(job).into()))
            }
        };
        Self::new(class, fault.message)
    }
}

impl From<&Notice> for NoticeV2 {
    fn from(notice: &Notice) -> Self {
        let event = match &notice.event {
            Event::Started => EventV2::Started,
            Event::Finished { seconds } => EventV2::Finished { seconds: *seconds },
            Event::Failed { fault, will_retry } => {
                EventV2::Failed { fault: fault.into(), will_retry: *will_retry }
            }
            Event::DeadLettered { fault } => EventV2::DeadLettered { fault: fault.into() },
            Event::Paused { reason } => EventV2::Paused { reason: reason.clone() },
            Event::Resumed => EventV2::Resumed,
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

impl From<NoticeV2> for Notice {
    fn from(notice: NoticeV2) -> Self {
        let event = match notice.event {
            EventV2::Started => Event::Started,
            EventV2::Finished { seconds } => Event::Finished { seconds },
            EventV2::Failed { fault, will_retry } => {
                Event::Failed { fault: fault.into(), will_retry }
            }
            EventV2::DeadLettered { fault } => Event::DeadLettered { fault: fault.into() },
            EventV2::Paused { reason } => Event::Paused { reason },
            EventV2::Resumed => Event::Resumed,
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

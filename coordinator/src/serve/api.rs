//! The API's types: runs and dead letters as JSON, for the page, programs and `lethe status`.

use std::borrow::Cow;

use lethe_queue::nats::StoredDeadLetter;
use lethe_shared::digest::Digest;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

use super::ledger::{Entry, State};
use crate::progress::board::Seen;

/// A run.
#[derive(Debug, Clone)]
pub struct RunView {
    /// Its name.
    pub run: String,
    /// Its last ledger entry.
    pub entry: Entry,
    /// Its current activity, if this coordinator executes it.
    pub live: Option<Seen>,
}

/// A run in the API, independent of the ledger's format in the store.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Run")]
struct Document<'a> {
    /// Its name.
    run: &'a str,
    /// Its state.
    state: State,
    /// When it was last submitted, seconds since 1970.
    submitted: u64,
    /// When it entered this state, seconds since 1970.
    since: u64,
    /// The coordinator that wrote the state.
    coordinator: &'a str,
    /// Its plan name: its name in jobs, dead letters and its release; known once it is planned.
    plan: Option<&'a str>,
    /// Address of its release.
    release: Option<&'a str>,
    /// SHA-256 over the released checkpoint's tensors, in hexadecimal.
    #[schemars(with = "Option<String>")]
    digest: Option<Digest>,
    /// Why it failed, or which concepts have no edit or are still recognised.
    problem: Option<&'a str>,
    /// The exit code that `lethe run` would have had.
    exit_code: Option<u8>,
    /// Its current activity, if the answering coordinator executes it.
    live: Option<&'a Seen>,
}

impl Serialize for RunView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { run, entry, live } = self;
        let document = Document {
            run,
            state: entry.state,
            submitted: entry.submitted,
            since: entry.at,
            coordinator: &entry.coordinator,
            plan: entry.plan.as_deref(),
            release: entry.release.as_deref(),
            digest: entry.digest,
            problem: entry.problem.as_deref(),
            exit_code: entry.exit_code,
            live: live.as_ref(),
        };
        document.serialize(serializer)
    }
}

impl JsonSchema for RunView {
    fn schema_name() -> Cow<'static, str> {
        Document::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Document::json_schema(generator)
    }
}

/// All runs.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Runs")]
pub struct Overview {
    /// Name of the answering coordinator.
    pub coordinator: String,
    /// Its version.
    pub version: &'static str,
    /// Seconds since 1970.
    pub now: u64,
    /// Runs: those in progress first, then the newest.
    pub runs: Vec<RunView>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
pub struct LetterView {
    /// Its name.
    pub letter: String,
    /// The run, by its plan name.
    pub run: Option<String>,
    /// The job's name for people.
    pub job: Option<String>,
    /// The job's kind.
    pub kind: Option<String>,
    /// Number of deliveries.
    pub attempts: u32,
    /// Class of the last fault: `input`, `transient`, `computation`, …
    pub class: String,
    /// The last fault's message.
    pub error: String,
    /// The worker that wrote the dead letter, or `queue`.
    pub worker: String,
    /// Time of the dead letter, seconds since 1970.
    pub time: i64,
}

impl From<StoredDeadLetter> for LetterView {
    fn from(letter: StoredDeadLetter) -> Self {
        Self {
            letter: letter.name,
            run: letter.job.as_ref().map(|job| job.run.clone()),
            job: letter.job.as_ref().map(lethe_shared::job::Job::label),
            kind: letter.job.as_ref().map(|job| job.kind().to_owned()),
            attempts: letter.attempts,
            class: letter.fault.class.name().to_owned(),
            error: letter.fault.message,
            worker: letter.worker,
            time: letter.time,
        }
    }
}

/// The content of the page.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Everything {
    #[serde(flatten)]
    pub(super) overview: Overview,
    /// Dead letters of all runs, the newest last.
    pub(super) dead_letters: Vec<LetterView>,
}

/// The body of an error response.
#[derive(Serialize, JsonSchema)]
pub(super) struct Problem {
    /// The reason, a sentence.
    pub(super) problem: String,
}

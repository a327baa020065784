//! Runs as JSON: for the page, the API and `lethe status`.

use std::borrow::Cow;
use std::sync::PoisonError;

use lethe_shared::digest::Digest;
use lethe_shared::queue::Cause;
use lethe_shared::queue::nats::{JetStreamQueue, Letter};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

use super::ledger::{Entry, State};
use super::{Known, Shared, ledger};
use crate::board::Seen;

/// Ended runs that an overview shows.
const ENDED: usize = 200;
/// Dead letters that a page shows.
const LETTERS: usize = 200;

/// A run.
#[derive(Debug, Clone)]
pub struct RunView {
    /// Its name.
    pub run: String,
    /// What became of it.
    pub entry: Entry,
    /// What it is doing, where this coordinator does it.
    pub live: Option<Seen>,
}

/// The API's own words: the store's format is another matter, and changes at another pace.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Run")]
struct Document<'a> {
    /// Its name.
    run: &'a str,
    /// Where it stands.
    state: State,
    /// When it was last submitted, seconds since 1970.
    submitted: u64,
    /// Since when it stands there, seconds since 1970.
    since: u64,
    /// The coordinator that says so.
    coordinator: &'a str,
    /// What jobs, dead letters and its release call it; known once it is planned.
    plan: Option<&'a str>,
    /// Address of its release.
    release: Option<&'a str>,
    /// SHA-256 over the released checkpoint's tensors, in hexadecimal.
    #[schemars(with = "Option<String>")]
    digest: Option<Digest>,
    /// Why it failed, or which concepts are missing.
    problem: Option<&'a str>,
    /// What `lethe run` would have ended with.
    exit_code: Option<u8>,
    /// What it is doing, while this coordinator works on it.
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
    /// The coordinator that says so.
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
    /// What names it.
    pub letter: String,
    /// The run, as its jobs call it.
    pub run: Option<String>,
    /// What a person calls the job.
    pub job: Option<String>,
    /// Its kind.
    pub kind: Option<String>,
    /// Deliveries before the end.
    pub attempts: u32,
    /// `input` or `circumstances`.
    pub cause: String,
    /// The last error.
    pub error: String,
    /// Who buried it.
    pub worker: String,
    /// When, seconds since 1970.
    pub time: i64,
}

impl From<Letter> for LetterView {
    fn from(letter: Letter) -> Self {
        let cause = match letter.cause {
            Cause::Input => "input",
            Cause::Circumstances => "circumstances",
        };
        Self {
            letter: letter.name,
            run: letter.job.as_ref().map(|job| job.run.clone()),
            job: letter.job.as_ref().map(lethe_shared::job::Job::label),
            kind: letter.job.as_ref().map(|job| job.kind().to_owned()),
            attempts: letter.attempts,
            cause: cause.to_owned(),
            error: letter.error,
            worker: letter.worker,
            time: letter.time,
        }
    }
}

impl RunView {
    fn new(run: &str, known: &Known) -> Self {
        Self { run: run.to_owned(), entry: known.entry.clone(), live: known.is_active.then(|| known.board.seen()) }
    }
}

impl Shared {
    /// One run.
    pub(super) fn view(&self, name: &str) -> Option<RunView> {
        let run = self.find(name)?;
        self.known(&run).map(|known| RunView::new(&run, &known))
    }

    /// All runs, of those that have ended the newest.
    pub(super) fn overview(&self) -> Overview {
        let mut runs: Vec<RunView> = self.runs().iter().map(|(run, known)| RunView::new(run, known)).collect();
        let has_ended = |view: &RunView| view.entry.state.is_end();
        runs.sort_by(|a, b| has_ended(a).cmp(&has_ended(b)).then_with(|| (b.entry.submitted, &a.run).cmp(&(a.entry.submitted, &b.run))));
        let going = runs.iter().take_while(|run| !has_ended(run)).count();
        runs.truncate(going + ENDED);
        Overview { coordinator: self.options.name.clone(), version: env!("CARGO_PKG_VERSION"), now: ledger::now(), runs }
    }

    /// Dead letters of all runs, the newest, as of the last look.
    pub(super) fn letters(&self) -> Vec<LetterView> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Dead letters of all runs, the newest.
pub(super) async fn letters(queue: &JetStreamQueue) -> Result<Vec<LetterView>, lethe_shared::queue::Error> {
    let mut letters = queue.letters(None).await?;
    let first = letters.len().saturating_sub(LETTERS);
    Ok(letters.drain(first..).map(LetterView::from).collect())
}

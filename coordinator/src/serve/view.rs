//! Runs as JSON: for the page, the API and `lethe status`.

use std::sync::PoisonError;

use lethe_shared::queue::Cause;
use lethe_shared::queue::nats::{JetStreamQueue, Letter};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use super::ledger::Entry;
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
impl Serialize for RunView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { run, entry, live } = self;
        let mut view = serializer.serialize_struct("RunView", 11)?;
        view.serialize_field("run", run)?;
        view.serialize_field("state", &entry.state)?;
        view.serialize_field("submitted", &entry.submitted)?;
        view.serialize_field("since", &entry.at)?;
        view.serialize_field("coordinator", &entry.coordinator)?;
        view.serialize_field("plan", &entry.plan)?;
        view.serialize_field("release", &entry.release)?;
        view.serialize_field("digest", &entry.digest)?;
        view.serialize_field("problem", &entry.problem)?;
        view.serialize_field("exit_code", &entry.exit_code)?;
        view.serialize_field("live", live)?;
        view.end()
    }
}

/// All runs.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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

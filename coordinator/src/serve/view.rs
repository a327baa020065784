//! Runs as JSON: for the page, the API and `lethe status`.

use std::sync::PoisonError;

use lethe_shared::digest::Digest;
use lethe_shared::queue::Cause;
use lethe_shared::queue::nats::{JetStreamQueue, Letter};
use serde::{Deserialize, Serialize};

use super::ledger::{Entry, State};
use super::{Known, Shared, ledger};
use crate::board::Seen;

/// Ended runs that an overview shows.
const ENDED: usize = 200;
/// Dead letters that a page shows.
const LETTERS: usize = 200;

/// A run.
#[derive(Debug, Clone, Serialize)]
pub struct RunView {
    /// Its name.
    pub run: String,
    /// Where it stands.
    pub state: State,
    /// When it was last submitted, seconds since 1970.
    pub submitted: u64,
    /// Since when it stands there, seconds since 1970.
    pub since: u64,
    /// The coordinator that wrote so.
    pub coordinator: String,
    /// What jobs, dead letters and the release call the run.
    pub plan: Option<String>,
    /// Its release.
    pub release: Option<String>,
    /// SHA-256 over the released checkpoint's tensors.
    pub digest: Option<Digest>,
    /// Why it failed, or what is missing.
    pub problem: Option<String>,
    /// What `lethe run` would have ended with.
    pub exit_code: Option<u8>,
    /// What it is doing, where this coordinator does it.
    pub live: Option<Seen>,
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
        let entry: Entry = known.entry.clone();
        Self {
            run: run.to_owned(),
            state: entry.state,
            submitted: entry.submitted,
            since: entry.at,
            coordinator: entry.coordinator,
            plan: entry.plan,
            release: entry.release,
            digest: entry.digest,
            problem: entry.problem,
            exit_code: entry.exit_code,
            live: known.is_active.then(|| known.board.seen()),
        }
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
        runs.sort_by(|a, b| a.state.is_end().cmp(&b.state.is_end()).then_with(|| (b.submitted, &a.run).cmp(&(a.submitted, &b.run))));
        let going = runs.iter().take_while(|run| !run.state.is_end()).count();
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

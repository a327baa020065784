//! Progress on stderr: a bar on a terminal; elsewhere plain lines at the end of each phase and at
//! intervals.

pub mod board;

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use lethe_operations::log::{self, say_with};
use lethe_queue::{Event, Notice};
use lethe_shared::job::Job;
use lethe_shared::reference::JobId;

use crate::progress::board::Board;

/// The bar on the terminal. Phases run one after the other, so there is at most one.
static BAR: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Prints log lines above the bar.
fn print(lines: &str) -> std::io::Result<()> {
    let bar = BAR
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .and_then(WeakProgressBar::upgrade);
    match bar.filter(|bar| !bar.is_finished()) {
        Some(bar) => bar.println(lines),
        None => writeln!(std::io::stderr(), "{lines}")?,
    }
    Ok(())
}

/// Shortest time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Returns the title of a phase for people. Phase names are data in summaries and in the API, and
/// some are older than the current terms.
pub fn title(phase: &str) -> &str {
    if phase == "doses" { "coefficients" } else { phase }
}

/// Progress of one phase.
#[derive(Debug)]
pub struct Progress {
    phase: &'static str,
    unit: &'static str,
    shown: Shown,
    total: usize,
    found: usize,
    done: usize,
    began: Instant,
    last_line: Instant,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Board(Arc<Board>),
    Nothing,
}

/// Destination of progress.
#[derive(Debug, Clone, Default)]
pub enum Show {
    /// Stderr.
    Stderr,
    /// A board.
    Board(Arc<Board>),
    /// No destination.
    #[default]
    Nobody,
}

impl Show {
    /// Returns the progress of a phase with this number of jobs.
    pub fn progress(&self, phase: &'static str, jobs: usize) -> Progress {
        match self {
            // A single job usually ends before its line could be read, although it may wait on a
            // queue that several runs share.
            Self::Stderr if jobs < 2 => Progress::silent(),
            Self::Stderr => Progress::new(phase),
            Self::Board(board) => Progress::with(phase, Shown::Board(Arc::clone(board))),
            Self::Nobody => Progress::silent(),
        }
    }

    /// Reports a problem of the run. On stderr, the log already contains it.
    pub fn problem(&self, problem: &str) {
        if let Self::Board(board) = self {
            board.problem(problem.to_owned());
        }
    }

    /// Reports the end of a phase, with all its rounds, in one line if there is no bar.
    pub fn ended(&self, phase: &str, jobs: usize, found: usize, took: Duration) {
        if matches!(self, Self::Stderr) && !has_bar() {
            let before = if found > 0 { format!(" ({found} reused)") } else { String::new() };
            let line = format!("{}: {jobs} jobs{before} in {}", title(phase), human(took));
            say_line(&line, phase, jobs, jobs);
        }
    }
}

/// Prints a plain line; in JSON, with its numbers.
fn say_line(line: &str, phase: &str, done: usize, total: usize) {
    say_with(
        "info",
        line,
        &[("phase", phase.into()), ("done", done.into()), ("total", total.into())],
    );
}

/// Returns whether progress is a bar, which requires a terminal.
fn has_bar() -> bool {
    std::io::stderr().is_terminal() && log::format() == log::Format::Human
}

impl Progress {
    /// Creates the progress of a phase of jobs on stderr.
    pub fn new(phase: &'static str) -> Self {
        Self::counting(phase, "jobs")
    }

    /// Creates the progress on stderr of a phase that counts `unit`.
    pub fn counting(phase: &'static str, unit: &'static str) -> Self {
        let shown = if has_bar() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template = "{prefix:18} {bar:30} {pos}/{len}  {elapsed} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(title(phase));
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
            log::print_by(print);
            Shown::Bar(bar)
        } else {
            Shown::Lines
        };
        Self { unit, ..Self::with(phase, shown) }
    }

    /// Creates progress without a destination.
    pub fn silent() -> Self {
        Self::with("", Shown::Nothing)
    }

    fn with(phase: &'static str, shown: Shown) -> Self {
        let now = Instant::now();
        Self { phase, unit: "jobs", shown, total: 0, found: 0, done: 0, began: now, last_line: now }
    }

    /// Starts a phase of `total` jobs, `found` of which already have an outcome.
    pub fn start(&mut self, total: usize, found: usize) {
        (self.total, self.found, self.done) = (total, found, found);
        self.began = Instant::now();
        self.last_line = self.began;
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_length(total as u64);
                bar.set_position(found as u64);
            }
            Shown::Board(board) => board.phase(self.phase, total, found),
            Shown::Lines | Shown::Nothing => {}
        }
    }

    /// Sets the number of jobs that have ended.
    pub fn advance(&mut self, done: usize) {
        if let Shown::Board(board) = &self.shown {
            board.ended(self.phase, done.saturating_sub(self.done));
        }
        self.done = done;
        self.show();
    }

    /// Records a notice about a job.
    pub fn hear(&self, job: &Job, notice: &Notice) {
        let Shown::Board(board) = &self.shown else { return };
        match &notice.event {
            Event::Started => board.took(&notice.worker, notice.job, &job.label()),
            Event::Finished { .. } => board.let_go(&notice.worker),
            Event::Failed { fault, .. } | Event::DeadLettered { fault } => {
                board.let_go(&notice.worker);
                board.problem(format!("{}: {fault}", job.label()));
            }
            Event::Paused { .. } | Event::Resumed => {}
        }
    }

    /// Records a notice that a worker pauses or resumes.
    pub fn hear_worker(&self, notice: &Notice) {
        let Shown::Board(board) = &self.shown else { return };
        match &notice.event {
            Event::Paused { reason } => board.paused(&notice.worker, reason),
            Event::Resumed => board.resumed(&notice.worker),
            _ => {}
        }
    }

    /// Records a problem of the run as a whole.
    pub fn problem(&self, problem: &str) {
        if let Shown::Board(board) = &self.shown {
            board.problem(problem.to_owned());
        }
    }

    /// Records that a job has ended, according to the store or the queue.
    pub fn over(&self, job: JobId) {
        if let Shown::Board(board) = &self.shown {
            board.over(job);
        }
    }

    /// Updates the display as time passes.
    pub fn tick(&mut self) {
        self.show();
    }

    /// Ends the phase after its last job.
    pub fn finish(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(self.done as u64);
            bar.finish_with_message("");
        }
    }

    fn show(&mut self) {
        let left = time_left(self.done - self.found, self.total - self.done, self.began.elapsed());
        let left = left.map(|left| format!("about {} remaining", human(left))).unwrap_or_default();
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(self.done as u64);
                bar.set_message(left);
            }
            Shown::Lines if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                let left = if left.is_empty() { String::new() } else { format!(", {left}") };
                let (done, total, after) = (self.done, self.total, human(self.began.elapsed()));
                let phase = title(self.phase);
                let line = format!("{phase}: {done}/{total} {} after {after}{left}", self.unit);
                say_line(&line, self.phase, done, total);
            }
            Shown::Lines | Shown::Board(_) | Shown::Nothing => {}
        }
    }
}

/// Returns the estimated time for the remaining jobs at the rate so far.
fn time_left(done: usize, left: usize, elapsed: Duration) -> Option<Duration> {
    (done > 0 && left > 0).then(|| elapsed.mul_f64(left as f64 / done as f64))
}

/// Formats a duration for people: `0.3 s`, `42 s`, `3 min 5 s`, `2 h 10 min`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Formats a number of bytes for people.
pub fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_pace_of_this_run() {
        assert_eq!(time_left(0, 5, Duration::from_secs(3)), None);
        assert_eq!(time_left(2, 6, Duration::from_secs(3)), Some(Duration::from_secs(9)));
        assert_eq!(time_left(2, 0, Duration::from_secs(3)), None);
    }

    #[test]
    fn numbers_read_well() {
        let said: Vec<String> = [0.25, 42.0, 185.0, 7800.0]
            .into_iter()
            .map(|s| human(Duration::from_secs_f64(s)))
            .collect();
        assert_eq!(said, ["0.2 s", "42 s", "3 min 5 s", "2 h 10 min"]);
        assert_eq!(
            [12, 1_234, 5_600_000, 7_890_000_000].map(human_bytes),
            ["12 B", "1.2 kB", "5.6 MB", "7.89 GB"]
        );
    }
}

//! Progress on stderr: a bar on a terminal; elsewhere a plain line when a phase has ended, and now and then before.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};
use lethe_shared::job::{Job, JobId};
use lethe_shared::queue::{Event, Notice};
use lethe_shared::telemetry::log::{self, say};

use crate::board::Board;

/// The bar that stands on the terminal; phases come one after the other.
static BAR: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Lines of the log go above the bar, not through it.
fn print(lines: &str) -> std::io::Result<()> {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(WeakProgressBar::upgrade);
    match bar.filter(|bar| !bar.is_finished()) {
        Some(bar) => bar.println(lines),
        None => writeln!(std::io::stderr(), "{lines}")?,
    }
    Ok(())
}

/// How often a plain line is written at most.
const LINE_EVERY: Duration = Duration::from_secs(10);

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

/// Who sees progress.
#[derive(Debug, Clone, Default)]
pub enum Show {
    /// Whoever reads stderr.
    Stderr,
    /// Whoever looks at a board.
    Board(Arc<Board>),
    /// Nobody.
    #[default]
    Nobody,
}

impl Show {
    /// Progress of a phase of so many jobs.
    pub fn progress(&self, phase: &'static str, jobs: usize) -> Progress {
        match self {
            // A single job is over before anyone could read its line; on a queue shared by several runs it may wait.
            Self::Stderr if jobs < 2 => Progress::silent(),
            Self::Stderr => Progress::new(phase),
            Self::Board(board) => Progress::with(phase, Shown::Board(Arc::clone(board))),
            Self::Nobody => Progress::silent(),
        }
    }

    /// A phase has ended, with all its rounds: one line, where no bar showed it.
    pub fn ended(&self, phase: &str, jobs: usize, found: usize, took: Duration) {
        if matches!(self, Self::Stderr) && !has_bar() {
            let before = if found > 0 { format!(" ({found} done before)") } else { String::new() };
            say("info", &format!("{phase}: {jobs} jobs{before} in {}", human(took)));
        }
    }
}

/// Whether progress is a bar: for people at a terminal.
fn has_bar() -> bool {
    std::io::stderr().is_terminal() && log::format() == log::Format::Human
}

impl Progress {
    /// Progress of a phase of jobs on stderr.
    pub fn new(phase: &'static str) -> Self {
        Self::counting(phase, "jobs")
    }

    /// Progress on stderr of a phase that does so many of something.
    pub fn counting(phase: &'static str, unit: &'static str) -> Self {
        let shown = if has_bar() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let template = "{prefix:18} {bar:30} {pos}/{len}  {elapsed} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(phase);
            *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.downgrade());
            log::print_by(print);
            Shown::Bar(bar)
        } else {
            Shown::Lines
        };
        Self { unit, ..Self::with(phase, shown) }
    }

    /// Progress that nobody sees.
    pub fn silent() -> Self {
        Self::with("", Shown::Nothing)
    }

    fn with(phase: &'static str, shown: Shown) -> Self {
        let now = Instant::now();
        Self { phase, unit: "jobs", shown, total: 0, found: 0, done: 0, began: now, last_line: now }
    }

    /// A phase of `total` jobs begins; `found` were done in an earlier run.
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

    /// So many jobs have ended.
    pub fn advance(&mut self, done: usize) {
        if let Shown::Board(board) = &self.shown {
            board.ended(self.phase, done.saturating_sub(self.done));
        }
        self.done = done;
        self.show();
    }

    /// Something was said about a job.
    pub fn hear(&self, job: &Job, notice: &Notice) {
        let Shown::Board(board) = &self.shown else { return };
        match &notice.event {
            Event::Started => board.took(&notice.worker, notice.job, &job.label()),
            Event::Finished { .. } => board.let_go(&notice.worker),
            Event::Failed { error, .. } | Event::Buried { error, .. } => {
                board.let_go(&notice.worker);
                board.problem(format!("{}: {error}", job.label()));
            }
        }
    }

    /// A job has ended, as the store or the queue has it.
    pub fn over(&self, job: JobId) {
        if let Shown::Board(board) = &self.shown {
            board.over(job);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        self.show();
    }

    /// All jobs have ended.
    pub fn finish(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(self.done as u64);
            bar.finish_with_message("");
        }
    }

    fn show(&mut self) {
        let left = time_left(self.done - self.found, self.total - self.done, self.began.elapsed());
        let left = left.map(|left| format!("about {} left", human(left))).unwrap_or_default();
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(self.done as u64);
                bar.set_message(left);
            }
            Shown::Lines if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                let left = if left.is_empty() { String::new() } else { format!(", {left}") };
                let (done, total, after) = (self.done, self.total, human(self.began.elapsed()));
                say("info", &format!("{}: {done}/{total} {} after {after}{left}", self.phase, self.unit));
            }
            Shown::Lines | Shown::Board(_) | Shown::Nothing => {}
        }
    }
}

/// Time that the jobs left will take at the pace so far.
fn time_left(done: usize, left: usize, elapsed: Duration) -> Option<Duration> {
    (done > 0 && left > 0).then(|| elapsed.mul_f64(left as f64 / done as f64))
}

/// A duration as people say it: `0.3 s`, `42 s`, `3 min 5 s`, `2 h 10 min`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A number of bytes as people say it.
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
        let said: Vec<String> = [0.25, 42.0, 185.0, 7800.0].into_iter().map(|s| human(Duration::from_secs_f64(s))).collect();
        assert_eq!(said, ["0.2 s", "42 s", "3 min 5 s", "2 h 10 min"]);
        assert_eq!([12, 1_234, 5_600_000, 7_890_000_000].map(human_bytes), ["12 B", "1.2 kB", "5.6 MB", "7.89 GB"]);
    }
}

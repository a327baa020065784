//! The commands `lethe status` and `lethe cancel`.

use std::time::{Duration, Instant};

use clap::Args;
use lethe_operations::log::say;
use lethe_queue::nats::JetStreamQueue;
use lethe_shared::exit;
use lethe_shared::message::Request;
use serde::Deserialize;

use super::common::print;
use super::reach::{Reach, ask};
use crate::failure::Failure;
use crate::progress::{human, title};

/// Interval between two polls of a watched run.
const EVERY: Duration = Duration::from_secs(1);
/// Longest time without a line, if only the remaining time changes.
const LINE_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The run to show (default: all).
    run: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// Show progress until the run ends, and exit with its exit code.
    #[arg(long, requires = "run")]
    watch: bool,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The run to cancel.
    run: String,
    #[command(flatten)]
    reach: Reach,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
}

/// The fields of a run that are shown.
#[derive(Debug, Deserialize)]
struct Run {
    run: String,
    state: String,
    since: u64,
    plan: Option<String>,
    release: Option<String>,
    digest: Option<String>,
    problem: Option<String>,
    exit_code: Option<u8>,
    live: Option<Live>,
}

#[derive(Debug, Deserialize)]
struct Live {
    stage: String,
    phases: Vec<Phase>,
    workers: Vec<Worker>,
    problems: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    total: usize,
    done: usize,
    found: usize,
    seconds: f64,
    seconds_left: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Worker {
    name: String,
    job: String,
    seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Overview {
    now: u64,
    runs: Vec<Run>,
}

pub(super) async fn main(options: &Status) -> Result<u8, Failure> {
    let queue = options.reach.connect().await?;
    match &options.run {
        Some(run) if options.watch => return watch(&queue, run, options.json).await,
        Some(run) => {
            let (run, json): (Run, String) =
                ask(&queue, &Request::Status { run: Some(run.clone()) }).await?;
            print(&if options.json { json } else { table(&run) })?;
        }
        None => {
            let (all, json): (Overview, String) =
                ask(&queue, &Request::Status { run: None }).await?;
            print(&if options.json { json } else { list(&all) })?;
        }
    }
    Ok(exit::DONE)
}

pub(super) async fn cancel(options: &Cancel) -> Result<u8, Failure> {
    let queue = options.reach.connect().await?;
    let (run, json): (Run, String) =
        ask(&queue, &Request::Cancel { run: options.run.clone() }).await?;
    if options.json {
        print(&json)?;
    } else {
        let what = if run.state == "cancelling" {
            "is being cancelled; finished jobs stay in the store"
        } else {
            "is not in progress"
        };
        print(&format!("{} {what} ({})", run.run, run.state))?;
    }
    Ok(exit::DONE)
}

/// Follows a run to its end, and returns its exit code.
pub(super) async fn watch(queue: &JetStreamQueue, run: &str, json: bool) -> Result<u8, Failure> {
    let mut said: Option<(String, Instant)> = None;
    loop {
        let (seen, text): (Run, String) =
            ask(queue, &Request::Status { run: Some(run.to_owned()) }).await?;
        if let Some(code) = seen.exit_code {
            print(&if json { text } else { table(&seen) })?;
            return Ok(code);
        }
        let (doing, left) = doing(&seen);
        if said
            .as_ref()
            .is_none_or(|(before, when)| *before != doing || when.elapsed() >= LINE_EVERY)
        {
            say("info", &format!("{doing}{left}"));
            said = Some((doing, Instant::now()));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Returns the current activity of a run, and the estimated remaining time.
fn doing(run: &Run) -> (String, String) {
    let Some(live) = &run.live else {
        return (format!("{}: {}", run.run, run.state), String::new());
    };
    match live.phases.last() {
        Some(phase) if phase.name == live.stage => {
            let left = phase
                .seconds_left
                .map(|left| format!(", about {} remaining", human(Duration::from_secs_f64(left))))
                .unwrap_or_default();
            (format!("{}: {} {}/{}", run.run, title(&phase.name), phase.done, phase.total), left)
        }
        _ => (format!("{}: {}", run.run, title(&live.stage)), String::new()),
    }
}

fn line(run: &Run) -> String {
    let (doing, left) = doing(run);
    doing + &left
}

fn list(all: &Overview) -> String {
    if all.runs.is_empty() {
        return "no runs yet".to_owned();
    }
    let row = |run: &Run| {
        let since = human(Duration::from_secs(all.now.saturating_sub(run.since)));
        let more = match (&run.live, &run.problem, &run.release) {
            (Some(_), ..) => {
                line(run).split_once(": ").map(|(_, doing)| doing.to_owned()).unwrap_or_default()
            }
            (None, Some(problem), _) => problem.lines().next().unwrap_or_default().to_owned(),
            (None, None, release) => release.clone().unwrap_or_default(),
        };
        format!("  {:<44}{:<12}{since:<16}{more}", run.run, run.state)
    };
    let rows: Vec<String> = all.runs.iter().map(row).collect();
    rows.join("\n")
}

fn table(run: &Run) -> String {
    let mut rows =
        vec![("run".to_owned(), run.run.clone()), ("state".to_owned(), run.state.clone())];
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| (name.to_owned(), value)))
    };
    row("plan name", run.plan.clone());
    row("problem", run.problem.clone());
    if let Some(live) = &run.live {
        row("doing", Some(title(&live.stage).to_owned()));
        for phase in &live.phases {
            let found =
                if phase.found > 0 { format!(" ({} reused)", phase.found) } else { String::new() };
            let time = human(Duration::from_secs_f64(phase.seconds));
            row(
                title(&phase.name),
                Some(format!("{}/{}{found} in {time}", phase.done, phase.total)),
            );
        }
        for worker in &live.workers {
            row(
                &worker.name,
                Some(format!(
                    "{} for {}",
                    worker.job,
                    human(Duration::from_secs_f64(worker.seconds))
                )),
            );
        }
        for problem in &live.problems {
            row("problem", Some(problem.clone()));
        }
    }
    row("digest", run.digest.clone());
    row("release", run.release.clone());
    let lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("  {name:<26}{value}")).collect();
    lines.join("\n")
}

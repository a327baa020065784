//! The command `lethe dead-letters`.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use lethe_operations::log::say;
use lethe_queue::nats::{JetStreamQueue, StoredDeadLetter};
use lethe_shared::exit;
use lethe_shared::message::Request;
use serde::Serialize;

use super::common::print;
use super::reach::{Reach, ask};
use crate::failure::Failure;
use crate::serve::api::LetterView;

#[derive(Debug, Args)]
pub(super) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show jobs that failed for good, and why.
    List(Which),
    /// Publish the jobs again, and resume their runs.
    Replay(Some),
    /// Delete dead letters; their jobs stay unfinished.
    Drop(Some),
}

#[derive(Debug, Args)]
struct Which {
    /// Only those of this run, by its plan name (`plan name` in `lethe status`).
    #[arg(long)]
    run: Option<String>,
    #[command(flatten)]
    reach: Reach,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Some {
    /// Dead letters by name, as `list` shows them.
    #[arg(required_unless_present_any = ["run", "all"])]
    letters: Vec<String>,
    /// All dead letters.
    #[arg(long, conflicts_with_all = ["letters", "run"])]
    all: bool,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Serialize)]
struct Listed {
    dead_letters: Vec<LetterView>,
}

#[derive(Debug, Serialize)]
struct Acted {
    letters: Vec<String>,
    runs: Vec<String>,
}

pub(super) async fn main(options: &DeadLetters) -> Result<u8, Failure> {
    match &options.action {
        Action::List(which) => list(which).await,
        Action::Replay(some) => act(some, true).await,
        Action::Drop(some) => act(some, false).await,
    }
}

async fn list(which: &Which) -> Result<u8, Failure> {
    let queue = which.reach.connect().await?;
    let letters: Vec<LetterView> =
        found(&queue, which.run.as_deref()).await?.into_iter().map(LetterView::from).collect();
    if which.json {
        print(&serde_json::to_string(&Listed { dead_letters: letters }).map_err(Failure::input)?)?;
    } else if letters.is_empty() {
        print("no dead letters")?;
    } else {
        let row = |letter: &LetterView| {
            format!(
                "{}\n  {} of {}, {} attempts, {}: {}",
                letter.letter,
                letter.job.as_deref().unwrap_or("a message that is not a job"),
                letter.run.as_deref().unwrap_or("no run"),
                letter.attempts,
                letter.class,
                letter.error
            )
        };
        print(&letters.iter().map(row).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(exit::DONE)
}

/// Returns the dead letters of a run, by any of its names, or all.
async fn found(
    queue: &JetStreamQueue,
    run: Option<&str>,
) -> Result<Vec<StoredDeadLetter>, Failure> {
    let letters = queue.stored_dead_letters(None).await?;
    let Some(run) = run else { return Ok(letters) };
    let of_run = |letter: &StoredDeadLetter| letter.job.as_ref().is_some_and(|job| job.run == run);
    Ok(letters.into_iter().filter(of_run).collect())
}

async fn act(some: &Some, replay: bool) -> Result<u8, Failure> {
    let queue = some.which.reach.connect().await?;
    let there = found(&queue, some.which.run.as_deref()).await?;
    let is_named =
        |letter: &&StoredDeadLetter| some.letters.is_empty() || some.letters.contains(&letter.name);
    if let Some(unknown) =
        some.letters.iter().find(|name| !there.iter().any(|letter| letter.name == **name))
    {
        return Err(Failure::input(format!(
            "no dead letter `{unknown}`; `lethe dead-letters list` shows all"
        )));
    }
    let mut acted = Acted { letters: Vec::new(), runs: Vec::new() };
    let mut runs = BTreeSet::new();
    for letter in there.iter().filter(is_named) {
        let is_gone = if replay {
            queue.replay(&letter.name).await?
        } else {
            queue.drop_stored_dead_letter(&letter.name).await?
        };
        if is_gone {
            acted.letters.push(letter.name.clone());
            runs.extend(letter.job.as_ref().map(|job| job.run.clone()));
        }
    }
    if replay {
        for run in &runs {
            // No coordinator knows a run of `lethe run`; the next `lethe run` reuses the outcomes.
            match ask::<serde_json::Value>(&queue, &Request::Resume { run: run.clone() }).await {
                Ok(_) => acted.runs.push(run.clone()),
                Err(failure) => say(
                    "info",
                    &format!(
                        "{run} does not resume by itself ({failure}); resume it with `lethe run` or `lethe submit`"
                    ),
                ),
            }
        }
    }
    if some.which.json {
        print(&serde_json::to_string(&acted).map_err(Failure::input)?)?;
    } else {
        let done = if replay { "replayed" } else { "dropped" };
        print(&format!("{} dead letters {done}", acted.letters.len()))?;
    }
    Ok(exit::DONE)
}

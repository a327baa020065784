//! The command line of `fuzz`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::engine::{self, Limits};
use crate::formats::all;
use crate::harness::{Harness, Outcome};
use crate::{corpus, supervisor};

/// Fuzzes the readers of everything that comes from outside.
///
/// Each harness runs in a process of its own, so that an input that ends the process is found as
/// well. A failing input is saved, and its problem printed with the command that tries it again; the
/// exit code is then 1.
#[derive(Debug, Parser)]
#[command(name = "fuzz")]
pub struct Arguments {
    /// Harness to run; all by default.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Seconds for each harness.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    seconds: f64,
    /// Seconds for all harnesses together, instead of those for each.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    total_seconds: Option<f64>,
    /// Number of inputs for each harness, instead of a time.
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "total_seconds"])]
    inputs: Option<u64>,
    /// Start of the random numbers; random by default. The same seed gives the same inputs.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder that failing inputs are saved in.
    #[arg(long, value_name = "FOLDER", default_value = "target/fuzz")]
    failures: PathBuf,
    /// Tries one input of the harness of `--only`, and nothing else.
    #[arg(long, value_name = "FILE", requires = "only")]
    replay: Option<PathBuf>,
    /// Writes the inputs that the corpus begins with, and tries nothing.
    #[arg(long)]
    write_corpus: bool,
    /// Runs the harness of `--only` in this process, and writes each input into this file before it
    /// is tried.
    #[arg(long, value_name = "FILE", requires = "only", hide = true)]
    supervised: Option<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "fuzz: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether no input failed.
fn try_run(arguments: &Arguments) -> Result<bool, String> {
    let harnesses = chosen(arguments.only.as_deref())?;
    if arguments.write_corpus {
        return write_corpus(&harnesses).map(|()| true);
    }
    if let Some(file) = &arguments.replay {
        return replay(&harnesses[0], file);
    }
    let share = arguments.total_seconds.map(|seconds| seconds / harnesses.len() as f64);
    let seconds = share.unwrap_or(arguments.seconds);
    let limits = Limits {
        inputs: arguments.inputs.unwrap_or(u64::MAX),
        time: match arguments.inputs {
            Some(_) => Duration::MAX,
            None => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        },
        seed: arguments.seed.unwrap_or_else(supervisor::random_seed),
    };
    match &arguments.supervised {
        Some(file) => supervisor::supervised(&harnesses[0], &limits, file, &arguments.failures),
        None => supervisor::supervise(&harnesses, &limits, &arguments.failures),
    }
}

fn chosen(only: Option<&str>) -> Result<Vec<Harness>, String> {
    let mut harnesses = all();
    if let Some(name) = only {
        let names: Vec<&str> = harnesses.iter().map(|harness| harness.name).collect();
        if !names.contains(&name) {
            return Err(format!("no harness is named `{name}`; there are {}", names.join(", ")));
        }
        harnesses.retain(|harness| harness.name == name);
    }
    Ok(harnesses)
}

fn replay(harness: &Harness, file: &std::path::Path) -> Result<bool, String> {
    let input = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut out = std::io::stdout();
    let said = match engine::examine(harness, &input) {
        Ok((outcome, memory)) => {
            let word = if outcome == Outcome::Accepted { "accepted" } else { "refused" };
            Ok(format!("{}: {word}, {memory} bytes of memory", harness.name))
        }
        Err(problem) => Err(format!("{}: {problem}", harness.name)),
    };
    let (Ok(text) | Err(text)) = &said;
    writeln!(out, "{text}").map_err(|error| error.to_string())?;
    Ok(said.is_ok())
}

fn write_corpus(harnesses: &[Harness]) -> Result<(), String> {
    for harness in harnesses {
        for input in (harness.seeds)() {
            corpus::save(&corpus::folder(), harness, &input).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

//! The command line.

mod common;
mod compose;
mod curate;
mod dead_letters;
mod doctor;
mod evaluate;
mod evaluate_model;
mod find;
mod inspect;
mod manual;
mod plan;
mod probe;
mod reach;
mod release;
mod report;
mod run;
mod serve;
mod status;
mod submit;
mod verify;
mod workers;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use lethe_operations::log::{self, say};
use lethe_operations::process::interrupted;
use lethe_shared::exit;
use lethe_shared::manifest::Manifest;
use tokio_util::sync::CancellationToken;

use self::common::{Common, print};
use crate::failure::Failure;

/// Remove concepts from CLIP and SigLIP models: hundreds in one run, into one checkpoint.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done · 2 bad manifest or arguments · 3 finished, but a required concept has no edit or is still recognised · \
                  4 a gate is not met, or a release differs from what was released · 5 the store or the queue stayed unreachable or lacks room, a disk \
                  is full, no worker was fit, or a job failed for good; from `lethe doctor`: a check failed · 130 cancelled.\n\nStart with: lethe run jobs/emoji/small.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more on stderr; twice for details.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Format of logs on stderr: human or json.
    #[arg(long, global = true, value_name = "FORMAT", env = "LETHE_LOG_FORMAT", default_value_t)]
    log_format: log::Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove the concepts that a manifest names: plan, compute, compose, evaluate, release.
    ///
    /// Everything happens in this process, or with --nats in workers elsewhere. After an
    /// interruption, the same command resumes: it reuses the outcomes of finished jobs in the
    /// store.
    Run(run::Options),
    /// Check a manifest and everything it names; show jobs, bytes and an estimate; compute nothing.
    Plan(Common),
    /// Say what a model, a shard, a table or another input is, how Lethe reads it, and what is odd
    /// about it. Run it first, and add its output to questions.
    ///
    /// It uses the readers of `lethe plan`. The exit code is 2 when Lethe refuses something.
    Inspect(inspect::Inspect),
    /// Find the pairs of hundreds of concepts in large shards, in one pass; write everything that a
    /// manifest names except the model.
    ///
    /// A caption mentions a concept when it has its name, its class or an alias as whole words,
    /// whatever their case; a name inside a longer one does not count (`York` in `New York`, when
    /// both are concepts or classes). OUT gets a forget shard for each concept, retain and
    /// validation shards without any pair that mentions one, tables of counts and overlaps, and a
    /// manifest. After an interruption, the same command resumes with the shards that were not read
    /// completely, and writes the same bytes.
    Curate(curate::Curate),
    /// Submit a run to a long-lived coordinator (`lethe serve`) and print its name.
    Submit(submit::Submit),
    /// Coordinate submitted runs: several at once, with a status page, an API and metrics. Workers
    /// execute the jobs.
    Serve(serve::Serve),
    /// Show runs of a long-lived coordinator.
    Status(status::Status),
    /// Cancel a run of a long-lived coordinator; finished jobs stay in the store.
    Cancel(status::Cancel),
    /// List, replay or drop jobs that failed for good.
    DeadLetters(dead_letters::DeadLetters),
    /// Make a new release from the edits of an old one: other strengths, concepts restored or
    /// added. Needs no device.
    Compose(compose::Compose),
    /// Measure a release that `lethe compose` made: forgotten concepts and retained classes. Gates
    /// then decide on it.
    Evaluate(evaluate::Evaluate),
    /// Write the report of a run or a release: one self-contained page for a browser, which needs
    /// no network.
    Report(report::Report),
    /// Verify that every file of a release is unchanged.
    Verify(verify::Verify),
    /// List releases, and point channels such as `production` to them and back.
    Release(release::Release),
    /// Check that this machine, the store and the queue are ready for runs, and say how to fix what
    /// is not.
    Doctor(Box<doctor::Doctor>),
    /// Print the manifest's JSON Schema.
    Schema,
    /// Print a shell completion script.
    Completion(manual::Completion),
    /// Write the manual pages of lethe and lethe-worker into a folder.
    Man(manual::Man),
}

/// Parses the arguments, runs the command and returns the documented exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The log is the only output of a service.
    let least = usize::from(matches!(cli.command, Command::Serve(_)));
    // The findings of `lethe doctor` are its output; the log would repeat them.
    let level = match (&cli.command, cli.verbose) {
        (Command::Doctor(_), 0) => "error",
        (_, verbose) => ["warn", "info", "debug"][usize::from(verbose).max(least).min(2)],
    };
    log::start(cli.log_format, &format!("{level},object_store=warn,async_nats=warn"));

    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::Infrastructure(format!("cannot start: {error}"))),
    };
    let cancel = CancellationToken::new();
    let done = runtime.block_on(async {
        tokio::spawn(cancel_on_signal(cancel.clone()));
        match cli.command {
            Command::Run(options) => run::main(&options, cancel).await,
            Command::Plan(options) => plan::main(&options).await,
            Command::Inspect(options) => inspect::main(&options).await,
            Command::Curate(options) => curate::main(&options, cancel).await,
            Command::Submit(options) => submit::main(&options).await,
            Command::Serve(options) => serve::main(&options, cancel).await,
            Command::Status(options) => status::main(&options).await,
            Command::Cancel(options) => status::cancel(&options).await,
            Command::DeadLetters(options) => dead_letters::main(&options).await,
            Command::Compose(options) => compose::main(&options).await,
            Command::Evaluate(options) => evaluate::main(&options, cancel).await,
            Command::Report(options) => report::main(&options).await,
            Command::Verify(options) => verify::main(&options).await,
            Command::Release(options) => release::main(&options).await,
            Command::Doctor(options) => doctor::main(&options).await,
            Command::Completion(options) => manual::completion(&options, Cli::command()),
            Command::Man(options) => manual::man(&options, Cli::command()),
            Command::Schema => print(&format!("{:#}", Manifest::schema())).map(|()| exit::DONE),
        }
    });
    // Unfinished downloads and uploads end with the process.
    runtime.shutdown_background();
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    say("error", &failure.to_string());
    ExitCode::from(failure.exit_code())
}

/// Cancels on the first Ctrl-C or SIGTERM, and exits the process on the second.
async fn cancel_on_signal(cancel: CancellationToken) {
    if interrupted().await {
        say("info", "stopping at the next safe point; press Ctrl-C again to stop at once");
        cancel.cancel();
        if interrupted().await {
            std::process::exit(i32::from(exit::CANCELLED));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}

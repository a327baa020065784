//! The command line.

mod compose;
mod curate;
mod dead_letters;
mod doctor;
mod evaluate;
mod find;
mod manual;
mod plan;
mod reach;
mod release;
mod report;
mod run;
mod serve;
mod status;
mod submit;
mod verify;
mod workers;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use lethe_shared::address::Address;
use lethe_shared::exit;
use lethe_shared::manifest::Manifest;
use lethe_shared::telemetry::log::{self, say};
use tokio_util::sync::CancellationToken;

use crate::attest::key::SigningKey;
use crate::failure::Failure;

/// Remove concepts from CLIP models: hundreds in one run, into one checkpoint.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done · 2 bad manifest or arguments · 3 finished, but required concepts are missing · \
                  4 a release does not pass · 5 store or queue gave up · 130 cancelled.\n\nStart with: lethe run jobs/emoji/small.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr; twice for details.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How logs look on stderr: human or json.
    #[arg(long, global = true, value_name = "FORMAT", env = "LETHE_LOG_FORMAT", default_value_t)]
    log_format: log::Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove the concepts that a manifest names: plan, compute, compose, evaluate, release.
    ///
    /// Everything happens in this process, or with --nats in workers elsewhere. Interrupted, the same command goes on
    /// where it stopped: finished jobs are found in the store and not computed again.
    Run(run::Options),
    /// Check a manifest and everything it names; show jobs, bytes and an estimate; compute nothing.
    Plan(Common),
    /// Find the pairs of hundreds of concepts in large shards, in one pass; write everything that a manifest names but the model.
    ///
    /// A caption mentions a concept when it has its name, its class or an alias as whole words, whatever their case; a name inside
    /// a longer one does not count (`York` in `New York`, when both are concepts or classes). OUT gets a forget shard for each
    /// concept, retain and validation shards without any pair that mentions one, tables of counts and overlaps, and a manifest.
    /// Interrupted, the same command goes on with the shards that were not read to their end, and ends with the same bytes.
    Curate(curate::Curate),
    /// Hand a run to a long-lived coordinator (`lethe serve`) and print its name.
    Submit(submit::Submit),
    /// Coordinate what is submitted: several runs at once, a status page, an API and metrics. Workers do the jobs.
    Serve(serve::Serve),
    /// Show runs of a long-lived coordinator.
    Status(status::Status),
    /// Cancel a run of a long-lived coordinator; what is finished stays in the store.
    Cancel(status::Cancel),
    /// Look after jobs that were given up.
    DeadLetters(dead_letters::DeadLetters),
    /// Make a new release from what an old one stored: other strengths, concepts left out or added. No device is needed.
    Compose(compose::Compose),
    /// Measure a release that `lethe compose` made: what is forgotten together, and what must stay. Gates then decide on it.
    Evaluate(evaluate::Evaluate),
    /// Write the report of a run or a release: one page that needs nothing but a browser.
    Report(report::Report),
    /// Check that a release is what was released, file by file.
    Verify(verify::Verify),
    /// Look after releases: list them, lead channels such as `production` to them and back.
    Release(release::Release),
    /// Look whether this machine, store and queue are fit for runs; each thing that is not, with what to do about it.
    Doctor(Box<doctor::Doctor>),
    /// Print the manifest's JSON Schema.
    Schema,
    /// Print a script by which a shell completes lethe's commands and options.
    Completion(manual::Completion),
    /// Write the manual pages of lethe and lethe-worker into a folder.
    Man(manual::Man),
}

#[derive(Debug, Args)]
struct Common {
    /// The manifest: a .toml or .json file.
    manifest: PathBuf,
    /// Where artifacts and releases go, instead of the manifest's release.uri: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS")]
    store: Option<String>,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
}

impl Common {
    /// The store's address: as given here, relative to the working folder, or as in the manifest, relative to that.
    fn store(&self, manifest: &Manifest) -> Result<Address, Failure> {
        match &self.store {
            None => Ok(manifest.address("release.uri", &manifest.release.uri)?),
            Some(text) => here("--store", text),
        }
    }

    fn cache(&self) -> PathBuf {
        cache(self.cache.as_ref())
    }
}

#[derive(Debug, Args)]
struct Signing {
    /// Sign the release with this private key: a PEM file, elliptic curve P-256, P-384 or P-521. It is never part of a manifest.
    #[arg(long, value_name = "FILE", env = "LETHE_SIGN_KEY", hide_env_values = true)]
    sign_key: Option<PathBuf>,
}

impl Signing {
    /// Read before anything is computed: a mistake should not wait for a run's end.
    fn key(&self) -> Result<Option<SigningKey>, Failure> {
        self.sign_key.as_deref().map(SigningKey::read).transpose()
    }
}

/// An address on the command line, relative to the working folder; `what` is it in messages.
fn here(what: &str, text: &str) -> Result<Address, Failure> {
    let folder = std::env::current_dir().map_err(|error| Failure::input(format!("working folder: {error}")))?;
    Address::resolve(text, Some(&folder)).map_err(|error| Failure::input(format!("{what}: {error}")))
}

/// Where downloads go: as given, or the user's cache folder.
fn cache(given: Option<&PathBuf>) -> PathBuf {
    let user = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"))).map(|cache| cache.join("lethe"))
    };
    given.cloned().or_else(user).unwrap_or_else(|| std::env::temp_dir().join("lethe-cache"))
}

/// Parses the arguments, does what they say, gives the documented exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A service has nothing but its log to tell what it does.
    let least = usize::from(matches!(cli.command, Command::Serve(_)));
    // What a doctor finds is said by the findings.
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
            Command::Completion(options) => manual::completion(&options),
            Command::Man(options) => manual::man(&options),
            Command::Schema => print(&format!("{:#}", Manifest::schema())).map(|()| exit::DONE),
        }
    });
    // Downloads or uploads that nobody waits for any more end with the process.
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

/// The first Ctrl-C (or SIGTERM) asks to stop, the second one insists.
async fn cancel_on_signal(cancel: CancellationToken) {
    let interrupted = || async {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            match signal(SignalKind::terminate()) {
                Ok(mut terminate) => tokio::select! {
                    result = tokio::signal::ctrl_c() => result.is_ok(),
                    _ = terminate.recv() => true,
                },
                Err(_) => tokio::signal::ctrl_c().await.is_ok(),
            }
        }
        #[cfg(not(unix))]
        {
            tokio::signal::ctrl_c().await.is_ok()
        }
    };
    if interrupted().await {
        say("info", "stopping at the next safe point; once more to stop at once");
        cancel.cancel();
        if interrupted().await {
            std::process::exit(i32::from(exit::CANCELLED));
        }
    }
}

/// Writes a line to stdout; a reader that has gone away is no error.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Infrastructure(format!("stdout: {error}"))),
        _ => Ok(()),
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

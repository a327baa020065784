//! The command line of `lethe-worker`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use lethe_operations::http::{ListenOn, serve_probes};
use lethe_operations::log::{self, say};
use lethe_operations::process::{interrupted, process_name};
use lethe_operations::{Health, doctor as shared_doctor};
use lethe_queue as queue;
use lethe_queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::address::Address;
use lethe_shared::exit;
use lethe_store as store;
use lethe_store::Store;
use tch::Device;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::engine::Options;
use crate::service::{self, Service};
use crate::{device, doctor};

/// Takes jobs from a queue, executes them, and writes their outcomes to a store.
///
/// On SIGTERM the worker takes no more jobs, finishes or releases its current ones within the grace
/// period, and exits with 0. It reconnects when it loses a connection and keeps the work done in
/// the meantime. When the worker cannot work (missing mount, credentials, disk space or device), it
/// releases its job, pauses, and resumes when its self-check passes.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 stopped on request · 2 bad arguments, credentials or device · 5 queue or store unusable, device lost, or `check` found a problem."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check whether this machine can work: libtorch, device, memory, disk, store and queue.
    /// Suggests a fix for every problem.
    Check(Box<Check>),
}

#[derive(Debug, Args)]
struct Work {
    /// NATS servers: nats://host:4222 or tls://…; separate several by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: Option<String>,
    /// The store, which must be the coordinator's: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: Option<String>,
    /// Device to compute on: auto (a GPU if there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Number of concurrent jobs; 0: one per core, or four on a GPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    /// Seconds that running jobs may take to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", env = "LETHE_GRACE", default_value_t = 25)]
    grace: u64,
    #[command(flatten)]
    connection: nats::Options,
    /// Address of metrics and health probes: a port on loopback, or ADDRESS:PORT. Port 0 selects a
    /// free port.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP")]
    http: Option<ListenOn>,
    /// Format of the log on stderr: human or json.
    #[arg(long, value_name = "FORMAT", env = "LETHE_LOG_FORMAT", default_value_t)]
    log_format: log::Format,
}

#[derive(Debug, Args)]
struct Check {
    /// Device to compute on: auto (a GPU if there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The store to check: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: Option<String>,
    /// NATS servers to check: nats://host:4222 or tls://…; separate several by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: Option<String>,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    connection: nats::Options,
    /// Print the result as one JSON object, on the last line of stdout.
    #[arg(long)]
    json: bool,
}

/// An exit code and an error message.
type Problem = (u8, String);

/// Returns the definition of the command line, for generated documentation.
pub fn command_line() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, runs the command, and returns the documented exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match (&cli.command, &cli.work.nats, &cli.work.store) {
        (Some(Command::Check(options)), ..) => check(options),
        (None, Some(url), Some(store)) => work(&cli.work, url, store).map(|()| exit::DONE),
        (None, ..) => {
            Err(bad("--nats and --store are required; see lethe-worker --help".to_owned()))
        }
    };
    let problem = match result {
        Ok(code) => return ExitCode::from(code),
        Err(problem) => problem,
    };
    say("error", &problem.1);
    ExitCode::from(problem.0)
}

fn bad(problem: String) -> Problem {
    (exit::BAD_INPUT, problem)
}

/// Parses an address that may be relative to the working folder.
fn resolve(text: &str) -> Result<Address, Problem> {
    let folder = std::env::current_dir()
        .map_err(|error| bad(format!("cannot determine the working folder: {error}")))?;
    Address::resolve(text, Some(&folder)).map_err(|error| bad(error.to_string()))
}

fn open_store(text: &str) -> Result<Store, Problem> {
    Store::open(&resolve(text)?).map_err(store_problem)
}

/// Returns the folder for downloads.
fn cache(given: Option<&PathBuf>) -> PathBuf {
    given.cloned().unwrap_or_else(|| std::env::temp_dir().join("lethe-cache"))
}

fn store_problem(error: store::Error) -> Problem {
    match error {
        store::Error::Invalid { .. } => bad(error.to_string()),
        other => (exit::INFRASTRUCTURE, other.to_string()),
    }
}

fn queue_problem(error: queue::Error) -> Problem {
    match error {
        queue::Error::Refused(_) => bad(error.to_string()),
        other => (exit::INFRASTRUCTURE, other.to_string()),
    }
}

fn work(options: &Work, url: &str, store: &str) -> Result<(), Problem> {
    log::start(options.log_format, "info,object_store=warn,async_nats=warn");
    let device = device::open(&options.device).map_err(bad)?;
    let threads = device::workers(options.workers, device);
    let store = open_store(store)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| bad(format!("cannot start the asynchronous runtime: {error}")))?;
    let cancel = CancellationToken::new();
    let result = runtime.block_on(serve(options, url, device, threads, store, cancel.clone()));
    runtime.shutdown_background();
    if result.is_ok() && cancel.is_cancelled() {
        // An engine thread may still be computing, and libtorch's destructors must not run at the
        // same time. SAFETY: ends the process; no buffered data is lost.
        unsafe { libc::_exit(i32::from(exit::DONE)) }
    }
    result
}

async fn serve(
    options: &Work,
    url: &str,
    device: Device,
    threads: usize,
    store: Store,
    cancel: CancellationToken,
) -> Result<(), Problem> {
    let drain = CancellationToken::new();
    tokio::spawn(stop_on_signal(drain.clone(), cancel.clone(), Duration::from_secs(options.grace)));
    let name = process_name();
    let health = Health::waiting_for(&["queue", "store", service::SELF_CHECK]);
    if let Some(on) = options.http {
        serve_probes(on, health.clone())
            .await
            .map_err(|error| bad(format!("--http {on}: {error}")))?;
    }
    let started = async {
        store.probe().await.map_err(store_problem)?;
        health.met("store");
        JetStreamQueue::connect(url, Role::Worker, &name, &options.connection)
            .await
            .map_err(queue_problem)
    };
    let queue = tokio::select! {
        queue = started => queue?,
        () = drain.cancelled() => return Ok(()),
    };
    health.met("queue");
    info!(worker = %name, threads, ?device, server = %nats::without_secrets(url), store = store.name(), "ready");
    let cache = cache(options.cache.as_ref());
    let options = Options::new(name, device, cache);
    let service =
        Service::new(options, threads, Arc::new(queue.clone()), store).reporting_to(health.clone());
    let watch = tokio::spawn(watch_queue(queue.clone(), health));
    let served = service.run(drain, cancel).await;
    watch.abort();
    queue.close().await;
    served.map_err(|error| (exit::INFRASTRUCTURE, format!("this worker cannot continue: {error}")))
}

/// Reports in the worker's health whether the queue is reachable, without which the worker cannot
/// take jobs.
async fn watch_queue(queue: JetStreamQueue, health: Health) {
    loop {
        health.set("queue", queue.reached().map_err(|error| error.problem()));
        tokio::time::sleep(QUEUE_CHECK_INTERVAL).await;
    }
}

/// Interval between checks of the queue.
const QUEUE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Drains the worker on the first SIGTERM or Ctrl-C, and cancels its jobs after the grace period or
/// on the second signal.
async fn stop_on_signal(drain: CancellationToken, cancel: CancellationToken, grace: Duration) {
    if !interrupted().await {
        return;
    }
    info!(grace = grace.as_secs(), "stopping: taking no more jobs");
    drain.cancel();
    tokio::select! {
        () = tokio::time::sleep(grace) => warn!("the grace period is over: releasing unfinished jobs"),
        _ = interrupted() => warn!("second signal: releasing unfinished jobs"),
    }
    cancel.cancel();
}

fn check(options: &Check) -> Result<u8, Problem> {
    log::start(log::Format::default(), "error");
    let mut findings = doctor::examine(&options.device);
    findings.push(shared_doctor::memory());
    findings.extend(shared_doctor::cache(&cache(options.cache.as_ref())));
    findings.extend(shared_doctor::files(&options.connection.secrets()));
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| bad(format!("cannot start the asynchronous runtime: {error}")))?;
    runtime.block_on(async {
        if let Some(text) = &options.store {
            findings.extend(lethe_store::doctor::examine(&resolve(text)?).await);
        }
        if let Some(url) = &options.nats {
            findings.extend(nats::examine(url, Role::Worker, &options.connection).await);
        }
        Ok::<_, Problem>(())
    })?;
    let report = lethe_shared::finding::Report::of(findings);
    let text = if options.json {
        serde_json::to_string(&report).map_err(|error| bad(error.to_string()))?
    } else {
        report.lines()
    };
    println!("{text}");
    Ok(report.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn check_does_not_require_a_queue() {
        assert!(super::Cli::try_parse_from(["lethe-worker", "check", "--device", "cpu"]).is_ok());
        let cli =
            super::Cli::try_parse_from(["lethe-worker", "--nats", "nats://h", "--store", "/s"])
                .unwrap();
        assert!(cli.command.is_none() && cli.work.nats.is_some() && cli.work.store.is_some());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}

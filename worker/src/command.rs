//! The command line of `lethe-worker`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use lethe_shared::address::Address;
use lethe_shared::doctor as shared_doctor;
use lethe_shared::exit;
use lethe_shared::queue;
use lethe_shared::queue::nats::{self, JetStreamQueue, Role};
use lethe_shared::store::{self, Store};
use lethe_shared::telemetry::Health;
use lethe_shared::telemetry::http::{ListenOn, Router, Server};
use lethe_shared::telemetry::log::{self, say};
use tch::Device;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::engine::Options;
use crate::service::Service;
use crate::{device, doctor};

/// The part of Lethe that computes: takes jobs from a queue, writes their outcomes into a store.
///
/// SIGTERM: takes no more jobs, finishes what it has in hand within the grace time or hands it back, and exits with 0.
/// A lost connection is made anew; what was computed meanwhile counts.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 stopped as asked · 2 bad arguments, credentials or device · 5 queue or store cannot be used, or `check` finds something that does not work."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See whether this machine can work: libtorch, device, memory, disk, store and queue, each with what to do if it is not as it should be.
    Check(Box<Check>),
}

#[derive(Debug, Args)]
struct Work {
    /// NATS servers: nats://host:4222, tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS")]
    nats: Option<String>,
    /// The store, the same as the coordinator's: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: Option<String>,
    /// Where to compute: auto (a GPU where there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Jobs done at one time; 0: one per core, or four on a GPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    workers: usize,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    /// Seconds that a job in hand may still take after SIGTERM.
    #[arg(long, value_name = "SECONDS", env = "LETHE_GRACE", default_value_t = 25)]
    grace: u64,
    #[command(flatten)]
    connection: nats::Options,
    /// Where metrics and probes are: a port on loopback, or ADDRESS:PORT. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_HTTP")]
    http: Option<ListenOn>,
    /// How logs look on stderr: human or json.
    #[arg(long, value_name = "FORMAT", env = "LETHE_LOG_FORMAT", default_value_t)]
    log_format: log::Format,
}

#[derive(Debug, Args)]
struct Check {
    /// Where to compute: auto (a GPU where there is one), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The store that it will use: a path, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "ADDRESS", env = "LETHE_STORE")]
    store: Option<String>,
    /// NATS servers that it will ask for jobs: nats://host:4222, tls://…, several separated by commas.
    #[arg(long, value_name = "URL", env = "LETHE_NATS", hide_env_values = true)]
    nats: Option<String>,
    /// Folder for files downloaded from remote addresses.
    #[arg(long, value_name = "FOLDER", env = "LETHE_CACHE")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    connection: nats::Options,
    /// Print one JSON object on stdout as the last line.
    #[arg(long)]
    json: bool,
}

/// Exit code and sentence of what went wrong.
type Problem = (u8, String);

/// The command line, for what documents it.
pub fn command_line() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, does what they say, gives the documented exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (&cli.command, &cli.work.nats, &cli.work.store) {
        (Some(Command::Check(options)), ..) => check(options),
        (None, Some(url), Some(store)) => work(&cli.work, url, store).map(|()| exit::DONE),
        (None, ..) => Err(bad("--nats and --store are needed; see lethe-worker --help".to_owned())),
    };
    let problem = match done {
        Ok(code) => return ExitCode::from(code),
        Err(problem) => problem,
    };
    say("error", &problem.1);
    ExitCode::from(problem.0)
}

fn bad(problem: String) -> Problem {
    (exit::BAD_INPUT, problem)
}

/// An address that may be relative to the working folder.
fn here(text: &str) -> Result<Address, Problem> {
    let here = std::env::current_dir().map_err(|error| bad(format!("working folder: {error}")))?;
    Address::resolve(text, Some(&here)).map_err(|error| bad(error.to_string()))
}

fn open_store(text: &str) -> Result<Store, Problem> {
    Store::open(&here(text)?).map_err(store_problem)
}

/// Where downloads go.
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
    let runtime = tokio::runtime::Runtime::new().map_err(|error| bad(format!("cannot start: {error}")))?;
    let cancel = CancellationToken::new();
    let done = runtime.block_on(serve(options, url, device, threads, store, cancel.clone()));
    runtime.shutdown_background();
    if done.is_ok() && cancel.is_cancelled() {
        // A thread may still compute. libtorch's destructors must not run beside it.
        // SAFETY: ends the process; nothing is buffered that would be lost.
        unsafe { libc::_exit(i32::from(exit::DONE)) }
    }
    done
}

async fn serve(options: &Work, url: &str, device: Device, threads: usize, store: Store, cancel: CancellationToken) -> Result<(), Problem> {
    let drain = CancellationToken::new();
    tokio::spawn(stop_on_signal(drain.clone(), cancel.clone(), Duration::from_secs(options.grace)));
    let name = name_of_this_process();
    let health = Health::waiting_for(&["queue", "store"]);
    if let Some(on) = options.http {
        let server = Server::bind(on, health.clone(), Router::new()).await.map_err(|error| bad(format!("--http {on}: {error}")))?;
        say("info", &format!("http://{}: metrics and probes", server.address()));
        // It answers as long as the process lives, while it stops too.
        tokio::spawn(server.run(CancellationToken::new()));
    }
    let started = async {
        store.probe().await.map_err(store_problem)?;
        health.met("store");
        JetStreamQueue::connect(url, Role::Worker, &name, &options.connection).await.map_err(queue_problem)
    };
    let queue = tokio::select! {
        queue = started => queue?,
        () = drain.cancelled() => return Ok(()),
    };
    health.met("queue");
    info!(worker = %name, threads, ?device, server = %nats::without_secrets(url), store = store.name(), "ready");
    let cache = cache(options.cache.as_ref());
    let service = Service::new(Options::new(name, device, cache), threads, Arc::new(queue.clone()), store);
    let watch = tokio::spawn(watch_queue(queue.clone(), health));
    let served = service.run(drain, cancel).await;
    watch.abort();
    queue.close().await;
    served.map_err(|error| (exit::INFRASTRUCTURE, format!("a thread cannot be started: {error}")))
}

/// Ready is who can take jobs: looks now and then whether the queue answers.
async fn watch_queue(queue: JetStreamQueue, health: Health) {
    loop {
        health.set("queue", queue.reached().map_err(|error| error.problem()));
        tokio::time::sleep(LOOK).await;
    }
}

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// The first SIGTERM or Ctrl-C drains, and ends the grace time later; the second one ends it at once.
async fn stop_on_signal(drain: CancellationToken, cancel: CancellationToken, grace: Duration) {
    if !interrupted().await {
        return;
    }
    info!(grace = grace.as_secs(), "stopping: no more jobs are taken");
    drain.cancel();
    tokio::select! {
        () = tokio::time::sleep(grace) => warn!("grace time is over: jobs in hand are handed back"),
        _ = interrupted() => warn!("asked again: jobs in hand are handed back"),
    }
    cancel.cancel();
}

/// Waits for a signal to stop; `false` when signals cannot be heard.
async fn interrupted() -> bool {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                result = tokio::signal::ctrl_c() => result.is_ok(),
                heard = terminate.recv() => heard.is_some(),
            },
            Err(_) => tokio::signal::ctrl_c().await.is_ok(),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await.is_ok()
    }
}

/// What a worker signs with: machine and process.
fn name_of_this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "worker" } else { host }, std::process::id())
}

fn check(options: &Check) -> Result<u8, Problem> {
    log::start(log::Format::default(), "error");
    let mut findings = doctor::examine(&options.device);
    findings.push(shared_doctor::memory());
    findings.extend(shared_doctor::cache(&cache(options.cache.as_ref())));
    findings.extend(shared_doctor::files(&options.connection.secrets()));
    let runtime = tokio::runtime::Runtime::new().map_err(|error| bad(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        if let Some(text) = &options.store {
            findings.extend(shared_doctor::store(&here(text)?).await);
        }
        if let Some(url) = &options.nats {
            findings.extend(nats::examine(url, Role::Worker, &options.connection).await);
        }
        Ok::<_, Problem>(())
    })?;
    let report = shared_doctor::Report::of(findings);
    let text = if options.json { serde_json::to_string(&report).map_err(|error| bad(error.to_string()))? } else { report.lines() };
    println!("{text}");
    Ok(report.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn check_needs_no_queue() {
        assert!(super::Cli::try_parse_from(["lethe-worker", "check", "--device", "cpu"]).is_ok());
        let cli = super::Cli::try_parse_from(["lethe-worker", "--nats", "nats://h", "--store", "/s"]).unwrap();
        assert!(cli.command.is_none() && cli.work.nats.is_some() && cli.work.store.is_some());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}

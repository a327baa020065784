//! The command of a probe as a process.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use lethe_operations::log::say;
use lethe_shared::printable::printable;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::file::Probe;
use super::input::Input;
use super::result::{DOCUMENT, ProbeResult};
use crate::failure::Failure;

/// Most lines of a command's output that are shown.
const MAX_LINES: usize = 2000;
/// How long output is waited for after the command has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Bytes of its output that a message about its failure quotes.
const QUOTED: usize = 2000;

/// Runs a probe and returns what it measured. The input is written beside the output folder, which
/// must be empty. Lines of the command's output are shown as they come.
///
/// # Errors
/// [`Failure::BadInput`] when the command cannot be started, takes too long, ends with another exit
/// code than 0, or writes no valid result; [`Failure::Cancelled`].
///
/// # Cancel safety
/// A cancelled call kills the command and all processes that it has started in its group.
pub async fn run(
    probe: &Probe,
    input: &Input<'_>,
    cancel: &CancellationToken,
) -> Result<ProbeResult, Failure> {
    let wrong = |problem: String| Failure::input(format!("probe {}: {problem}", probe.name));
    let told = input.output.with_file_name("input.json");
    let text = serde_json::to_vec_pretty(input).map_err(Failure::input)?;
    std::fs::write(&told, text).map_err(|error| Failure::local(&told, error))?;
    let (program, arguments) =
        probe.command.split_first().ok_or_else(|| wrong("its command is empty".to_owned()))?;
    // A path is relative to the probe file; a plain name is looked up.
    let path = probe.folder.join(program);
    let program = if program.contains('/') { path.as_path() } else { Path::new(program) };
    let child = Command::new(program)
        .args(arguments)
        .current_dir(&probe.folder)
        .env("LETHE_PROBE_INPUT", &told)
        .env("LETHE_PROBE_OUTPUT", input.output)
        .env_remove("LETHE_SIGN_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = child
        .map_err(|error| wrong(format!("{} cannot be started: {error}", program.display())))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let outputs = outputs(&mut child);
    let said = tokio::spawn(forward(probe.name.clone(), outputs));
    let ended = tokio::select! {
        ended = child.wait() => ended.map_err(|error| wrong(format!("its process is lost: {error}")))?,
        () = cancel.cancelled() => return Err(Failure::Cancelled),
        () = tokio::time::sleep(probe.limit) => {
            return Err(wrong(format!(
                "it was killed after {} seconds; probe.limit_seconds sets the limit",
                probe.limit.as_secs()
            )));
        }
    };
    // What the command has started may hold its output open, and a process that has left the group
    // does so after the others are killed.
    drop(group);
    let said = tokio::time::timeout(LAST_WORDS, said).await;
    let said = said.ok().and_then(Result::ok).unwrap_or_default();
    if !ended.success() {
        let last = said.trim();
        let last = if last.is_empty() { String::new() } else { format!("; it said last: {last}") };
        return Err(wrong(format!("{}{last}", how(ended))));
    }
    ProbeResult::read(input.output).map_err(|problem| {
        wrong(format!(
            "{problem}; the command writes {DOCUMENT} into the folder LETHE_PROBE_OUTPUT"
        ))
    })
}

fn how(ended: ExitStatus) -> String {
    match ended.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => format!("it ended by a signal ({ended})"),
    }
}

/// The process group of a command, which is killed at the end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Usually no process is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

type Output = Box<dyn AsyncRead + Send + Unpin>;

fn outputs(child: &mut Child) -> Vec<Output> {
    let stdout = child.stdout.take().map(|output| Box::new(output) as Output);
    let stderr = child.stderr.take().map(|output| Box::new(output) as Output);
    stdout.into_iter().chain(stderr).collect()
}

/// Shows the lines of a command's outputs, and returns the end of what it said.
async fn forward(name: String, outputs: Vec<Output>) -> String {
    let (lines, shown) = tokio::sync::mpsc::channel(64);
    for output in outputs {
        tokio::spawn(split(output, lines.clone()));
    }
    drop(lines);
    show(&name, shown).await
}

/// Splits an output into lines. What follows the first 4 KiB of a line is dropped.
async fn split(mut output: Output, lines: tokio::sync::mpsc::Sender<String>) {
    let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        for &byte in &buffer[..read] {
            if byte == b'\n' || byte == b'\r' {
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                if !text.trim().is_empty() && lines.send(text).await.is_err() {
                    return;
                }
            } else if line.len() < 4096 {
                line.push(byte);
            }
        }
    }
    if !line.is_empty() {
        let _ = lines.send(String::from_utf8_lossy(&line).into_owned()).await;
    }
}

async fn show(name: &str, mut lines: tokio::sync::mpsc::Receiver<String>) -> String {
    let (mut last, mut count) = (String::new(), 0);
    while let Some(line) = lines.recv().await {
        count += 1;
        if count <= MAX_LINES {
            say("info", &format!("{name}: {}", printable(line.trim_end())));
        } else if count == MAX_LINES + 1 {
            say("info", &format!("{name}: (further lines are not shown)"));
        }
        last.push_str(line.trim_end());
        last.push('\n');
        if last.len() > 2 * QUOTED {
            last.drain(..last.floor_char_boundary(last.len() - QUOTED));
        }
    }
    last
}

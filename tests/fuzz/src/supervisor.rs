//! Runs each harness in a process of its own: an input that overflows the stack, asks for more
//! memory than there is, or never comes back ends that process and is known all the same.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::corpus;
use crate::engine::{self, Failure, Limits};
use crate::harness::Harness;
use crate::scratch;

/// Bytes before an input in the file that it is kept in: the number of the input, and its length.
const HEADER: usize = 16;
/// Longest time without a new input.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a process.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns a seed that is another one each time.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// Runs a harness in this process, and keeps each input in a file before it is tried. Prints the
/// line of the table, or the failure.
pub(crate) fn supervised(
    harness: &Harness,
    limits: &Limits,
    file: &Path,
    failures: &Path,
) -> Result<bool, String> {
    let io = |error: std::io::Error| error.to_string();
    let inputs = corpus::inputs(&corpus::folder(), harness).map_err(io)?;
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, bytes)| bytes).collect();
    let kept = File::options().write(true).open(file).map_err(io)?;
    let (mut number, mut buffer) = (0u64, Vec::new());
    let (tally, failure) = engine::run(harness, &inputs, limits, &mut |input| {
        number += 1;
        buffer.clear();
        buffer.extend(number.to_le_bytes());
        buffer.extend((input.len() as u64).to_le_bytes());
        buffer.extend(input);
        kept.write_all_at(&buffer, 0).expect("the file of the supervisor can be written to");
    });
    let seconds = tally.time.as_secs_f64();
    let line = format!(
        "{:18} {:>10} {:>9.1} % {:>10.0} {:>12.1}",
        harness.name,
        tally.inputs,
        100.0 * tally.accepted as f64 / tally.inputs.max(1) as f64,
        tally.inputs as f64 / seconds.max(1e-9),
        tally.memory as f64 / f64::from(1 << 20),
    );
    let mut out = std::io::stdout();
    writeln!(out, "{line}").map_err(io)?;
    match failure {
        None => Ok(true),
        Some(failure) => report(harness, &failure, failures).map(|()| false),
    }
}

/// Saves a failing input and prints what is wrong with it.
fn report(harness: &Harness, failure: &Failure, failures: &Path) -> Result<(), String> {
    let path =
        corpus::save(failures, harness, &failure.input).map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let shown: String = failure.problem.chars().take(2000).collect();
    writeln!(
        std::io::stdout(),
        "\n{} fails: {shown}\n  input   {} ({} bytes)\n  replay  {} --only {} --replay {}\n",
        harness.name,
        path.display(),
        failure.input.len(),
        program.display(),
        harness.name,
        path.display()
    )
    .map_err(|error| error.to_string())
}

/// Runs harnesses one after another. Returns whether no input failed.
pub(crate) fn supervise(
    harnesses: &[Harness],
    limits: &Limits,
    failures: &Path,
) -> Result<bool, String> {
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:18} {:>10} {:>11} {:>10} {:>12}   (seed {})",
        "harness", "inputs", "accepted", "inputs/s", "memory, MiB", limits.seed
    )
    .map_err(|error| error.to_string())?;
    let mut all_hold = true;
    for harness in harnesses {
        all_hold &= one(harness, limits, failures)?;
    }
    Ok(all_hold)
}

fn one(harness: &Harness, limits: &Limits, failures: &Path) -> Result<bool, String> {
    let io = |error: std::io::Error| error.to_string();
    // Temporary files of a process that ends early go with this folder.
    let folder = scratch::in_memory().map_err(io)?;
    let kept = folder.path().join("input");
    File::create(&kept).map_err(io)?;
    let mut command = Command::new(std::env::current_exe().map_err(io)?);
    command.args(["--only", harness.name, "--seed", &limits.seed.to_string()]);
    if limits.inputs < u64::MAX {
        command.args(["--inputs", &limits.inputs.to_string()]);
    } else {
        command.args(["--seconds", &limits.time.as_secs_f64().to_string()]);
    }
    command.arg("--failures").arg(failures).arg("--supervised").arg(&kept);
    command.env("TMPDIR", folder.path()).stdin(Stdio::null());
    let child = command.spawn().map_err(io)?;
    let ended = watch(child, &kept).map_err(io)?;
    let problem = match ended {
        Ended::With(Some(0)) => return Ok(true),
        Ended::With(Some(1)) => return Ok(false),
        Ended::With(code) => match code {
            Some(code) => format!("the process ended with code {code}"),
            None => {
                "the process was ended by a signal: it aborted, or its stack overflowed".to_owned()
            }
        },
        Ended::Silent => format!("no end after {} s", LONGEST_SILENCE.as_secs()),
    };
    let (_, input) = last_input(&kept).map_err(io)?;
    report(harness, &Failure { input, problem }, failures)?;
    Ok(false)
}

/// How a process ended.
enum Ended {
    With(Option<i32>),
    /// It was killed, because its last input did not come back.
    Silent,
}

fn watch(mut child: Child, kept: &Path) -> std::io::Result<Ended> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended::With(status.code()));
        }
        std::thread::sleep(PAUSE);
        let (number, _) = last_input(kept)?;
        if number != last {
            (last, since) = (number, Instant::now());
        }
        if since.elapsed() > LONGEST_SILENCE {
            child.kill()?;
            child.wait()?;
            return Ok(Ended::Silent);
        }
    }
}

/// Returns the number of the last input that a process has kept, and the input.
fn last_input(kept: &Path) -> std::io::Result<(u64, Vec<u8>)> {
    let mut bytes = Vec::new();
    File::open(kept)?.read_to_end(&mut bytes)?;
    let word = |at: usize| bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    let number = word(0).map_or(0, u64::from_le_bytes);
    let length = word(8).map_or(0, u64::from_le_bytes) as usize;
    let end = bytes.len().min(HEADER + length);
    Ok((number, bytes.get(HEADER..end).unwrap_or_default().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell script as a harness that keeps the input `xy` as its third.
    fn script(then: &str) -> (Ended, (u64, Vec<u8>)) {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("input");
        let bytes = [&3u64.to_le_bytes()[..], &2u64.to_le_bytes(), b"xy and older bytes"].concat();
        std::fs::write(&kept, bytes).unwrap();
        let child = Command::new("sh").args(["-c", then]).spawn().unwrap();
        (watch(child, &kept).unwrap(), last_input(&kept).unwrap())
    }

    #[test]
    fn the_input_of_a_process_that_ends_early_is_known() {
        let (ended, kept) = script("kill -ABRT $$");
        assert!(matches!(ended, Ended::With(None)));
        assert_eq!(kept, (3, b"xy".to_vec()));
        assert!(matches!(script("exit 101").0, Ended::With(Some(101))));
    }
}

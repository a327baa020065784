//! Pages of the documentation as tests: their commands, entered into the shell of a user in a fresh
//! clone, and what the pages show of their output.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::ports::wait_until;
use crate::{binary, repository};

/// Placeholder for values that differ between readers.
const ANYTHING: &str = "…";

/// A command of the page, and the output that the page shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The command, which may have several lines.
    pub command: String,
    /// The lines after it.
    pub shown: Vec<String>,
}

/// Returns every command in the page's console blocks, in order. A block of Python is a command
/// too.
///
/// # Panics
/// When a block has no end, or shows output of no command.
pub fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let blocks = page.split("\n```").skip(1).step_by(2);
    for block in blocks {
        let (language, text) = block.split_once('\n').expect("a block has lines");
        match language {
            "console" => console(text, &mut steps),
            "python" => steps.push(Step {
                command: format!("python3 - <<'END'\n{text}\nEND"),
                shown: Vec::new(),
            }),
            _ => {}
        }
    }
    steps
}

fn console(block: &str, steps: &mut Vec<Step>) {
    for line in block.lines() {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), shown: Vec::new() })
            }
            (None, Some(step)) if step.command.ends_with('\\') => {
                step.command += &format!("\n{line}")
            }
            (None, Some(step)) => step.shown.push(line.to_owned()),
            (None, None) => panic!("the page shows output of no command: {line}"),
        }
    }
}

/// Returns whether a line equals the shown one, except for the width of spaces and for
/// placeholders.
fn reads(shown: &str, line: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, line) = (plain(shown), plain(line));
    let parts: Vec<&str> = shown.split(ANYTHING).map(str::trim).collect();
    let Some((first, rest)) = parts.split_first() else { return false };
    let Some((last, middle)) = rest.split_last() else { return shown == line };
    let Some(mut left) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// Returns whether output equals the shown output, line by line; a line with only `…` stands for
/// any number of lines.
pub fn agrees(shown: &[String], said: &[&str]) -> bool {
    match shown.split_first() {
        None => said.is_empty(),
        Some((any, rest)) if any == ANYTHING => {
            (0..=said.len()).any(|skipped| agrees(rest, &said[skipped..]))
        }
        Some((line, rest)) => said
            .split_first()
            .is_some_and(|(first, others)| reads(line, first) && agrees(rest, others)),
    }
}

/// The shell of a user in a fresh clone. Processes started in it end with it.
#[derive(Debug)]
pub struct Shell {
    bash: Child,
    folder: tempfile::TempDir,
    log: PathBuf,
    commands: usize,
}

impl Shell {
    /// Starts a shell with these variables in its environment.
    pub fn new(variables: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clone, tools) = (folder.path().join("lethe"), folder.path().join("tools"));
        like_a_clone(&clone);
        std::fs::create_dir(&tools).unwrap();
        // The build uses the real source folder, because another path would require a full rebuild.
        let (cargo, path) = (
            std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
            std::env::var("PATH").unwrap(),
        );
        let script = format!(
            "#!/bin/sh\ncd '{}' && PATH='{path}' exec '{cargo}' \"$@\"\n",
            repository().display()
        );
        std::fs::write(tools.join("cargo"), script).unwrap();
        std::fs::set_permissions(
            tools.join("cargo"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();

        let log = folder.path().join("log");
        std::fs::write(&log, "").unwrap();
        // Both append: with a position of its own, one would write over the other.
        let output = || std::fs::File::options().append(true).open(&log).unwrap();
        let (out, err) = (output(), output());
        let mut bash = Command::new("bash");
        bash.current_dir(&clone).stdin(Stdio::piped()).stdout(out).stderr(err).process_group(0);
        // Settings of the user, make or cargo must not affect the result.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["LETHE_", "CARGO_PKG_", "CARGO_MANIFEST_", "MAKE", "MFLAGS"]
                .iter()
                .any(|start| name.starts_with(start))
            {
                bash.env_remove(name);
            }
        }
        bash.env("PATH", format!("{}:{path}", tools.display()));
        bash.env("LETHE_CACHE", folder.path().join("cache"))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        Self { bash: bash.spawn().unwrap(), folder, log, commands: 0 }
    }

    /// Returns the folder of the clone.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("lethe")
    }

    /// Enters a command and waits for its end. Returns its exit code and its output.
    pub fn run(&mut self, command: &str) -> (String, Vec<String>) {
        self.commands += 1;
        let end = format!("@end-of-{} ", self.commands);
        let before = std::fs::read(&self.log).unwrap().len();
        // A command that ends in `&` ends its own line.
        writeln!(self.bash.stdin.as_mut().unwrap(), "{command}\nprintf '\\n%s%s\\n' '{end}' $?")
            .unwrap();
        let said =
            || String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()[before..]).into_owned();
        wait_until(command, || said().contains(&format!("\n{end}")) && said().ends_with('\n'));
        let text = said();
        let (text, code) = text.split_once(&format!("\n{end}")).unwrap();
        // bash itself reports when a background process was killed.
        let lines =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with("bash: line "));
        (code.trim().to_owned(), lines.map(str::to_owned).collect())
    }

    /// Runs a step of a page, and compares its output with what the page shows.
    ///
    /// # Panics
    /// When the command fails, or its output is another one.
    pub fn follow(&mut self, page: &str, step: &Step) {
        let Step { command, shown } = step;
        let (code, said) = self.run(command);
        let output = said.join("\n");
        assert_eq!(code, "0", "$ {command}\n{output}");
        assert!(!output.contains("panicked"), "$ {command}\n{output}");
        let lines: Vec<&str> = said.iter().map(String::as_str).collect();
        assert!(
            shown.is_empty() || agrees(shown, &lines),
            "$ {command}\n{output}\n  {page} shows\n{}",
            shown.join("\n")
        );
    }

    /// Returns what the shell makes of an expression.
    pub fn ask(&mut self, expression: &str) -> String {
        self.run(&format!("echo {expression}")).1.join("\n")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // A process that has already ended is not an error.
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.bash.id())])
            .stderr(Stdio::null())
            .status();
        let _ = self.bash.wait();
    }
}

/// Creates a folder with all files of the repository, without those of an earlier walk.
fn like_a_clone(folder: &Path) {
    std::fs::create_dir_all(folder.join("target")).unwrap();
    symlink(binary("lethe").parent().unwrap(), folder.join("target/release")).unwrap();
    for entry in std::fs::read_dir(repository()).unwrap().map(Result::unwrap) {
        if !["target", "walk", "store", ".git"].iter().any(|name| entry.file_name() == *name) {
            symlink(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_said() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let said = ["  state    complete", "  digest   abc", "more", "the end"];
        for shown in [
            "state complete\ndigest …\nmore\nthe end",
            "…\nthe end",
            "state …\n…",
            "…",
            "…\n… ab…\n…\n… end",
        ] {
            assert!(agrees(&lines(shown), &said), "{shown}");
        }
        for shown in [
            "state complete",
            "state complete\n…\nthe",
            "state failed\n…",
            "…\ndigest …\nthe end",
            "…\n…x…\n…",
            "",
        ] {
            assert!(!agrees(&lines(shown), &said), "{shown}");
        }
        let page = "text\n```console\n$ one \\\n    two\nsaid\n$ three\n```\nand\n```toml\n$ none\n```\n\n```python\nprint(1)\nprint(2)\n```\n";
        let step = |command: &str, shown: &[&str]| Step {
            command: command.to_owned(),
            shown: shown.iter().map(|&line| line.to_owned()).collect(),
        };
        assert_eq!(
            steps(page),
            [
                step("one \\\n    two", &["said"]),
                step("three", &[]),
                step("python3 - <<'END'\nprint(1)\nprint(2)\nEND", &[])
            ]
        );
    }
}

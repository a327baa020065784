//! Follows `docs/walk.md`: runs every command block as written, in order, in one shell and a folder
//! like a fresh clone, and compares the output with the page.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lethe_tests::http::{get, get_json};
use lethe_tests::ports::{free_port, wait_until};
use lethe_tests::{binary, repository};

/// Placeholder for values that differ between readers.
const ANYTHING: &str = "…";

/// A command of the page, and the output that the page shows.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    shown: Vec<String>,
}

/// Returns every command in the page's console blocks, in order.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let blocks = page
        .split("```console\n")
        .skip(1)
        .map(|rest| rest.split_once("```").expect("a block ends").0);
    for line in blocks.flat_map(str::lines) {
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
    steps
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
fn agrees(shown: &[String], said: &[&str]) -> bool {
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
struct Shell {
    bash: Child,
    folder: tempfile::TempDir,
    log: PathBuf,
    commands: usize,
}

impl Shell {
    fn new(ports: [(&str, u16); 2]) -> Self {
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
        let (out, err) = (
            std::fs::File::create(&log).unwrap(),
            std::fs::File::options().append(true).open(&log).unwrap(),
        );
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
            .envs(ports.map(|(name, port)| (name, port.to_string())));
        Self { bash: bash.spawn().unwrap(), folder, log, commands: 0 }
    }

    fn clone(&self) -> PathBuf {
        self.folder.path().join("lethe")
    }

    /// Enters a command and waits for its end. Returns its exit code and its output.
    fn run(&mut self, command: &str) -> (String, Vec<String>) {
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

    fn ask(&mut self, expression: &str) -> String {
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

#[test]
fn a_stranger_gets_from_a_clone_to_production_and_back() {
    let page = std::fs::read_to_string(repository().join("docs/walk.md")).unwrap();
    let steps = steps(&page);
    assert!(steps.len() > 30, "{}", steps.len());
    let killed = "$ kill -9 \"$worker_1\"";
    assert!(page.contains(&format!("```console\n{killed}\n```")), "the kill has its own block");
    let (nats, http) = (free_port(), free_port());
    let mut shell = Shell::new([("NATS_PORT", nats), ("PAGE_PORT", http)]);
    let address = format!("127.0.0.1:{http}");
    let live = |run: &str, field: &str| {
        get_json(&address, &format!("/api/v1/runs/{run}"))["live"][field].to_string()
    };
    let mut waits = 0;
    for Step { command, shown } in &steps {
        // A reader waits for this state before the next command.
        if command == "lethe status \"$run\"" {
            let (run, worker) = (shell.ask("$run"), shell.ask("$worker_1"));
            wait_until("the first worker has a job", || {
                live(&run, "workers").contains(&format!("-{worker}/0\""))
            });
            assert_eq!(get(&address, "/").0, 200);
            waits += 1;
        } else if command.contains("grep redelivered") {
            let (run, worker) = (shell.ask("$run"), shell.ask("$worker_1"));
            wait_until("another one has its job", || {
                live(&run, "problems").contains(&format!("-{worker}/0; redelivered to "))
            });
            assert!(
                !live(&run, "workers").contains(&format!("-{worker}/0\"")),
                "a dead worker is shown as one that works"
            );
            waits += 1;
        }
        let (code, said) = shell.run(command);
        let output = said.join("\n");
        assert_eq!(code, "0", "$ {command}\n{output}");
        assert!(!output.contains("panicked"), "$ {command}\n{output}");
        let lines: Vec<&str> = said.iter().map(String::as_str).collect();
        assert!(
            shown.is_empty() || agrees(shown, &lines),
            "$ {command}\n{output}\n  docs/walk.md shows\n{}",
            shown.join("\n")
        );
    }
    assert_eq!(waits, 2, "the page has a worker killed");
    // The walk leaves no files behind.
    assert!(!shell.clone().join("walk").is_dir());
    for port in [nats, http] {
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "somebody still listens on {port}"
        );
    }
    assert_eq!(shell.ask("$(jobs -r | wc -l)"), "0");
}

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
    let page =
        "text\n```console\n$ one \\\n    two\nsaid\n$ three\n```\nand\n```toml\n$ none\n```\n";
    let step = |command: &str, shown: &[&str]| Step {
        command: command.to_owned(),
        shown: shown.iter().map(|&line| line.to_owned()).collect(),
    };
    assert_eq!(steps(page), [step("one \\\n    two", &["said"]), step("three", &[])]);
}

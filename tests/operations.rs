//! Commands for operators: `lethe doctor` on a correct and on a broken setup, completions, manual
//! pages.

use std::path::Path;
use std::process::{Command, Output};

use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::free_port;
use lethe_tests::s3::S3Server;
use lethe_tests::{binary, last_line, repository, stderr};
use serde_json::Value;

/// Returns a `lethe doctor` command without any setting of this machine.
fn doctor(folder: &Path) -> Command {
    doctor_on("cpu", folder)
}

fn doctor_on(device: &str, folder: &Path) -> Command {
    let mut command = Command::new(binary("lethe"));
    for name in [
        "LETHE_LOG",
        "LETHE_NATS",
        "LETHE_STORE",
        "LETHE_NATS_CREDS",
        "LETHE_NATS_NKEY",
        "LETHE_NATS_USER",
    ] {
        command.env_remove(name);
    }
    command.args(["doctor", "--device", device, "--json"]).env("LETHE_CACHE", folder.join("cache"));
    command
}

/// Returns the findings, which must come with this exit code.
fn finds(command: &mut Command, code: i32) -> Value {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        stderr(&output)
    );
    assert!(
        !stderr(&output).contains("panicked") && !stderr(&output).contains("-secret"),
        "{}",
        stderr(&output)
    );
    let said = last_line(&output);
    assert!(!said.to_string().contains("-secret"), "{said}");
    said
}

/// Returns the state and the full text of the finding of this name.
fn finding(report: &Value, name: &str) -> (String, String) {
    let of = |finding: &&Value| finding["name"] == name;
    let found = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(of)
        .unwrap_or_else(|| panic!("nothing about {name}: {report}"));
    (
        found["state"].as_str().unwrap().to_owned(),
        format!(
            "{}; {}",
            found["found"].as_str().unwrap(),
            found["fix"].as_str().unwrap_or_default()
        ),
    )
}

/// Checks that a finding is a failure with this message and a remedy.
fn fails(report: &Value, name: &str, says: &str) {
    let (state, text) = finding(report, name);
    assert_eq!(state, "failed", "{report}");
    assert!(text.contains(says) && !text.ends_with("; "), "{text}\n  does not say: {says}");
    assert!(!text.starts_with(&format!("{name}: ")), "what it is about is said beside it: {text}");
}

#[test]
fn sound_surroundings_are_found_sound_and_left_as_they_were() {
    let (folder, s3) = (tempfile::tempdir().unwrap(), S3Server::start());
    let bucket = s3.bucket("lethe");
    for version in [Version::Oldest, Version::Current] {
        let server = NatsServer::start(version);
        for store in [folder.path().join("not/there/yet").to_str().unwrap(), "s3://lethe/store"] {
            let mut command = doctor(folder.path());
            S3Server::environment(&s3.endpoint(), &mut command);
            let report = finds(command.args(["--store", store, "--nats", &server.url()]), 0);
            assert_ne!(report["state"], "failed");
            for name in [
                "libtorch",
                "device",
                "cache",
                "store",
                "clock",
                "jetstream",
                "permissions",
                "storage",
            ] {
                assert_eq!(finding(&report, name).0, "ok", "{report}");
            }
            assert!(finding(&report, "libtorch").1.starts_with("2.11.0, /"), "{report}");
            let expected = if version == Version::Oldest { "warning" } else { "ok" };
            assert_eq!(
                finding(&report, "queue").0,
                expected,
                "an old server has known holes: {report}"
            );
        }
        assert!(!folder.path().join("not").is_dir(), "a store that was not there is not there");
        // A second call finds the same: no stream and no message was left behind.
        let report = finds(doctor(folder.path()).args(["--nats", &server.url()]), 0);
        assert!(finding(&report, "jetstream").1.contains("streams will be created"), "{report}");
    }
    drop(bucket);
    // For people: one line per finding.
    let output =
        doctor(folder.path()).args(["--store"]).arg(folder.path().join("store")).output().unwrap();
    assert_eq!(last_line(&output)["findings"].as_array().unwrap().len(), 8);
    let mut plain = Command::new(binary("lethe-worker"));
    plain
        .args(["check", "--device", "cpu", "--store"])
        .arg(folder.path().join("store"))
        .env("LETHE_CACHE", folder.path().join("cache"));
    let output = plain.env_remove("LETHE_NATS").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 8, "{text}");
    assert!(
        text.lines().all(|line| line.starts_with("  ok ") || line.starts_with("  warning ")),
        "{text}"
    );
}

#[test]
fn broken_surroundings_are_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str]| finds(doctor(folder.path()).args(arguments), 5);

    // A port without a listener.
    let closed = format!("nats://127.0.0.1:{}", free_port());
    fails(&check(&["--nats", &closed]), "queue", "start it (nats-server -js)");
    // A server without JetStream.
    let port = free_port();
    let plain = Plain::start(port);
    let report = check(&["--nats", &format!("nats://127.0.0.1:{port}")]);
    fails(&report, "jetstream", "enable JetStream");
    assert_ne!(finding(&report, "queue").0, "failed");
    drop(plain);
    // Wrong credentials, and an account with too few permissions.
    let least = "permissions: { publish: [\"$JS.API.STREAM.INFO.LETHE_JOBS\", \"lethe.>\"], subscribe: [\"_INBOX.lethe-coordinator.>\"] }";
    let users =
        format!("authorization {{ users: [ {{ user: c, password: \"c-secret\", {least} }} ] }}");
    let server = NatsServer::with(Version::Oldest, &users);
    let as_user = |password: &str| {
        let mut command = doctor(folder.path());
        command
            .args(["--nats", &server.url()])
            .env("LETHE_NATS_USER", "c")
            .env("LETHE_NATS_PASSWORD", password);
        finds(&mut command, 5)
    };
    fails(&as_user("wrong-secret"), "queue", "check the credentials");
    let report = as_user("c-secret");
    fails(&report, "permissions", "docs/security.md");
    for subject in [
        "$JS.API.STREAM.CREATE.LETHE_LEASES",
        "$JS.API.CONSUMER.INFO.LETHE_JOBS.workers",
        "lethe.notices.*",
    ] {
        assert!(finding(&report, "permissions").1.contains(subject), "{subject}: {report}");
    }
    assert!(
        !finding(&report, "permissions").1.contains("lethe.lease"),
        "what is permitted is not complained of: {report}"
    );

    // Stores: a file in place of the folder, a folder without write permission, a bucket behind a
    // closed port.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    fails(&check(&["--store", file.to_str().unwrap()]), "store", "file");
    fails(&check(&["--store", "/proc/lethe"]), "store", "/proc/lethe");
    let mut command = doctor(folder.path());
    S3Server::environment(&format!("http://127.0.0.1:{}", free_port()), &mut command);
    fails(&finds(command.args(["--store", "s3://lethe/store"]), 5), "store", "check the address");
    // A cache folder that cannot be created, a missing device, missing secrets.
    let mut command = doctor(folder.path());
    fails(&finds(command.args(["--cache"]).arg(file.join("below")), 5), "cache", "--cache");
    fails(&finds(&mut doctor_on("cuda:99", folder.path()), 5), "device", "--device cpu");
    fails(
        &check(&["--nats-creds", folder.path().join("none").to_str().unwrap()]),
        "secrets",
        "check the path",
    );
    // An invalid argument.
    assert_eq!(
        doctor(folder.path()).args(["--store", "ftp://x"]).output().unwrap().status.code(),
        Some(2)
    );
}

/// A nats-server without JetStream.
struct Plain(std::process::Child);

impl Plain {
    fn start(port: u16) -> Self {
        let program = repository().join(".tools/nats/site/bin/nats-server");
        let mut command = Command::new(program);
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stderr(std::process::Stdio::null());
        let mut plain = Self(command.spawn().unwrap());
        lethe_tests::ports::wait_for_port(port, &mut plain.0, "nats-server");
        plain
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // A process that has already ended is not an error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe")).args(arguments).output().unwrap()
}

/// Returns the completions that bash offers for this line, with the script of a program.
fn bash_offers(program: &str, line: &str) -> Vec<String> {
    let script = lethe(&["completion", "bash", "--program", program]);
    assert!(script.status.success(), "{}", stderr(&script));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("script"), &script.stdout).unwrap();
    // The variables and arguments that bash passes to a completion function: the words, the index
    // of the current word, and the one before it.
    let ask = "source \"$1\"; COMP_WORDS=($2); [[ $2 == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
               function=$(complete -p \"$3\" | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
               \"$function\" \"$3\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let path = folder.path().join("script");
    let output = Command::new("bash")
        .args(["-c", ask, "bash"])
        .arg(path)
        .args([line, program])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn bash_completes_commands_and_options() {
    assert_eq!(bash_offers("lethe", "lethe rel"), ["release"]);
    assert_eq!(bash_offers("lethe", "lethe ev"), ["evaluate"]);
    let mut found = bash_offers("lethe", "lethe release r");
    found.sort();
    assert_eq!(found, ["receipt", "rollback"]);
    assert_eq!(bash_offers("lethe", "lethe compose --str"), ["--strength"]);
    assert_eq!(bash_offers("lethe-worker", "lethe-worker --devi"), ["--device"]);
    for (shell, says) in [("zsh", "#compdef lethe"), ("fish", "complete -c lethe")] {
        let output = lethe(&["completion", shell]);
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains(says),
            "{shell}"
        );
    }
    assert_eq!(lethe(&["completion", "tcsh"]).status.code(), Some(2));
}

#[test]
fn the_commands_that_the_page_of_failures_names_exist() {
    let page = std::fs::read_to_string(repository().join("docs/failures.md")).unwrap();
    let (_, rest) = page.split_once("## Symptoms").unwrap();
    let (table, _) = rest.split_once("\n## ").unwrap();
    let named = table.split('`').skip(1).step_by(2);
    let commands: Vec<&str> = named
        .filter(|code| code.starts_with("lethe ") || code.starts_with("lethe-worker "))
        .collect();
    assert!(commands.len() > 20, "{commands:?}");
    for command in commands {
        let (program, arguments) = command.split_once(' ').unwrap();
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let is_name = |word: &&str| {
            !word.starts_with('-') && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        };
        let names: Vec<&str> = arguments.iter().copied().take_while(is_name).collect();
        let output = Command::new(binary(program)).args(&names).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        for option in arguments.iter().filter(|word| word.starts_with("--")) {
            assert!(
                help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                "{command}"
            );
        }
    }
}

#[test]
fn every_command_has_a_manual_page_that_man_can_show() {
    let folder = tempfile::tempdir().unwrap();
    let output = lethe(&["man", folder.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let help = String::from_utf8(lethe(&["--help"]).stdout).unwrap();
    let commands =
        help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap().lines().skip(1);
    let commands: Vec<&str> = commands
        .filter_map(|line| {
            line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty())
        })
        .collect();
    assert!(commands.len() > 15 && commands.contains(&"evaluate"), "{commands:?}");
    let pages = commands
        .iter()
        .filter(|command| **command != "help")
        .map(|command| format!("lethe-{command}.1"));
    for page in pages.chain(
        ["lethe.1", "lethe-worker.1", "lethe-worker-check.1", "lethe-release-promote.1"]
            .map(str::to_owned),
    ) {
        let path = folder.path().join(&page);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
        // If `man` is installed, it must display the page without warnings.
        if let Ok(shown) = Command::new("man")
            .args(["--warnings", "-l"])
            .arg(&path)
            .env("MANPAGER", "cat")
            .env("LC_ALL", "C.UTF-8")
            .output()
        {
            assert!(
                shown.status.success() && stderr(&shown).is_empty(),
                "{page}: {}",
                stderr(&shown)
            );
        }
    }
    let file = folder.path().join("lethe.1/below");
    assert_eq!(lethe(&["man", file.to_str().unwrap()]).status.code(), Some(2));
}

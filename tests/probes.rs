//! `lethe evaluate --probe`: measurements by a command of the operator, and what happens when it
//! misbehaves.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lethe_tests::{SmallJob, binary, last_line, stderr};
use serde_json::Value;

fn lethe(job: &SmallJob, arguments: &[&str]) -> Output {
    Command::new(binary("lethe"))
        .env_remove("LETHE_LOG")
        .env("LETHE_STORE", "store")
        .current_dir(job.path(""))
        .args(arguments)
        .output()
        .unwrap()
}

/// Writes a probe whose command is this shell script.
fn probe(job: &SmallJob, name: &str, script: &str, more: &str) -> String {
    job.write(&format!("{name}.sh"), script.as_bytes());
    let file = format!("[probe]\nname = \"{name}\"\ncommand = [\"sh\", \"{name}.sh\"]\n{more}\n");
    job.write(&format!("{name}.toml"), file.as_bytes());
    format!("{name}.toml")
}

fn refused(job: &SmallJob, probe: &str, says: &str) {
    let output = lethe(job, &["evaluate", "small:1", "--probe", probe]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{text}\n  does not say: {says}");
}

/// Copies the input, and writes two numbers and a pair of pictures.
const GOOD: &str = r#"
cp "$LETHE_PROBE_INPUT" seen.json
printf 'drawing\n\033[31mred\n' >&2
printf '\211PNG\r\n\032\n' > "$LETHE_PROBE_OUTPUT/a.png"
printf '\211PNG\r\n\032\nafter' > "$LETHE_PROBE_OUTPUT/b.png"
cat > "$LETHE_PROBE_OUTPUT/result.json" <<END
{"version": "3", "numbers": {"ua": 0.75, "ira": 1},
 "pictures": [{"title": "a <b>pizza</b>", "before": "a.png", "after": "b.png"}], "notes": ["with one seed"]}
END
echo >> runs
"#;

#[test]
fn a_probe_measures_a_release_once_and_can_be_a_gate() {
    let job = SmallJob::new().lenient();
    let run = job.run("store");
    let file = probe(&job, "sd", GOOD, "");
    let output = lethe(&job, &["evaluate", "small:1", "--probe", &file, "--json"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("sd: drawing") && !said.contains('\u{1b}'), "{said}");
    let measured = last_line(&output);
    let result = &measured["probes"][0];
    assert_eq!((&result["name"], &result["version"]), (&"sd".into(), &"3".into()));
    assert_eq!(result["numbers"]["ua"], 0.75);
    assert_eq!(measured["jobs_done"], 0, "the run's own numbers stay");

    // The command was told what was released, and from what.
    let seen: Value =
        serde_json::from_slice(&std::fs::read(job.path("seen.json")).unwrap()).unwrap();
    let folder = |key: &str| PathBuf::from(seen[key].as_str().unwrap());
    assert!(folder("release").join("composition.json").is_file(), "{seen}");
    assert!(folder("base").join("config.json").is_file(), "{seen}");
    assert_eq!((&seen["digest"], &seen["version"]), (&run["digest"], &1.into()));
    assert_eq!(seen["concepts"][0]["status"], "removed", "{seen}");
    assert!(!folder("output").is_dir(), "the working folder is removed");

    // A result stays, and is not measured again.
    let again = last_line(&lethe(&job, &["evaluate", "small:1", "--probe", &file, "--json"]));
    assert_eq!(again["probes"], measured["probes"]);
    assert_eq!(std::fs::read_to_string(job.path("runs")).unwrap().lines().count(), 1);
    probe(&job, "other", "exit 1", "");
    std::fs::rename(job.path("other.sh"), job.path("sd.sh")).unwrap();
    job.replace("sd.toml", "[probe]", "# changed\n[probe]");
    refused(&job, &file, "another probe file");

    // Pages show it: those that are stored, and the one that is made later.
    lethe(&job, &["report", "small:1"]);
    let stored = std::fs::read_dir(job.path("store/releases/small/evaluations")).unwrap();
    let stored = stored.map(|entry| entry.unwrap().path()).next().unwrap().join("probes/sd");
    for page in [job.path("report.html"), stored.join("report.html")] {
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(
            text.contains("with one seed") && text.contains("data:image/png;base64,"),
            "{}",
            page.display()
        );
        assert!(text.contains("a &lt;b&gt;pizza"), "{}", page.display());
    }
    let card = std::fs::read_to_string(stored.join("README.md")).unwrap();
    assert!(card.contains("## Probe `sd`") && card.contains("| `ua` | 0.75 |"), "{card}");

    // Its numbers decide.
    let promote = |gates: &str| {
        job.write("gates.toml", format!("[gates]\nutility_kept = 0.0\n{gates}").as_bytes());
        let output =
            lethe(&job, &["release", "promote", "small:1", "production", "--gates", "gates.toml"]);
        (output.status.code(), stderr(&output))
    };
    let (code, said) = promote("[gates.probe.\"sd.ua\"]\nmin = 0.9\n");
    assert_eq!(code, Some(4));
    assert!(said.contains("probe sd.ua is 0.75, and has to be 0.9 at least"), "{said}");
    let (code, said) = promote("[gates.probe.\"sd.fid\"]\nmax = 20\n");
    assert_eq!(code, Some(4));
    assert!(said.contains("probe sd.fid was not measured"), "{said}");
    let (code, said) = promote("[gates.probe.\"sd.ua\"]\nmin = 0.7\nmax = 0.8\n");
    assert_eq!(code, Some(0), "{said}");
}

/// Whatever a command does, the release has no result of it, and nothing of it is left running.
#[test]
fn a_probe_that_misbehaves_measures_nothing() {
    let job = SmallJob::new().lenient();
    job.run("store");
    let writes = |json: &str| format!("printf '%s' '{json}' > \"$LETHE_PROBE_OUTPUT/result.json\"");
    let cases = [
        ("echo out of memory >&2; exit 3".to_owned(), "exit code 3; it said last: out of memory"),
        ("kill -9 $$".to_owned(), "it ended by a signal"),
        ("true".to_owned(), "result.json cannot be read"),
        (writes("{}"), "result.json: missing field `version`"),
        (writes("not json"), "result.json: expected"),
        (writes(r#"{"version": "1", "numbers": {"a": "b"}}"#), "result.json: invalid type"),
        ("mkfifo \"$LETHE_PROBE_OUTPUT/result.json\"".to_owned(), "is no ordinary file"),
        ("yes | head -c 100000000; exit 1".to_owned(), "exit code 1"),
    ];
    for (script, says) in cases {
        let file = probe(&job, "bad", &script, "");
        refused(&job, &file, says);
    }
    let file = probe(&job, "slow", "sleep 600 & echo $! > child; sleep 600", "limit_seconds = 1");
    let began = Instant::now();
    refused(&job, &file, "it was killed after 1 seconds");
    assert!(began.elapsed() < Duration::from_secs(60));
    let child = std::fs::read_to_string(job.path("child")).unwrap();
    assert!(gone(Path::new(&format!("/proc/{}", child.trim()))), "its child still runs");
    // A process that leaves the group and holds the output open is not waited for.
    let script = format!("setsid sleep 30 & {}", writes(r#"{"version": "1"}"#));
    let began = Instant::now();
    refused(&job, &probe(&job, "left", &script, ""), "missing field `numbers`");
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    job.write("none.toml", b"[probe]\nname = \"none\"\ncommand = [\"./nothing-here\"]\n");
    refused(&job, "none.toml", "cannot be started");
    refused(&job, "absent.toml", "absent.toml: cannot be read");
    assert!(!job.path("store/releases/small/evaluations").is_dir(), "something was stored");
}

/// Waits until a process has ended; one that nobody has waited for yet has too.
fn gone(process: &Path) -> bool {
    let ended = || match std::fs::read_to_string(process.join("stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
    };
    let began = Instant::now();
    while !ended() && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    ended()
}

//! The long-lived coordinator: real processes on a real nats-server.

#[path = "serve/site.rs"]
mod site;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lethe_queue::Queue;
use lethe_queue::nats::{JetStreamQueue, Options, Role};
use lethe_tests::http::get;
use lethe_tests::nats::Version;
use lethe_tests::ports::wait_until;
use lethe_tests::processes::Process;
use lethe_tests::{SmallJob, binary, cut, demo, last_line, repository, shard_of, stderr};
use serde_json::Value;
use site::{OTHER_SECRET, SECRET, Site, stop};

/// Returns the address of a process's HTTP port, from its log.
fn http(process: &Process) -> String {
    let find = |log: &str| {
        let rest = log.split("http://").nth(1)?;
        rest.split([':', '/', '"', ' ']).nth(1).and_then(|port| port.parse::<u16>().ok())
    };
    wait_until("the HTTP port is known", || find(&process.said()).is_some());
    format!("127.0.0.1:{}", find(&process.said()).unwrap())
}

/// Returns the first server-sent event.
fn first_event(address: &str) -> Value {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(connection, "GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let (mut text, mut buffer) = (String::new(), [0u8; 4096]);
    loop {
        let read = connection.read(&mut buffer).unwrap();
        assert!(read > 0, "the stream of events ended: {text}");
        text += &String::from_utf8_lossy(&buffer[..read]);
        if let Some((event, _)) =
            text.split_once("data: ").and_then(|(_, rest)| rest.split_once("\n\n"))
        {
            // The body is chunked; the length of each chunk is on a line of its own.
            return serde_json::from_str(event.lines().next().unwrap()).unwrap();
        }
    }
}

/// Checks that every sample line of an OpenMetrics text has one of our names and a number.
fn check_metrics(text: &str, names: &[&str]) {
    let body = text.split_once("\r\n\r\n").unwrap().1;
    assert!(body.trim_end().ends_with("# EOF"), "{body}");
    for line in body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("lethe_") && value.parse::<f64>().is_ok(), "{line}");
    }
    for name in names {
        assert!(body.lines().any(|line| line.starts_with(name)), "{name} is not in {body}");
    }
}

fn check_json_log(process: &Process) {
    let log = process.said();
    assert!(log.lines().count() > 1);
    for line in log.lines() {
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed["level"].is_string() && parsed["message"].is_string(), "{line}");
    }
}

#[test]
fn a_submitted_run_ends_as_lethe_run_does_and_a_second_time_computes_nothing() {
    submitted_twice(Version::Oldest);
}

#[test]
fn a_submitted_run_ends_as_lethe_run_does_on_a_current_server_too() {
    submitted_twice(Version::Current);
}

fn submitted_twice(version: Version) {
    let (site, job) = (Site::on(version), SmallJob::new());
    let (mut serve, mut worker) = (site.serve("serve.log"), site.worker("worker.log"));
    let run = site.submit(&job);
    let (code, ended) = site.watch(&run);
    assert_eq!((code, ended["state"].as_str()), (Some(0), Some("complete")), "{ended}");
    let alone = job.run("store");
    assert_eq!(ended["digest"], alone["digest"]);
    assert_eq!(ended["plan"], alone["run"]);
    let release = PathBuf::from(ended["release"].as_str().unwrap());
    assert!(release.starts_with(site.path("store")) && release.join("composition.json").is_file());

    // The same manifest again is the same run, and reuses all outcomes.
    let outcomes = site.outcomes();
    assert_eq!(site.submit(&job), run);
    let (code, again) = site.watch(&run);
    assert_eq!(
        (code, &again["digest"], &again["release"]),
        (Some(0), &ended["digest"], &ended["release"])
    );
    assert_eq!(site.outcomes(), outcomes);
    let summary =
        site.path(&format!("store/runs/{}/summary.json", ended["plan"].as_str().unwrap()));
    let summary: Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    assert_eq!(
        (summary["summary"]["jobs_done"].as_u64(), summary["summary"]["jobs_found"].as_u64()),
        (Some(0), Some(outcomes as u64))
    );
    // Its plan name identifies it too.
    assert_eq!(site.ask(&["status", ended["plan"].as_str().unwrap()])["run"], run.as_str());

    let address = http(&serve);
    assert_eq!(get(&address, "/healthz").0, 200);
    assert_eq!(get(&address, "/readyz").0, 200);
    let page = get(&address, "/");
    assert!(
        page.0 == 200
            && page.1.contains("<title>Lethe</title>")
            && page.1.contains("content-security-policy")
    );
    assert_eq!(get(&address, "/status.js").0, 200);
    let runs = get(&address, "/api/v1/runs");
    let parsed: Value = serde_json::from_str(runs.1.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(
        (parsed["runs"][0]["run"].as_str(), parsed["runs"][0]["state"].as_str()),
        (Some(run.as_str()), Some("complete"))
    );
    assert_eq!(get(&address, &format!("/api/v1/runs/{run}")).0, 200);
    assert_eq!(get(&address, "/api/v1/runs/none").0, 404);
    serves_release(&address, &run, &release);
    assert_eq!(first_event(&address)["runs"][0]["run"].as_str(), Some(run.as_str()));
    let metrics = get(&address, "/metrics");
    let found = [
        "lethe_jobs_total{kind=\"direction\",end=\"done\"} 3",
        "lethe_runs{state=\"complete\"} 1",
        "lethe_store_operations_total{",
        "lethe_queue_jobs{",
    ];
    check_metrics(&metrics.1, &found);

    let address = http(&worker);
    assert_eq!((get(&address, "/healthz").0, get(&address, "/readyz").0), (200, 200));
    let found = [
        "lethe_attempts_total{kind=\"direction\",end=\"done\"} 3",
        "lethe_job_seconds_bucket{",
        "lethe_attempts_in_flight{kind=\"direction\"} 0",
        "lethe_memory_resident_bytes ",
    ];
    check_metrics(&get(&address, "/metrics").1, &found);

    // Coordinator and worker log with the same trace id.
    let trace = |process: &Process, span: &str| {
        let log = process.said();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut spans =
            lines.flat_map(|line| line["spans"].as_array().cloned().unwrap_or_default());
        let found = spans.find(|found| found["name"] == span && found["trace"].is_string());
        found.unwrap_or_else(|| panic!("no span `{span}` in {log}"))["trace"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(trace(&serve, "run"), trace(&worker, "attempt"));

    let status = site.lethe(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains(&run));
    assert_eq!((stop(&mut serve), stop(&mut worker)), (Some(0), Some(0)));
    for process in [&serve, &worker] {
        check_json_log(process);
        assert!(
            !process.said().contains(SECRET) && !process.said().contains(OTHER_SECRET),
            "{}",
            process.said()
        );
    }
    for text in [
        page.1,
        runs.1,
        metrics.1,
        stderr(&status),
        String::from_utf8_lossy(&status.stdout).into_owned(),
    ] {
        assert!(!text.contains(SECRET) && !text.contains(OTHER_SECRET), "{text}");
    }
}

/// Report, record and card of a run's release are served as stored, and no other file is.
fn serves_release(address: &str, run: &str, release: &Path) {
    for (name, media) in [
        ("report.html", "text/html"),
        ("composition.json", "application/json"),
        ("README.md", "text/plain"),
    ] {
        let (status, answer) = get(address, &format!("/runs/{run}/{name}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            status == 200 && body == std::fs::read_to_string(release.join(name)).unwrap(),
            "{name}: {head}"
        );
        assert!(
            head.contains(media) && head.contains("default-src 'none'") && head.contains("nosniff"),
            "{head}"
        );
        assert_eq!(head.contains("sandbox allow-scripts"), name == "report.html", "{head}");
        assert_eq!(get(address, &format!("/runs/none/{name}")).0, 404);
    }
    for odd in [
        "model.safetensors",
        "..%2Fcomposition.json",
        "edits.safetensors",
        "composition.json%00",
        "report.html/x",
    ] {
        assert_eq!(get(address, &format!("/runs/{run}/{odd}")).0, 404, "{odd}");
    }
    // A changed file is not served.
    let card = std::fs::read(release.join("README.md")).unwrap();
    std::fs::write(release.join("README.md"), [&card[..card.len() - 1], b"!"].concat()).unwrap();
    let (status, answer) = get(address, &format!("/runs/{run}/README.md"));
    assert!(status == 404 && answer.contains("README.md: "), "{answer}");
    std::fs::write(release.join("README.md"), card).unwrap();
}

#[test]
fn the_api_is_what_its_openapi_document_says() {
    let (site, job) = (Site::new(), SmallJob::new());
    let serve = site.serve("serve.log");
    let address = http(&serve);
    // moto's server, which tests/setup.sh fetches, includes OpenAPI's validator.
    let validate = |run: &str| {
        let tools = repository().join(".tools/s3/site");
        let mut python = Command::new("python3");
        python
            .arg(repository().join("tests/openapi.py"))
            .args([&address, run])
            .env("PYTHONPATH", tools);
        let output = python.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        last_line(&output)
    };
    let run = site.submit(&job);
    // There is no worker: the run waits, and the board shows its phases.
    wait_until("a phase is under way", || {
        get(&address, &format!("/api/v1/runs/{run}")).1.contains("\"phases\":[{")
    });
    // Without a release, each of its three files gives an error response, for both names of the
    // run.
    assert_eq!(validate(&run)["checked"], 5 + 6);
    let _worker = site.worker("worker.log");
    wait_until("a worker is seen", || {
        let (_, text) = get(&address, &format!("/api/v1/runs/{run}"));
        text.contains("\"workers\":[{") || text.contains("\"complete\"")
    });
    validate(&run);
    assert_eq!(site.watch(&run).0, Some(0));
    // The record is JSON; report and card are JSON only as the error for an unknown run.
    assert_eq!(validate(&run)["checked"], 5 + 4);
    let (_, document) = get(&address, "/openapi.json");
    assert!(
        !document.contains(SECRET)
            && !document.contains(OTHER_SECRET)
            && !document.contains(site.path("").to_str().unwrap())
    );
}

/// The operator of the coordinator may require more than the submitter.
#[test]
fn a_coordinator_s_own_gates_hold_for_every_run() {
    let (site, job) = (Site::new(), SmallJob::new());
    let gates = site.path("gates.toml");
    std::fs::write(&gates, "[gates]\nchange = 0.000001\n").unwrap();
    let (_serve, _worker) = (
        site.serve_with("serve.log", &["--gates", gates.to_str().unwrap()]),
        site.worker("worker.log"),
    );
    let (code, ended) = site.watch(&site.submit(&job));
    assert_eq!((code, ended["state"].as_str()), (Some(4), Some("incomplete")), "{ended}");
    assert!(
        ended["problem"].as_str().unwrap().starts_with("a gate is not met: change is "),
        "{ended}"
    );
    // The release is stored, and no channel points to it.
    let listing = ["release", "list", "--json", "--store", site.path("store").to_str().unwrap()]
        .map(str::to_owned);
    let listed = last_line(&Command::new(binary("lethe")).args(listing).output().unwrap());
    assert_eq!(
        (listed["releases"].as_array().map(Vec::len), &listed["releases"][0]["channels"]),
        (Some(1), &serde_json::json!([]))
    );
}

#[test]
fn a_killed_coordinator_goes_on_with_every_run() {
    let (site, one, two) = (Site::new(), SmallJob::new(), SmallJob::new());
    two.replace("job.toml", "search_evaluations = 6", "search_evaluations = 5");
    two.replace("job.toml", "name = \"small\"", "name = \"other\"");
    let (mut first, _worker) = (site.serve("first.log"), site.worker("worker.log"));
    let runs = [site.submit(&one), site.submit(&two)];
    wait_until("both runs are under way and something is done", || {
        site.outcomes() > 0 && runs.iter().all(|run| site.state(run) == "running")
    });
    first.kill();
    assert!(!site.path("store/releases").is_dir(), "nothing is released yet");
    let _second = site.serve("second.log");
    for (run, job) in runs.iter().zip([&one, &two]) {
        let (code, ended) = site.watch(run);
        assert_eq!((code, ended["state"].as_str()), (Some(0), Some("complete")), "{ended}");
        assert_eq!(ended["digest"], job.run("store")["digest"]);
    }
}

/// A coordinator that dies between publishing and its last entry leaves a run that looks
/// unfinished. The next one ends it, and undoes no decision that was made meanwhile; neither does a
/// second submission.
#[test]
fn a_rollback_outlives_the_coordinator_that_published() {
    let (site, job) = (Site::new(), SmallJob::new());
    let (mut serve, _worker) = (site.serve("first.log"), site.worker("worker.log"));
    let store = site.path("store");
    let release = |arguments: &[&str]| {
        let mut command = Command::new(binary("lethe"));
        let output = command
            .arg("release")
            .args(arguments)
            .args(["--json", "--store"])
            .arg(&store)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        last_line(&output)
    };
    let latest = || release(&["show", "small@latest"])["release"]["number"].as_u64();
    assert_eq!((site.watch(&site.submit(&job)).0, latest()), (Some(0), Some(1)));
    job.replace("job.toml", "search_evaluations = 6", "search_evaluations = 5");
    let run = site.submit(&job);
    assert_eq!((site.watch(&run).0, latest()), (Some(0), Some(2)));

    serve.kill();
    let entries = std::fs::read_dir(store.join("runs").join(&run).join("entries"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    std::fs::remove_file(entries.max().unwrap()).unwrap();
    release(&["rollback", "small", "latest"]);
    let _second = site.serve("second.log");
    for submitted in [false, true] {
        if submitted {
            assert_eq!(site.submit(&job), run);
        }
        let (code, ended) = site.watch(&run);
        assert_eq!(
            (code, ended["state"].as_str(), latest()),
            (Some(0), Some("complete"), Some(1)),
            "{ended}"
        );
        let summary = store.join("runs").join(ended["plan"].as_str().unwrap()).join("summary.json");
        let summary: Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
        let unmoved = "latest stays at small:1 (rolled back by hand); `lethe release promote small:2 latest` changes that";
        assert_eq!(summary["unmoved"], unmoved);
    }
}

/// Two coordinators share the runs: one coordinator at a time executes a run, each run ends once
/// and has one release, and when one coordinator is killed, the other takes over its runs.
#[test]
fn two_coordinators_share_the_runs_and_one_goes_on_alone() {
    let (site, jobs) = (Site::on(Version::Current), [0, 1, 2, 3].map(|_| SmallJob::new()));
    for (number, job) in jobs.iter().enumerate() {
        job.replace("job.toml", "name = \"small\"", &format!("name = \"shared-{number}\""));
        // Other jobs for every run, so that none can reuse all outcomes.
        job.replace(
            "job.toml",
            "search_evaluations = 6",
            &format!("search_evaluations = {}", 5 + number),
        );
    }
    // Together they cannot start all runs at once, so neither executes everything.
    let serve = |log: &str| site.serve_with(log, &["--runs", "1"]);
    let first = serve("one.log");
    let runs = jobs.each_ref().map(|job| site.submit(job));
    wait_until("the first coordinator works on a run", || {
        runs.iter().any(|run| site.state(run) == "running")
    });
    // The second one finds the oldest run in the hands of the first, and takes another.
    let mut coordinators = [first, serve("two.log")];
    let coordinators_of_running = || {
        let seen = site.ask(&["status"]);
        let running =
            seen["runs"].as_array().unwrap().iter().filter(|run| run["state"] == "running");
        running.map(|run| run["coordinator"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    wait_until("both coordinators work on a run", || coordinators_of_running().len() == 2);
    let _worker = site.worker("worker.log");
    wait_until("something is done", || site.outcomes() > 3);
    coordinators[0].kill();

    for (run, job) in runs.iter().zip(&jobs) {
        let (code, ended) = site.watch(run);
        assert_eq!((code, ended["state"].as_str()), (Some(0), Some("complete")), "{ended}");
        assert_eq!(ended["digest"], job.run("store")["digest"]);
        let name = ended["plan"].as_str().unwrap().rsplit_once('-').unwrap().0;
        let store = site.path("store");
        let listing = ["release", "list", name, "--json", "--store", store.to_str().unwrap()];
        let listed = Command::new(binary("lethe")).args(listing).output().unwrap();
        assert_eq!(
            last_line(&listed)["releases"].as_array().map(Vec::len),
            Some(1),
            "{run} has one release"
        );
        assert_eq!(site.ends_of(run), 1, "{run} ends once");
    }
    assert_eq!(stop(&mut coordinators[1]), Some(0));
}

#[test]
fn a_cancelled_run_stops_and_can_be_submitted_again() {
    let (site, job) = (Site::new(), SmallJob::new());
    let serve = site.serve("serve.log");
    let run = site.submit(&job);
    wait_until("the run is under way", || site.state(&run) == "running");
    let address = http(&serve);
    let waiting = |jobs: u32| {
        get(&address, "/metrics")
            .1
            .contains(&format!("lethe_queue_jobs{{state=\"waiting\"}} {jobs}\n"))
    };
    wait_until("its jobs are on the queue", || !waiting(0));
    site.ask(&["cancel", &run]);
    let (code, ended) = site.watch(&run);
    assert_eq!((code, ended["state"].as_str()), (Some(130), Some("cancelled")));
    wait_until("its jobs are taken back", || waiting(0));
    // Cancelling a run that has ended changes nothing.
    assert_eq!(site.ask(&["cancel", &run])["state"], "cancelled");

    assert_eq!(site.submit(&job), run);
    let _worker = site.worker("worker.log");
    assert_eq!(site.watch(&run).0, Some(0));
}

#[test]
fn dead_letters_are_listed_replayed_and_dropped() {
    let (site, job) = (Site::new(), SmallJob::new());
    let sound = std::fs::read(job.path("rocket.tar")).unwrap();
    let broken = b"\x89PNG\r\n\x1a\nthis is no image".to_vec();
    job.write(
        "rocket.tar",
        &shard_of([
            ("rocket-7.png".to_owned(), broken),
            ("rocket-7.txt".to_owned(), b"rocket".to_vec()),
        ]),
    );
    let _serve = site.serve("serve.log");
    let _worker = site.worker("worker.log");
    let run = site.submit(&job);
    let (code, ended) = site.watch(&run);
    assert_eq!((code, ended["state"].as_str()), (Some(3), Some("incomplete")), "{ended}");
    assert!(ended["problem"].as_str().unwrap().contains("rocket"), "{ended}");
    let plan = ended["plan"].as_str().unwrap();
    let only_letter = || {
        let listed = site.ask(&["dead-letters", "list"]);
        let letters = listed["dead_letters"].as_array().unwrap();
        assert_eq!(
            (letters.len(), &letters[0]["job"], &letters[0]["run"]),
            (1, &"survey of concept rocket".into(), &plan.into()),
            "{listed}"
        );
        let error = letters[0]["error"].as_str().unwrap();
        assert!(
            letters[0]["class"] == "input"
                && error.contains("rocket.tar")
                && error.contains("rocket-7"),
            "{listed}"
        );
        letters[0]["letter"].as_str().unwrap().to_owned()
    };
    let letter = only_letter();
    assert_eq!(
        site.ask(&["dead-letters", "list", "--run", "another"])["dead_letters"],
        Value::Array(Vec::new())
    );

    // A manual replay: a broken image stays broken.
    let replayed = site.ask(&["dead-letters", "replay", "--run", plan]);
    assert_eq!(
        (&replayed["letters"][0], &replayed["runs"][0]),
        (&letter.as_str().into(), &plan.into())
    );
    assert_eq!(site.watch(&run).0, Some(3));
    let letter = only_letter();
    assert_eq!(site.ask(&["dead-letters", "drop", &letter])["letters"][0], letter.as_str());
    assert_eq!(site.ask(&["dead-letters", "list"])["dead_letters"], Value::Array(Vec::new()));
    let output = site.lethe(&["dead-letters", "drop", &letter]);
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("no dead letter `"),
        "{}",
        stderr(&output)
    );

    // With an intact shard in its place, the same submission is complete.
    job.write("rocket.tar", &sound);
    assert_eq!(site.submit(&job), run);
    let (code, ended) = site.watch(&run);
    assert_eq!((code, ended["state"].as_str()), (Some(0), Some("complete")), "{ended}");
    assert_eq!(ended["digest"], job.run("store")["digest"]);
    assert_eq!(site.ask(&["dead-letters", "list"])["dead_letters"], Value::Array(Vec::new()));
}

/// A run of many jobs does not delay a later run until its own end.
#[tokio::test(flavor = "multi_thread")]
async fn two_runs_share_the_queue() {
    const SHARDS: usize = 160;
    let (site, many, few) = (Site::open(), SmallJob::new(), SmallJob::new());
    for number in 0..SHARDS {
        let sample = Cell::new(0);
        let shard = cut(&demo().join("retain-00000.tar"), 32, |_| {
            sample.set(sample.get() + 1);
            sample.get() > number
        });
        many.write(&format!("retain-{number:03}.tar"), &shard);
    }
    many.replace("job.toml", "name = \"small\"", "name = \"many\"");
    let _serve = site.serve("serve.log");
    let first = site.submit(&many);
    wait_until("the first run is under way", || site.state(&first) == "running");
    let second = site.submit(&few);
    wait_until("the second run is under way", || site.state(&second) == "running");

    // This test takes the place of workers: it takes jobs and looks at their run. (It cannot read a
    // password from its environment.)
    let queue = JetStreamQueue::connect(
        &site.nats.url(),
        Role::Worker,
        "test",
        &Options { give_up: 10, ..Options::default() },
    )
    .await
    .unwrap();
    let mut taken = Vec::new();
    let mut deliveries = Vec::new();
    while !taken.iter().any(|run: &String| run.starts_with("small-")) {
        let delivery =
            queue.pull(Duration::from_secs(20)).await.unwrap().expect("a job of either run");
        taken.push(delivery.job.run.clone());
        deliveries.push(delivery);
        assert!(taken.len() <= 100, "the second run waits behind the first: {taken:?}");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let (site, job) = (Site::new(), SmallJob::new());
    let manifest = job.path("job.toml");
    let submit = ["submit", manifest.to_str().unwrap()];
    let fails = |arguments: &[&str], code: i32, says: &str| {
        let output = site.lethe(arguments);
        let text = stderr(&output);
        assert!(
            output.status.code() == Some(code) && text.contains(says) && !text.contains(SECRET),
            "{:?} {text}",
            output.status
        );
    };
    fails(&submit, 5, "start one with `lethe serve`");
    let _serve = site.serve("serve.log");
    fails(&["status", "none"], 2, "`none` is not known here");
    fails(&["cancel", "none"], 2, "`none` is not known here");
    std::fs::remove_file(job.path("rocket.tar")).unwrap();
    fails(&submit, 2, "rocket.tar does not exist");
    // Without the check, the coordinator reports the problem.
    let output = site.lethe(&[&submit[..], &["--unchecked", "--watch"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("rocket.tar does not exist"));
}

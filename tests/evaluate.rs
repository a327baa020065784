//! `lethe evaluate`: measures a composed release, so that gates can decide on it.

use std::path::Path;
use std::process::{Command, Output};

use lethe_shared::record::Composition;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::ports::wait_until;
use lethe_tests::processes::{Process, worker};
use lethe_tests::{SmallJob, base_model, binary, files, last_line, stderr};
use serde_json::Value;

fn command(job: &SmallJob, arguments: &[&str]) -> Command {
    let mut lethe = Command::new(binary("lethe"));
    lethe
        .env_remove("LETHE_LOG")
        .env("LETHE_CACHE", job.path("cache"))
        .current_dir(job.path(""))
        .args(arguments);
    lethe
}

fn lethe(job: &SmallJob, arguments: &[&str]) -> Output {
    command(job, arguments).output().unwrap()
}

/// Runs `lethe … --json`, which must end with this exit code, and returns its last line.
fn ends(job: &SmallJob, arguments: &[&str], code: i32) -> Value {
    let output = lethe(job, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    last_line(&output)
}

fn refused(job: &SmallJob, arguments: &[&str], says: &str) {
    let output = lethe(job, arguments);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{text}\n  does not say: {says}");
}

fn address(said: &Value) -> &str {
    said["release"].as_str().unwrap()
}

fn record(said: &Value) -> Composition {
    serde_json::from_slice(
        &std::fs::read(Path::new(address(said)).join("composition.json")).unwrap(),
    )
    .unwrap()
}

/// Returns the run's measurements of the whole model in the format of `lethe evaluate`.
fn numbers(record: &Composition) -> (Value, Value) {
    let concepts = record
        .concepts
        .iter()
        .map(|concept| (concept.id.clone(), serde_json::to_value(concept.composed).unwrap()));
    (Value::Object(concepts.collect()), serde_json::to_value(&record.utility).unwrap())
}

/// The model of a release, measured like any other, has the numbers of its record; the base model
/// has forgotten nothing, and random weights everything.
#[test]
fn any_model_is_measured_on_a_manifests_data() {
    let job = SmallJob::new();
    let run = job.run("store");
    let measured = |model: &str| {
        ends(&job, &["evaluate", "--model", model, "job.toml", "--store", "store"], 0)
    };
    let (concepts, utility) = numbers(&record(&run));
    let own = measured(address(&run));
    assert_eq!(own["utility"], utility);
    assert_eq!(
        own["recognition"],
        serde_json::to_value(record(&run).recognition.unwrap()).unwrap()
    );
    for (id, expected) in concepts.as_object().unwrap() {
        assert_eq!(own["concepts"][id]["after"], *expected, "{id}");
    }
    assert_eq!((&own["digest"], &own["known"]), (&run["digest"], &own["forgotten"]));

    let base = measured(base_model().to_str().unwrap());
    assert_eq!((base["forgotten"].as_u64(), &base["digest"]), (Some(0), &base["base_digest"]));
    let test = &base["utility"]["test"];
    assert_eq!(test["before"], test["after"]);
    assert_eq!(base["jobs_done"], 0, "the run has measured the base model: {base}");

    let noise = job.noise();
    let random = measured(noise.to_str().unwrap());
    let ta1 = |of: &str| random["utility"]["test"][of]["ta1"].as_f64().unwrap();
    assert!(ta1("before") > 0.5 && ta1("after") < 0.15, "{random}");
    assert!(random["forgotten"].as_u64() > Some(0), "{random}");

    let output = lethe(&job, &["evaluate", "--model", "noise", "job.toml", "--store", "store"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("that the base model recognises"), "{table}");
    refused(&job, &["evaluate", "--model", "nowhere", "job.toml"], "nowhere");
    refused(&job, &["evaluate", "--model", "noise", "nothing.toml"], "nothing.toml");
}

#[test]
fn a_composed_release_is_measured_judged_and_promoted() {
    let job = SmallJob::new();
    let run = job.run("store");

    // Without changes: the run's own measurements, without any new job.
    let same = ends(&job, &["compose", address(&run)], 0);
    let evaluated = ends(&job, &["evaluate", address(&same)], 0);
    assert_eq!(
        (evaluated["concepts"].clone(), evaluated["utility"].clone()),
        numbers(&record(&run))
    );
    assert_eq!(evaluated["jobs_done"], 0, "the run has done them all: {evaluated}");
    assert_eq!(
        evaluated["recognition"],
        serde_json::to_value(record(&run).recognition.unwrap()).unwrap()
    );
    assert!(evaluated["jobs_found"].as_u64().unwrap() > 0);
    // The record of a run's release contains its measurements.
    let own = ends(&job, &["evaluate", address(&run)], 0);
    assert_eq!(
        (own["concepts"].clone(), own["utility"].clone(), &own["evaluation"]),
        (numbers(&record(&run)).0, numbers(&record(&run)).1, &Value::Null)
    );

    // Rounded weights are measured and nothing about them is stored.
    let inside = files(Path::new(address(&run)));
    for rounding in ["float16", "bfloat16", "int8"] {
        // A gate may be missed by the rounded weights.
        let output = lethe(&job, &["evaluate", address(&run), "--rounded", rounding, "--json"]);
        assert!([0, 4].contains(&output.status.code().unwrap()), "{}", stderr(&output));
        let rounded = last_line(&output);
        assert_eq!((&rounded["rounded"], &rounded["evaluation"]), (&rounding.into(), &Value::Null));
        assert_eq!(rounded["digest"], own["digest"]);
        let ta1 = |said: &Value| said["utility"]["test"]["after"]["ta1"].as_f64().unwrap();
        assert!((ta1(&rounded) - ta1(&own)).abs() < 0.05, "{rounding}: {rounded}");
        assert!(rounded["jobs_done"].as_u64().unwrap() > 0, "other weights are measured again");
    }
    assert_eq!(files(Path::new(address(&run))), inside);

    // A concept that is no longer removed: the model knows it again, and no gate can decide before
    // the release is measured.
    let half = ends(&job, &["compose", address(&run), "--strength", "pizza=0"], 0);
    let name = format!("small:{}", half["number"]);
    job.write("open.toml", b"[gates]\nfa5_worst = 1.0\nutility_drop = 1.0\n");
    job.write("strict.toml", b"[gates]\nfa5_worst = 0.0\n");
    let promote =
        |gates: &str| lethe(&job, &["release", "promote", &name, "production", "--gates", gates]);
    let early = promote("open.toml");
    assert_eq!(early.status.code(), Some(4));
    assert!(
        stderr(&early).contains("was not measured")
            && stderr(&early).contains(&format!("`lethe evaluate {name}")),
        "{}",
        stderr(&early)
    );
    assert_eq!(ends(&job, &["release", "show", &name], 0)["evaluation"], Value::Null);

    let before = files(Path::new(address(&half)));
    let evaluated = ends(&job, &["evaluate", &name, "--gates", "strict.toml"], 4);
    assert!(
        evaluated["jobs_done"].as_u64().unwrap() > 0
            && evaluated["jobs_found"].as_u64().unwrap() > 0,
        "{evaluated}"
    );
    let parent = record(&run);
    let pizza = parent.concepts.iter().find(|concept| concept.id == "pizza").unwrap();
    assert!(pizza.before.fa5 > 0.0, "the model knows pizza");
    assert!(
        evaluated["concepts"]["pizza"]["fa5"].as_f64().unwrap() > 0.0,
        "nothing was to remove it"
    );
    assert_eq!(files(Path::new(address(&half))), before, "a release never changes");
    assert_eq!(lethe(&job, &["verify", address(&half), "--recompute"]).status.code(), Some(0));

    // The measurements are stored beside the release, with card and report.
    let folder = Path::new(evaluated["evaluation"].as_str().unwrap());
    let written = files(folder);
    assert_eq!(written.keys().collect::<Vec<_>>(), ["README.md", "evaluation.json", "report.html"]);
    for page in ["README.md", "report.html"] {
        let text = String::from_utf8_lossy(&written[page]);
        let has_accuracy =
            text.contains("TA@1 kept on") || text.contains("| images of | before → after |");
        assert!(
            text.contains("It was measured later")
                && has_accuracy
                && !text.contains("This checkpoint was not measured"),
            "{page}"
        );
    }
    assert_eq!(ends(&job, &["release", "show", &name], 0)["evaluation"], folder.to_str().unwrap());

    // A measured release stays measured: the same command computes nothing and changes nothing.
    let again = ends(&job, &["evaluate", &name], 0);
    assert_eq!(
        (&again["concepts"], &again["utility"]),
        (&evaluated["concepts"], &evaluated["utility"])
    );
    assert_eq!((&again["jobs_done"], &again["jobs_found"]), (&0.into(), &0.into()));
    assert_eq!(files(folder), written);

    // Gates apply to the measurements.
    let strict = promote("strict.toml");
    assert_eq!(strict.status.code(), Some(4));
    assert!(
        stderr(&strict).contains("fa5_worst is") && !stderr(&strict).contains("was not measured"),
        "{}",
        stderr(&strict)
    );
    let passed = promote("open.toml");
    assert_eq!(passed.status.code(), Some(0), "{}", stderr(&passed));
    let led = ends(&job, &["release", "show", "small@production"], 0);
    assert_eq!(led["release"]["number"], half["number"]);

    // An evaluation of another release is rejected.
    let other = folder.parent().unwrap().join(Path::new(address(&run)).file_name().unwrap());
    assert!(!other.is_dir());
    let without = ends(&job, &["compose", address(&run), "--remove", "rocket"], 0);
    let theirs = folder.parent().unwrap().join(Path::new(address(&without)).file_name().unwrap());
    std::fs::create_dir(&theirs).unwrap();
    std::fs::copy(folder.join("evaluation.json"), theirs.join("evaluation.json")).unwrap();
    refused(&job, &["evaluate", address(&without)], "is about another release");
    refused(
        &job,
        &["release", "promote", &format!("small:{}", without["number"]), "production"],
        "is about another release",
    );
    std::fs::remove_dir_all(&theirs).unwrap();

    // The class of a concept that was left out is retained again.
    let evaluated = ends(&job, &["evaluate", address(&without)], 0);
    assert_eq!(
        evaluated["utility"]["retained_classes"],
        parent.utility.retained_classes.unwrap() + 1
    );
    assert!(evaluated["concepts"].get("rocket").is_none());
}

#[test]
fn a_release_is_judged_on_its_run_s_own_data_wherever_that_is_now() {
    let job = SmallJob::new();
    let run = job.run("store");
    let composed = ends(&job, &["compose", address(&run), "--strength", "pizza=0.5"], 0);
    let evaluate = ["evaluate", address(&composed)];

    // Other data under the same names is rejected.
    let test = std::fs::read(job.path("test.tar")).unwrap();
    std::fs::copy(job.path("validation.tar"), job.path("test.tar")).unwrap();
    refused(&job, &evaluate, "is no longer what it was");
    refused(
        &job,
        &[&evaluate[..], &["--manifest", "job.toml"]].concat(),
        "--manifest plans small-",
    );
    std::fs::remove_file(job.path("test.tar")).unwrap();
    refused(&job, &evaluate, "--manifest says where its data is now");

    // The same data at another address. The run's own manifest and table are not needed.
    std::fs::write(job.path("moved.tar"), test).unwrap();
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    job.write("moved.toml", manifest.replace("test.tar", "moved.tar").as_bytes());
    job.write("job.toml", b"");
    let found = ends(&job, &[&evaluate[..], &["--manifest", "moved.toml"]].concat(), 0);
    assert!(found["utility"]["test"].is_object());

    // A release composed of two runs is evaluated on the data of both.
    let (other, one) = (SmallJob::summed(), SmallJob::summed());
    let keep = |job: &SmallJob, ids: &[&str]| {
        let table = std::fs::read_to_string(job.path("concepts.csv")).unwrap();
        let rows = table
            .lines()
            .filter(|row| row.starts_with("id,") || ids.contains(&row.split(',').next().unwrap()));
        job.write("concepts.csv", (rows.collect::<Vec<_>>().join("\n") + "\n").as_bytes());
    };
    keep(&one, &["pizza"]);
    keep(&other, &["rocket"]);
    let (ours, theirs) = (one.run("store"), other.run("store"));
    let both = ends(
        &one,
        &["compose", address(&ours), "--add", &format!("{}:rocket", address(&theirs))],
        0,
    );
    let runs: Vec<Option<String>> =
        record(&both).concepts.into_iter().map(|concept| concept.run).collect();
    assert_eq!(runs, [None, Some(record(&theirs).run)]);
    let evaluated = ends(&one, &["evaluate", address(&both)], 0);
    let concepts: Vec<&String> = evaluated["concepts"].as_object().unwrap().keys().collect();
    assert_eq!(concepts, ["pizza", "rocket"]);
    assert_eq!(
        evaluated["utility"]["retained_classes"].as_u64().unwrap() + 1,
        record(&ours).utility.retained_classes.unwrap()
    );
}

#[test]
fn a_killed_evaluation_goes_on_with_workers_elsewhere() {
    let (server, job) = (NatsServer::start(Version::Oldest), SmallJob::new());
    let run = job.run("store");
    let composed = ends(&job, &["compose", address(&run), "--strength", "rocket=0.5"], 0);
    let evaluate = || {
        command(
            &job,
            &[
                "evaluate",
                address(&composed),
                "--nats",
                &server.url(),
                "--nats-ack-wait",
                "3",
                "--json",
            ],
        )
    };
    // There is no worker yet.
    let mut first = Process::start(evaluate(), &job.path("first.log"));
    wait_until("jobs are out", || first.said().contains("workers at"));
    first.kill();
    let store = job.path("store");
    let _worker = Process::start(
        worker(&server.url(), store.to_str().unwrap(), &job.path("cache")),
        &job.path("worker.log"),
    );
    let elsewhere = evaluate().output().unwrap();
    assert_eq!(elsewhere.status.code(), Some(0), "{}", stderr(&elsewhere));
    let elsewhere = last_line(&elsewhere);

    // The same measurements as in one process.
    let alone = SmallJob::new();
    let run = alone.run("store");
    let composed = ends(&alone, &["compose", address(&run), "--strength", "rocket=0.5"], 0);
    let here = ends(&alone, &["evaluate", address(&composed)], 0);
    assert_eq!(
        (&here["concepts"], &here["utility"], &here["digest"]),
        (&elsewhere["concepts"], &elsewhere["utility"], &elsewhere["digest"])
    );
}

//! The whole path in one process: the files that a run writes, and settings that must not change
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::record::{Composition, ConceptRecord, Merge};
use lethe_shared::vocabulary::{Precision, Tower};
use lethe_tests::ports::{LONGEST_WAIT, free_port};
use lethe_tests::{
    CONCEPTS, SmallJob, base_model, binary, cut, demo, last_line, outcomes, shard_of, stderr,
};
use serde_json::Value;

fn release(report: &Value) -> PathBuf {
    PathBuf::from(report["release"].as_str().unwrap())
}

fn record(report: &Value) -> Composition {
    serde_json::from_slice(&std::fs::read(release(report).join("composition.json")).unwrap())
        .unwrap()
}

#[test]
fn corrected_edits_make_a_release_that_is_complete_and_honest() {
    let (job, record) = released(SmallJob::new());
    assert_eq!(record.method, "preconditioned");
    for concept in &record.concepts {
        let layer = concept.ranking.iter().find(|layer| layer.layer == concept.layer).unwrap();
        assert!(layer.efficiency.unwrap() > 0.0 && concept.coefficient > 0.0);
        let best = concept.ranking.iter().filter_map(|layer| layer.efficiency).fold(0.0, f64::max);
        assert!(
            best > 0.0 && concept.ranking.iter().all(|layer| layer.tower == Tower::Text),
            "images stay as they are"
        );
        // The step was evaluated with every class text, and forgot the concept.
        assert!(
            concept.search.iter().any(|trial| trial.step == concept.step
                && trial.forgotten
                && trial.utility.is_some())
        );
        assert_eq!(
            concept.composed.unwrap().fa5,
            0.0,
            "{} shows in the composed model",
            concept.id
        );
    }
    // Directions of text layers are cut to rank 2, and stored as factors.
    for concept in &record.concepts {
        let residual = concept.residual.unwrap();
        assert!(concept.rank == Some(2) && residual > 0.0 && residual < 0.9, "{residual}");
    }
    let edits = std::fs::read(release(&last(&job)).join("edits.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&edits).unwrap();
    assert_eq!(file.len(), 2 * CONCEPTS.len());
    assert!(edits.len() < CONCEPTS.len() * 8_000, "{} bytes", edits.len());
}

#[test]
fn summed_edits_make_a_release_that_is_complete_and_honest() {
    let (_, record) = released(SmallJob::summed());
    assert_eq!(record.method, "sum");
    for concept in &record.concepts {
        assert_eq!(concept.coefficient, 1.0);
        assert!(concept.ranking.iter().any(|layer| layer.layer == concept.layer && layer.pareto));
        let answer =
            concept.search.iter().filter(|trial| trial.layer == concept.layer && trial.forgotten);
        let smallest = answer.map(|trial| trial.step).fold(f64::INFINITY, f64::min);
        assert_eq!(concept.step, smallest, "the answer is the smallest step that forgot");
    }
}

#[test]
fn every_method_s_release_follows_from_its_record() {
    let job = SmallJob::summed().lenient();
    let mut digests = BTreeMap::new();
    let mut before = "sum";
    for (method, merge) in [
        ("sum", Merge::Sum),
        ("mean", Merge::Mean),
        ("ties", Merge::Ties { density: 0.2 }),
        ("dare", Merge::Dare { drop: 0.9 }),
        ("null-space", Merge::Sum),
    ] {
        job.replace(
            "job.toml",
            &format!("method = \"{before}\""),
            &format!("method = \"{method}\""),
        );
        before = method;
        let report = job.run("store");
        let record = record(&report);
        assert_eq!((record.method.as_str(), record.merge), (method, merge));
        assert!(
            record
                .concepts
                .iter()
                .all(|concept| concept.target.is_some() == (method == "null-space")),
            "{method}"
        );
        let verified = Command::new(binary("lethe"))
            .args(["verify", "--recompute", release(&report).to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(verified.status.code(), Some(0), "{method}: {}", stderr(&verified));
        digests.insert(method, record.digest);
    }
    // With one edit per layer, a mean equals a sum; no other rule does.
    digests.remove("mean");
    assert_eq!(
        digests.values().map(ToString::to_string).collect::<BTreeSet<_>>().len(),
        digests.len()
    );
}

/// Returns the report of the job's only run.
fn last(job: &SmallJob) -> Value {
    job.run("store")
}

/// Runs a job and checks the properties of every release.
fn released(job: SmallJob) -> (SmallJob, Composition) {
    let report = job.run("store");
    let (folder, record) = (release(&report), record(&report));

    assert_eq!(
        (report["status"].as_str(), report["summary"]["concepts"].as_u64()),
        (Some("complete"), Some(3))
    );
    let base = Checkpoint::open(&base_model()).unwrap();
    let released = Checkpoint::open(&folder).unwrap();
    assert_eq!(record.base.digest, base.digest().unwrap());
    assert_eq!(record.digest, released.digest().unwrap());
    assert_eq!(report["digest"].as_str().unwrap(), record.digest.to_string());

    // Exactly the edited layers differ.
    let edited: Vec<&str> = record.concepts.iter().map(|concept| concept.layer.as_str()).collect();
    for name in base.tensors().keys() {
        let same = base.bytes(name).unwrap() == released.bytes(name).unwrap();
        assert_eq!(same, !edited.contains(&name.as_str()), "{name}");
    }

    assert_eq!(
        record.concepts.iter().map(|concept| concept.id.as_str()).collect::<Vec<_>>(),
        CONCEPTS
    );
    for concept in &record.concepts {
        assert_eq!((concept.alone.unwrap().fa5, concept.strength), (0.0, 1.0), "{}", concept.id);
        assert!(concept.before.fa5 > 0.0, "{}: the demo model knows it", concept.id);
        assert_eq!(concept.alone.unwrap().held_out.unwrap().n, 1);
    }
    let utility = record.utility.test.as_ref().unwrap();
    assert_eq!(
        record.utility.retained_classes.unwrap() as usize,
        std::fs::read_to_string(job.path("classes.txt")).unwrap().lines().count() - 3
    );
    assert!(utility.before.ta1 > 0.3 && utility.before.ta5 >= utility.before.ta1);
    let (covered, never_seen, removed) =
        (utility.covered.unwrap(), utility.never_seen.unwrap(), utility.removed.unwrap());
    assert_eq!(
        (covered.images + never_seen.images, covered.classes + never_seen.classes),
        (utility.images, record.utility.retained_classes.unwrap())
    );
    assert_eq!((removed.images, removed.classes), (3, 3));
    assert!(removed.before.ta5 > removed.after.ta5, "{removed:?}");
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(
            ["covered", "never seen", "removed"].iter().all(|group| text.contains(group))
                && text.contains("that none names"),
            "{page}"
        );
    }

    for (name, artifact) in &record.files {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert_eq!(
            (artifact.digest, artifact.bytes),
            (Digest::of(&bytes), bytes.len() as u64),
            "{name}"
        );
    }
    for name in [
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "edits.safetensors",
        "README.md",
        "report.html",
    ] {
        assert!(record.files.contains_key(name), "{name}");
    }
    assert_eq!(
        std::fs::read(folder.join("config.json")).unwrap(),
        std::fs::read(base_model().join("config.json")).unwrap()
    );

    // A repeated run computes nothing and returns the same release.
    let again = job.run("store");
    assert_eq!(
        (again["summary"]["jobs_done"].as_u64(), &again["release"]),
        (Some(0), &report["release"])
    );
    (job, record)
}

#[test]
fn retain_texts_widen_coverage_and_belong_to_the_run() {
    let job = SmallJob::new();
    let plan = || last_line(&job.command("plan", &[]).output().unwrap());
    let before = plan();
    let retained = before["classes"].as_u64().unwrap() - 3;
    assert_eq!(
        before["covered_classes"].as_u64().unwrap()
            + before["never_seen_classes"].as_u64().unwrap(),
        retained
    );
    assert_eq!((&before["retain_texts"], &before["retain_text_slices"]), (&0.into(), &0.into()));

    job.replace("job.toml", "validation = [", "retain_texts = [\"texts-*.txt\"]\nvalidation = [");
    let classes = std::fs::read_to_string(job.path("classes.txt")).unwrap();
    let all: Vec<String> = classes
        .lines()
        .filter(|name| !name.contains("rocket"))
        .map(|name| format!("so: {}!", name.to_uppercase()))
        .collect();
    job.write("texts-2.txt", b"a Rocket, and nothing else\n");
    job.write("texts-1.txt", all.join("\n\n").repeat(100).as_bytes());
    let widened = plan();
    assert_eq!(
        (&widened["covered_classes"], &widened["never_seen_classes"]),
        (&retained.into(), &0.into())
    );
    assert_eq!(
        widened["retain_text_slices"].as_u64().unwrap(),
        widened["retain_texts"].as_u64().unwrap().div_ceil(4096) + 1
    );
    let warnings = widened["warnings"].to_string();
    assert!(
        warnings.contains("concepts to remove are named in")
            && warnings.contains("`rocket` in 1 retain text;"),
        "{warnings}"
    );
    assert_ne!(widened["run"], before["run"]);
    assert_eq!(plan()["run"], widened["run"]);
}

#[test]
fn unlabelled_images_are_what_vision_edits_look_at_too() {
    let job = SmallJob::new().lenient();
    let bytes = cut(&demo().join("retain-00002.tar"), 40, |_| true);
    let mut images = Vec::new();
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if !name.ends_with(".txt") {
            images.push((name, bytes));
        }
    }
    job.write("images-0.tar", &shard_of(images));
    job.replace("job.toml", "validation = [", "retain_images = [\"images-*.tar\"]\nvalidation = [");
    let refused = job.command("plan", &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = stderr(&refused);
    assert!(
        said.contains("data.retain_images: protects nothing here")
            && said.contains("composition.towers"),
        "{said}"
    );

    job.replace(
        "job.toml",
        "[execution]",
        "[composition]\nmethod = \"preconditioned\"\ntowers = \"vision\"\nrounds = 0\n\n[execution]",
    );
    let plan = || last_line(&job.command("plan", &[]).output().unwrap());
    let planned = plan();
    assert_eq!(planned["retain_images"], 40);
    let with = record(&job.run("store"));
    let files = &with.origin.as_ref().unwrap().retain_images;
    assert_eq!((files.len(), files[0].items), (1, 40));
    job.replace("job.toml", "retain_images = [\"images-*.tar\"]\n", "");
    assert_eq!(planned["jobs"].as_u64().unwrap(), plan()["jobs"].as_u64().unwrap() + 1);
    let without = record(&job.run("store"));
    assert_ne!(with.digest, without.digest);
    let efficiency = |record: &Composition| {
        record.concepts[0].ranking.iter().filter_map(|layer| layer.efficiency).sum::<f64>()
    };
    assert!(efficiency(&with) > 0.0 && efficiency(&with) != efficiency(&without));
}

/// Duplicate data, by a pattern and by name, as a copy, and in a corpus: the run ends, and warns of
/// the duplicates.
#[test]
fn repeated_data_is_named_and_no_run_waits_for_it() {
    let job = SmallJob::new();
    std::fs::copy(job.path("retain-1.tar"), job.path("copy.tar")).unwrap();
    job.write("corpus.txt", b"a red apple on a table\na green pear\n");
    job.replace(
        "job.toml",
        "retain = [\"retain-*.tar\"]",
        "retain = [\"retain-*.tar\", \"retain-0.tar\", \"copy.tar\"]\nretain_texts = [\"corpus.txt\", \"corpus.txt\"]",
    );
    let output = job.output("store");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stderr(&output);
    for named in [
        "retain-0.tar (2 times)",
        "copy.tar",
        "data.retain_texts holds the same data more than once",
    ] {
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[test]
fn held_out_sets_are_optional() {
    let job = SmallJob::new();
    job.replace("job.toml", "validation = [\"validation.tar\"]\ntest = [\"test.tar\"]\n", "");
    let report = job.run("store");
    let record = record(&report);
    assert_eq!((record.utility.validation, record.utility.test), (None, None));
    assert!(record.concepts.iter().all(|concept| concept.alone.unwrap().fa5 == 0.0
        && concept.alone.unwrap().utility.is_none()
        && concept.alone.unwrap().held_out.is_none()));
    assert_eq!(report["summary"]["utility_drop_alone"], Value::Null);
}

#[test]
fn strength_zero_leaves_the_model_as_it_was() {
    let job = SmallJob::new();
    for id in CONCEPTS {
        job.replace("concepts.csv", &format!("{id}.tar,1,"), &format!("{id}.tar,0,"));
    }
    let report = job.run("store");
    assert_eq!(record(&report).digest, record(&report).base.digest);
    assert_eq!(record(&report).utility.test.unwrap().worst, []);
}

#[test]
fn a_changed_manifest_computes_only_the_difference() {
    let job = SmallJob::summed();
    job.run("store");
    job.replace("concepts.csv", "rocket.tar,1,", "rocket.tar,0.5,");
    let report = job.run("store");
    // Three evaluations of the new composition; gradients, searches and the base evaluation are
    // reused.
    assert_eq!(report["summary"]["jobs_done"].as_u64(), Some(3));
}

#[test]
fn products_may_be_rounded_and_the_release_says_so() {
    let job = SmallJob::new();
    let report = job.run("store");
    assert_eq!(record(&report).origin.unwrap().precision, Precision::Float32);
    assert!(
        !std::fs::read_to_string(release(&report).join("README.md"))
            .unwrap()
            .contains("computed in")
    );

    job.replace(
        "job.toml",
        "search_evaluations = 6",
        "search_evaluations = 6\nprecision = \"bfloat16\"",
    );
    let rounded = job.run("store");
    let (record, exact) = (record(&rounded), record(&report));
    assert_eq!(record.origin.as_ref().unwrap().precision, Precision::Bfloat16);
    assert!(
        std::fs::read_to_string(release(&rounded).join("README.md"))
            .unwrap()
            .contains("| computed in | bfloat16 |")
    );
    assert_eq!(
        rounded["summary"]["jobs_found"].as_u64(),
        Some(0),
        "no job is what it is in float32"
    );
    let mut differ = 0;
    for (ours, theirs) in record.concepts.iter().zip(&exact.concepts) {
        assert_eq!(ours.composed.unwrap().fa5, 0.0, "{}", ours.id);
        let importance = |concept: &ConceptRecord| {
            concept.ranking.iter().map(|layer| layer.importance).sum::<f64>()
        };
        let off = (importance(ours) / importance(theirs) - 1.0).abs();
        assert!(off < 0.05, "{}: importances differ by {off}", ours.id);
        differ += usize::from(off > 0.0);
    }
    assert_eq!(differ, record.concepts.len(), "nothing was rounded");
}

/// Returns the content of every file of a release.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn the_same_bytes_with_one_worker_with_two_and_after_being_killed() {
    let job = SmallJob::new();
    job.manifest("workers = 1");
    let one = job.run("one");
    job.manifest("workers = 2");
    let two = job.run("two");
    assert_eq!(one["digest"], two["digest"]);
    assert_eq!(contents(&release(&one)), contents(&release(&two)));

    // Killed repeatedly, each time a little later, until the run ends.
    let store = job.path("killed");
    let mut kills = 0;
    let report = loop {
        let target = outcomes(&store) + 2;
        let mut child = job
            .command("run", &["--store", store.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LONGEST_WAIT;
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if outcomes(&store) >= target && kills < 3 {
                break None;
            }
            assert!(Instant::now() < deadline, "the run makes no progress");
            std::thread::sleep(Duration::from_millis(5));
        };
        if ended.is_none() {
            // SIGKILL.
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            continue;
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        break last_line(&output);
    };
    assert_eq!(kills, 3);
    assert!(report["summary"]["jobs_found"].as_u64().unwrap() >= 6);
    assert_eq!(contents(&release(&report)), contents(&release(&one)));
}

#[test]
fn an_interrupt_stops_cleanly_and_the_same_command_goes_on() {
    let job = SmallJob::new();
    let store = job.path("store");
    let child = job
        .command("run", &["--store", store.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + LONGEST_WAIT;
    while outcomes(&store) == 0 {
        assert!(Instant::now() < deadline, "no job is done");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("the same command resumes from there"));
    assert!(!store.join("releases").is_dir());
    assert!(job.run("store")["summary"]["jobs_found"].as_u64().unwrap() > 0);
}

#[test]
fn an_interrupt_ends_the_wait_for_a_server() {
    let job = SmallJob::new();
    let nobody = format!("nats://127.0.0.1:{}", free_port());
    let store = job.path("store");
    let mut command = job.command("run", &["--nats", &nobody, "--store", store.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut lines = said.lines().map(|line| line.unwrap());
    assert!(
        lines.any(|line| line.contains("cannot connect; retrying after a pause")),
        "it does not wait"
    );
    assert!(
        Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success()
    );
    let asked = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if asked.elapsed() > LONGEST_WAIT => {
                child.kill().unwrap();
                panic!("it goes on waiting: {:?}", lines.last());
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let last = lines.last().unwrap();
    assert_eq!(status.code(), Some(130), "{last}");
    assert!(last.contains("cancelled"), "{last}");
}

#[test]
fn plan_says_what_run_will_do() {
    let job = SmallJob::new();
    let output = job.command("plan", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let plan = last_line(&output);
    assert!(!job.path("store").try_exists().unwrap(), "a plan writes nothing");
    let report = job.run("store");
    assert_eq!(plan["run"], report["run"]);
    // The number of coefficient rounds is known only during the run.
    let (least, most) = (plan["jobs"].as_u64().unwrap(), plan["dose_jobs"].as_u64().unwrap());
    let done = report["summary"]["jobs_done"].as_u64().unwrap();
    assert!(
        (least..=least + most).contains(&done),
        "{done} jobs, {least} to {} planned",
        least + most
    );
    assert_eq!(plan["retain_batches"].as_u64(), Some(3 + 2));
}

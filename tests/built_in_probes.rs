//! The probes that workers perform: in a run and afterwards, on releases whose numbers are known
//! beforehand.

use lethe_shared::record::{Composition, ProbeRecord};
use lethe_tests::releases::{folder, lethe, record, succeed};
use lethe_tests::{CONCEPTS, SmallJob, stderr};

/// A release, with the store of its job.
struct Released {
    job: SmallJob,
    release: String,
}

impl Released {
    /// Runs the small job with more lines in its manifest.
    fn with(lines: &str) -> Self {
        let job = SmallJob::new().lenient();
        job.replace("job.toml", "[execution]", &format!("{lines}\n[execution]"));
        let said = job.run("store");
        let release = said["release"].as_str().unwrap().to_owned();
        Self { job, release }
    }

    fn store(&self) -> String {
        self.job.path("store").to_str().unwrap().to_owned()
    }

    /// Measures a release of the store with some probes.
    fn probed(&self, release: &str, probes: &[&str]) -> Vec<ProbeRecord> {
        let store = self.store();
        let mut arguments = vec!["evaluate", release, "--store", &store];
        arguments.extend(probes.iter().flat_map(|probe| ["--probe", probe]));
        let said = succeed(&arguments);
        serde_json::from_value(said["probes"].clone()).unwrap()
    }
}

fn number(results: &[ProbeRecord], probe: &str, name: &str) -> f64 {
    let result = results.iter().find(|result| result.name == probe).unwrap();
    *result.numbers.get(name).unwrap_or_else(|| panic!("{probe} has no {name}: {result:?}"))
}

fn mean(record: &Composition, of: impl Fn(&lethe_shared::record::Measured) -> f64) -> f64 {
    let measured: Vec<f64> =
        record.concepts.iter().filter_map(|concept| concept.composed.as_ref()).map(of).collect();
    measured.iter().sum::<f64>() / measured.len() as f64
}

#[test]
fn a_run_and_a_later_evaluation_measure_the_same() {
    let asked = Released::with(
        "[evaluation]\nprobes = [\"relearn\", \"words\", \"features\", \"rounded\", \"halfway\", \"random\"]\n\n\
         [gates.probe.\"rounded.float16.fa5\"]\nmax = 0.5\n",
    );
    let later = Released::with("");
    let own = record(&serde_json::json!({ "release": asked.release }));
    let names: Vec<&str> = own.probes.iter().map(|probe| probe.name.as_str()).collect();
    assert_eq!(names, ["features", "halfway", "random", "relearn", "rounded", "words"]);
    must_come(&own, &own.probes);
    // Fine-tuning takes most of the time, and is like the others in this.
    let found =
        later.probed(&later.release, &["words", "rounded", "halfway", "random", "features"]);
    let others = own.probes.iter().filter(|probe| probe.name != "relearn");
    assert_eq!(found, others.cloned().collect::<Vec<_>>());

    // A result stays; what the run measured is not measured again.
    assert_eq!(later.probed(&later.release, &["words"]), found);
    assert_eq!(asked.probed(&asked.release, &["halfway"]), own.probes);

    // The pages answer with them.
    let page = folder(&serde_json::json!({ "release": asked.release })).join("report.html");
    let page = std::fs::read_to_string(page).unwrap();
    for says in [
        "Is it gone?",
        "After fine-tuning on one pair",
        "Rounded, FA@5 is",
        "Of other ways to write",
    ] {
        assert!(page.contains(says), "{says}");
    }
    assert!(!page.contains("RELEASE --probe relearn"), "nothing is said to be unmeasured");
}

/// Numbers that follow from others, on a removal in full.
fn must_come(whole: &Composition, removed: &[ProbeRecord]) {
    let known = mean(whole, |measured| measured.fa5);
    let before = before(whole);
    // The tokenizer knows no capitals, and float16 holds these weights.
    let capitals = number(removed, "words", "capitals.fa5");
    assert!((capitals - known).abs() < 1e-9, "{capitals}, {known}");
    assert!((number(removed, "words", "capitals.before.fa5") - before).abs() < 1e-9);
    assert!(number(removed, "rounded", "float16.fa5") <= known + 0.05);
    // Half of a removal hides less than all of it, and what was learned comes back.
    assert!(number(removed, "halfway", "fa5") >= known);
    let learned = number(removed, "relearn", "5-pairs.fa5");
    assert!(learned >= number(removed, "relearn", "retained.fa5"), "{removed:?}");
    assert!(learned > known, "{removed:?}");
    // An edit of the text tower leaves images as they are, and so a classifier fitted to them.
    assert_eq!(number(removed, "features", "similarity.images"), 1.0);
    for group in ["removed-ta1", "removed-ta5", "retained-ta1"] {
        let now = number(removed, "features", &format!("class-means.{group}"));
        assert_eq!(now, number(removed, "features", &format!("class-means.before.{group}")));
        assert!(now > 0.2, "{group}: {now}");
    }
    let texts = number(removed, "features", "similarity.texts");
    assert!((0.3..0.9999).contains(&texts), "{texts}");
}

/// FA@5 of the base model.
fn before(record: &Composition) -> f64 {
    record.concepts.iter().map(|concept| concept.before.fa5).sum::<f64>() / CONCEPTS.len() as f64
}

/// On a removal that is hardly there, everything is as it was.
#[test]
fn a_faint_removal_removes_nothing() {
    let made = Released::with("");
    let before = before(&record(&serde_json::json!({ "release": made.release })));
    let store = made.store();
    let mut compose = vec!["compose", made.release.as_str(), "--store", &store];
    let faint: Vec<String> = CONCEPTS.iter().map(|id| format!("--strength={id}=0.001")).collect();
    compose.extend(faint.iter().map(String::as_str));
    let said = succeed(&compose);
    let untouched = made.probed(said["release"].as_str().unwrap(), &["words", "halfway", "random"]);
    for (probe, name) in [("words", "capitals.fa5"), ("halfway", "fa5"), ("random", "fa5")] {
        let fa5 = number(&untouched, probe, name);
        assert!((fa5 - before).abs() < 0.05, "{probe} {name}: {fa5}, {before} before");
    }
    assert!(number(&untouched, "random", "covered-kept") > 0.9);
    assert_eq!(number(&untouched, "halfway", "forgotten"), 0.0);
}

#[test]
fn wrong_names_of_probes_are_refused() {
    let job = SmallJob::new();
    let refused = |arguments: &[&str], says: &str| {
        let output = lethe(&[&["evaluate"], arguments].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}\n  does not say: {says}");
    };
    refused(&["none:1", "--probe", "words", "--probe", "words"], "two probes have the name words");
    refused(&["none:1", "--probe", "word"], "word: cannot be read");
    job.write("own.toml", b"[probe]\nname = \"random\"\ncommand = [\"true\"]\n");
    let own = job.path("own.toml");
    refused(&["none:1", "--probe", own.to_str().unwrap()], "`random`, which is a built-in probe");
    for (probes, says) in [
        ("[\"word\"]", "unknown variant `word`"),
        ("[\"words\", \"random\", \"words\"]", "evaluation.probes names `words` more than once"),
    ] {
        let job = SmallJob::new();
        job.replace(
            "job.toml",
            "[execution]",
            &format!("[evaluation]\nprobes = {probes}\n\n[execution]"),
        );
        let output = job.output("store");
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}

//! The probes that workers perform: in a run and afterwards, on releases whose numbers are known
//! beforehand.

use lethe_shared::record::{Composition, ProbeRecord};
use lethe_tests::releases::{folder, lethe, record, succeed};
use lethe_tests::{CONCEPTS, SmallJob, base_model, stderr};

/// A release, with the store of its job.
struct Released {
    job: SmallJob,
    release: String,
}

impl Released {
    /// Runs the small job with more lines in its manifest.
    fn with(lines: &str) -> Self {
        Self::of(SmallJob::new(), lines)
    }

    fn of(job: SmallJob, lines: &str) -> Self {
        let job = job.lenient();
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
        "[evaluation]\nprobes = [\"relearn\", \"words\", \"features\", \"rounded\", \"halfway\", \"random\", \"forgetting\", \
         \"soft-prompt\"]\n\n[gates.probe.\"rounded.float16.fa5\"]\nmax = 0.5\n\n\
         [gates.probe.\"forgetting.fa5.high\"]\nmax = 0.9\n",
    );
    let later = Released::with("");
    let own = record(&serde_json::json!({ "release": asked.release }));
    let names: Vec<&str> = own.probes.iter().map(|probe| probe.name.as_str()).collect();
    let expected = [
        "features",
        "forgetting",
        "halfway",
        "random",
        "relearn",
        "rounded",
        "soft-prompt",
        "words",
    ];
    assert_eq!(names, expected);
    must_come(&own, &own.probes);
    // Fine-tuning takes most of the time, and is like the others in this.
    let quick: Vec<&str> = names.iter().copied().filter(|name| *name != "relearn").collect();
    let found = later.probed(&later.release, &quick);
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
        "in int8-tensor",
        "interval",
        "With four learned tokens",
    ] {
        assert!(page.contains(says), "{says}");
    }
    assert!(!page.contains("lethe evaluate RELEASE --probe"), "nothing is said to be unmeasured");
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
    // One value a concept, as the record has them.
    let forgetting = |name: &str| number(removed, "forgetting", name);
    let each = whole.concepts.iter().filter_map(|concept| Some(concept.composed?.fa5));
    assert!((forgetting("fa5.mean") - known).abs() < 1e-9);
    assert!((forgetting("fa5.before.mean") - before).abs() < 1e-9);
    assert_eq!(forgetting("fa5.worst"), each.fold(0.0, f64::max));
    assert_eq!(forgetting("fa5.concepts"), CONCEPTS.len() as f64);
    for measure in ["fa1", "fa5", "unseen-ta1", "unseen-ta5"] {
        let of = |what: &str| forgetting(&format!("{measure}.{what}"));
        assert!(of("low") <= of("mean") && of("mean") <= of("high"), "{removed:?}");
        assert!(of("high") <= of("worst") && of("p95") <= of("worst"), "{removed:?}");
    }
    let unseen = whole.utility.test.as_ref().and_then(|on| on.removed).unwrap();
    assert!((forgetting("unseen-ta5.mean") - unseen.after.ta5).abs() < 0.1, "{unseen:?}");
    // Learned tokens find what a name no longer finds, as images are what they were.
    let prompted = number(removed, "soft-prompt", "unseen-ta5");
    assert!(prompted > unseen.after.ta5, "{prompted}, {unseen:?}");
    assert!(number(removed, "soft-prompt", "before.fa5") >= before - 0.05);
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

/// A model in which nothing was removed has the numbers of the base model, and random weights have no
/// concept to be found.
#[test]
fn untouched_and_random_models_have_the_numbers_that_must_come() {
    let job = SmallJob::new();
    let probed = |model: &std::path::Path| -> Vec<ProbeRecord> {
        let (model, manifest) = (model.to_str().unwrap(), job.path("job.toml"));
        let mut arguments = vec!["evaluate", "--model", model, manifest.to_str().unwrap()];
        let store = job.path("store");
        arguments.extend(["--store", store.to_str().unwrap()]);
        for probe in ["forgetting", "soft-prompt", "words"] {
            arguments.extend(["--probe", probe]);
        }
        serde_json::from_value(succeed(&arguments)["probes"].clone()).unwrap()
    };
    let untouched = probed(&base_model());
    let mut compared = 0;
    for result in &untouched {
        for (name, before) in result.numbers.iter().filter(|(name, _)| name.contains("before.")) {
            let now = number(&untouched, &result.name, &name.replace("before.", ""));
            assert_eq!(now, *before, "{} {name}", result.name);
            compared += 1;
        }
    }
    assert!(compared >= 20, "{untouched:?}");
    assert!(number(&untouched, "forgetting", "fa5.low") > 0.5, "{untouched:?}");
    assert!(number(&untouched, "soft-prompt", "fa5") > 0.9, "{untouched:?}");

    let random = probed(&job.noise());
    assert!(number(&random, "forgetting", "fa5.before.mean") > 0.5, "{random:?}");
    assert!(number(&random, "forgetting", "fa1.high") < 0.5, "{random:?}");
    assert_eq!(number(&random, "words", "capitals.fa1"), 0.0);
    // Images differ by random weights as well, and a prompt is fitted to them: what it finds is no
    // proof that a concept was there.
    let prompted = number(&random, "soft-prompt", "fa5");
    assert!(prompted > number(&random, "forgetting", "fa5.high"), "{random:?}");
}

/// An alias in capitals has the tokens of the name, and finds what the name finds.
#[test]
fn aliases_are_tried_and_the_jobs_of_probes_are_counted() {
    let plain = Released::with("");
    let job = SmallJob::new();
    job.replace("concepts.csv", "strength,group", "strength,group,aliases");
    job.replace("concepts.csv", "pizza.tar,1,test", "pizza.tar,1,test,zzzz | PIZZA");
    job.replace("concepts.csv", "red-heart.tar,1,test", "red-heart.tar,1,test,");
    job.replace("concepts.csv", "rocket.tar,1,test", "rocket.tar,1,test,ROCKET");
    let probed =
        Released::of(job, "[evaluation]\nprobes = [\"words\", \"halfway\", \"soft-prompt\"]\n");
    let record = record(&serde_json::json!({ "release": probed.release }));
    let words = record.probe("words").unwrap();
    assert_eq!(words.numbers["aliases.names"], 3.0);
    for (when, measured) in [("", 1), ("before.", 0)] {
        let fa5 = |id: &str| {
            let concept = record.concepts.iter().find(|concept| concept.id == id).unwrap();
            [concept.before, concept.composed.unwrap()][measured].fa5
        };
        let found = words.numbers[&format!("aliases.{when}fa5")];
        let least = (fa5("pizza") + fa5("rocket")) / 2.0;
        assert!(found >= least - 1e-9, "{found}, {least}");
        if when == "before." {
            // The base model tells nothing by `zzzz`: of two aliases, the one that finds more counts.
            assert!(least > 0.5 && found <= least + 1e-9, "{found}, {least}");
        }
    }

    // The plan says how many jobs the probes add.
    let run = |of: &Released| {
        let said = of.job.run("again");
        said["summary"]["jobs_done"].as_u64().unwrap()
    };
    let planned = stdout_of(&probed.job, "plan");
    assert_eq!(planned["probe_jobs"].as_u64(), Some(run(&probed) - run(&plain)), "{planned}");
    assert_eq!(stdout_of(&plain.job, "plan")["probe_jobs"], 0);
}

/// The last line of what a command prints about a job.
fn stdout_of(job: &SmallJob, command: &str) -> serde_json::Value {
    let output = job.command(command, &[]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
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

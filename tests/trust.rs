//! Claims of a release: values that are not finite, concepts that are still recognised, concepts
//! that the base did not know, and releases with too little utility are detected, reported and kept
//! from `latest`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::edit;
use lethe_shared::record::Composition;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_tests::{CONCEPTS, SmallJob, base_model, binary, last_line, releases, stderr};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn lethe(job: &SmallJob, arguments: &[&str]) -> Output {
    let mut lethe = Command::new(binary("lethe"));
    lethe
        .env_remove("LETHE_LOG")
        .env("LETHE_CACHE", job.path("cache"))
        .current_dir(job.path(""))
        .args(arguments);
    lethe.output().unwrap()
}

/// Runs `lethe … --json`, which must end with this exit code, and returns its last line and its
/// stderr.
fn ends(job: &SmallJob, arguments: &[&str], code: i32) -> (Value, String) {
    let output = lethe(job, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    (last_line(&output), stderr(&output))
}

fn folder(said: &Value) -> PathBuf {
    PathBuf::from(said["release"].as_str().unwrap())
}

fn record(folder: &Path) -> Composition {
    serde_json::from_slice(&std::fs::read(folder.join("composition.json")).unwrap()).unwrap()
}

/// Adds lines before `[execution]`.
fn with(job: &SmallJob, lines: &str) {
    job.replace("job.toml", "[execution]", &format!("{lines}\n\n[execution]"));
}

/// Returns the ids of the concepts with this status in a list of concepts that are not removed.
fn of_status(listed: &Value, status: &str) -> Vec<String> {
    let those = listed.as_array().unwrap().iter().filter(|concept| concept["status"] == status);
    those.map(|concept| concept["id"].as_str().unwrap().to_owned()).collect()
}

/// Returns the channels that point to the only release of a store.
fn channels(job: &SmallJob) -> Value {
    ends(job, &["release", "list", "--store", "store"], 0).0["releases"][0]["channels"].clone()
}

/// Returns the statements of a release about its concepts: id, type, status.
fn statements(folder: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(folder.join("receipts.jsonl")).unwrap();
    let of = |line: &str| {
        let statement: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let predicate = &statement["predicate"];
        (
            text(&predicate["concept"]["id"]),
            text(&statement["predicateType"]),
            text(&predicate["status"]),
        )
    };
    text.lines().map(of).collect()
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Converts the demo's model to float16, in the job's folder.
fn half_precision(job: &SmallJob) {
    copy(&base_model(), &job.path("model"));
    let checkpoint = Checkpoint::open(&base_model()).unwrap();
    let stored: Vec<(&String, &Vec<usize>, Dtype, Vec<u8>)> = checkpoint
        .tensors()
        .iter()
        .map(|(name, info)| {
            let bytes = checkpoint.bytes(name).unwrap();
            match info.dtype {
                Dtype::F32 => {
                    let values = edit::widen(name, &bytes, Dtype::F32).unwrap();
                    (
                        name,
                        &info.shape,
                        Dtype::F16,
                        edit::narrow(name, &values, Dtype::F16).unwrap(),
                    )
                }
                other => (name, &info.shape, other, bytes.to_vec()),
            }
        })
        .collect();
    let views = stored.iter().map(|(name, shape, dtype, bytes)| {
        (name.as_str(), TensorView::new(*dtype, (*shape).clone(), bytes).unwrap())
    });
    std::fs::write(
        job.path("model/model.safetensors"),
        safetensors::serialize(views, None).unwrap(),
    )
    .unwrap();
    job.replace("job.toml", &format!("uri = \"{}\"", base_model().display()), "uri = \"model\"");
}

#[test]
fn an_edit_that_overflows_float16_is_refused_and_nothing_is_released() {
    let job = SmallJob::summed();
    half_precision(&job);
    let released = folder(&job.run("store"));
    let mut forged = record(&released);
    let pizza = forged.concepts.iter_mut().find(|concept| concept.id == "pizza").unwrap();
    let layer = pizza.layer.clone();
    pizza.step *= 1e8;
    copy(&released, &job.path("copy"));
    job.write("copy/composition.json", &serde_json::to_vec(&forged).unwrap());
    let output = lethe(&job, &["compose", "copy", "--store", "other"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for expected in [
        &format!("layer `{layer}`"),
        "not finite in F16",
        "the largest magnitude is",
        "lower the strength",
        "composition.tolerance",
    ] {
        assert!(said.contains(expected), "{said}\n  does not say: {expected}");
    }
    assert_eq!(releases(&job.path("other")), 0);
    // Without that concept, the others are composed as before.
    assert_eq!(
        lethe(&job, &["compose", "copy", "--store", "other", "--remove", "pizza"]).status.code(),
        Some(0)
    );
}

#[test]
fn concepts_that_still_show_are_named_everywhere_and_count_as_not_removed() {
    let job = SmallJob::new();
    // A hundredth of each edit hardly forgets anything.
    with(&job, "[composition]\nmethod = \"ties\"\ndensity = 0.01\n\n[gates]\nutility_kept = 0.0");
    let (said, text) = ends(&job, &["run", "job.toml", "--store", "store"], 3);
    let showing = of_status(&said["summary"]["not_removed"], "showing");
    assert!(!showing.is_empty(), "{said}");
    assert!(
        text.contains("are still recognised by the composed model")
            && text.contains("policy.required"),
        "{text}"
    );
    assert_eq!(said["status"], "incomplete");
    assert_eq!(said["summary"]["missing"], json!([]));
    assert_eq!(
        said["summary"]["forgotten_composed"].as_u64().unwrap() as usize,
        CONCEPTS.len() - showing.len()
    );
    assert_eq!(channels(&job), json!([]));

    // Record, statements, card and report.
    let release = folder(&said);
    let record = record(&release);
    for concept in &record.concepts {
        let verdict = concept.verdict.as_ref().unwrap();
        let shows = showing.contains(&concept.id);
        assert_eq!(
            verdict.status,
            if shows { ConceptStatus::Showing } else { ConceptStatus::Removed },
            "{}",
            concept.id
        );
        assert_eq!(concept.composed.unwrap().fa5 > 0.0, shows, "{}", concept.id);
        assert!(
            concept.criterion.unwrap().tolerance == 0.0 && verdict.reason.contains("FA@5"),
            "{verdict:?}"
        );
    }
    for (id, kind, status) in statements(&release) {
        let shows = showing.contains(&id);
        let expected = if shows {
            ("urn:lethe:not-removed:v1", "showing")
        } else {
            ("urn:lethe:removal-receipt:v1", "removed")
        };
        assert_eq!((kind.as_str(), status.as_str()), expected, "{id}");
    }
    let receipt = lethe(&job, &["release", "receipt", "small:1", &showing[0], "--store", "store"]);
    assert!(String::from_utf8_lossy(&receipt.stdout).contains("urn:lethe:not-removed:v1"));
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(release.join(page)).unwrap();
        assert!(
            text.contains("still recognised")
                && text.contains("in the composed model, and may be 0.0"),
            "{page}"
        );
    }
    assert_eq!(lethe(&job, &["verify", release.to_str().unwrap()]).status.code(), Some(0));
    let table = lethe(&job, &["run", "job.toml", "--store", "store"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains(&format!("still recognised          {}: FA@5 is", showing[0])),
        "{table}"
    );

    // If the policy requires nothing, the run is complete; a gate may still require it.
    with(&job, "[policy]\nrequired = []");
    assert_eq!(ends(&job, &["run", "job.toml", "--store", "store"], 0).0["status"], "complete");
    job.write("gates.toml", b"[gates]\nshowing = 0\n");
    let (said, _) =
        ends(&job, &["run", "job.toml", "--store", "store", "--gates", "gates.toml"], 4);
    assert!(
        said["missed"][0].as_str().unwrap().starts_with(&format!("showing is {}", showing.len())),
        "{said}"
    );
}

#[test]
fn a_tolerance_that_was_asked_for_decides() {
    let job = SmallJob::new();
    with(
        &job,
        "[composition]\nmethod = \"ties\"\ndensity = 0.01\ntolerance = 0.99\n\n[gates]\nutility_kept = 0.0",
    );
    let said = ends(&job, &["run", "job.toml", "--store", "store"], 3).0;
    let record = record(&folder(&said));
    for concept in &record.concepts {
        let expected = match concept.composed.unwrap().fa5 {
            found if found > 0.99 => ConceptStatus::Showing,
            _ if concept.before.fa5 > 0.99 => ConceptStatus::Removed,
            _ => ConceptStatus::UnknownBefore,
        };
        assert_eq!(
            (concept.criterion.unwrap().tolerance, record.verdict(concept).status),
            (0.99, expected),
            "{}",
            concept.id
        );
    }
}

#[test]
fn a_concept_that_the_model_never_knew_is_named_and_gets_no_receipt() {
    let job = SmallJob::new();
    // Images of another concept.
    std::fs::copy(job.path("red-heart.tar"), job.path("rocket.tar")).unwrap();
    let said = job.run("store");
    assert_eq!(of_status(&said["summary"]["not_removed"], "unknown-before"), ["rocket"], "{said}");
    let numbers = ["concepts", "edited", "forgotten_alone", "forgotten_composed"]
        .map(|field| said["summary"][field].as_u64().unwrap());
    assert_eq!(numbers, [3, 3, 2, 2]);
    let release = folder(&said);
    let rocket =
        record(&release).concepts.into_iter().find(|concept| concept.id == "rocket").unwrap();
    assert_eq!(
        (rocket.before.fa5, rocket.verdict.unwrap().status),
        (0.0, ConceptStatus::UnknownBefore)
    );
    let ids =
        |release: &Path| statements(release).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(ids(&release), ["pizza", "red-heart"]);
    let refused = lethe(&job, &["release", "receipt", "small:1", "rocket", "--store", "store"]);
    assert_eq!(refused.status.code(), Some(2));
    let text = stderr(&refused);
    assert!(
        text.contains("no receipt of `rocket`")
            && text.contains("unknown before")
            && text.contains("receipts_for_unknown"),
        "{text}"
    );
    for page in ["README.md", "report.html"] {
        assert!(
            std::fs::read_to_string(release.join(page)).unwrap().contains("unknown before"),
            "{page}"
        );
    }

    // Receipts of unknown concepts are optional, and state what they are worth.
    with(&job, "[policy]\nreceipts_for_unknown = true");
    let said = job.run("store");
    let release = folder(&said);
    assert_eq!(ids(&release), CONCEPTS);
    assert_eq!(statements(&release)[2].2, "unknown-before");
    assert_eq!(
        of_status(&said["summary"]["not_removed"], "unknown-before"),
        ["rocket"],
        "it is no removal for that"
    );
}

#[test]
fn strengths_below_one_claim_nothing() {
    let job = SmallJob::new();
    job.replace("concepts.csv", "pizza.tar,1,", "pizza.tar,0,");
    job.replace("concepts.csv", "rocket.tar,1,", "rocket.tar,0.05,");
    let said = job.run("store");
    assert_eq!(of_status(&said["summary"]["not_removed"], "not-applied"), ["pizza"]);
    assert_eq!(of_status(&said["summary"]["not_removed"], "weakened"), ["rocket"], "{said}");
    assert_eq!(said["summary"]["forgotten_composed"], 1);
    let kinds: Vec<String> =
        statements(&folder(&said)).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(
        kinds,
        ["urn:lethe:not-removed:v1", "urn:lethe:removal-receipt:v1", "urn:lethe:not-removed:v1"]
    );
    // A list that names a concept requires its removal.
    with(&job, "[policy]\nrequired = [\"rocket\"]");
    ends(&job, &["run", "job.toml", "--store", "store"], 3);
}

#[test]
fn a_release_that_keeps_too_little_is_stored_and_not_promoted() {
    let job = SmallJob::new();
    // A hundred times the strength that forgets.
    job.replace("concepts.csv", ".tar,1,", ".tar,100,");
    with(&job, "[composition]\nrounds = 0\n\n[policy]\nrequired = []");
    let (said, text) = ends(&job, &["run", "job.toml", "--store", "store"], 4);
    let missed = said["missed"][0].as_str().unwrap();
    assert!(
        missed.starts_with("utility_kept is ")
            && missed.contains("validation: TA@1")
            && missed.contains("[gates]"),
        "{missed}"
    );
    let warned = said["warnings"][0].as_str().unwrap();
    assert!(
        warned.contains("of the retained classes that retain data names") && text.contains(warned),
        "{text}"
    );
    assert_eq!((said["status"].as_str(), releases(&job.path("store"))), (Some("gates-missed"), 1));
    assert_eq!(channels(&job), json!([]));
    let release = folder(&said);
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(release.join(page)).unwrap();
        assert!(
            text.contains("A gate is not met: utility_kept is")
                && text.contains("of the retained classes that retain data names"),
            "{page}"
        );
    }
    // Promotion and evaluation report the same.
    let promote = ["release", "promote", "small:1", "production", "--store", "store"];
    assert_eq!(ends(&job, &promote, 4).0["missed"][0], missed);
    assert_eq!(ends(&job, &["evaluate", "small:1", "--store", "store"], 4).0["missed"][0], missed);
    // A gate file replaces the default gate, and so does the manifest.
    job.write("gates.toml", b"[gates]\nutility_kept = 0.01\ncovered_kept = 0.0\n");
    ends(&job, &[&promote[..], &["--gates", "gates.toml"]].concat(), 0);
    with(&job, "[gates]\nutility_kept = 0.0");
    let said = ends(&job, &["run", "job.toml", "--store", "store"], 0).0;
    assert_eq!((said["number"].as_u64(), &said["missed"]), (Some(2), &json!([])));
}

#[test]
fn releases_of_earlier_versions_are_read_and_judged() {
    let job = SmallJob::new();
    let said = job.run("store");
    let copied = job.path("copy");
    copy(&folder(&said), &copied);
    let mut old: Value =
        serde_json::from_slice(&std::fs::read(copied.join("composition.json")).unwrap()).unwrap();
    for concept in old["concepts"].as_array_mut().unwrap() {
        let fields = concept.as_object_mut().unwrap();
        assert!(fields.remove("criterion").is_some() && fields.remove("verdict").is_some());
    }
    job.write("copy/composition.json", &serde_json::to_vec(&old).unwrap());
    ends(&job, &["verify", "copy"], 0);
    assert_eq!(lethe(&job, &["report", "copy", "--output", "report.html"]).status.code(), Some(0));
    let evaluated = ends(&job, &["evaluate", "copy", "--store", "store"], 0).0;
    assert_eq!(evaluated["not_removed"], json!([]));
    let composed =
        ends(&job, &["compose", "copy", "--store", "store", "--strength", "pizza=0"], 0).0;
    let concepts = record(&folder(&composed)).concepts;
    let status = |at: usize| concepts[at].verdict.as_ref().unwrap().status;
    assert_eq!((status(0), status(1)), (ConceptStatus::NotApplied, ConceptStatus::NotMeasured));
    // An edit that nobody measured in this release has no removal receipt.
    let kinds: Vec<String> =
        statements(&folder(&composed)).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(
        kinds,
        ["urn:lethe:not-removed:v1", "urn:lethe:not-measured:v1", "urn:lethe:not-measured:v1"]
    );
    // Once measured, the release lists the concepts that the model no longer knows.
    let name = format!("small:{}", composed["number"]);
    let evaluated = ends(&job, &["evaluate", &name, "--store", "store"], 0).0;
    assert_eq!(of_status(&evaluated["not_removed"], "not-applied"), ["pizza"]);
}

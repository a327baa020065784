//! Which layers edits change: the best of those that may, and others where these have no answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use lethe_shared::record::{Composition, ConceptRecord};
use lethe_tests::{SmallJob, binary, last_line, stderr};
use serde_json::Value;

fn record(said: &Value) -> Composition {
    let release = Path::new(said["release"].as_str().unwrap());
    serde_json::from_slice(&std::fs::read(release.join("composition.json")).unwrap()).unwrap()
}

/// With a single step to try, some layers have no answer. With one layer for the run, the next ones
/// are beyond it.
#[test]
fn a_concept_is_tried_on_its_next_layer() {
    let run = |layers: u32, names: &str| {
        let job = SmallJob::with_concepts(8).lenient();
        job.replace("job.toml", "search_evaluations = 6", "search_evaluations = 1");
        let composition = format!("layers = {layers}\nridge = 10.0\nrounds = 2");
        let execution = format!("[composition]\n{composition}\n\n[execution]");
        job.replace("job.toml", "[execution]", &execution);
        job.write("names.txt", b"rock\n");
        job.replace("job.toml", "classes =", &format!("{names}classes ="));
        let record = record(&job.run("store"));
        (job, record)
    };
    let tried = |concept: &ConceptRecord| {
        let mut layers: Vec<String> =
            concept.search.iter().map(|trial| trial.layer.clone()).collect();
        layers.dedup();
        layers
    };
    for most in [4, 1] {
        let (job, record) = run(most, "");
        let again: Vec<&ConceptRecord> =
            record.concepts.iter().filter(|concept| tried(concept).len() > 1).collect();
        assert!(!again.is_empty(), "{} missing", record.missing.len());
        for concept in &again {
            let layers = tried(concept);
            assert_eq!(layers.last(), Some(&concept.layer));
            let efficiency = |name: &String| {
                let ranked = concept.ranking.iter().find(|ranked| ranked.layer == *name);
                ranked.and_then(|ranked| ranked.efficiency).unwrap()
            };
            // The run's only layer comes first, also where it is not the concept's best.
            let ranked = &layers[usize::from(most == 1)..];
            assert!(ranked.is_sorted_by(|a, b| efficiency(a) > efficiency(b)), "{layers:?}");
        }
        if most == 1 {
            // Its edit can be taken out again like any other.
            let id = &again[0].id;
            let store = job.path("store");
            let release = job.run("store")["release"].as_str().unwrap().to_owned();
            let output = Command::new(binary("lethe"))
                .args(["compose", &release, "--remove", id, "--json", "--store"])
                .arg(store)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
            let less = self::record(&last_line(&output));
            assert_eq!(less.concepts.len() + 1, record.concepts.len());
        }
    }
    // Directions are orthogonal to protected texts at the run's layers only.
    let (_, record) = run(1, "protect = \"names.txt\"\n");
    let says = "with data.protect only the run's layers are tried, composition.layers adds some";
    let missing = record.missing.first().unwrap();
    assert!(missing.reason.ends_with(says), "{missing:?}");
    assert!(record.concepts.iter().all(|concept| tried(concept).len() == 1));
}

/// Layer scores do not depend on which towers may change: nothing is computed for a tower that is
/// left out.
#[test]
fn towers_that_may_change_are_scored() {
    let job = SmallJob::new().lenient();
    let scores = |towers: &str| -> BTreeMap<String, (f64, f64)> {
        let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
        let among = format!("[composition]\ntowers = \"{towers}\"\nrounds = 0\n\n[execution]");
        job.write("towers.toml", manifest.replace("[execution]", &among).as_bytes());
        let output = Command::new(binary("lethe"))
            .args(["run", "towers.toml", "--store", "store", "--json"])
            .current_dir(job.path(""))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{towers}: {}", stderr(&output));
        let ranking = record(&last_line(&output)).concepts.remove(0).ranking;
        ranking.into_iter().map(|layer| (layer.layer, (layer.importance, layer.cosine))).collect()
    };
    let (text, vision, both) = (scores("text"), scores("vision"), scores("both"));
    assert!(!text.is_empty() && !vision.is_empty());
    assert_eq!(text.len() + vision.len(), both.len());
    for (layer, (importance, cosine)) in text.iter().chain(&vision) {
        let (expected, across) = both[layer];
        assert!(
            (importance / expected - 1.0).abs() < 1e-4 && (cosine - across).abs() < 1e-4,
            "{layer}"
        );
    }
}

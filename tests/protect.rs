//! `data.protect`: protected names, and the measurement of their movement.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::record::Composition;
use lethe_tests::{SmallJob, base_model, binary, demo, last_line, stderr};
use safetensors::SafeTensors;
use serde_json::Value;

const NAMES: [&str; 3] = ["rock", "red apple", "space shuttle"];

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe")).env_remove("LETHE_LOG").args(arguments).output().unwrap()
}

fn job() -> SmallJob {
    let job = SmallJob::new();
    job.write("names.txt", format!("{}\n\n{}\n", NAMES.join("\n"), NAMES[0]).as_bytes());
    job.replace("job.toml", "classes =", "protect = \"names.txt\"\nclasses =");
    job
}

fn gate(job: &SmallJob, bound: &str) {
    job.replace("job.toml", "[execution]", &format!("[gates]\nprotected = {bound}\n\n[execution]"));
}

fn folder(said: &Value) -> PathBuf {
    PathBuf::from(said["release"].as_str().unwrap())
}

fn record(folder: &Path) -> Composition {
    serde_json::from_slice(&std::fs::read(folder.join("composition.json")).unwrap()).unwrap()
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap();
    view.data()
        .chunks_exact(4)
        .map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap())))
        .collect()
}

/// Returns ‖Δx‖/‖Wx + b‖ of each text's worst token, for these weights.
fn moved(weights: &Path, inputs: &[u8], layer: &str) -> Vec<f64> {
    let of = |folder: &Path| {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let bytes = checkpoint.bytes(layer).unwrap().to_vec();
        bytes
            .chunks_exact(4)
            .map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap())))
            .collect::<Vec<f64>>()
    };
    let (before, after) = (of(&base_model()), of(weights));
    let file = SafeTensors::deserialize(inputs).unwrap();
    let [inputs, outputs, texts, vectors] = ["inputs", "outputs", "texts", "vectors"]
        .map(|what| floats(&file, &format!("{layer}.{what}")));
    let width = inputs.len() / outputs.len();
    let mut moved = vec![0.0f64; NAMES.len()];
    for (&text, &vector) in texts.iter().zip(&vectors) {
        let x = &inputs[vector as usize * width..][..width];
        let rows = before.chunks_exact(width).zip(after.chunks_exact(width));
        let squares = rows.map(|(b, a)| {
            x.iter().zip(b).zip(a).map(|((x, b), a)| x * (a - b)).sum::<f64>().powi(2)
        });
        let length = squares.sum::<f64>().sqrt() / outputs[vector as usize];
        moved[text as usize] = moved[text as usize].max(length);
    }
    moved
}

#[test]
fn what_must_not_change_does_not_and_what_must_go_goes() {
    let (job, free) = (job(), SmallJob::new());
    gate(&job, "0.001");
    let (ours, theirs) = (folder(&job.run("store")), folder(&free.run("store")));
    let kept = record(&ours);
    assert!(kept.concepts.iter().all(|concept| concept.composed.unwrap().fa5 == 0.0));
    assert!(
        kept.protected.iter().map(|text| text.name.as_str()).eq(NAMES),
        "in the list's order, each once"
    );
    let (layers, inputs) = (
        kept.layers.keys().collect::<Vec<_>>(),
        std::fs::read(ours.join("protected.safetensors")).unwrap(),
    );
    let [layer] = layers[..] else { panic!("one layer: {layers:?}") };
    assert!(record(&theirs).layers.contains_key(layer) && record(&theirs).protected.is_empty());
    let (with, without) = (moved(&ours, &inputs, layer), moved(&theirs, &inputs, layer));
    for ((text, with), without) in kept.protected.iter().zip(&with).zip(&without) {
        assert!(
            (text.moved - with).abs() <= 1e-6 * with + 1e-12,
            "{}: {} on record, {with}",
            text.name,
            text.moved
        );
        assert!(
            *with < 0.001 && with * 20.0 < *without,
            "{}: {with} instead of {without}",
            text.name
        );
    }
    let verified = lethe(&["verify", "--recompute", ours.to_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(ours.join(page)).unwrap();
        assert!(
            text.contains("Protected names") && NAMES.iter().all(|name| text.contains(name)),
            "{page}"
        );
    }

    // A composed release is measured too: without a device, from the stored inputs.
    let again = |arguments: &[&str]| {
        let output = lethe(&[&["compose", ours.to_str().unwrap(), "--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        folder(&last_line(&output))
    };
    let fewer = again(&["--remove", "pizza"]);
    let found = record(&fewer).protected;
    assert!(found != kept.protected);
    for (text, moved) in found.iter().zip(moved(&fewer, &inputs, layer)) {
        assert!(
            (text.moved - moved).abs() <= 1e-6 * moved + 1e-12,
            "{}: {} on record, {moved}",
            text.name,
            text.moved
        );
    }
    let ids: Vec<String> =
        kept.concepts.iter().map(|concept| format!("{}=0", concept.id)).collect();
    let none: Vec<&str> = ids.iter().flat_map(|id| ["--strength", id.as_str()]).collect();
    assert!(record(&again(&none)).protected.iter().all(|text| text.moved == 0.0));
}

#[test]
fn a_release_that_moves_them_further_is_not_promoted() {
    let job = job();
    gate(&job, "1e-12");
    let output = job.output("store");
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let said = last_line(&output);
    let missed = said["missed"].as_array().unwrap();
    let [missed] = &missed[..] else { panic!("{missed:?}") };
    let missed = missed.as_str().unwrap();
    assert!(
        missed.starts_with("protected is ") && NAMES.iter().any(|name| missed.contains(name)),
        "{missed}"
    );
    assert!(record(&folder(&said)).protected.iter().all(|text| text.moved > 1e-12));
    let store = job.path("store");
    let shown = lethe(&["release", "show", "small:latest", "--store", store.to_str().unwrap()]);
    assert_eq!(shown.status.code(), Some(2), "no channel points to it");
}

#[test]
fn hashed_names_hide_these_too() {
    let job = job();
    job.write("salt", b"0123456789abcdef");
    job.replace(
        "job.toml",
        "[execution]",
        "[release]\nnames = \"hashed\"\nsalt = \"salt\"\n\n[execution]",
    );
    let release = folder(&job.run("store"));
    assert_eq!(record(&release).protected.len(), NAMES.len());
    for name in ["composition.json", "README.md", "report.html"] {
        let text = std::fs::read_to_string(release.join(name)).unwrap();
        assert!(
            NAMES[1..].iter().all(|protected| !text.contains(protected)),
            "{name} holds a name"
        );
    }
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let refused = |prepare: &dyn Fn(&SmallJob), says: &str| {
        let job = job();
        prepare(&job);
        let output = job.output("store");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("job.toml: data.protect")
                && text.contains(says)
                && !text.contains("panicked"),
            "{text}\n does not say {says}"
        );
    };
    refused(
        &|job| job.write("names.txt", b"rock\nPizza\n"),
        "`Pizza` must not change, and is to be removed as concept `pizza`",
    );
    refused(&|job| job.replace("job.toml", "names.txt", "other.txt"), "other.txt");
    refused(&|job| job.write("names.txt", &b"x\n".repeat(1 << 20)), "at most 1048576 are read");
    let many: String = (0..1001).map(|number| format!("name {number}\n")).collect();
    refused(&|job| job.write("names.txt", many.as_bytes()), "holds 1001 names, at most 1000");
    let composition = |text: &'static str| {
        move |job: &SmallJob| {
            job.replace("job.toml", "[execution]", &format!("[composition]\n{text}\n\n[execution]"))
        }
    };
    refused(&composition("method = \"sum\""), "`sum` protects nothing");
    refused(&composition("towers = \"vision\""), "edits of the vision tower move none");

    // More texts than a layer can distinguish; the error appears during the computation.
    let job = job();
    let classes = std::fs::read_to_string(demo().join("classes.txt")).unwrap();
    let others = classes.lines().filter(|name| !["pizza", "red heart", "rocket"].contains(name));
    let many: String = others.take(500).map(|name| format!("{name}\n")).collect();
    job.write("names.txt", many.as_bytes());
    let output = job.output("store");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("distinct input vectors of layer"), "{}", stderr(&output));
}

//! A SigLIP from manifest to release: texts that are padded and read at their last token, images that
//! pass an attention-pooling head, and every way of finding edits.

use std::path::PathBuf;

use lethe_shared::record::Composition;
use lethe_shared::vocabulary::Tower;
use lethe_tests::releases::{folder, lethe, model, record, succeed};
use lethe_tests::targets::{Tensors, read, write};
use lethe_tests::{CONCEPTS, SmallJob, base_model, repository, stderr};
use serde_json::Value;

/// Returns the folder of a small SigLIP that knows the demo's drawings.
fn siglip() -> PathBuf {
    repository().join("tests/model-siglip")
}

/// Runs the small job on the SigLIP with these lines in its manifest.
fn run(composition: &str) -> (SmallJob, Value) {
    let job = SmallJob::new().lenient();
    let [clip, siglip] = [base_model(), siglip()].map(|folder| folder.display().to_string());
    job.replace("job.toml", &clip, &siglip);
    job.replace("job.toml", "[execution]", &format!("[composition]\n{composition}\n\n[execution]"));
    let said = job.run("store");
    (job, said)
}

/// Returns the names of the tensors that a release changed.
fn changed(said: &Value) -> Vec<String> {
    let tensors = |folder: PathBuf| -> Tensors { read(&folder.join("model.safetensors")) };
    let (base, released) = (tensors(siglip()), tensors(folder(said)));
    assert_eq!(base.keys().collect::<Vec<_>>(), released.keys().collect::<Vec<_>>());
    base.keys().filter(|name| base[*name] != released[*name]).cloned().collect()
}

/// Checks that all concepts were known and are forgotten, and that others than the removed ones
/// agree with what the release holds.
fn check(composition: &str, said: &Value) -> Composition {
    let record = record(said);
    assert_eq!(record.concepts.len(), CONCEPTS.len(), "{composition}");
    for concept in &record.concepts {
        let (before, after) = (concept.before.fa5, concept.composed.unwrap().fa5);
        assert!(
            before > 0.5 && after <= 0.2 * before,
            "{composition}: {} {before} → {after}",
            concept.id
        );
    }
    assert_eq!(changed(said), record.layers.keys().cloned().collect::<Vec<_>>(), "{composition}");
    let address = said["release"].as_str().unwrap();
    let verified = lethe(&["verify", address, "--recompute"]);
    assert!(verified.status.success(), "{composition}: {}", stderr(&verified));
    let without = succeed(&["compose", address, "--remove", CONCEPTS[0]]);
    let silent = succeed(&["compose", address, "--strength", &format!("{}=0", CONCEPTS[0])]);
    assert_eq!(model(&without), model(&silent), "{composition}");
    assert_ne!(model(&without), model(said), "{composition}");
    record
}

#[test]
fn the_text_tower_forgets_by_every_method() {
    for composition in [
        "",
        "method = \"least-squares\"",
        "method = \"least-squares\"\ntokens = \"all\"",
        "method = \"margins\"\ntowers = \"text\"",
    ] {
        let (_job, said) = run(composition);
        let record = check(composition, &said);
        assert!(record.concepts.iter().all(|concept| concept.tower == Tower::Text));
        assert!(record.layers.keys().all(|layer| layer.starts_with("text_model.encoder.layers.")));
    }
}

#[test]
fn the_pooling_head_takes_part_in_edits_of_the_vision_tower() {
    let (_job, said) = run("towers = \"vision\"\nrank = 8");
    let record = check("vision", &said);
    assert_eq!(record.layers.len(), 5, "four blocks and the head: {:?}", record.layers);
    assert!(record.layers.contains_key("vision_model.head.mlp.fc2.weight"));
}

/// LLaVA-OneVision reads the last block's patches, and has no head.
#[test]
fn a_llava_with_the_tower_gets_the_same_edits() {
    let job = SmallJob::new().lenient();
    let [clip, siglip] = [base_model(), siglip()].map(|folder| folder.display().to_string());
    job.replace("job.toml", &clip, &siglip);
    let composition = "[composition]\ntowers = \"vision\"\nrank = 8\n\n[execution]";
    job.replace("job.toml", "[execution]", composition);
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    let target = "\n[[release.target]]\nname = \"llava\"\nkind = \"llava\"\nuri = \"llava\"\n";
    job.write("job.toml", (manifest + target).as_bytes());
    std::fs::create_dir(job.path("llava")).unwrap();
    let tower: Tensors = read(&self::siglip().join("model.safetensors"))
        .into_iter()
        .filter(|(name, _)| name.starts_with("vision_model.") && !name.contains(".head."))
        .map(|(name, tensor)| (format!("model.vision_tower.{name}"), tensor))
        .collect();
    write(&job.path("llava/model.safetensors"), &tower);
    let config = serde_json::json!({ "model_type": "llava_onevision",
        "vision_config": { "model_type": "siglip_vision_model", "num_hidden_layers": 4, "num_attention_heads": 6 } });
    job.write("llava/config.json", config.to_string().as_bytes());
    let said = job.run("store");
    let released = read(&folder(&said).join("targets/llava/model.safetensors"));
    let own = read(&folder(&said).join("model.safetensors"));
    let changed: Vec<&String> =
        tower.keys().filter(|name| tower[*name] != released[*name]).collect();
    assert_eq!(changed.len(), 4, "{changed:?}");
    for name in changed {
        assert!(name.ends_with(".mlp.fc2.weight"), "{name}");
        assert!(released[name] == own[name.strip_prefix("model.vision_tower.").unwrap()], "{name}");
    }
}

#[test]
fn slug_s_own_procedure_scores_every_linear_weight() {
    let (_job, said) = run("method = \"sum\"");
    let record = record(&said);
    let scored: Vec<&str> =
        record.concepts[0].ranking.iter().map(|layer| layer.layer.as_str()).collect();
    for layer in [
        "text_model.head.weight",
        "vision_model.head.attention.in_proj_weight",
        "vision_model.head.mlp.fc1.weight",
    ] {
        assert!(scored.contains(&layer), "{layer} is not among {scored:?}");
    }
    assert!(!scored.contains(&"vision_model.head.probe"));
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_workers() {
    let (job, said) = run("");
    job.replace("job.toml", "workers = 2", "workers = 1");
    assert_eq!(model(&job.run("alone")), model(&said));
}

#[test]
fn a_protected_text_stays() {
    let job = SmallJob::new().lenient();
    let [clip, siglip] = [base_model(), siglip()].map(|folder| folder.display().to_string());
    job.replace("job.toml", &clip, &siglip);
    let classes = std::fs::read_to_string(job.path("classes.txt")).unwrap();
    let kept: Vec<&str> = classes.lines().take(4).collect();
    job.write("protect.txt", kept.join("\n").as_bytes());
    job.replace("job.toml", "classes = ", "protect = \"protect.txt\"\nclasses = ");
    let record = record(&job.run("store"));
    assert_eq!(record.protected.len(), kept.len());
    assert!(record.protected.iter().all(|text| text.moved < 1e-3), "{:?}", record.protected);
}

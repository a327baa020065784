//! Composition by margins: the files that a run writes, the same bytes whoever does the jobs, and
//! releases composed again.

use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::record::{Composition, Utility};
use lethe_shared::vocabulary::Tower;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::processes::{Process, worker};
use lethe_tests::releases::{digest, folder, lethe, model, record, succeed};
use lethe_tests::{CONCEPTS, SmallJob, base_model, last_line, stderr};
use safetensors::SafeTensors;
use serde_json::Value;

/// Returns the small job, composed by margins with these settings.
fn job(composition: &str) -> SmallJob {
    let job = SmallJob::new().lenient();
    job.replace(
        "job.toml",
        "[execution]",
        &format!("[composition]\nmethod = \"margins\"\n{composition}\n\n[execution]"),
    );
    job
}

/// Runs a job with only some of its concepts; the others stay in the class list.
fn run_with(composition: &str, concepts: &[&str]) -> (SmallJob, Value) {
    let job = job(composition);
    let table = std::fs::read_to_string(job.path("concepts.csv")).unwrap();
    let rows = table
        .lines()
        .filter(|row| row.starts_with("id,") || concepts.contains(&row.split(',').next().unwrap()));
    job.write("concepts.csv", (rows.collect::<Vec<_>>().join("\n") + "\n").as_bytes());
    let said = job.run("store");
    (job, said)
}

#[test]
fn every_image_is_forgotten_by_one_layer_without_a_search() {
    let job = job("");
    let said = job.run("store");
    let record = record(&said);
    assert_eq!(record.method, "margins");
    assert_eq!(record.concepts.len(), CONCEPTS.len());
    assert_eq!(record.layers.len(), 1, "text edits change one layer by default");
    for concept in &record.concepts {
        assert_eq!(concept.composed.unwrap().fa5, 0.0, "{} is still recognised", concept.id);
        assert!(
            concept.before.fa5 > 0.0 && concept.coefficient > 0.0 && concept.target.unwrap() > 0.0
        );
        assert_eq!((concept.tower, concept.alone), (Tower::Text, None));
        assert!(concept.search.is_empty() && concept.layers.is_empty());
        // SLUG's scores of the layers are on record all the same.
        assert!(concept.importance > 0.0 && !concept.ranking.is_empty());
    }
    let edits = std::fs::metadata(folder(&said).join("edits.safetensors")).unwrap().len();
    assert!(edits < 40_000 * CONCEPTS.len() as u64, "{edits} bytes");
    let verified = lethe(&["verify", said["release"].as_str().unwrap(), "--recompute"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(folder(&said).join(page)).unwrap();
        assert!(!text.contains("with their own edit alone"), "{page}");
    }
}

#[test]
fn a_share_of_ranks_leaves_the_removed_name_no_better_than_others() {
    let strict = job("");
    strict.replace("job.toml", "[method]", "[method]\nstop = \"rank 0.5\"");
    let said = strict.run("store");
    let (strict, usual) = (record(&said), record(&job("").run("store")));
    for concept in &strict.concepts {
        assert_eq!(concept.criterion.unwrap().stop.name(), "rank 0.5");
        assert!(concept.before.within.unwrap() > 0.9, "{:?}", concept.before);
        assert_eq!(concept.composed.unwrap().within, Some(0.0), "{} ranks high", concept.id);
        assert_eq!(strict.verdict(concept).status, ConceptStatus::Removed);
    }
    assert!(usual.concepts.iter().all(|concept| concept.composed.unwrap().within.is_none()));
    // Five classes above among a thousand hide a name, and half of them above remove it.
    let against_one = |record: &Composition| record.recognition.as_ref().unwrap().candidates[0];
    assert!(against_one(&usual).before > 0.95 && against_one(&usual).after > 0.7);
    assert!(against_one(&strict).after < 0.5, "{:?}", against_one(&strict));
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(folder(&said).join(page)).unwrap();
        assert!(text.contains("What can still be told"), "{page}");
    }
}

#[test]
fn a_layer_that_the_manifest_names_is_the_one_that_edits_change() {
    let named = "text_model.encoder.layers.2.mlp.fc2.weight";
    for method in ["margins", "preconditioned"] {
        let job = SmallJob::new().lenient();
        let composition = format!(
            "[composition]\nmethod = \"{method}\"\nlayer = \"{named}\"\nrounds = 1\n\n[execution]"
        );
        job.replace("job.toml", "[execution]", &composition);
        let record = record(&job.run("store"));
        assert_eq!(record.layers.keys().collect::<Vec<_>>(), [named], "{method}");
        job.replace("job.toml", named, "vision_model.encoder.layers.2.mlp.fc2.weight");
        let text = stderr(&job.output("store"));
        let says = "composition.layer: `vision_model.encoder.layers.2.mlp.fc2.weight` is none of the layers that this manifest's edits \
                    can change: text_model.encoder.layers.0.mlp.fc2.weight, ";
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn vision_edits_are_spread_over_all_mlps() {
    let job = job("towers = \"vision\"\nrank = 8");
    let said = job.run("store");
    let record = record(&said);
    assert_eq!(record.layers.len(), 5, "{:?}", record.layers);
    let concept = &record.concepts[0];
    assert_eq!((concept.tower, concept.layers.len()), (Tower::Vision, 5));
    assert!(concept.layers.contains(&concept.layer));
    let file = std::fs::read(folder(&said).join("edits.safetensors")).unwrap();
    let parsed = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(parsed.len(), 2 * 5 * CONCEPTS.len());
    assert!(parsed.names().iter().all(|name| name.contains('@')));
    // Removed concepts are recognised far less, and the record says how far.
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let before = mean(record.concepts.iter().map(|concept| concept.before.fa5).collect());
    let after = mean(record.concepts.iter().map(|c| c.composed.unwrap().fa5).collect());
    assert!(after <= 0.1 * before, "FA@5 {before} → {after}");

    let address = said["release"].as_str().unwrap();
    assert_eq!(model(&succeed(&["compose", address])), model(&said));
    let one = CONCEPTS[0];
    let without = succeed(&["compose", address, "--remove", one]);
    let silent = succeed(&["compose", address, "--strength", &format!("{one}=0")]);
    assert_eq!(model(&without), model(&silent));
    assert_ne!(model(&without), model(&said));
}

#[test]
fn both_towers_share_the_removal_of_a_concept() {
    let job = job("towers = \"both\"\nrank = 8");
    let said = job.run("store");
    let found = record(&said);
    // One layer of the text tower, and all MLPs of the vision tower.
    assert_eq!(found.layers.len(), 6, "{:?}", found.layers);
    for concept in &found.concepts {
        assert_eq!(concept.towers().len(), 2);
        assert_eq!(concept.composed.unwrap().fa5, 0.0, "{} is still recognised", concept.id);
    }
    assert_eq!(said["summary"]["towers"]["both"], CONCEPTS.len());
    // Each tower's change removes less by itself than both together, and takes less from the rest.
    let towers: Vec<Tower> = found.towers.iter().map(|alone| alone.tower).collect();
    assert_eq!(towers, [Tower::Text, Tower::Vision]);
    let kept = |utility: &Utility| utility.validation.as_ref().unwrap().after.ta1;
    for alone in &found.towers {
        assert!(alone.fa5 > 0.0 && alone.fa1 <= alone.fa5, "{alone:?}");
        assert!(kept(&alone.utility) >= kept(&found.utility) - 0.02, "{alone:?}");
        assert!(alone.recognition.is_some());
    }
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(folder(&said).join(page)).unwrap();
        assert!(text.contains("edits of 6 layers") && text.contains("Each tower alone"), "{page}");
    }
    let address = said["release"].as_str().unwrap();
    assert_eq!(model(&succeed(&["compose", address])), model(&said));
    // A higher cost of the vision tower leaves more to the text tower.
    job.replace("job.toml", "rank = 8", "rank = 8\nvision_cost = 1000.0");
    let costly = record(&job.run("store"));
    let change = |record: &Composition, tower: &str| {
        let own = record.layers.iter().filter(|(layer, _)| layer.starts_with(tower));
        own.map(|(_, change)| change).fold(0.0, |most: f64, &change| most.max(change))
    };
    assert!(change(&costly, "vision") < change(&found, "vision"));
    assert!(change(&costly, "text") > change(&found, "text"));
}

/// A layer changes by no more than the bound, the record says by how much edits were scaled, and
/// what shows again is not called removed.
#[test]
fn a_bound_on_the_change_scales_all_edits() {
    for method in ["margins", "preconditioned"] {
        let job = SmallJob::new().lenient();
        let bounded = |change: &str| {
            let settings = format!("[composition]\nmethod = \"{method}\"\n{change}\n[execution]");
            job.replace("job.toml", "[execution]", &settings);
            let said = job.run("store");
            job.replace("job.toml", &settings, "[execution]");
            said
        };
        let free = record(&bounded(""));
        assert!(free.change_bound.is_none());
        let largest = free.largest_change().unwrap().1;
        let said = bounded(&format!("change = {}", largest / 4.0));
        let record = record(&said);
        let bound = record.change_bound.unwrap();
        assert!((bound.found / largest - 1.0).abs() < 1e-9, "{bound:?} {largest}");
        assert!((record.largest_change().unwrap().1 / bound.most - 1.0).abs() < 1e-3);
        for (concept, free) in record.concepts.iter().zip(&free.concepts) {
            let scaled = concept.coefficient / free.coefficient;
            assert!((scaled / bound.scale - 1.0).abs() < 1e-6, "{}: {scaled}", concept.id);
        }
        let shown = record.of_status(ConceptStatus::Showing).len();
        assert!(shown > 0, "a quarter of the change forgets everything too");
        let page = std::fs::read_to_string(folder(&said).join("report.html")).unwrap();
        assert!(page.contains("all edits were scaled by 0.25"));
        let address = said["release"].as_str().unwrap();
        assert_eq!(model(&succeed(&["compose", address])), model(&said));
        // A bound that nothing reaches changes nothing.
        let wide = bounded(&format!("change = {}", largest * 2.0));
        assert_eq!(self::record(&wide).layers, free.layers);
    }
}

#[test]
fn whoever_does_the_jobs_the_bytes_are_the_same() {
    let (server, job) = (NatsServer::start(Version::Oldest), job("spread = \"all\""));
    let alone = job.run("store");
    job.replace("job.toml", "workers = 2", "workers = 3");
    assert_eq!(job.run("another")["digest"], alone["digest"]);
    let shared = job.path("shared");
    let shared = shared.to_str().unwrap();
    let workers: Vec<Process> = ["a", "b"]
        .map(|name| {
            let command = worker(&server.url(), shared, &job.path("cache"));
            Process::start(command, &job.path(&format!("{name}.log")))
        })
        .into();
    let output =
        job.command("run", &["--store", shared, "--nats", &server.url()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(last_line(&output)["digest"], alone["digest"]);
    assert!(workers.iter().all(|worker| worker.said().contains("done")), "both took jobs");
    // A second run computes nothing.
    let output = job.output("store");
    assert_eq!(last_line(&output)["summary"]["jobs_done"], 0, "{}", stderr(&output));
}

#[test]
fn a_release_by_margins_is_composed_again_byte_for_byte() {
    let (_job, run) = run_with("", &CONCEPTS);
    let address = run["release"].as_str().unwrap();
    let compose =
        |from: &str, arguments: &[&str]| succeed(&[&["compose", from][..], arguments].concat());
    let of = |said: &Value| said["release"].as_str().unwrap().to_owned();
    assert_eq!(model(&compose(address, &[])), model(&run));
    let (first, second) = (CONCEPTS[0], CONCEPTS[1]);
    let without = compose(address, &["--remove", first]);
    let silent = compose(address, &["--strength", &format!("{first}=0")]);
    assert_eq!(model(&without), model(&silent));
    assert_ne!(model(&without), model(&run));
    // Two removals at once equal one after the other, and an addition takes a removal back.
    let both = compose(address, &["--remove", first, "--remove", second]);
    assert_eq!(model(&both), model(&compose(&of(&without), &["--remove", second])));
    let back = compose(&of(&without), &["--add", &format!("{address}:{first}")]);
    assert_eq!(model(&back), model(&run));
    // A change and its inverse; more strength lowers the margins further.
    let half = compose(address, &["--strength", &format!("{first}=0.5")]);
    assert_ne!(model(&half), model(&run));
    assert_eq!(model(&compose(&of(&half), &["--strength", &format!("{first}=1")])), model(&run));
    let steps = |said: &Value| {
        let record = record(said);
        let concept = record.concepts.iter().find(|concept| concept.id == first).unwrap();
        concept.strength * concept.coefficient * concept.step
    };
    let double = compose(address, &["--strength", &format!("{first}=2")]);
    assert!(steps(&half) < steps(&run) && steps(&run) < steps(&double));
    // Strength 0 for all concepts gives the base.
    let zeros: Vec<String> = CONCEPTS.iter().map(|id| format!("--strength={id}=0")).collect();
    let none = compose(address, &zeros.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(model(&none), digest(&base_model().join("model.safetensors")));
}

#[test]
fn a_concept_of_another_release_by_margins_is_added() {
    let ids = [CONCEPTS[0], CONCEPTS[1], CONCEPTS[2]];
    let composition = "spread = \"all\"";
    let (_part, part) = run_with(composition, &[ids[0], ids[2]]);
    let (_rest, rest) = run_with(composition, &[ids[1]]);
    let from = format!("{}:{}", rest["release"].as_str().unwrap(), ids[1]);
    let composed = succeed(&["compose", part["release"].as_str().unwrap(), "--add", &from]);
    let record = record(&composed);
    assert_eq!(record.concepts.len(), 3);
    // Each was found without the other two, and together they still forget.
    let measured = succeed(&["evaluate", composed["release"].as_str().unwrap()]);
    for id in ids {
        let fa5 = measured["concepts"][id]["fa5"].as_f64().unwrap();
        assert!(fa5 <= 0.5, "{id}: {fa5}");
    }
}

/// The images of one concept show another one: their margins are below −σ from the start, so its own
/// edit is empty.
#[test]
fn a_concept_that_the_model_never_saw_gets_an_empty_edit() {
    let job = job("");
    let (strange, other) = (CONCEPTS[0], CONCEPTS[1]);
    std::fs::copy(job.path(&format!("{other}.tar")), job.path("strange.tar")).unwrap();
    job.replace("concepts.csv", &format!("{strange}.tar"), "strange.tar");
    let said = job.run("store");
    let record = record(&said);
    let concept = record.concepts.iter().find(|concept| concept.id == strange).unwrap();
    assert_eq!((concept.before.fa5, concept.coefficient), (0.0, 0.0));
    assert_eq!(record.verdict(concept).status, ConceptStatus::UnknownBefore);
    let rest = record.concepts.iter().filter(|concept| concept.id != strange);
    assert!(rest.into_iter().all(|concept| concept.composed.unwrap().fa5 == 0.0));
    let address = said["release"].as_str().unwrap();
    assert_eq!(model(&succeed(&["compose", address])), model(&said));
    assert_eq!(model(&succeed(&["compose", address, "--remove", strange])), model(&said));
}

#[test]
fn settings_that_margins_do_not_have_are_refused() {
    for (composition, says) in [
        ("change = 0.0", "composition.change is 0, expected 0.001"),
        ("vision_cost = 2.0", "composition.vision_cost has an effect with composition.towers"),
        ("towers = \"both\"\nvision_cost = 0.0", "composition.vision_cost is 0, expected 0.001"),
        ("layers = 3", "composition.layers has no effect on the method `margins`"),
        ("margin = 2.0", "composition.margin is 2, expected 0 to 1"),
        ("images = 0", "composition.images is 0, expected 1 to 1024"),
        ("rank = 4096", "composition.rank is 4096, expected 1 to 1024"),
    ] {
        let output = job(composition).output("store");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}\n  does not say: {says}");
    }
    let other = SmallJob::new();
    other.replace("job.toml", "[method]", "[method]\nstop = \"rank 0.5\"");
    let text = stderr(&other.output("store"));
    assert!(
        text.contains("method.stop is `rank 0.5`, which needs composition.method = \"margins\""),
        "{text}"
    );
    let other = SmallJob::new();
    other.replace("job.toml", "[execution]", "[composition]\nmargin = 0.1\n\n[execution]");
    let text = stderr(&other.output("store"));
    assert!(
        text.contains("composition.margin has no effect on the method `preconditioned`"),
        "{text}"
    );
}

//! Composition by least squares: what becomes of the states of texts, the same bytes whoever does
//! the jobs, and releases composed again.

use std::path::Path;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::record::Composition;
use lethe_shared::record::verdict::ConceptStatus;
use lethe_shared::vocabulary::Tower;
use lethe_tests::nats::{NatsServer, Version};
use lethe_tests::processes::{Process, worker};
use lethe_tests::releases::{digest, folder, lethe, model, record, succeed};
use lethe_tests::targets::{read, stable_diffusion, text_tower};
use lethe_tests::{CONCEPTS, SmallJob, base_model, demo, last_line, stderr};
use lethe_worker::model::{BlockStates, Clip, Input, Parameters};
use lethe_worker::model_folder::ModelFolder;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// The layer that ends the last MLP of the text tower, and the one before.
const LAST: &str = "text_model.encoder.layers.3.mlp.fc2.weight";
const BEFORE: &str = "text_model.encoder.layers.2.mlp.fc2.weight";

/// Returns the small job, composed by least squares with these settings.
fn job(settings: &str) -> SmallJob {
    let job = SmallJob::new().lenient();
    let composition =
        format!("[composition]\nmethod = \"least-squares\"\n{settings}\n\n[execution]");
    job.replace("job.toml", "[execution]", &composition);
    job
}

/// A text tower, and what it says of texts.
struct Texts {
    folder: ModelFolder,
    clip: Clip,
    parameters: Parameters,
}

impl Texts {
    fn open(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let model = ModelFolder::open(folder, &checkpoint).unwrap();
        let clip = Clip::new(model.config.clone());
        let parameters = Parameters::read(clip.architecture(), &checkpoint, Device::Cpu).unwrap();
        Self { folder: model, clip, parameters }
    }

    /// Returns the states after the last block at every token: `[texts, tokens · width]`.
    fn states(&self, texts: &[&str]) -> Tensor {
        self.outputs(texts).0.flatten(1, 2)
    }

    /// Returns the states after the last block at the ends of the texts: `[texts, width]`.
    fn ends(&self, texts: &[&str]) -> Tensor {
        let (states, ends) = self.outputs(texts);
        let rows: Vec<Tensor> =
            (0..).zip(ends).map(|(text, end)| states.get(text).get(end)).collect();
        Tensor::stack(&rows, 0)
    }

    /// Returns the states after the last block at every token, and the places of the ends.
    fn outputs(&self, texts: &[&str]) -> (Tensor, Vec<i64>) {
        let _guard = tch::no_grad_guard();
        let encoded: Vec<Vec<u32>> =
            texts.iter().map(|text| self.folder.tokenizer.encode(text).unwrap()).collect();
        let batch = self.clip.whole_batch(&encoded, None, Device::Cpu).unwrap();
        let layer = self.clip.architecture().find(LAST).unwrap();
        let weights = self.parameters.weights();
        let mut states = None;
        let keep = |_, block: BlockStates| {
            states = Some(block.outputs);
            Ok(())
        };
        self.clip.each_block(&weights, Input::Texts(&batch), &[layer], keep).unwrap();
        (states.unwrap(), Vec::try_from(&batch.pooled).unwrap())
    }
}

#[test]
fn nothing_of_a_concept_is_left_at_any_token_of_its_texts() {
    // By default, a few of these concepts need another round.
    let job = job("retain_weight = 100");
    // A pipeline that reads all states.
    stable_diffusion(
        &job.path("pipeline"),
        &text_tower(&base_model().join("model.safetensors"), 4),
        4,
    );
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    let target =
        "\n[[release.target]]\nname = \"sd\"\nkind = \"stable-diffusion\"\nuri = \"pipeline\"\n";
    job.write("job.toml", format!("{manifest}{target}").as_bytes());
    let output = job.command("plan", &[]).output().unwrap();
    assert!(!stderr(&output).contains("still drawn"), "{}", stderr(&output));
    let planned = last_line(&output);
    let said = job.run("store");
    assert_eq!(planned["jobs"], said["summary"]["jobs_done"], "plan counts the jobs");

    let found = record(&said);
    assert_eq!((found.method.as_str(), found.concepts.len()), ("least-squares", CONCEPTS.len()));
    assert_eq!(found.layers.len(), 4, "{:?}", found.layers.keys());
    for concept in &found.concepts {
        assert_eq!(concept.composed.unwrap().fa5, 0.0, "{} is still recognised", concept.id);
        assert_eq!((concept.tower, concept.layers.len()), (Tower::Text, 4));
        assert!(concept.rank.unwrap() <= 4 && concept.residual.unwrap() < 1.0);
        assert_eq!(found.verdict(concept).status, ConceptStatus::Removed);
    }
    let verified = lethe(&["verify", said["release"].as_str().unwrap(), "--recompute"]);
    assert!(verified.status.success(), "{}", stderr(&verified));

    let (base, edited) = (Texts::open(&base_model()), Texts::open(&folder(&said)));
    let classes = std::fs::read_to_string(job.path("classes.txt")).unwrap();
    let classes: Vec<&str> = classes.lines().collect();
    let mean = base.states(&classes).mean_dim([0].as_slice(), true, Kind::Float);
    // The share of what sets a text apart from the mean text that an edit leaves.
    let left = |texts: &[&str]| {
        let before = base.states(texts) - &mean;
        let after = edited.states(texts) - &mean;
        let shares = (&before * &after).sum_dim_intlist([1].as_slice(), false, Kind::Float)
            / before.square().sum_dim_intlist([1].as_slice(), false, Kind::Float);
        shares.mean(Kind::Float).double_value(&[])
    };
    let removed: Vec<&str> = found.concepts.iter().map(|concept| concept.class.as_str()).collect();
    let retained: Vec<&str> =
        classes.iter().copied().filter(|class| !removed.contains(class)).collect();
    assert!(left(&removed) < 0.3, "{}", left(&removed));
    assert!(left(&retained) > 0.85, "{}", left(&retained));
    // The pipeline has the same tower.
    let tower = read(&folder(&said).join("targets/sd/text_encoder/model.safetensors"));
    let ours = read(&folder(&said).join("model.safetensors"));
    assert_eq!(tower[LAST], ours[LAST]);
    assert_ne!(ours[LAST], read(&base_model().join("model.safetensors"))[LAST]);
}

/// With `tokens = "read"`, all layers share the removal of what CLIP reads.
#[test]
fn what_clip_reads_is_removed_by_all_layers_together() {
    let job = job("tokens = \"read\"");
    let planned = last_line(&job.command("plan", &[]).output().unwrap());
    let run = job.run("store");
    assert_eq!(planned["jobs"], run["summary"]["jobs_done"], "plan counts the jobs");
    let found = record(&run);
    assert_eq!(found.layers.len(), 4, "{:?}", found.layers.keys());
    for concept in &found.concepts {
        assert_eq!((concept.composed.unwrap().fa5, concept.layers.len()), (0.0, 4));
    }
    let address = run["release"].as_str().unwrap();
    let verified = lethe(&["verify", address, "--recompute"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let compose = |arguments: &[&str]| succeed(&[&["compose", address][..], arguments].concat());
    assert_eq!(model(&compose(&[])), model(&run));
    let one = CONCEPTS[0];
    let without = compose(&["--restore", one]);
    assert_eq!(model(&without), model(&compose(&["--strength", &format!("{one}=0")])));
    job.replace("job.toml", "workers = 2", "workers = 3");
    assert_eq!(job.run("another")["digest"], run["digest"]);

    // It keeps more of the retained classes than edits of one layer that change every token.
    let every = record(&self::job("tokens = \"all\"").run("store"));
    let kept = |record: &Composition| record.utility.test.as_ref().unwrap().after.ta1;
    assert!(kept(&found) >= kept(&every) - 0.02, "{} {}", kept(&found), kept(&every));
    // The state of the end of a removed text is that of a mean text; the states before are not.
    let (base, edited) = (Texts::open(&base_model()), Texts::open(&folder(&run)));
    let names: Vec<&str> = found.concepts.iter().map(|concept| concept.class.as_str()).collect();
    let classes = std::fs::read_to_string(job.path("classes.txt")).unwrap();
    let mean = base.ends(&classes.lines().collect::<Vec<_>>());
    let mean = mean.mean_dim([0].as_slice(), true, Kind::Float);
    let (before, after) = (base.ends(&names) - &mean, edited.ends(&names) - &mean);
    let left = (&before * &after).sum(Kind::Float) / before.square().sum(Kind::Float);
    assert!(left.double_value(&[]) < 0.3, "{left}");
}

#[test]
fn whoever_does_the_jobs_the_bytes_are_the_same() {
    let (server, job) = (NatsServer::start(Version::Oldest), job(""));
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
fn a_release_is_composed_again() {
    let job = job("");
    let run = job.run("store");
    let address = run["release"].as_str().unwrap();
    let compose = |arguments: &[&str]| succeed(&[&["compose", address][..], arguments].concat());
    assert_eq!(model(&compose(&[])), model(&run));
    let one = CONCEPTS[0];
    let without = compose(&["--restore", one]);
    assert_eq!(model(&without), model(&compose(&["--strength", &format!("{one}=0")])));
    assert_ne!(model(&without), model(&run));
    // Their edits were solved together and are added up: a concept whose edit is nearly left out is
    // recognised again, and the others are not.
    let faint = compose(&["--strength", &format!("{one}=0.05")]);
    let measured = succeed(&["evaluate", faint["release"].as_str().unwrap()]);
    let fa5 = |id: &str| measured["concepts"][id]["fa5"].as_f64().unwrap();
    let before = record(&run).concepts.into_iter().find(|concept| concept.id == one).unwrap();
    assert!(before.before.fa5 > 0.0 && fa5(one) >= 0.5 * before.before.fa5, "{measured}");
    assert!(CONCEPTS[1..].iter().all(|id| fa5(id) <= 0.2), "{measured}");
    let zeros: Vec<String> = CONCEPTS.iter().map(|id| format!("--strength={id}=0")).collect();
    let none = compose(&zeros.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(model(&none), digest(&base_model().join("model.safetensors")));
}

#[test]
fn a_larger_weight_keeps_more_of_every_state() {
    let change = |settings: &str| {
        let found = record(&job(settings).run("store"));
        found.largest_change().unwrap().1
    };
    let (weak, usual, strong) =
        (change("retain_weight = 5"), change(""), change("retain_weight = 2000"));
    assert!(weak > usual && usual > strong, "{weak} {usual} {strong}");
    let found = record(&job(&format!("layer = \"{BEFORE}\"")).run("store"));
    assert_eq!(found.layers.keys().collect::<Vec<_>>(), [BEFORE]);
}

/// What one run removes can be added to what another one has removed, as new concepts come.
#[test]
fn edits_of_another_run_are_added() {
    let run = |ids: &[&str]| {
        let job = job("");
        let table = std::fs::read_to_string(job.path("concepts.csv")).unwrap();
        let chosen = |row: &&str| {
            row.starts_with("id,") || ids.iter().any(|id| row.starts_with(&format!("{id},")))
        };
        let rows: Vec<&str> = table.lines().filter(chosen).collect();
        job.write("concepts.csv", rows.join("\n").as_bytes());
        let run = job.run("store");
        (job, run)
    };
    let ((_ours, part), (_theirs, other)) = (run(&CONCEPTS[..2]), run(&CONCEPTS[2..]));
    let address = |run: &Value| run["release"].as_str().unwrap().to_owned();
    let from = format!("{}:{}", address(&other), CONCEPTS[2]);
    let both = succeed(&["compose", &address(&part), "--add", &from]);
    let measured = succeed(&["evaluate", &address(&both)]);
    for id in CONCEPTS {
        assert!(measured["concepts"][id]["fa5"].as_f64().unwrap() <= 0.2, "{id}: {measured}");
    }
    let verified = lethe(&["verify", &address(&both), "--recompute"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let again = succeed(&["compose", &address(&both), "--restore", CONCEPTS[2]]);
    assert_eq!(model(&again), model(&part));
}

/// What a plan of the small job says of its method, with another model, these settings, this entry
/// under `[data]` and these lines at the end.
fn planned_with(model: &Path, settings: &str, data: &str, end: &str) -> (String, String) {
    let job = SmallJob::new().lenient();
    job.replace("job.toml", "[data]", &format!("[data]\n{data}"));
    let composition = format!("[composition]\n{settings}\n\n[execution]");
    job.replace("job.toml", "[execution]", &composition);
    job.replace("job.toml", base_model().to_str().unwrap(), model.to_str().unwrap());
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    job.write("job.toml", format!("{manifest}{end}").as_bytes());
    let classes = std::fs::read_to_string(job.path("classes.txt")).unwrap();
    job.write("protect.txt", classes.lines().next().unwrap().as_bytes());
    stable_diffusion(&job.path("pipeline"), &text_tower(&model.join("model.safetensors"), 4), 4);
    let output = job.command("plan", &[]).output().unwrap();
    let said = last_line(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
    (text("method"), text("tokens"))
}

fn planned(model: &Path, settings: &str) -> (String, String) {
    planned_with(model, settings, "", "")
}

#[test]
fn the_default_follows_from_the_model_and_from_what_reads_it() {
    let (wide, narrow) = (demo().join("model"), base_model());
    let of = |method: &str, tokens: &str| (method.to_owned(), tokens.to_owned());
    let pipeline =
        "\n[[release.target]]\nname = \"sd\"\nkind = \"stable-diffusion\"\nuri = \"pipeline\"\n";
    assert_eq!(planned(&wide, ""), of("least-squares", "read"));
    assert_eq!(planned(&narrow, ""), of("preconditioned", ""));
    assert_eq!(planned_with(&wide, "", "", pipeline), of("least-squares", "all"));
    assert_eq!(planned_with(&narrow, "", "", pipeline), of("least-squares", "all"));
    assert_eq!(planned(&narrow, "retain_weight = 30"), of("least-squares", "read"));
    assert_eq!(planned(&wide, "towers = \"both\""), of("margins", ""));
    // What only `preconditioned` has.
    let protect = "protect = \"protect.txt\"";
    assert_eq!(planned_with(&wide, "", protect, ""), of("preconditioned", ""));
    for settings in ["layers = 2", "change = 9.0", "output_ridge = 1.0"] {
        assert_eq!(planned(&wide, settings), of("preconditioned", ""), "{settings}");
    }
    assert_eq!(planned(&wide, "method = \"preconditioned\""), of("preconditioned", ""));
}

/// Concepts that the solution leaves recognised are solved again, and further than a mean text.
#[test]
fn rounds_forget_what_the_first_solution_leaves() {
    let left = |rounds: &str| {
        let job = job(&format!("retain_weight = 3000\n{rounds}"));
        let found = record(&job.run("store"));
        found.concepts.iter().filter(|concept| concept.composed.unwrap().fa5 > 0.0).count()
    };
    let (once, again) = (left("rounds = 0"), left(""));
    assert!(once > 0 && again == 0, "{once} {again}");
}

#[test]
fn what_the_method_does_not_have_is_refused() {
    let refused = |job: &SmallJob, says: &str| {
        let output = job.command("plan", &[]).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}\n  does not say: {says}");
    };
    for (settings, says) in [
        ("towers = \"vision\"", "composition.towers must be \"text\""),
        ("towers = \"both\"", "composition.towers must be \"text\""),
        ("change = 2.0", "composition.change has no effect on the method `least-squares`"),
        ("layers = 2", "composition.layers has no effect on the method `least-squares`"),
        ("retain_weight = 0", "composition.retain_weight is 0, expected 0.001 to 1000000"),
        ("retain_weight = nan", "composition.retain_weight is NaN"),
        ("margin = 0.1", "composition.margin has no effect on the method `least-squares`"),
    ] {
        refused(&job(settings), says);
    }
    let other = SmallJob::new().lenient();
    let preconditioned =
        "[composition]\nmethod = \"preconditioned\"\nretain_weight = 9\n\n[execution]";
    other.replace("job.toml", "[execution]", preconditioned);
    refused(&other, "composition.retain_weight has no effect on the method `preconditioned`");
    other.replace("job.toml", "retain_weight = 9", "tokens = \"read\"");
    refused(&other, "composition.tokens has no effect on the method `preconditioned`");
    let protected = job("");
    protected.write("protect.txt", b"pizza\n");
    protected.replace("job.toml", "[data]", "[data]\nprotect = \"protect.txt\"");
    refused(&protected, "composition.method `least-squares` protects nothing");
}

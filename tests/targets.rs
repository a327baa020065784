//! Runs whose release includes other models: a pipeline with the text tower, a LLaVA checkpoint
//! with the vision tower.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use lethe::compose::apply::Change;
use lethe::downstream::{Target, stage};
use lethe::lease::fence::Fence;
use lethe::present::report::Thumbnails;
use lethe::release::publish;
use lethe::release::verify::verify;
use lethe::release::write::{self, Contents};
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::record::{Composition, Merge};
use lethe_store::Store;
use lethe_tests::mortal::Mortal;
use lethe_tests::releases::{ends, every_bit_counts, folder, lethe, record};
use lethe_tests::s3::S3Server;
use lethe_tests::targets::{
    Tensors, halved, llava, mapped, pipeline_xl, read, renamed, stable_diffusion, text_tower,
};
use lethe_tests::{SmallJob, base_model, binary, files, last_line, stderr};
use object_store::ObjectStore;
use serde_json::{Value, json};

/// Number of blocks of the demo's text tower.
const TEXT_BLOCKS: usize = 4;
const VISION_BLOCKS: usize = 5;

fn model() -> PathBuf {
    base_model().join("model.safetensors")
}

fn target(name: &str, kind: &str) -> String {
    format!("\n[[release.target]]\nname = \"{name}\"\nkind = \"{kind}\"\nuri = \"{name}\"\n")
}

/// Returns the small job with these targets, and these lines under `[composition]`.
fn job(composition: &str, targets: &str) -> SmallJob {
    let job = SmallJob::new().lenient();
    job.replace("job.toml", "[execution]", &format!("[composition]\n{composition}\n\n[execution]"));
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    job.write("job.toml", format!("{manifest}{targets}").as_bytes());
    job
}

fn pipeline(folder: &Path, blocks: usize) {
    stable_diffusion(folder, &text_tower(&model(), blocks), blocks);
}

fn vision_language(folder: &Path) {
    let config = json!({
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": VISION_BLOCKS},
        "vision_feature_layer": -2,
    });
    llava(folder, &model(), "model.vision_tower.vision_model.", &config);
}

fn refused(output: &Output, says: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(says) && !text.contains("panicked"), "{text}\n  does not say: {says}");
}

#[test]
fn a_pipeline_gets_the_edits_and_follows_its_release() {
    let job = job("method = \"preconditioned\"\nrounds = 2", &target("sd15", "stable-diffusion"));
    let source = job.path("sd15");
    pipeline(&source, TEXT_BLOCKS);
    // A second precision, a pickle of the same weights, a whole checkpoint beside it, a hidden
    // file.
    lethe_tests::targets::write(
        &source.join("text_encoder/model.fp16.safetensors"),
        &halved(&text_tower(&model(), TEXT_BLOCKS)),
    );
    for name in ["text_encoder/pytorch_model.bin", "v1-5-pruned.ckpt", ".gitattributes"] {
        std::fs::write(source.join(name), "weights").unwrap();
    }
    let planned = job.command("plan", &[]).output().unwrap();
    assert!(
        stderr(&planned)
            .contains("text_encoder/pytorch_model.bin, v1-5-pruned.ckpt may hold what is removed"),
        "{}",
        stderr(&planned)
    );
    assert_eq!(last_line(&planned)["targets"][0]["name"], "sd15");

    let said = job.run("store");
    let kept = record(&said);
    let [one] = kept.targets.as_slice() else { panic!("{:?}", kept.targets) };
    assert_eq!(
        one.changed.keys().collect::<Vec<_>>(),
        ["text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors"]
    );
    assert_eq!((one.left_out.len(), one.without.len()), (2, 0));
    // The text encoder equals the release's own text tower; all other files are identical byte for
    // byte.
    let inside = folder(&said).join("targets/sd15");
    let own = text_tower(&folder(&said).join("model.safetensors"), TEXT_BLOCKS);
    assert_eq!(read(&inside.join("text_encoder/model.safetensors")), own);
    assert_ne!(own, text_tower(&model(), TEXT_BLOCKS));
    let (before, after) = (files(&source), files(&inside));
    for (name, bytes) in &after {
        assert!(one.changed.contains_key(name) || before[name] == *bytes, "{name}");
    }
    assert_eq!(after.len() + 3, before.len());

    // Verification covers the target's files.
    let release = said["release"].as_str().unwrap();
    let checked = ends(0, &["verify", release, "--recompute"]);
    assert_eq!(checked["files"].as_u64().unwrap() as usize, kept.files.len() + after.len());
    every_bit_counts(
        &job,
        &said,
        &[
            "composition.json",
            "edits.safetensors",
            "interference.safetensors",
            "thumbnails.safetensors",
            "provenance.json",
            "receipts.jsonl",
            "README.md",
            "report.html",
            "model.sig",
            "attestations.intoto.jsonl",
            "targets/sd15/text_encoder/model.safetensors",
            "targets/sd15/unet/diffusion_pytorch_model.bin",
        ],
    );
    std::fs::write(inside.join("more.txt"), "").unwrap();
    assert_eq!(ends(4, &["verify", release])["problems"][0]["file"], "targets/sd15/more.txt");
    std::fs::remove_file(inside.join("more.txt")).unwrap();

    // A repeated run computes nothing and gives the same release.
    let again = job.run("store");
    assert_eq!(
        (&again["release"], again["summary"]["jobs_done"].as_u64()),
        (&said["release"], Some(0))
    );

    // A composed release contains the target; without any edit, the target is unchanged.
    let without = ends(0, &["compose", release, "--remove", "pizza"]);
    let encoder =
        |said: &Value| read(&folder(said).join("targets/sd15/text_encoder/model.safetensors"));
    assert_eq!(
        encoder(&without),
        text_tower(&folder(&without).join("model.safetensors"), TEXT_BLOCKS)
    );
    assert_ne!(encoder(&without), own);
    // It is measured on its run's data, whose manifest names the target.
    let measured = ends(0, &["evaluate", without["release"].as_str().unwrap()]);
    assert!(measured["concepts"]["rocket"]["fa5"].is_number(), "{measured}");
    let back = ends(
        0,
        &["compose", without["release"].as_str().unwrap(), "--add", &format!("{release}:pizza")],
    );
    assert_eq!(encoder(&back), own);
    let none = ends(
        0,
        &[
            "compose",
            release,
            "--strength",
            "pizza=0",
            "--strength",
            "red-heart=0",
            "--strength",
            "rocket=0",
        ],
    );
    assert_eq!(encoder(&none), text_tower(&model(), TEXT_BLOCKS));
    assert!(record(&none).targets[0].changed.is_empty());
    ends(0, &["verify", none["release"].as_str().unwrap(), "--recompute"]);

    // The target's model has moved, or is another one.
    let moved = job.path("moved");
    std::fs::rename(&source, &moved).unwrap();
    refused(&lethe(&["compose", release]), "--target sd15=ADDRESS says where");
    let at = format!("sd15={}", moved.display());
    let elsewhere = ends(0, &["compose", release, "--target", &at, "--remove", "rocket"]);
    assert_eq!(record(&elsewhere).targets[0].address, moved.to_str().unwrap());
    assert_eq!(record(&ends(0, &["compose", release, "--drop-target", "sd15"])).targets, []);
    std::fs::write(moved.join("README.md"), "another pipeline\n").unwrap();
    refused(&lethe(&["compose", release, "--target", &at]), "README.md differs");
    refused(&lethe(&["compose", release, "--target", "sd16=/x"]), "has no target `sd16`");
}

/// Of Stable Diffusion XL's two encoders, one is the model's: it is edited, in layers that the
/// pipeline reads. The other is copied.
#[test]
fn of_two_text_encoders_the_model_s_own_is_edited() {
    let last = format!("text_model.encoder.layers.{}.", TEXT_BLOCKS - 1);
    for (own, other) in [("text_encoder", "text_encoder_2"), ("text_encoder_2", "text_encoder")] {
        let job = job("rounds = 0", &target("sdxl", "stable-diffusion"));
        let encoder = |folder: &str, clip: Tensors| {
            // The second encoder has a projection.
            let mut tensors = clip;
            if folder == "text_encoder" {
                tensors.retain(|name, _| name.starts_with("text_model."));
            }
            tensors
        };
        let mut clip = text_tower(&model(), TEXT_BLOCKS);
        clip.extend(renamed(&read(&model()), "text_projection.", "text_projection."));
        pipeline_xl(
            &job.path("sdxl"),
            [
                (own, encoder(own, clip.clone())),
                (other, encoder(other, mapped(&clip, |value| 1.01 * value))),
            ],
        );
        let planned = job.command("plan", &[]).output().unwrap();
        let told = stderr(&planned);
        assert!(
            told.contains(&format!("`{other}`: "))
                && told.contains("it stays as it is, and knows what it knew"),
            "{told}"
        );
        // The first encoder is read before its last block, the second one completely.
        let layers = last_line(&planned)["layers"].clone();
        let acts_in_last = layers
            .as_array()
            .unwrap()
            .iter()
            .any(|layer| layer.as_str().unwrap().starts_with(&last));
        assert_eq!(acts_in_last, own == "text_encoder_2", "{own}: {layers}");

        let output = job.output("store");
        assert!([0, 3].contains(&output.status.code().unwrap()), "{}", stderr(&output));
        let said = last_line(&output);
        let kept = record(&said);
        assert!(
            !kept.concepts.is_empty()
                && kept
                    .concepts
                    .iter()
                    .all(|concept| !concept.layer.starts_with(&last) || acts_in_last)
        );
        let changed = format!("{own}/model.safetensors");
        assert_eq!(kept.targets[0].changed.keys().collect::<Vec<_>>(), [&changed]);
        let after = read(&folder(&said).join("targets/sdxl").join(&changed));
        let released = read(&folder(&said).join("model.safetensors"));
        assert!(
            after.iter().all(|(name, stored)| released[name] == *stored),
            "the encoder is the released model's"
        );
        let (before, after) =
            (files(&job.path("sdxl")), files(&folder(&said).join("targets/sdxl")));
        assert!(
            after.iter().all(|(name, bytes)| *name == changed || before[name] == *bytes)
                && after.len() == before.len()
        );
        ends(0, &["verify", said["release"].as_str().unwrap(), "--recompute"]);
    }
}

#[test]
fn edits_go_to_layers_that_act() {
    // A pipeline that lacks half of the blocks, and uses two.
    let without_last = |method: &str| {
        let job = job(method, &target("sd2", "stable-diffusion"));
        pipeline(&job.path("sd2"), TEXT_BLOCKS / 2);
        job
    };
    let acts = |layer: &str| {
        (0..TEXT_BLOCKS / 2)
            .any(|block| layer.starts_with(&format!("text_model.encoder.layers.{block}.")))
    };
    for method in ["rounds = 0", "method = \"sum\""] {
        let job = without_last(method);
        let planned = job.command("plan", &[]).output().unwrap();
        assert!(
            stderr(&planned).contains("no edit goes to text_model.encoder.layers.2."),
            "{}",
            stderr(&planned)
        );
        // With so few layers, the search may fail for some concepts.
        let output = job.output("store");
        assert!([0, 3].contains(&output.status.code().unwrap()), "{}", stderr(&output));
        let kept = record(&last_line(&output));
        assert!(kept.concepts.iter().all(|concept| acts(&concept.layer)), "{method}");
        assert!(!kept.concepts.is_empty() && kept.targets[0].without.is_empty());
        let tower = &kept.targets[0].towers[0];
        assert_eq!((tower.blocks, tower.blocks_used), (2, 2));
        for front in kept.concepts.iter().flat_map(|concept| &concept.search) {
            assert!(acts(&front.layer), "{method}: {}", front.layer);
        }
    }
}

#[test]
fn a_pipeline_that_takes_one_vector_gets_edits_of_the_token_that_clip_reads() {
    let targets = target("flux", "diffusion");
    let job = job("method = \"least-squares\"\nrounds = 0", &targets);
    pipeline(&job.path("flux"), TEXT_BLOCKS);
    let planned = |index: &Value| {
        job.write("flux/model_index.json", index.to_string().as_bytes());
        let output = job.command("plan", &[]).output().unwrap();
        (last_line(&output), stderr(&output))
    };
    let states = json!({"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
        "unet": ["diffusers", "UNet2DConditionModel"]});
    let (plan, _) = planned(&states);
    assert_eq!(plan["tokens"], "all");
    assert!(plan["targets"][0]["unedited"].is_null(), "{plan}");
    let pooled = json!({"_class_name": "FluxPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"], "transformer": ["diffusers", "FluxTransformer2DModel"]});
    let (plan, warnings) = planned(&pooled);
    assert_eq!(plan["tokens"], "read");
    assert_eq!(plan["targets"][0]["architecture"], "FluxPipeline");
    assert!(warnings.contains("`text_encoder_2` (T5EncoderModel) reads prompts too"), "{warnings}");

    let output = job.output("store");
    assert!([0, 3].contains(&output.status.code().unwrap()), "{}", stderr(&output));
    let said = last_line(&output);
    let kept = record(&said);
    let [one] = kept.targets.as_slice() else { panic!("{:?}", kept.targets) };
    assert_eq!(one.unedited[0].class, "T5EncoderModel");
    assert!(one.towers[0].reads.starts_with("the state at the end of a text"), "{:?}", one.towers);
    let inside = folder(&said).join("targets/flux/text_encoder/model.safetensors");
    let own = text_tower(&folder(&said).join("model.safetensors"), TEXT_BLOCKS);
    assert!(read(&inside) == own && own != text_tower(&model(), TEXT_BLOCKS));
    for page in ["README.md", "report.html"] {
        let text = std::fs::read_to_string(folder(&said).join(page)).unwrap();
        assert!(text.contains("not edited: text_encoder_2 (T5EncoderModel)"), "{page}");
    }
    ends(0, &["verify", said["release"].as_str().unwrap(), "--recompute"]);
}

#[test]
fn llava_reads_its_tower_before_the_last_block() {
    let job = job(
        "towers = \"vision\"\nrounds = 0",
        &(target("llava", "llava") + "pass_through = \"reference\"\n"),
    );
    vision_language(&job.path("llava"));
    let planned = last_line(&job.command("plan", &[]).output().unwrap());
    let layers: Vec<&str> =
        planned["layers"].as_array().unwrap().iter().map(|layer| layer.as_str().unwrap()).collect();
    let expected: Vec<String> = (0..VISION_BLOCKS - 1)
        .map(|block| format!("vision_model.encoder.layers.{block}.mlp.fc2.weight"))
        .collect();
    assert_eq!(layers, expected);
    let output = job.output("store");
    assert!([0, 3].contains(&output.status.code().unwrap()), "{}", stderr(&output));
    let said = last_line(&output);
    let kept = record(&said);
    assert!(
        !kept.concepts.is_empty()
            && kept.concepts.iter().all(|concept| layers.contains(&concept.layer.as_str()))
    );
    // Unchanged files are referenced, not copied.
    let inside = files(&folder(&said).join("targets/llava"));
    assert_eq!(
        inside.keys().collect::<Vec<_>>(),
        ["model-00001-of-00002.safetensors", "target.json"]
    );
    let listing: Value = serde_json::from_slice(&inside["target.json"]).unwrap();
    let referenced: Vec<&String> = listing["referenced"].as_object().unwrap().keys().collect();
    assert_eq!(
        referenced,
        ["config.json", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    );
    for (name, file) in listing["referenced"].as_object().unwrap() {
        let bytes = std::fs::read(job.path("llava").join(name)).unwrap();
        assert_eq!(file["digest"], Digest::of(&bytes).to_string());
    }
    let (released, own) = (
        read(&folder(&said).join("targets/llava/model-00001-of-00002.safetensors")),
        read(&folder(&said).join("model.safetensors")),
    );
    for (name, stored) in &released {
        assert_eq!(*stored, own[name.strip_prefix("model.vision_tower.").unwrap()], "{name}");
    }
    ends(0, &["verify", said["release"].as_str().unwrap(), "--recompute"]);
}

#[test]
fn what_cannot_act_is_said_before_anything_is_computed() {
    let refuses = |job: &SmallJob, says: &str| {
        for command in ["plan", "run"] {
            refused(
                &job.command(command, &["--store", job.path("store").to_str().unwrap()])
                    .output()
                    .unwrap(),
                says,
            );
        }
        assert!(!job.path("store/outcomes").is_dir(), "nothing was computed");
    };
    // Edits of the text tower, and a target that contains only a vision tower.
    let texts = job("towers = \"text\"", &target("llava", "llava"));
    vision_language(&texts.path("llava"));
    refuses(
        &texts,
        "target `llava` has the vision tower inside, and edits change the other one alone: set composition.towers = \"vision\"",
    );
    // Another CLIP's tower.
    let other = job("rounds = 0", &target("sd15", "stable-diffusion"));
    stable_diffusion(
        &other.path("sd15"),
        &mapped(&text_tower(&model(), TEXT_BLOCKS), |value| 1.01 * value),
        TEXT_BLOCKS,
    );
    refuses(&other, "its text tower is not the model's");
    // Another kind of folder, or none.
    std::fs::remove_file(other.path("sd15/model_index.json")).unwrap();
    refuses(&other, "is no pipeline folder of diffusers");
    other.replace("job.toml", "uri = \"sd15\"", "uri = \"nowhere\"");
    refuses(&other, "target `sd15`");
    std::fs::remove_file(texts.path("llava/model-00001-of-00002.safetensors")).unwrap();
    refuses(&texts, "model-00001-of-00002.safetensors");
    // A checkpoint in the layout of LLaVA's own code may lack the tower, so there would be nothing
    // to edit.
    let index = json!({"metadata": {}, "weight_map": {"language_model.model.embed_tokens.weight": "model-00002-of-00002.safetensors"}});
    texts.write("llava/model.safetensors.index.json", index.to_string().as_bytes());
    refuses(&texts, "leave the target out");
    let own = json!({"model_type": "llava_llama", "mm_vision_tower": "some/clip", "mm_vision_select_layer": -2});
    texts.write("llava/config.json", own.to_string().as_bytes());
    refuses(
        &texts,
        "takes it from mm_vision_tower (`some/clip`). Leave the target out, and let mm_vision_tower in config.json lead to the release",
    );
    // Pickled weights.
    let pickled = job("rounds = 0", &target("sd15", "stable-diffusion"));
    pipeline(&pickled.path("sd15"), TEXT_BLOCKS);
    std::fs::rename(
        pickled.path("sd15/text_encoder/model.safetensors"),
        pickled.path("sd15/text_encoder/pytorch_model.bin"),
    )
    .unwrap();
    refuses(&pickled, "safe_serialization=True");
}

/// Returns the small job with a target of each tower, and what its plan says on stderr.
fn with_both_towers(composition: &str) -> (SmallJob, String) {
    let targets = target("sd15", "stable-diffusion") + &target("llava", "llava");
    let job = job(composition, &targets);
    pipeline(&job.path("sd15"), TEXT_BLOCKS);
    vision_language(&job.path("llava"));
    let warnings = stderr(&job.command("plan", &[]).output().unwrap());
    (job, warnings)
}

#[test]
fn of_two_towers_each_target_gets_its_own() {
    let (job, warnings) = with_both_towers("method = \"sum\"");
    assert!(warnings.contains("it stays in every target with the other one"), "{warnings}");
    let said = job.run("store");
    let kept = record(&said);
    for target in &kept.targets {
        let tower = target.kind.tower();
        let expected: Vec<&String> = kept
            .concepts
            .iter()
            .filter(|concept| concept.tower != tower)
            .map(|concept| &concept.id)
            .collect();
        assert_eq!(target.without.iter().collect::<Vec<_>>(), expected, "{}", target.name);
        assert_eq!(target.changed.is_empty(), expected.len() == kept.concepts.len());
    }
    ends(0, &["verify", said["release"].as_str().unwrap(), "--recompute"]);
}

#[test]
fn both_towers_share_each_removal_and_each_target_gets_the_part_of_its_tower() {
    let (job, warnings) = with_both_towers("towers = \"both\"\nrank = 4\nrounds = 2");
    assert!(warnings.contains("each removal is shared between the towers"), "{warnings}");
    let output = job.output("store");
    assert!([0, 3].contains(&output.status.code().unwrap()), "{}", stderr(&output));
    let said = last_line(&output);
    let kept = record(&said);
    assert_eq!(kept.method, "margins");
    for concept in &kept.concepts {
        let of = |tower: &str| concept.layers.iter().any(|layer| layer.starts_with(tower));
        assert!(of("text_model.") && of("vision_model."), "{:?}", concept.layers);
    }
    for target in &kept.targets {
        assert!(target.without.is_empty() && !target.changed.is_empty(), "{}", target.name);
    }
    ends(0, &["verify", said["release"].as_str().unwrap(), "--recompute"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_in_the_store_s_bucket_is_copied_there() {
    let server = S3Server::start();
    let bucket = server.bucket("lethe");
    let job = job("rounds = 0", &target("sd15", "stable-diffusion"));
    pipeline(&job.path("sd15"), TEXT_BLOCKS);
    let local = record(&job.run("store"));
    for name in files(&job.path("sd15")).keys() {
        bucket
            .put_file(&format!("models/sd15/{name}"), &job.path("sd15").join(name))
            .await
            .unwrap();
    }
    job.replace("job.toml", "uri = \"sd15\"", "uri = \"s3://lethe/models/sd15\"");
    let mut command = job.command("run", &["--store", "s3://lethe/store"]);
    S3Server::environment(&server.endpoint(), &mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = last_line(&output);
    let key = said["release"].as_str().unwrap().strip_prefix("s3://lethe/").unwrap().to_owned();
    let kept: Composition = serde_json::from_slice(
        &bucket.get(&format!("{key}/composition.json")).await.unwrap().unwrap(),
    )
    .unwrap();
    assert_eq!(
        (&kept.targets[0].source, &kept.targets[0].changed),
        (&local.targets[0].source, &local.targets[0].changed)
    );
    for (name, file) in kept.targets[0].files() {
        assert_eq!(
            bucket.hash(&format!("{key}/targets/sd15/{name}")).await.unwrap(),
            file,
            "{name}"
        );
    }
    // Only the target's compared and changed files were downloaded.
    let brought = files(&job.path("cache"));
    assert!(
        brought.keys().any(|name| name.ends_with("text_encoder/model.safetensors")),
        "{:?}",
        brought.keys()
    );
    assert!(!brought.keys().any(|name| name.contains("unet")), "{:?}", brought.keys());
    let mut command = Command::new(binary("lethe"));
    command
        .args(["verify", said["release"].as_str().unwrap(), "--recompute", "--json"])
        .env("LETHE_CACHE", job.path("cache"));
    S3Server::environment(&server.endpoint(), &mut command);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// Releases a target into a store, with a crash after every possible number of writes, and then
/// once more.
#[tokio::test]
async fn a_process_that_dies_leaves_no_half_target() {
    let job = SmallJob::summed();
    pipeline(&job.path("sd15"), TEXT_BLOCKS);
    let kept = record(&job.run("first"));
    let base = Checkpoint::open(&base_model()).unwrap();
    let request =
        serde_json::from_value(json!({"name": "sd15", "kind": "stable-diffusion", "uri": "sd15"}))
            .unwrap();
    let target =
        Target::open(&request, Address::Local(job.path("sd15")), &base, &job.path("cache"))
            .await
            .unwrap();
    let layer = "text_model.encoder.layers.1.mlp.fc2.weight";
    let size = base.tensor(layer).unwrap().shape.iter().product();
    let direction = vec![1.0; size];

    let local = tempfile::tempdir().unwrap();
    let inner: Arc<dyn ObjectStore> =
        Arc::new(object_store::local::LocalFileSystem::new_with_prefix(local.path()).unwrap());
    let whole = Store::over(Arc::clone(&inner), local.path().to_str().unwrap());
    let attempt = async |store: &Store, step: f64| {
        let artifact = kept.concepts[0].direction;
        let edit = Edit {
            concept: "c".into(),
            spread: false,
            layer: layer.into(),
            step,
            strength: 1.0,
            coefficient: 1.0,
            direction: artifact,
        };
        let own = |_: &Edit, _: &[usize]| Ok(Direction::Dense(direction.clone()));
        let edited = target.edited(&base, &[edit], Merge::Sum, &own).await?;
        let staged = stage(&target, edited, store).await?;
        let record = Composition {
            digest: base.digest().unwrap(),
            concepts: Vec::new(),
            name: "small".into(),
            ..kept.clone()
        };
        let (change, thumbnails) = (Change::new(), Thumbnails::new());
        let contents = Contents {
            change: &change,
            edits: &[],
            directions: &own,
            effect_matrix: None,
            protected: None,
            thumbnails: &thumbnails,
            targets: vec![staged],
        };
        write::write(store, &Fence::open(), &base, contents, record).await
    };
    for writes in 1.. {
        let mortal = Store::over(Arc::new(Mortal::over(Arc::clone(&inner), writes)), "mortal");
        let before = publish::published(&whole, "small").await.unwrap().len();
        let died = attempt(&mortal, writes as f64 / 100.0).await.is_err();
        // Every published release is complete, including its target.
        for one in publish::published(&whole, "small").await.unwrap().values() {
            let address = Address::Local(local.path().join(one.prefix()));
            assert_eq!(verify(&address).await.unwrap().problems, [], "after {writes} writes");
        }
        let (_, written, _) = attempt(&whole, writes as f64 / 100.0).await.unwrap();
        assert_eq!(written.targets[0].changed.len(), 1);
        assert_eq!(publish::published(&whole, "small").await.unwrap().len(), before + 1);
        assert_eq!(
            lethe::release::leftovers::leftovers(&whole, "small", i64::MAX).await.unwrap(),
            []
        );
        if !died {
            assert!(writes > 10, "{writes}");
            break;
        }
        assert!(writes < 60, "a release ends");
    }
}

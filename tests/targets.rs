//! Runs whose release includes other models: a pipeline with the text tower, a LLaVA checkpoint
//! with the vision tower.

#[path = "targets/reach.rs"]
mod reach;

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
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::record::{Composition, Merge};
use lethe_store::Store;
use lethe_tests::mortal::Mortal;
use lethe_tests::releases::{ends, every_bit_counts, folder, lethe, record};
use lethe_tests::s3::S3Server;
use lethe_tests::targets::{halved, llava, read, stable_diffusion, text_tower};
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

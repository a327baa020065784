//! Folders of models and targets as people have them: which files are read, which are not copied,
//! and which are refused before anything is computed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use lethe_shared::record::Composition;
use lethe_tests::targets::{Tensors, halved, mapped, read, stable_diffusion, text_tower, write};
use lethe_tests::{SmallJob, base_model, binary, files, last_line, stderr};
use serde_json::{Value, json};

/// Number of blocks of the demo's text tower.
const TEXT_BLOCKS: usize = 4;

/// Returns the small job with its own copy of the model.
fn job() -> SmallJob {
    let job = SmallJob::new().lenient();
    std::fs::create_dir(job.path("model")).unwrap();
    for entry in std::fs::read_dir(base_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), job.path("model").join(entry.file_name())).unwrap();
    }
    job.replace("job.toml", &format!("uri = \"{}\"", base_model().display()), "uri = \"model\"");
    job
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes a JSON file of the job.
fn edit_json(job: &SmallJob, name: &str, edit: impl FnOnce(&mut Value)) {
    let mut json = read_json(&job.path(name));
    edit(&mut json);
    job.write(name, json.to_string().as_bytes());
}

fn plan(job: &SmallJob) -> Output {
    job.command("plan", &[]).output().unwrap()
}

/// Plans the job and runs it: both must fail with these messages, each of them once.
fn refuses(job: &SmallJob, says: &[&str]) {
    for output in [plan(job), job.output("store")] {
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        for part in says {
            assert_eq!(text.matches(part).count(), 1, "{text}\n  does not say once: {part}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn a_plan_names_every_problem_of_a_model_once() {
    let job = job();
    edit_json(&job, "model/config.json", |config| config["model_type"] = json!("blip"));
    std::fs::remove_file(job.path("model/tokenizer.json")).unwrap();
    std::fs::remove_file(job.path("model/preprocessor_config.json")).unwrap();
    refuses(&job, &["model_type is `blip`", "save_pretrained", "neither preprocessor_config.json"]);
}

#[test]
fn a_model_that_is_not_understood_is_refused() {
    for (edit, says) in [
        (
            (|config| config["text_config"]["eos_token_id"] = json!(49_407)) as fn(&mut Value),
            "text_config.eos_token_id in config.json",
        ),
        (|config| config["text_config"]["qk_norm"] = json!(true), "text_config.qk_norm"),
        (
            |config| config["vision_config"]["num_hidden_layers"] = json!(4),
            "is no part of the CLIP",
        ),
    ] {
        let job = job();
        edit_json(&job, "model/config.json", edit);
        let output = plan(&job);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    let job = job();
    let mut tensors = read(&job.path("model/model.safetensors"));
    let norm = tensors["text_model.final_layer_norm.weight"].clone();
    tensors.insert("text_model.encoder.layers.0.self_attn.q_norm.weight".to_owned(), norm);
    write(&job.path("model/model.safetensors"), &tensors);
    refuses(&job, &["layers.0.self_attn.q_norm.weight"]);
}

/// A variant of the weights, beside files of the other layout, with the image processor where
/// transformers 5 has it, and a file that only its owner can read.
#[test]
fn one_pair_of_weights_and_configuration_is_read_and_released() {
    let job = job();
    let model = job.path("model");
    let weights = read(&model.join("model.safetensors"));
    std::fs::rename(model.join("model.safetensors"), model.join("model.full.safetensors")).unwrap();
    let planned = plan(&job);
    assert_eq!(planned.status.code(), Some(0), "{}", stderr(&planned));
    assert!(stderr(&planned).contains("are the variant `full`"), "{}", stderr(&planned));
    let mut processor = read_json(&model.join("preprocessor_config.json"));
    processor["image_processor_type"] = json!("CLIPImageProcessorPil");
    std::fs::remove_file(model.join("preprocessor_config.json")).unwrap();
    let processor = json!({ "processor_class": "CLIPProcessor", "image_processor": processor });
    job.write("model/processor_config.json", processor.to_string().as_bytes());
    job.write("model/open_clip_config.json", br#"{"model_cfg":{},"preprocess_cfg":{"size":9}}"#);
    job.write("model/open_clip_pytorch_model.bin", b"weights");
    std::fs::set_permissions(model.join("tokenizer.json"), std::fs::Permissions::from_mode(0o600))
        .unwrap();
    let planned = plan(&job);
    assert!(
        stderr(&planned).contains(
            "open_clip_config.json, open_clip_pytorch_model.bin are neither read nor copied into the release: \
             model.full.safetensors and config.json are read"
        ),
        "{}",
        stderr(&planned)
    );

    let said = job.run("store");
    let release = Path::new(said["release"].as_str().unwrap());
    assert_ne!(read(&release.join("model.full.safetensors")), weights);
    assert!(release.join("processor_config.json").is_file());
    assert!(!release.join("open_clip_config.json").try_exists().unwrap());
    // Every file has the permissions of the umask.
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    job.write("new", b"x");
    for name in files(release).keys() {
        assert_eq!(mode(&release.join(name)), mode(&job.path("new")), "{name}");
    }
    let checked =
        Command::new(binary("lethe")).args(["verify", said["release"].as_str().unwrap()]).output();
    assert_eq!(checked.unwrap().status.code(), Some(0));
}

/// Splits tensors into two shards with an index of a variant.
fn shards(folder: &Path, tensors: &Tensors) {
    let mut map = serde_json::Map::new();
    for (number, part) in [1, 2].into_iter().zip([true, false]) {
        let file = format!("model.fp16-0000{number}-of-00002.safetensors");
        let mut shard = tensors.clone();
        shard.retain(|name, _| name.contains("layers") == part);
        map.extend(shard.keys().map(|name| (name.clone(), file.clone().into())));
        write(&folder.join(file), &shard);
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.fp16.json"), index).unwrap();
}

#[test]
fn copies_of_the_tower_are_edited_wherever_they_lie() {
    let job = SmallJob::new().lenient();
    let manifest = std::fs::read_to_string(job.path("job.toml")).unwrap();
    let target = "\n[[release.target]]\nname = \"sd\"\nkind = \"stable-diffusion\"\nuri = \"sd\"\n";
    job.write("job.toml", format!("{manifest}{target}").as_bytes());
    job.replace("job.toml", "[execution]", "[composition]\ntowers = \"text\"\n\n[execution]");
    let clip = base_model().join("model.safetensors");
    let tower = text_tower(&clip, TEXT_BLOCKS);
    let sd = job.path("sd");
    stable_diffusion(&sd, &tower, TEXT_BLOCKS);
    shards(&sd.join("text_encoder"), &halved(&tower));
    write(&sd.join("checkpoint-500/text_encoder/model.safetensors"), &tower);
    // Other copies cannot be edited: trained further, without its embedding, pickled.
    write(&sd.join("older/encoder.safetensors"), &mapped(&tower, |value| 1.1 * value));
    let mut part = tower.clone();
    part.retain(|name, _| name.contains("layers.0."));
    write(&sd.join("a/b/c/part.safetensors"), &part);
    let adapter = [("unet.lora_A.weight".to_owned(), tower.values().next().unwrap().clone())];
    write(&sd.join("lora/adapter.safetensors"), &adapter.into());
    for name in [
        "checkpoint-500/pytorch_model.bin",
        "unet/model.engine",
        "unet/pytorch_model.bin",
        "weights.npz",
        "all.zip",
        "notes.txt",
    ] {
        std::fs::write(sd.join(name), "x").unwrap();
    }
    let out = [
        "a/b/c/part.safetensors",
        "all.zip",
        "checkpoint-500/pytorch_model.bin",
        "older/encoder.safetensors",
        "unet/model.engine",
        "unet/pytorch_model.bin",
        "weights.npz",
    ];
    let planned = plan(&job);
    assert_eq!(planned.status.code(), Some(0), "{}", stderr(&planned));
    for name in out {
        assert!(stderr(&planned).contains(name), "{name}: {}", stderr(&planned));
    }

    let said = last_line(&job.output("store"));
    let release = Path::new(said["release"].as_str().unwrap());
    let record: Composition =
        serde_json::from_slice(&std::fs::read(release.join("composition.json")).unwrap()).unwrap();
    let kept = &record.targets[0];
    assert_eq!(kept.left_out, out);
    let inside = release.join("targets/sd");
    let edited = text_tower(&release.join("model.safetensors"), TEXT_BLOCKS);
    assert_ne!(edited, tower);
    for name in ["text_encoder/model.safetensors", "checkpoint-500/text_encoder/model.safetensors"]
    {
        assert_eq!(read(&inside.join(name)), edited, "{name}");
    }
    assert!(
        kept.changed.keys().any(|name| name.starts_with("text_encoder/model.fp16-0000")),
        "{:?}",
        kept.changed.keys()
    );
    let there = files(&inside);
    assert!(out.iter().all(|name| !there.contains_key(*name)), "{:?}", there.keys());
    for name in ["notes.txt", "lora/adapter.safetensors", "unet/diffusion_pytorch_model.bin"] {
        assert_eq!(there[name], std::fs::read(sd.join(name)).unwrap(), "{name}");
    }
}

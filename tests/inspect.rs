//! `lethe inspect`: it says what inputs are as plans read them, refuses what plans refuse, and fits
//! on a screen.

use std::path::Path;
use std::process::{Command, Output};

use lethe_tests::targets::{halved, llava, mapped, stable_diffusion, text_tower, write};
use lethe_tests::{SmallJob, base_model, binary, demo, last_line, shard_of, stderr};
use serde_json::{Value, json};

/// Lines of a terminal.
const SCREEN: usize = 24;

fn lethe(arguments: &[&str]) -> Output {
    Command::new(binary("lethe")).arg("inspect").args(arguments).output().unwrap()
}

/// Inspects with this exit code, and returns what is printed, which fits on a screen.
fn inspect(code: i32, arguments: &[&str]) -> String {
    let output = lethe(arguments);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}{}", stderr(&output));
    assert!(text.lines().count() <= SCREEN, "{text}");
    text
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text}\n  does not say: {part}");
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A PNG of this size, as the demo has them.
fn image() -> Vec<u8> {
    let shard = std::fs::read(demo().join("validation.tar")).unwrap();
    let mut archive = tar::Archive::new(shard.as_slice());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().extension().is_some_and(|extension| extension != "txt") {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            return bytes;
        }
    }
    panic!("the demo's shard has no image");
}

#[test]
fn a_model_is_described_as_it_is_read() {
    let model = base_model();
    let text = inspect(0, &[shown(&model)]);
    says(
        &text,
        &[
            "a model in the layout of transformers",
            "family          CLIP",
            "model.safetensors: ",
            "text tower      4 blocks of width ",
            "vision tower    ",
            "tokens of ",
            "shorter edge resized to ",
            "digest          ",
        ],
    );
    assert!(!text.contains("odd  ") && !text.contains("refused  "), "{text}");

    // The JSON object has the same, and the same digest that a plan prints.
    let said = last_line(&lethe(&[shown(&model), "--json"]));
    assert_eq!(
        (&said["accepted"], said["inspections"].as_array().unwrap().len()),
        (&json!(true), 1)
    );
    let digest = said["inspections"][0]["read"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row[0] == "digest")
        .map(|row| row[1].clone())
        .unwrap();
    let job = SmallJob::new();
    let planned = last_line(&job.command("plan", &[]).output().unwrap());
    assert_eq!(planned["model"]["weights"], digest);

    // What a plan refuses, in the same words.
    let copy = job.path("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(model.join(name), copy.join(name)).unwrap();
    }
    std::fs::write(copy.join("open_clip_model.safetensors"), b"x").unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(copy.join("config.json")).unwrap()).unwrap();
    config["text_config"]["qk_norm"] = json!(true);
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    let text = inspect(2, &[shown(&copy)]);
    says(
        &text,
        &["refused         ", "text_config.qk_norm", "tokenizer.json: is missing", "odd  "],
    );
    says(&text, &["open_clip_model.safetensors is neither read nor copied"]);
}

#[test]
fn a_shard_is_summarized_and_its_problems_are_named() {
    let text = inspect(0, &[shown(&demo().join("validation.tar"))]);
    says(&text, &["a shard of image-text pairs", "pairs  ", " pixels", "captions  ", "digest  "]);
    let classes = demo().join("classes.txt");
    let text = inspect(0, &[shown(&demo().join("validation.tar")), "--classes", shown(&classes)]);
    says(&text, &["classes         ", " of 1,068"]);

    let job = SmallJob::new();
    let png = image();
    let members = |key: &str, caption: &[u8], image: &[u8]| {
        [(format!("{key}.png"), image.to_vec()), (format!("{key}.txt"), caption.to_vec())]
    };
    let mut all = Vec::new();
    all.extend(members("a", b"a cat\x1b[2J", &png));
    all.extend(members("b", b"a dog", &png[..png.len() / 2]));
    all.push(("notes/readme.md".to_owned(), b"hello".to_vec()));
    job.write("odd.tar", &shard_of(all));
    let text = inspect(2, &[shown(&job.path("odd.tar"))]);
    says(&text, &["readable pairs  1", "sample `b`", "lethe curate"]);
    assert!(!text.contains('\x1b'), "{text:?}");

    // A folder of shards, one of which is none.
    let folder = job.path("shards");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(demo().join("validation.tar"), folder.join("0.tar")).unwrap();
    std::fs::write(folder.join("1.tar"), [0x1f, 0x8b, 8, 0]).unwrap();
    let text = inspect(2, &[shown(&folder)]);
    says(&text, &["a folder of 2 shards", "0.tar: ", "1.tar: refused", "gzip"]);
}

#[test]
fn targets_are_recognised_and_compared() {
    let job = SmallJob::new();
    let clip = base_model().join("model.safetensors");
    let pipeline = job.path("pipeline");
    let tower = text_tower(&clip, 4);
    stable_diffusion(&pipeline, &tower, 4);
    write(&pipeline.join("text_encoder/model.fp16.safetensors"), &halved(&tower));
    write(&pipeline.join("checkpoint-500/text_encoder/model.safetensors"), &tower);
    std::fs::write(pipeline.join("unet/model.engine"), b"x").unwrap();
    let model = base_model();
    for base in [&[][..], &["--base", shown(&model)]] {
        let text = inspect(0, &[&[shown(&pipeline)], base].concat());
        says(
            &text,
            &[
                "a pipeline of diffusers, for kind = \"stable-diffusion\"",
                "tower           text_encoder: text tower, 4 blocks",
                "text_encoder/model.fp16.safetensors",
                "copy of it      checkpoint-500/text_encoder: ",
                "unet/model.engine may hold what is removed",
            ],
        );
    }
    let other = mapped(&tower, |value| value * 1.5);
    write(&pipeline.join("text_encoder/model.safetensors"), &other);
    std::fs::remove_file(pipeline.join("text_encoder/model.fp16.safetensors")).unwrap();
    let text = inspect(2, &[shown(&pipeline), "--base", shown(&model)]);
    says(&text, &["refused         ", "is not the model's"]);

    let checkpoint = job.path("llava");
    let config = json!({ "model_type": "llava", "vision_feature_layer": -2,
        "vision_config": { "model_type": "clip_vision_model" } });
    llava(&checkpoint, &clip, "vision_tower.vision_model.", &config);
    let text = inspect(0, &[shown(&checkpoint)]);
    says(
        &text,
        &[
            "a vision-language model",
            "the checkpoint: vision tower, ",
            "model.safetensors.index.json",
        ],
    );
}

#[test]
fn tables_lists_and_manifests_are_read() {
    let job = SmallJob::new();
    let text = inspect(0, &[shown(&job.path("job.toml"))]);
    says(&text, &["a manifest", "concepts  ", "`lethe plan`"]);
    let text = inspect(2, &[shown(&base_model().join("config.json"))]);
    says(&text, &["no manifest", "with its folder"]);
    // A table is checked without a class list as `plan` checks it with one.
    let table = "id,name,forget,strength\na/b,guitar,x.tar,1\nc,cat,y.tar,-1\nd,dog,z.tar,1\nd,cow,w.tar,1\n";
    job.write("table.csv", table.as_bytes());
    let text = inspect(2, &[shown(&job.path("table.csv"))]);
    says(&text, &["table.csv:2", "table.csv:3", "table.csv:5", "--classes FILE"]);
    says(&inspect(0, &[shown(&job.path("concepts.csv"))]), &["concepts  "]);
    job.replace("job.toml", "[model]", "[modle]");
    says(&inspect(2, &[shown(&job.path("job.toml"))]), &["modle", "refused  "]);
}

#[test]
fn other_files_are_named_with_what_to_do() {
    let job = SmallJob::new();
    job.write("x.png", &image());
    says(&inspect(0, &[shown(&job.path("x.png"))]), &[" image", " pixels"]);
    job.write("cut.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF");
    says(&inspect(2, &[shown(&job.path("cut.jpg"))]), &["refused  "]);
    job.write("x.bin", b"x");
    says(&inspect(2, &[shown(&job.path("x.bin"))]), &["a pickle", "save_pretrained"]);
    job.write("names.txt", "cat\ndog\n".as_bytes());
    says(
        &inspect(0, &[shown(&job.path("names.txt"))]),
        &["2, such as `cat`, `dog`", "class list      accepted"],
    );
    job.write("twice.txt", "cat\ncat\n".as_bytes());
    says(
        &inspect(0, &[shown(&job.path("twice.txt"))]),
        &["not a class list: ", "already on line 1"],
    );
    job.write("c.csv", b"id;name;aliases\ncat;cat;kitten|tom\n");
    let text = inspect(0, &[shown(&job.path("c.csv"))]);
    says(
        &text,
        &[
            "a concept table for `lethe curate`",
            "aliases         given for 1",
            "not for `lethe run`",
        ],
    );
    job.write("d.csv", b"id,name,forget\ncat,cat,cat.tar\n");
    let classes = job.path("names.txt");
    says(
        &inspect(0, &[shown(&job.path("d.csv")), "--classes", shown(&classes)]),
        &["1, such as `cat`"],
    );
    job.write("e.csv", b"id,name,forget\ncow,cow,cow.tar\n");
    says(
        &inspect(2, &[shown(&job.path("e.csv")), "--classes", shown(&classes)]),
        &["cow", "refused"],
    );
    let weights = base_model().join("model.safetensors");
    says(
        &inspect(0, &[shown(&weights)]),
        &["a weight file", "transformers", "a model is a folder"],
    );
    let mut cut = std::fs::read(&weights).unwrap();
    cut.truncate(cut.len() / 2);
    job.write("cut.safetensors", &cut);
    says(&inspect(2, &[shown(&job.path("cut.safetensors"))]), &["refused  "]);
    std::fs::create_dir(job.path("empty")).unwrap();
    let output = lethe(&[shown(&job.path("empty"))]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("is empty"), "{}", stderr(&output));
    let output = lethe(&[shown(&job.path("nowhere.tar"))]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nowhere.tar"), "{}", stderr(&output));
}

#[test]
fn a_release_is_recognised() {
    let job = SmallJob::new().lenient();
    let said = job.run("store");
    let release = said["release"].as_str().unwrap();
    let text = inspect(0, &[release]);
    says(&text, &["a release: a model", "edits by `preconditioned`", "`lethe verify`"]);
}

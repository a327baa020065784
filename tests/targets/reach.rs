//! Which layers edits go to, by what targets read.

use lethe_shared::digest::Digest;
use lethe_tests::releases::{ends, folder, record};
use lethe_tests::targets::{
    Tensors, mapped, pipeline_xl, read, renamed, stable_diffusion, text_tower,
};
use lethe_tests::{SmallJob, files, last_line, stderr};
use serde_json::{Value, json};

use super::{TEXT_BLOCKS, VISION_BLOCKS, job, model, pipeline, refused, target, vision_language};

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

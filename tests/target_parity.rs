//! Edits of a CLIP in a pipeline's text encoder and in a LLaVA checkpoint, against reference values
//! (`golden/README.md`), and across layouts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lethe::downstream::{Target, stage};
use lethe::failure::Failure;
use lethe_shared::address::Address;
use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::edit::{Direction, Edit};
use lethe_shared::manifest::{PassThrough, ReleaseTarget, TargetKind};
use lethe_shared::record::Merge;
use lethe_shared::record::targets::TargetRecord;
use lethe_shared::reference::ArtifactRef;
use lethe_shared::vocabulary::Tower;
use lethe_store::Store;
use lethe_tests::files;
use lethe_tests::targets::{Tensors, halved, mapped, read, renamed, write};
use lethe_worker::model::weights::tensor_from_bytes;
use lethe_worker::model::{Clip, ClipConfig, Input, Parameters, Part, Stage, TokenBatch};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// Returns a tensor of a file of reference values.
fn tensor(path: &Path, name: &str) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    tensor_from_bytes(view.data(), view.dtype(), &shape).unwrap()
}

/// Returns an int64 matrix of a file of reference values.
fn integers(path: &Path, name: &str) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values: Vec<i64> = view
        .data()
        .chunks_exact(8)
        .map(|word| i64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    Tensor::from_slice(&values).view([view.shape()[0] as i64, view.shape()[1] as i64])
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn request(kind: TargetKind) -> ReleaseTarget {
    ReleaseTarget {
        name: "target".into(),
        kind,
        uri: String::new(),
        pass_through: PassThrough::Copy,
        tolerance: None,
    }
}

fn edit(layer: &str, step: f64) -> Edit {
    let direction = ArtifactRef { digest: Digest::of(b""), bytes: 0 };
    Edit {
        spread: false,
        concept: "concept".into(),
        layer: layer.into(),
        step,
        strength: 1.0,
        coefficient: 1.0,
        direction,
    }
}

/// Writes a target with one dense edit below `to`.
async fn released(
    request: &ReleaseTarget,
    from: &Path,
    base: &Path,
    edit: Edit,
    direction: &[f32],
    to: &Path,
) -> Result<TargetRecord, Failure> {
    let base = Checkpoint::open(base).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let target =
        Target::open(request, Address::Local(from.to_owned()), &base, cache.path()).await?;
    let own = |_: &Edit, _: &[usize]| Ok(Direction::Dense(direction.to_vec()));
    let edited = target.edited(&base, &[edit], Merge::Sum, &own).await?;
    let store = Store::open(&Address::Local(to.to_owned()))?;
    let staged = stage(&target, edited, &store).await?;
    staged.put(&store, "release").await?;
    Ok(staged.record)
}

/// Returns `clip-quickgelu` with some tensors replaced, as a model that computes.
fn model(replaced: &Tensors) -> (Clip, Parameters) {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = read(&golden("clip-quickgelu/model.safetensors"));
    for (name, stored) in replaced {
        assert_eq!(tensors.insert(name.clone(), stored.clone()).unwrap().1, stored.1, "{name}");
    }
    write(&folder.path().join("model.safetensors"), &tensors);
    let config = std::fs::read(golden("clip-quickgelu/config.json")).unwrap();
    let clip = Clip::new(
        ClipConfig::from_json("config.json", &serde_json::from_slice(&config).unwrap()).unwrap(),
    );
    let parameters = Parameters::read(
        clip.architecture(),
        &Checkpoint::open(folder.path()).unwrap(),
        Device::Cpu,
    )
    .unwrap();
    (clip, parameters)
}

fn close(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = (ours - theirs).abs().max().double_value(&[]);
    assert!(difference <= 1e-5, "{what}: differs by {difference:e}");
}

/// Returns a text tower's last hidden state, after the last norm, token by token, because only one
/// token is computed after the last block.
fn last_hidden_state(text: &Tensors, ids: &Tensor) -> Tensor {
    let (clip, parameters) = model(text);
    let weights = parameters.weights();
    let _guard = tch::no_grad_guard();
    let [items, tokens] = ids.size()[..] else { panic!("{:?}", ids.size()) };
    let token = |position: i64| {
        let pooled = Tensor::full([items], position, (Kind::Int64, Device::Cpu));
        let batch = TokenBatch { ids: ids.shallow_clone(), pooled };
        let start = clip.start(&weights, Input::Texts(&batch)).unwrap();
        clip.advance(&weights, Tower::Text, &start, Stage::Project)
            .unwrap()
            .residual()
            .shallow_clone()
    };
    let hidden = Tensor::stack(&(0..tokens).map(token).collect::<Vec<_>>(), 1);
    let of = |name: &str| weights.get(clip.architecture().find(name).unwrap());
    let (gain, bias) =
        (of("text_model.final_layer_norm.weight"), of("text_model.final_layer_norm.bias"));
    hidden.layer_norm([hidden.size()[2]], Some(gain), Some(bias), 1e-5, false)
}

/// Returns the features that LLaVA reads from a vision tower: hidden state −2 without the class
/// token.
fn image_features(vision: &Tensors, pixels: &Tensor) -> Tensor {
    let (clip, parameters) = model(vision);
    let weights = parameters.weights();
    let _guard = tch::no_grad_guard();
    let start = clip.start(&weights, Input::Images(pixels)).unwrap();
    let last = Stage::Block(clip.block_count(Tower::Vision) - 1, Part::Attention);
    let state = clip.advance(&weights, Tower::Vision, &start, last).unwrap();
    let hidden = state.residual();
    hidden.narrow(1, 1, hidden.size()[1] - 1)
}

struct Reference {
    edit: Edit,
    direction: Vec<f32>,
}

/// Returns the edit of `clip-quickgelu` that a folder of reference values names.
fn reference(name: &str) -> Reference {
    let numbers: Value =
        serde_json::from_slice(&std::fs::read(golden(name).join("edit.json")).unwrap()).unwrap();
    let layer = numbers["layer"].as_str().unwrap();
    let bytes = std::fs::read(golden("clip-quickgelu/expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let direction = floats(file.tensor(&format!("grad.forget.{layer}")).unwrap().data());
    Reference { edit: edit(layer, numbers["step"].as_f64().unwrap()), direction }
}

#[tokio::test]
async fn the_pipeline_s_text_encoder_agrees() {
    let (from, to) = (golden("stable-diffusion"), tempfile::tempdir().unwrap());
    let Reference { edit, direction } = reference("stable-diffusion");
    let record = released(
        &request(TargetKind::StableDiffusion),
        &from,
        &golden("clip-quickgelu"),
        edit.clone(),
        &direction,
        to.path(),
    )
    .await
    .unwrap();
    let ids = integers(&from.join("expected.safetensors"), "input_ids");
    let file = "text_encoder/model.safetensors";
    let after = to.path().join("release/targets/target").join(file);
    for (what, path) in [("before", from.join(file)), ("after", after.clone())] {
        let ours = last_hidden_state(&read(&path), &ids);
        close(
            what,
            &ours,
            &tensor(&from.join("expected.safetensors"), &format!("last_hidden_state.{what}")),
        );
    }
    assert_eq!(record.changed.keys().collect::<Vec<_>>(), [file]);
    // Only that tensor changed, and files outside the record of changes are identical byte for
    // byte.
    let (old, new) = (read(&from.join(file)), read(&after));
    let differ: Vec<&String> = old.keys().filter(|name| old[*name] != new[*name]).collect();
    assert_eq!(differ, [&edit.layer]);
    let (source, written) = (files(&from), files(&to.path().join("release/targets/target")));
    // A weight file beside the pipeline's folders would contain its text encoder too.
    assert_eq!(record.left_out, ["expected.safetensors"]);
    for (name, bytes) in &written {
        assert!(name == file || source[name] == *bytes, "{name}");
        assert_eq!(record.files()[name].digest, Digest::of(bytes), "{name}");
    }
    assert_eq!(written.len() + 1, source.len());
}

#[tokio::test]
async fn llava_s_vision_tower_agrees_in_every_layout() {
    let from = golden("llava");
    let Reference { edit, direction } = reference("llava");
    let original = json!({"model_type": "llava_llama", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2});
    for prefix in ["vision_tower.", "model.vision_tower.", "model.vision_tower.vision_tower."] {
        let (source, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // The same six shards under other names, with an index of those names.
        for (name, bytes) in files(&from) {
            let path = source.path().join(&name);
            match name.as_str() {
                "model.safetensors.index.json" => {
                    let text = String::from_utf8(bytes)
                        .unwrap()
                        .replace("\"vision_tower.", &format!("\"{prefix}"));
                    std::fs::write(path, text).unwrap();
                }
                "config.json" if prefix.ends_with("vision_tower.vision_tower.") => {
                    std::fs::write(path, original.to_string()).unwrap()
                }
                name if name.starts_with("model-") => {
                    let mut tensors = read(&from.join(name));
                    tensors.extend(renamed(&tensors, "vision_tower.", prefix));
                    tensors.retain(|name, _| {
                        prefix == "vision_tower." || !name.starts_with("vision_tower.")
                    });
                    write(&path, &tensors);
                }
                _ => std::fs::write(path, bytes).unwrap(),
            }
        }
        let record = released(
            &request(TargetKind::Llava),
            source.path(),
            &golden("clip-quickgelu"),
            edit.clone(),
            &direction,
            to.path(),
        )
        .await
        .unwrap();
        let pixels = tensor(&from.join("expected.safetensors"), "pixel_values");
        let written = to.path().join("release/targets/target");
        for (what, folder) in [("before", source.path()), ("after", written.as_path())] {
            let checkpoint = Checkpoint::open(folder).unwrap();
            let vision = checkpoint.tensors().iter().filter_map(|(name, info)| {
                let own = format!(
                    "vision_model.{}",
                    name.strip_prefix(prefix)?.strip_prefix("vision_model.")?
                );
                Some((
                    own,
                    (info.dtype, info.shape.clone(), checkpoint.bytes(name).unwrap().to_vec()),
                ))
            });
            let features = image_features(&vision.collect(), &pixels);
            close(
                what,
                &features,
                &tensor(&from.join("expected.safetensors"), &format!("image_features.{what}")),
            );
        }
        // Only the shard with that layer changed; index and language model are as before.
        assert_eq!(record.changed.keys().collect::<Vec<_>>(), ["model-00002-of-00006.safetensors"]);
        let (before, after) = (files(source.path()), files(&written));
        let differ: Vec<&String> =
            before.keys().filter(|name| before[*name] != after[*name]).collect();
        assert_eq!(differ, ["model-00002-of-00006.safetensors"], "{prefix}");
        let tower = &record.towers[0];
        assert_eq!((tower.blocks, tower.blocks_used, tower.distance), (3, 2, 0.0));
    }
}

/// Returns the text tower of the open_clip reference in transformers' layout, with fused weights
/// split and transposed.
fn split(open: &Tensors) -> Tensors {
    let text: Tensors = open
        .iter()
        .filter(|(name, _)| !name.starts_with("visual."))
        .map(|(name, stored)| (name.clone(), stored.clone()))
        .collect();
    let mut tensors = Tensors::new();
    let whole = [
        ("token_embedding.weight", "embeddings.token_embedding.weight"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("ln_final.weight", "final_layer_norm.weight"),
        ("ln_final.bias", "final_layer_norm.bias"),
    ];
    let maps = [
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("attn.out_proj", "self_attn.out_proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ];
    for (name, (dtype, shape, bytes)) in text {
        if let Some((_, to)) = whole.iter().find(|(from, _)| *from == name) {
            tensors.insert(format!("text_model.{to}"), (dtype, shape, bytes));
        } else if let Some(rest) = name.strip_prefix("transformer.resblocks.") {
            let (block, rest) = rest.split_once('.').unwrap();
            if let Some(end) = rest.strip_prefix("attn.in_proj_") {
                let third = bytes.len() / 3;
                for (i, map) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
                    let shape = [&[shape[0] / 3], &shape[1..]].concat();
                    let part = bytes[i * third..(i + 1) * third].to_vec();
                    tensors.insert(
                        format!("text_model.encoder.layers.{block}.self_attn.{map}.{end}"),
                        (dtype, shape, part),
                    );
                }
            } else {
                let (from, to) = maps.iter().find(|(from, _)| rest.starts_with(from)).unwrap();
                tensors.insert(
                    format!("text_model.encoder.layers.{block}.{}", rest.replace(from, to)),
                    (dtype, shape, bytes),
                );
            }
        }
    }
    let (dtype, shape, bytes) = &open["text_projection"];
    let values = floats(bytes);
    let turned: Vec<u8> = (0..shape[1])
        .flat_map(|c| (0..shape[0]).map(move |r| (r, c)))
        .flat_map(|(r, c)| values[r * shape[1] + c].to_le_bytes())
        .collect();
    tensors.insert("text_projection.weight".to_owned(), (*dtype, vec![shape[1], shape[0]], turned));
    tensors
}

/// Writes a pipeline whose encoder has a projection, like the second encoder of Stable Diffusion
/// XL.
fn projecting(folder: &Path, text: &Tensors) {
    lethe_tests::targets::stable_diffusion(folder, text, 0);
    std::fs::write(folder.join("text_encoder/config.json"), "{}").unwrap();
    let index = json!({"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModelWithProjection"]});
    std::fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
}

#[tokio::test]
async fn an_edit_is_the_same_in_either_layout() {
    let open = read(&golden("openclip/open_clip_model.safetensors"));
    let hf = split(&open);
    let folder = tempfile::tempdir().unwrap();
    let [as_open, as_hf] = ["open", "hf"].map(|name| folder.path().join(name));
    let clip =
        |path: &Path, tensors: &Tensors| write(&path.join("base/model.safetensors"), tensors);
    clip(&as_open, &open);
    clip(&as_hf, &hf);
    projecting(
        &as_open.join("target"),
        &open
            .iter()
            .filter(|(name, _)| !name.starts_with("visual."))
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect(),
    );
    projecting(&as_hf.join("target"), &hf);
    // Each layer of the open_clip base into the split target, and into one in the base's layout;
    // both results are compared in one layout.
    let request = request(TargetKind::StableDiffusion);
    for layer in [
        "transformer.resblocks.1.attn.in_proj_weight",
        "transformer.resblocks.0.mlp.c_proj.weight",
        "text_projection",
    ] {
        let direction: Vec<f32> =
            (0..open[layer].2.len() / 4).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut written = BTreeMap::new();
        for (name, target) in [("open", &as_open), ("hf", &as_hf)] {
            let to = tempfile::tempdir().unwrap();
            released(
                &request,
                &target.join("target"),
                &as_open.join("base"),
                edit(layer, 0.01),
                &direction,
                to.path(),
            )
            .await
            .unwrap();
            written.insert(
                name,
                read(&to.path().join("release/targets/target/text_encoder/model.safetensors")),
            );
        }
        assert_eq!(split(&written["open"]), written["hf"], "{layer}");
        assert_ne!(written["hf"], hf, "{layer}");
    }
    // The reverse: a layer that the base stores separately is part of a fused tensor of the target.
    let layer = "text_model.encoder.layers.1.self_attn.k_proj.weight";
    let direction: Vec<f32> = (0..hf[layer].2.len() / 4).map(|i| (i as f32).cos()).collect();
    let to = tempfile::tempdir().unwrap();
    let record = released(
        &request,
        &as_open.join("target"),
        &as_hf.join("base"),
        edit(layer, 0.01),
        &direction,
        to.path(),
    )
    .await
    .unwrap();
    let after =
        split(&read(&to.path().join("release/targets/target/text_encoder/model.safetensors")));
    let differ: Vec<&String> = hf.keys().filter(|name| hf[*name] != after[*name]).collect();
    assert_eq!(differ, [layer]);
    assert_eq!(
        record.towers[0].tensors["text_encoder/model.safetensors"].keys().collect::<Vec<_>>(),
        ["transformer.resblocks.1.attn.in_proj_weight"]
    );
}

#[tokio::test]
async fn another_clip_is_refused_and_rounding_is_not() {
    let base = golden("clip-quickgelu");
    let text = read(&golden("stable-diffusion/text_encoder/model.safetensors"));
    let Reference { edit, direction } = reference("stable-diffusion");
    let attempt = async |text: &Tensors, tolerance: Option<f64>| {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        lethe_tests::targets::stable_diffusion(from.path(), text, 3);
        let request = ReleaseTarget { tolerance, ..request(TargetKind::StableDiffusion) };
        let record =
            released(&request, from.path(), &base, edit.clone(), &direction, to.path()).await?;
        Ok::<_, Failure>((
            record,
            read(&to.path().join("release/targets/target/text_encoder/model.safetensors")),
        ))
    };
    // The same in half precision: the target's own values plus the edit, rounded once.
    let (record, after) = attempt(&halved(&text), None).await.unwrap();
    let tower = &record.towers[0];
    assert!(tower.distance > 0.0 && tower.distance < 1e-3, "{}", tower.distance);
    let changed = tower.tensors["text_encoder/model.safetensors"][&edit.layer];
    assert!(changed.change > 0.001 && changed.rounding < 0.1, "{changed:?}");
    let half = |bytes: &[u8]| {
        bytes
            .chunks_exact(2)
            .map(|w| half::f16::from_le_bytes([w[0], w[1]]).to_f64())
            .collect::<Vec<f64>>()
    };
    let (before, after) = (half(&halved(&text)[&edit.layer].2), half(&after[&edit.layer].2));
    for ((before, after), g) in before.iter().zip(&after).zip(&direction) {
        assert_eq!(
            *after,
            half::f16::from_f32((before + edit.step * f64::from(*g)) as f32).to_f64()
        );
    }
    // Slightly fine-tuned weights are rejected unless the manifest gives a tolerance.
    let tuned = mapped(&text, |value| value * 1.003);
    let refused = attempt(&tuned, None).await.unwrap_err().to_string();
    assert!(
        refused.contains("is not the model's") && refused.contains("rounding explains"),
        "{refused}"
    );
    let (record, _) = attempt(&tuned, Some(0.01)).await.unwrap();
    assert!((record.towers[0].distance - 0.003).abs() < 1e-4);
    assert!(
        attempt(&tuned, Some(0.001)).await.unwrap_err().to_string().contains("allowed is 1e-3")
    );
    // Other weights of the same shapes: the same values in another order.
    let mut other = text.clone();
    other.values_mut().for_each(|(_, _, bytes)| {
        *bytes = bytes.chunks_exact(4).rev().flatten().copied().collect()
    });
    assert!(attempt(&other, Some(0.5)).await.is_err());
    // Damaged weights.
    let broken =
        mapped(
            &text,
            |value| if value == floats(&text[&edit.layer].2)[3] { f32::NAN } else { value },
        );
    assert!(attempt(&broken, Some(0.5)).await.is_err());
    // Weights of other shapes.
    let mut other = text.clone();
    other.insert(
        "text_model.embeddings.position_embedding.weight".into(),
        (Dtype::F32, vec![2, 48], vec![0; 2 * 48 * 4]),
    );
    assert!(
        attempt(&other, None)
            .await
            .unwrap_err()
            .to_string()
            .contains("has shape [2, 48], the model's has [16, 48]")
    );
    // Additional tokens are accepted.
    let mut more = text.clone();
    let (_, shape, bytes) = more.get_mut("text_model.embeddings.token_embedding.weight").unwrap();
    shape[0] += 1;
    bytes.extend(std::iter::repeat_n(0u8, 48 * 4));
    assert!(attempt(&more, None).await.is_ok());
}

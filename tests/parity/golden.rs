//! Models with reference values of other software, and the tolerances.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lethe_shared::checkpoint::Checkpoint;
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::model::config::TowerConfig;
use lethe_worker::model::weights::tensor_from_bytes;
use lethe_worker::model::{Clip, ClipConfig, ParameterId, Parameters, Role, TokenBatch};
use lethe_worker::slug::gradient::{GradientSum, Images, Loss};
use safetensors::SafeTensors;
use serde_json::Value;
use tch::{Device, Tensor};

/// A model with reference values.
pub(crate) struct Golden {
    pub(crate) clip: Clip,
    pub(crate) parameters: Parameters,
    batches: Vec<u8>,
    expected: Vec<u8>,
    pub(crate) numbers: Value,
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let is_open_clip = name.starts_with("openclip");
        let config_file = if is_open_clip { "open_clip_config.json" } else { "config.json" };
        let mut config = ClipConfig::from_json(
            config_file,
            &serde_json::from_slice(&read(config_file)).unwrap(),
        )
        .unwrap();
        if name == "openclip-siglip" {
            // The tower that the configuration names, made small (`golden/README.md`).
            let small = TowerConfig { width: 36, mlp_width: 144, layers: 2, ..config.vision };
            (config.vision, config.patch_size) = (small, 8);
        }
        let clip = Clip::new(config);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let parameters = Parameters::read(clip.architecture(), &checkpoint, Device::Cpu).unwrap();
        let numbers = serde_json::from_slice(&read("expected.json")).unwrap();
        Self {
            clip,
            parameters,
            batches: read("batches.safetensors"),
            expected: read("expected.safetensors"),
            numbers,
        }
    }

    pub(crate) fn expected(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.expected).unwrap();
        let view = file.tensor(name).unwrap();
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        tensor_from_bytes(view.data(), view.dtype(), &shape).unwrap()
    }

    pub(crate) fn number(&self, path: &[&str]) -> f64 {
        path.iter()
            .fold(&self.numbers, |value, key| &value[*key])
            .as_f64()
            .unwrap_or_else(|| panic!("{path:?}"))
    }

    pub(crate) fn names(&self, set: &str, tower: &str) -> Vec<String> {
        self.numbers[set][tower]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    /// Returns pixels and texts of one batch. Token ids take the same path as in production,
    /// without padding.
    pub(crate) fn batch(&self, set: &str, number: usize) -> (Tensor, TokenBatch) {
        let file = SafeTensors::deserialize(&self.batches).unwrap();
        let pixels = file.tensor(&format!("{set}.{number}.pixel_values")).unwrap();
        let shape: Vec<i64> = pixels.shape().iter().map(|&n| n as i64).collect();
        let pixels = tensor_from_bytes(pixels.data(), pixels.dtype(), &shape).unwrap();
        let ids = file.tensor(&format!("{set}.{number}.input_ids")).unwrap();
        let tokens = ids.shape()[1];
        let ids: Vec<u32> = ids
            .data()
            .chunks_exact(8)
            .map(|word| i64::from_le_bytes(word.try_into().unwrap()) as u32)
            .collect();
        let texts: Vec<Vec<u32>> = ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect();
        (pixels, self.clip.token_batch(&texts, Device::Cpu).unwrap())
    }

    pub(crate) fn batches(&self, set: &str) -> usize {
        self.numbers["loss"][set].as_array().unwrap().len()
    }

    pub(crate) fn gradient(
        &self,
        kind: Loss,
        set: &str,
        micro_batch: MicroBatch,
    ) -> (GradientSum, BTreeMap<String, Tensor>) {
        let weights = self.parameters.weights();
        let all: Vec<ParameterId> = self.clip.architecture().ids().collect();
        let mut sum = GradientSum::new(all, micro_batch);
        for number in 0..self.batches(set) {
            let (pixels, texts) = self.batch(set, number);
            sum.add(kind, &self.clip, &weights, Images::Pixels(&pixels), &texts).unwrap();
        }
        let mean = sum.mean(&weights).unwrap();
        let by_name = mean
            .into_iter()
            .map(|(id, t)| (self.clip.architecture().spec(id).name.clone(), t))
            .collect();
        (sum, by_name)
    }

    /// Returns whether the reference values treat a parameter as a candidate: no bias, no
    /// `logit_scale`, no position or other embedding by name, no learned query; gains are candidates.
    pub(crate) fn is_candidate(&self, id: ParameterId) -> bool {
        let spec = self.clip.architecture().spec(id);
        let named_embedding =
            ["position", "embed", "probe", "latent"].iter().any(|part| spec.name.contains(part));
        match spec.role {
            Role::Linear | Role::Gain => true,
            Role::Embedding => !named_embedding,
            Role::Bias | Role::Scale => false,
        }
    }
}

pub(crate) fn close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = (ours - theirs).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "{what}: differs by {difference:e}");
}

pub(crate) fn relatively_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    let (difference, size) =
        ((ours - theirs).norm().double_value(&[]), theirs.norm().double_value(&[]));
    assert!(difference <= tolerance * size, "{what}: ‖a−b‖/‖b‖ = {:e}", difference / size);
}

pub(crate) fn near(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!(
        (ours - theirs).abs() <= tolerance * theirs.abs().max(1.0),
        "{what}: {ours}, expected {theirs}"
    );
}

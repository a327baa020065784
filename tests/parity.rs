//! Agreement with reference values computed by PyTorch autograd, `transformers` and open_clip (`golden/README.md`).
//!
//! Tolerances as written there: embeddings and losses 1e-5, gradients 1e-4 relative, the same Pareto sets.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lethe_shared::checkpoint::Checkpoint;
use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::job::MethodSettings;
use lethe_shared::manifest::{Precision, Stop};
use lethe_shared::outcome::Tower;
use lethe_worker::corpus::{Budget, Corpus};
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::model::clip::Input;
use lethe_worker::model::weights::tensor_from_bytes;
use lethe_worker::model::{Clip, ClipConfig, Error, ParameterId, Parameters, Part, Role, Stage, TokenBatch, Weights};
use lethe_worker::slug::choice::{Answer, choose, hardest_first};
use lethe_worker::slug::gradient::{GradientSum, Images, Loss};
use lethe_worker::slug::loss;
use lethe_worker::slug::moments::MomentSum;
use lethe_worker::slug::ranking::{Scores, pareto_front};
use lethe_worker::slug::search::{Found, FrontLayer, Ground, Subject, edited_layer, search_direction, search_layer};
use lethe_worker::slug::witness::Witnesses;
use lethe_worker::{corpus, zero_shot};
use safetensors::SafeTensors;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

struct Golden {
    clip: Clip,
    parameters: Parameters,
    batches: Vec<u8>,
    expected: Vec<u8>,
    numbers: Value,
}

impl Golden {
    fn open(name: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let config_file = if name == "openclip" { "open_clip_config.json" } else { "config.json" };
        let config = ClipConfig::from_json(config_file, &serde_json::from_slice(&read(config_file)).unwrap()).unwrap();
        let clip = Clip::new(config);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let parameters = Parameters::read(clip.architecture(), &checkpoint, Device::Cpu).unwrap();
        let numbers = serde_json::from_slice(&read("expected.json")).unwrap();
        Self { clip, parameters, batches: read("batches.safetensors"), expected: read("expected.safetensors"), numbers }
    }

    fn expected(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.expected).unwrap();
        let view = file.tensor(name).unwrap();
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        tensor_from_bytes(view.data(), view.dtype(), &shape).unwrap()
    }

    fn number(&self, path: &[&str]) -> f64 {
        path.iter().fold(&self.numbers, |value, key| &value[*key]).as_f64().unwrap_or_else(|| panic!("{path:?}"))
    }

    fn names(&self, set: &str, tower: &str) -> Vec<String> {
        self.numbers[set][tower].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// Pixels and texts of one batch. Ids go through the same door as everywhere, without their padding.
    fn batch(&self, set: &str, number: usize) -> (Tensor, TokenBatch) {
        let file = SafeTensors::deserialize(&self.batches).unwrap();
        let pixels = file.tensor(&format!("{set}.{number}.pixel_values")).unwrap();
        let shape: Vec<i64> = pixels.shape().iter().map(|&n| n as i64).collect();
        let pixels = tensor_from_bytes(pixels.data(), pixels.dtype(), &shape).unwrap();
        let ids = file.tensor(&format!("{set}.{number}.input_ids")).unwrap();
        let tokens = ids.shape()[1];
        let ids: Vec<u32> = ids.data().chunks_exact(8).map(|word| i64::from_le_bytes(word.try_into().unwrap()) as u32).collect();
        let texts: Vec<Vec<u32>> = ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect();
        (pixels, self.clip.token_batch(&texts, Device::Cpu).unwrap())
    }

    fn batches(&self, set: &str) -> usize {
        self.numbers["loss"][set].as_array().unwrap().len()
    }

    fn gradient(&self, kind: Loss, set: &str, micro_batch: MicroBatch) -> (GradientSum, BTreeMap<String, Tensor>) {
        let weights = self.parameters.weights();
        let all: Vec<ParameterId> = self.clip.architecture().ids().collect();
        let mut sum = GradientSum::new(all, micro_batch);
        for number in 0..self.batches(set) {
            let (pixels, texts) = self.batch(set, number);
            sum.add(kind, &self.clip, &weights, Images::Pixels(&pixels), &texts).unwrap();
        }
        let mean = sum.mean(&weights).unwrap();
        let by_name = mean.into_iter().map(|(id, t)| (self.clip.architecture().spec(id).name.clone(), t)).collect();
        (sum, by_name)
    }

    /// Words, then the token that ends a text; lengths differ.
    fn random_texts(&self, name: &str, texts: usize) -> Vec<Vec<u32>> {
        let mut draws = Draws::seeded(Digest::of(name.as_bytes()));
        let (vocabulary, context) = (self.clip.config().vocabulary as u32, self.clip.config().context_length as usize);
        let mut token = |below: u32| (draws.uniform() * f64::from(below - 1)) as u32;
        let mut text =
            || (0..3 + token(context as u32 - 4)).map(|_| 3 + token(vocabulary - 10)).chain([vocabulary - 1]).collect::<Vec<u32>>();
        (0..texts).map(|_| text()).collect()
    }

    /// The class of these that one image, embedded so, is found in, and the forget gradient of both.
    fn forgetting(&self, image: &Tensor, embedded: &Tensor, classes: &Tensor, texts: &[Vec<u32>]) -> (usize, Vec<(ParameterId, Tensor)>) {
        let class = embedded.matmul(&classes.transpose(0, 1)).argmax(1, false).int64_value(&[0]) as usize;
        let weights = self.parameters.weights();
        let mut sum = GradientSum::new(self.clip.architecture().candidates(false), MicroBatch::WHOLE);
        let own = self.clip.token_batch(&texts[class..=class], Device::Cpu).unwrap();
        sum.add(Loss::Forget, &self.clip, &weights, Images::Pixels(image), &own).unwrap();
        (class, sum.mean(&weights).unwrap())
    }

    /// The rule of the reference values: no bias, no `logit_scale`, no position or other embedding by name; gains are in.
    fn is_candidate(&self, id: ParameterId) -> bool {
        let spec = self.clip.architecture().spec(id);
        let named_embedding = spec.name.contains("position") || spec.name.contains("embedding");
        match spec.role {
            Role::Linear | Role::Gain => true,
            Role::Embedding => !named_embedding,
            Role::Bias | Role::Scale => false,
        }
    }
}

fn close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let difference = (ours - theirs).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "{what}: differs by {difference:e}");
}

fn relatively_close(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    let (difference, size) = ((ours - theirs).norm().double_value(&[]), theirs.norm().double_value(&[]));
    assert!(difference <= tolerance * size, "{what}: ‖a−b‖/‖b‖ = {:e}", difference / size);
}

fn near(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1.0), "{what}: {ours}, expected {theirs}");
}

fn embeddings_and_losses(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let _guard = tch::no_grad_guard();
    for set in ["forget", "retain"] {
        for number in 0..golden.batches(set) {
            let (pixels, texts) = golden.batch(set, number);
            let images = golden.clip.embed(&weights, Input::Images(&pixels)).unwrap();
            let texts = golden.clip.embed(&weights, Input::Texts(&texts)).unwrap();
            close(&format!("{set} {number} images"), &images, &golden.expected(&format!("{set}.{number}.image_embeds")), 1e-5);
            close(&format!("{set} {number} texts"), &texts, &golden.expected(&format!("{set}.{number}.text_embeds")), 1e-5);
            let value = match set {
                "forget" => loss::forget(&images, &texts).unwrap(),
                _ => loss::retain(&images, &texts, &golden.clip.scale(&weights).unwrap()).unwrap(),
            };
            let expected = golden.numbers["loss"][set][number].as_f64().unwrap();
            near(&format!("{set} {number} loss"), value.double_value(&[]), expected, 1e-5);
        }
    }
}

impl Golden {
    /// Gradients against the reference's.
    fn check_gradients(&self, set: &str, gradients: &BTreeMap<String, Tensor>) {
        for (layer, gradient) in gradients {
            // Key biases move every score of a query alike: their true gradient is zero, the reference holds rounding noise.
            let expected = self.expected(&format!("grad.{set}.{layer}"));
            if expected.norm().double_value(&[]) < 1e-6 {
                assert!(gradient.norm().double_value(&[]) < 1e-6, "{set} {layer}");
                continue;
            }
            relatively_close(&format!("gradient {set} {layer}"), gradient, &expected.view(gradient.size().as_slice()), 1e-4);
        }
    }
}

/// Text layers alone, with images that are embedded already: the same gradient without a pass through the vision tower.
fn images_embedded_before(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let architecture = golden.clip.architecture();
    let layers: Vec<ParameterId> = architecture.ids().filter(|&id| architecture.spec(id).tower == Some(Tower::Text)).collect();
    for (kind, set) in [(Loss::Forget, "forget"), (Loss::Retain, "retain")] {
        let (whole, _) = golden.gradient(kind, set, MicroBatch::WHOLE);
        for micro_batch in [MicroBatch::WHOLE, MicroBatch::of(2).failing_above(2)] {
            let mut sum = GradientSum::new(layers.clone(), micro_batch);
            for number in 0..golden.batches(set) {
                let (pixels, texts) = golden.batch(set, number);
                let embedded = golden.clip.embed(&weights, Input::Images(&pixels)).unwrap();
                sum.add(kind, &golden.clip, &weights, Images::Embedded(&embedded), &texts).unwrap();
            }
            let mean = sum.mean(&weights).unwrap();
            golden.check_gradients(set, &mean.into_iter().map(|(id, t)| (architecture.spec(id).name.clone(), t)).collect());
            near(&format!("{set} loss"), sum.loss(), whole.loss(), 1e-6);
        }
    }
}

/// What a device with less memory computes: the loss is still over the whole batch.
fn micro_batches(name: &str) {
    let golden = Golden::open(name);
    for (kind, set) in [(Loss::Forget, "forget"), (Loss::Retain, "retain")] {
        let (whole, _) = golden.gradient(kind, set, MicroBatch::WHOLE);
        for most in [1, 3] {
            // Nothing larger is ever tried.
            let (sum, gradients) = golden.gradient(kind, set, MicroBatch::of(most).failing_above(most));
            golden.check_gradients(set, &gradients);
            assert_eq!(sum.weight(), whole.weight());
            near(&format!("{set} loss"), sum.loss(), whole.loss(), 1e-6);
        }
    }
    let (pixels, texts) = golden.batch("retain", 0);
    let weights = golden.parameters.weights();
    for input in [Input::Images(&pixels), Input::Texts(&texts)] {
        let moments = |micro_batch: MicroBatch| {
            let mut sum = MomentSum::new(golden.clip.mlp_ends(input.tower()), Draws::seeded(Digest::of(b"pieces")), micro_batch);
            let halves: Vec<bool> = (0..input.items()).map(|item| item % 3 == 0).collect();
            sum.add(&golden.clip, &weights, input, &halves).unwrap();
            assert_eq!(sum.items(), halves.len() as u64);
            sum.sums(&weights).unwrap()
        };
        let whole = moments(MicroBatch::WHOLE);
        for most in [1, 3] {
            for ((layer, ours), (_, expected)) in moments(MicroBatch::of(most).failing_above(most)).iter().zip(&whole) {
                let name = &golden.clip.architecture().spec(*layer).name;
                for (ours, expected) in ours.iter().zip(expected) {
                    relatively_close(name, &ours.inputs, &expected.inputs, 1e-5);
                    relatively_close(name, &ours.outputs, &expected.outputs, 1e-5);
                }
            }
        }
    }
}

fn gradients_and_ranking(name: &str) {
    let golden = Golden::open(name);
    let architecture = golden.clip.architecture();
    let (_, forget) = golden.gradient(Loss::Forget, "forget", MicroBatch::WHOLE);
    let (_, retain) = golden.gradient(Loss::Retain, "retain", MicroBatch::WHOLE);
    golden.check_gradients("forget", &forget);
    golden.check_gradients("retain", &retain);

    let mut fronts: BTreeMap<&str, Vec<(String, Scores)>> = BTreeMap::new();
    for id in architecture.ids() {
        let spec = architecture.spec(id);
        let Some(tower) = spec.tower else { continue };
        let scores = Scores::of(&spec.name, &golden.parameters.get(id), &forget[&spec.name], &retain[&spec.name]).unwrap();
        if golden.is_candidate(id) {
            for (what, value) in [("importance", scores.importance), ("alignment", scores.alignment()), ("cosine", scores.cosine)] {
                near(&format!("{what} of {}", spec.name), value, golden.number(&["layers", &spec.name, what]), 1e-4);
            }
            fronts.entry(tower.name()).or_default().push((spec.name.clone(), scores));
        }
    }
    for (tower, layers) in fronts {
        let mut candidates: Vec<&str> = layers.iter().map(|(layer, _)| layer.as_str()).collect();
        candidates.sort_unstable();
        let mut expected = golden.names("candidates", tower);
        expected.sort_unstable();
        assert_eq!(candidates, expected, "candidates of the {tower} tower");

        let scores: Vec<(f64, f64)> = layers.iter().map(|(_, s)| (s.importance, s.alignment())).collect();
        let mut front = Vec::new();
        for ((layer, scores), on_front) in layers.iter().zip(pareto_front(&scores)) {
            if on_front {
                front.push(layer.clone());
                let first = scores.unit_step().unwrap() / 10.0;
                let expected = golden.number(&["initial_step", layer]);
                assert!((first - expected).abs() <= 1e-4 * expected, "first step of {layer}: {first}, expected {expected}");
            }
        }
        front.sort_unstable();
        let mut expected = golden.names("pareto", tower);
        expected.sort_unstable();
        assert_eq!(front, expected, "Pareto front of the {tower} tower");
    }
}

fn edits(name: &str) {
    let golden = Golden::open(name);
    let architecture = golden.clip.architecture();
    let original = golden.parameters.weights();
    let (pixels, texts) = golden.batch("forget", 0);
    let _guard = tch::no_grad_guard();
    let embed = |weights: &Weights| {
        let images = golden.clip.embed(weights, Input::Images(&pixels)).unwrap();
        let texts = golden.clip.embed(weights, Input::Texts(&texts)).unwrap();
        (images, texts)
    };
    for edit in golden.numbers["edits"].as_array().unwrap() {
        let (layer, tower) = (edit["layer"].as_str().unwrap(), edit["tower"].as_str().unwrap());
        let id = architecture.find(layer).unwrap();
        assert_eq!(architecture.spec(id).tower, Some(if tower == "vision" { Tower::Vision } else { Tower::Text }));
        let gradient = golden.expected(&format!("grad.forget.{layer}"));
        let edited = edited_layer(&golden.parameters, id, &gradient, edit["step"].as_f64().unwrap()).unwrap();
        let (before, after) = (embed(&original), embed(&original.with(id, edited)));
        close(&format!("{tower} edit, images"), &after.0, &golden.expected(&format!("edit.{tower}.image_embeds")), 1e-5);
        close(&format!("{tower} edit, texts"), &after.1, &golden.expected(&format!("edit.{tower}.text_embeds")), 1e-5);
        for (what, (images, texts)) in [("forget_loss_before", before), ("forget_loss_after", after)] {
            near(what, loss::forget(&images, &texts).unwrap().double_value(&[]), edit[what].as_f64().unwrap(), 1e-5);
        }
    }
}

/// A pass that stops before any stage and goes on gives the same bits: trials start from kept activations.
fn prefixes(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let (pixels, texts) = golden.batch("retain", 0);
    let tree = golden.clip.token_tree(&rows_of(&texts), Device::Cpu).unwrap();
    let _guard = tch::no_grad_guard();
    for input in [Input::Images(&pixels), Input::Texts(&texts), Input::Tree(&tree)] {
        let whole = golden.clip.embed(&weights, input).unwrap();
        let blocks = golden.clip.block_count(input.tower());
        let stages = (0..blocks).flat_map(|block| Part::ALL.map(|part| Stage::Block(block, part)));
        for stage in stages.chain([Stage::Project]) {
            let start = golden.clip.start(&weights, input).unwrap();
            let state = golden.clip.advance(&weights, input.tower(), &start, stage).unwrap();
            assert_eq!(state.stage(), stage);
            let resumed = golden.clip.finish(&weights, input.tower(), state).unwrap();
            assert_eq!((&whole - resumed).abs().max().double_value(&[]), 0.0, "{:?} from {stage:?}", input.tower());
        }
    }

    // However much of it is kept.
    let one = golden.clip.start(&weights, Input::Images(&pixels)).unwrap().bytes();
    for room in [0, one, 3 * one, 64 << 20] {
        let images = Corpus::images(&golden.clip, &pixels, Device::Cpu, &Budget::new(room), MicroBatch::WHOLE).unwrap();
        for id in golden.clip.architecture().candidates(true) {
            if golden.clip.architecture().spec(id).tower == Some(Tower::Vision) {
                let edited = weights.with(id, golden.parameters.get(id) * 1.25);
                let expected = golden.clip.embed(&edited, Input::Images(&pixels)).unwrap();
                for _ in 0..2 {
                    let ours = images.embed(&golden.clip, &weights, &edited, Some(id)).unwrap();
                    assert_eq!((ours - &expected).abs().max().double_value(&[]), 0.0, "{room} bytes, {id:?}");
                }
            }
        }
    }
}

/// Texts one by one, without what comes after the token that stands for them.
fn rows_of(texts: &TokenBatch) -> Vec<Vec<u32>> {
    let row = |ids: Tensor| Vec::<i64>::try_from(ids).unwrap().into_iter().map(|id| id as u32).collect();
    (0..texts.ids.size()[0]).map(|number| row(texts.ids.get(number))).collect()
}

/// Texts as a tree of their beginnings are embedded as they are one by one, whatever they share.
fn trees(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let _guard = tch::no_grad_guard();
    let mut texts = Vec::new();
    for number in 0..golden.batches("retain") {
        texts.extend(rows_of(&golden.batch("retain", number).1));
    }
    // The same again, shorter by the words in the middle: the end stays the end.
    let shorter: Vec<Vec<u32>> = texts.iter().map(|text| [&text[..2], &text[text.len() / 2..]].concat()).collect();
    texts.extend(shorter);
    let tree = golden.clip.token_tree(&texts, Device::Cpu).unwrap();
    let together = golden.clip.embed(&weights, Input::Tree(&tree)).unwrap();
    for (number, text) in texts.iter().enumerate() {
        let alone = golden.clip.token_batch(std::slice::from_ref(text), Device::Cpu).unwrap();
        let off = golden.clip.embed(&weights, Input::Texts(&alone)).unwrap().get(0) - together.get(number as i64);
        assert!(off.abs().max().double_value(&[]) < 1e-6, "text {number}");
    }
    let some = Input::Tree(&tree).narrow(1, 2).unwrap();
    let off = golden.clip.embed(&weights, some.input()).unwrap() - together.narrow(0, 1, 2);
    assert!(off.abs().max().double_value(&[]) < 1e-6);
}

/// What the taps of a layer see makes up its weight's gradient: Σ δ_t x_tᵀ over items and tokens.
fn taps(name: &str) {
    let golden = Golden::open(name);
    let (pixels, texts) = golden.batch("retain", 0);
    for input in [Input::Images(&pixels), Input::Texts(&texts)] {
        let layers = golden.clip.mlp_ends(input.tower());
        assert_eq!(layers.len(), golden.clip.block_count(input.tower()));
        let (graph, leaves) = golden.parameters.weights().with_leaves(&layers).unwrap();
        let seen = golden.clip.embed(&graph, input).unwrap().narrow(1, 0, 1).sum(Kind::Float);
        let expected = Tensor::f_run_backward(&[&seen], &leaves, false, false).unwrap();

        let graph = golden.parameters.weights().with_taps(&layers).unwrap();
        let seen = golden.clip.embed(&graph, input).unwrap().narrow(1, 0, 1).sum(Kind::Float);
        let tapped = graph.tapped();
        let outputs: Vec<&Tensor> = tapped.iter().map(|tap| &tap.output).collect();
        let deltas = Tensor::f_run_backward(&[&seen], &outputs, false, false).unwrap();
        assert_eq!(tapped.iter().map(|tap| tap.layer).collect::<Vec<_>>(), layers);
        for ((tap, delta), expected) in tapped.iter().zip(&deltas).zip(&expected) {
            let rows = |t: &Tensor| t.reshape([-1, *t.size().last().unwrap()]);
            let gradient = rows(delta).transpose(0, 1).matmul(&rows(&tap.input));
            let off = (gradient - expected).norm() / expected.norm();
            assert!(off.double_value(&[]) < 1e-4, "{:?}", golden.clip.architecture().spec(tap.layer).name);
        }
    }
}

/// As a search takes it.
fn method(stop: Stop) -> MethodSettings {
    MethodSettings { batch_size: 1, search_evaluations: 10, search_tolerance: 0.0, stop, normalisation_gains: false }
}

/// The search on every text layer, once as method.md has it and once with the shortcut.
fn witnesses(name: &str) {
    let golden = Golden::open(name);
    let (clip, original) = (&golden.clip, golden.parameters.weights());
    let budget = Budget::new(64 << 20);
    let texts = golden.random_texts(name, 300);
    let class_texts = Corpus::texts(clip, &texts, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let (pixels, _) = golden.batch("forget", 0);
    let validation = Corpus::images(clip, &pixels, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let images = Corpus::images(clip, &pixels.narrow(0, 0, 1), Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let embed = |corpus: &Corpus| {
        let _guard = tch::no_grad_guard();
        corpus.embed(clip, &original, &original, None).unwrap()
    };
    let (classes, embedded, validation_images) = (embed(&class_texts), embed(&images), embed(&validation));
    let (class, gradients) = golden.forgetting(&pixels.narrow(0, 0, 1), &embedded, &classes, &texts);

    let _guard = tch::no_grad_guard();
    let labels: Vec<u32> = (0..validation.len() as u32).collect();
    let ground = Ground {
        clip,
        parameters: &golden.parameters,
        class_texts: &class_texts,
        classes: &classes,
        validation: Some(&validation),
        validation_images: &validation_images,
        validation_labels: &labels,
        spare_tokens: 0,
    };
    let subject = Subject { class: class as u32, images: Some(&images), embedded: &embedded };
    assert!(Witnesses::of(ground, &subject, Stop::Fa1).unwrap().is_none(), "FA@1 alone proves nothing about FA@5");
    let few = Witnesses::of(ground, &subject, Stop::Fa5).unwrap().expect("a dozen of 300 classes are few");
    let mut proven = 0;
    for (id, gradient) in &gradients {
        let spec = clip.architecture().spec(*id);
        if spec.tower != Some(Tower::Text) {
            continue;
        }
        let scores = Scores::of(&spec.name, &golden.parameters.get(*id), gradient, gradient).unwrap();
        let layer = FrontLayer { id: *id, scores, gradient };
        let (trials, answer) = search_layer(ground, &subject, &layer, &method(Stop::Fa5), None).unwrap();
        let (ours, found) = search_layer(ground, &subject, &layer, &method(Stop::Fa5), Some(&few)).unwrap();
        assert_eq!(ours, trials, "{}", spec.name);
        let parts = |found: Option<Found<'_>>| found.map(|found| (found.step, found.relative_step, found.accuracy, found.validation));
        assert_eq!(parts(found), parts(answer));
        for trial in &trials {
            let moved = edited_layer(&golden.parameters, *id, gradient, trial.step).unwrap();
            let said = few.accuracies(ground, &subject, &original, *id, &moved.unsqueeze(0)).unwrap()[0].fa5 == 0.0;
            assert!(trial.forgotten || !said, "{}: a step that did not forget is proven", spec.name);
            proven += usize::from(said);
        }
    }
    assert!(proven > 0, "no step was proven: the shortcut is of no use here");

    // Steps looked at beforehand, many in a pass, change nothing of what a search finds.
    let own_text = class_texts.subset(&[class as i64]).unwrap();
    let (mut found, mut pushed) = (0, 0);
    for (id, gradient) in &gradients {
        let spec = clip.architecture().spec(*id);
        if spec.tower != Some(Tower::Text) {
            continue;
        }
        for witnesses in [None, Some(&few)] {
            let searched = |spare_tokens| {
                let ground = Ground { spare_tokens, ..ground };
                search_direction(ground, &subject, &own_text, witnesses, *id, gradient, &method(Stop::Fa5)).unwrap()
            };
            let (trials, answer) = searched(0);
            for spare_tokens in [100, 1 << 20] {
                let (ours, same) = searched(spare_tokens);
                assert_eq!(ours, trials, "{} with {spare_tokens} tokens to spare", spec.name);
                let parts = |answer: &Option<Answer>| answer.as_ref().map(|answer| (answer.summary.clone(), answer.validation.clone()));
                assert_eq!(parts(&same), parts(&answer), "{}", spec.name);
            }
            found += usize::from(answer.is_some());
            pushed += usize::from(witnesses.is_some() && trials.len() > 10);
        }
    }
    assert!(found > 0 && pushed > 0, "{found} searches found a step, witnesses pushed {pushed}");
}

/// Of the layers that forgot, the one is chosen that is best when every one is looked at to the end.
fn choice(name: &str) {
    let golden = Golden::open(name);
    let (clip, original) = (&golden.clip, golden.parameters.weights());
    let budget = Budget::new(64 << 20);
    let texts = golden.random_texts(name, 40);
    let class_texts = Corpus::texts(clip, &texts, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let image = golden.batch("forget", 0).0.narrow(0, 0, 1);
    let images = Corpus::images(clip, &image, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let embed = |corpus: &Corpus| {
        let _guard = tch::no_grad_guard();
        corpus.embed(clip, &original, &original, None).unwrap()
    };
    let (classes, embedded) = (embed(&class_texts), embed(&images));
    let (class, gradients) = golden.forgetting(&image, &embedded, &classes, &texts);
    let _guard = tch::no_grad_guard();
    let class = class as u32;

    // Of the validation images the model knows two in three.
    tch::manual_seed(5);
    let pixels = image.randn_like().repeat([60, 1, 1, 1]) * 0.5
        + Tensor::randn([60, 3, image.size()[2], image.size()[3]], (Kind::Float, Device::Cpu));
    let validation_images = clip.embed(&original, Input::Images(&pixels)).unwrap();
    let known = Vec::<i64>::try_from(validation_images.matmul(&classes.transpose(0, 1)).argmax(1, false)).unwrap();
    let labels: Vec<u32> = known.iter().enumerate().map(|(i, &class)| (class as u32 + u32::from(i % 3 == 0)) % 40).collect();
    let order = hardest_first(&validation_images, &classes, &corpus::labels(&labels, Device::Cpu).unwrap()).unwrap();
    let rows = Tensor::from_slice(&order);
    let (pixels, validation_images) = (pixels.index_select(0, &rows), validation_images.index_select(0, &rows));
    let labels: Vec<u32> = order.iter().map(|&image| labels[image as usize]).collect();
    assert!(order[..20].iter().all(|image| image % 3 == 0), "images that are missed come first: {order:?}");

    // However passes are cut, the same is chosen and the same is on record.
    let mut before = None;
    for cut in [60, 7, 1] {
        let validation = Corpus::images(clip, &pixels, Device::Cpu, &budget, MicroBatch::of(cut)).unwrap();
        let ground = Ground {
            clip,
            parameters: &golden.parameters,
            class_texts: &class_texts,
            classes: &classes,
            validation: Some(&validation),
            validation_images: &validation_images,
            validation_labels: &labels,
            spare_tokens: 0,
        };
        let subject = Subject { class, images: Some(&images), embedded: &embedded };
        for stop in [Stop::Fa5, Stop::Fa1] {
            let (mut trials, mut found) = (Vec::new(), Vec::new());
            for (id, gradient) in &gradients {
                let scores = Scores::of("layer", &golden.parameters.get(*id), gradient, gradient).unwrap();
                let layer = FrontLayer { id: *id, scores, gradient };
                let (tried, answer) = search_layer(ground, &subject, &layer, &method(stop), None).unwrap();
                trials.extend(tried);
                found.extend(answer);
            }
            let utility = |found: &Found<'_>| {
                let edited = edited_layer(&golden.parameters, found.id, found.gradient, found.step).unwrap();
                let edited = original.with(found.id, edited);
                let (seen, said) = match found.tower {
                    Tower::Vision => (clip.embed(&edited, Input::Images(&pixels)).unwrap(), classes.shallow_clone()),
                    Tower::Text => (validation_images.shallow_clone(), class_texts.embed_changed(clip, &edited).unwrap()),
                };
                let ranks = zero_shot::ranks(&seen, &said, &corpus::labels(&labels, Device::Cpu).unwrap()).unwrap();
                zero_shot::hits(&ranks, &labels).mean_top1(|other| other != class)
            };
            let utilities: Vec<f64> = found.iter().map(utility).collect();
            let accuracies = |found: &Found<'_>| match stop {
                Stop::Fa5 => (found.accuracy.fa5, found.accuracy.fa1),
                Stop::Fa1 => (found.accuracy.fa1, found.accuracy.fa5),
            };
            let best = (0..found.len())
                .min_by(|&a, &b| {
                    let key = |i: usize| (accuracies(&found[i]), -utilities[i], found[i].relative_step);
                    key(a).partial_cmp(&key(b)).unwrap()
                })
                .unwrap();
            let expected = (found[best].id, found[best].step, utilities[best]);
            let answers: Vec<(String, f64, Tower)> = found.iter().map(|found| (found.name.to_owned(), found.step, found.tower)).collect();
            let chosen = choose(ground, &subject, found, stop, &mut trials, || Ok::<_, Error>(())).unwrap().unwrap();
            assert_eq!((chosen.id, chosen.summary.step, chosen.summary.utility), expected, "{stop:?}");
            assert_eq!(chosen.validation.mean_top1(|other| other != class), chosen.summary.utility);
            assert_eq!(chosen.validation.classes.values().map(|hits| hits.n).sum::<u32>(), 60);

            let recorded: Vec<Option<f64>> = answers
                .iter()
                .map(|(layer, step, _)| trials.iter().find(|trial| (&trial.layer, trial.step) == (layer, *step)).unwrap().utility)
                .collect();
            for (((_, _, tower), ours), all) in answers.iter().zip(&recorded).zip(&utilities) {
                assert!(ours.map_or(*tower == Tower::Vision, |ours| ours == *all), "{answers:?}, {recorded:?}, {utilities:?}");
            }
            assert!(recorded.iter().any(Option::is_none), "no answer was left before its end");
            match (stop, &before) {
                (Stop::Fa5, None) => before = Some(recorded),
                (Stop::Fa5, Some(before)) => assert_eq!(recorded, *before, "in passes of {cut}"),
                (Stop::Fa1, _) => {}
            }
        }
    }
}

/// Towers that multiply in bfloat16 give nearly what they give in float32, and nearly the same gradients.
fn rounded_products(name: &str) {
    let golden = Golden::open(name);
    let layers = golden.clip.architecture().candidates(false);
    let looked = |weights: &Weights| {
        let (pixels, texts) = golden.batch("forget", 0);
        let embedded = {
            let _guard = tch::no_grad_guard();
            [Input::Images(&pixels), Input::Texts(&texts)].map(|input| golden.clip.embed(weights, input).unwrap())
        };
        let mut sum = GradientSum::new(layers.clone(), MicroBatch::WHOLE);
        sum.add(Loss::Forget, &golden.clip, weights, Images::Pixels(&pixels), &texts).unwrap();
        (embedded, sum.mean(weights).unwrap())
    };
    let (expected, gradients) = looked(&golden.parameters.weights());
    let (embedded, rounded) = looked(&Golden::open(name).parameters.in_precision(Precision::Bfloat16).unwrap().weights());
    for (ours, theirs) in embedded.iter().zip(&expected) {
        assert_eq!(ours.kind(), Kind::Float);
        let off = (ours - theirs).norm_scalaropt_dim(2, [-1].as_slice(), false).max().double_value(&[]);
        assert!(off > 1e-6 && off < 0.05, "{name}: embeddings differ by {off}");
    }
    let (mut dot, mut lengths) = (0.0, [0.0; 2]);
    for ((_, ours), (_, theirs)) in rounded.iter().zip(&gradients) {
        assert_eq!(ours.kind(), Kind::Float);
        let product = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        dot += product(ours, theirs);
        lengths = [lengths[0] + product(ours, ours), lengths[1] + product(theirs, theirs)];
    }
    let cosine = dot / (lengths[0] * lengths[1]).sqrt();
    assert!(cosine > 0.98, "{name}: gradients have a cosine of {cosine}");
}

/// Items under several edits of one layer in one pass are as they are under each.
fn trials_together(name: &str) {
    let golden = Golden::open(name);
    let (clip, original) = (&golden.clip, golden.parameters.weights());
    let _guard = tch::no_grad_guard();
    let (pixels, texts) = golden.batch("forget", 0);
    let ids: Vec<Vec<u32>> = (0..texts.ids.size()[0])
        .map(|row| {
            let end = texts.pooled.int64_value(&[row]) + 1;
            Vec::<i64>::try_from(texts.ids.get(row).narrow(0, 0, end)).unwrap().into_iter().map(|id| id as u32).collect()
        })
        .collect();
    let budget = Budget::new(64 << 20);
    let texts = Corpus::texts(clip, &ids, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    let images = Corpus::images(clip, &pixels, Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
    tch::manual_seed(11);
    for id in clip.architecture().candidates(true) {
        let spec = clip.architecture().spec(id);
        let corpus = if spec.tower == Some(Tower::Text) { &texts } else { &images };
        let layer = golden.parameters.get(id);
        let trials: Vec<Tensor> = (1..4).map(|size| &layer + layer.randn_like() * (0.01 * f64::from(size))).collect();
        let together = corpus.embed_trials(clip, &original, id, &Tensor::stack(&trials, 0)).unwrap();
        for (number, trial) in (0..).zip(&trials) {
            let alone = corpus.embed(clip, &original, &original.with(id, trial.shallow_clone()), Some(id)).unwrap();
            close(&spec.name, &together.get(number), &alone, 1e-5);
        }
    }
}

/// Second moments predict what a small random change of a layer does to the embeddings.
fn moments(name: &str) {
    let golden = Golden::open(name);
    let (_, texts) = golden.batch("retain", 0);
    let weights = golden.parameters.weights();
    // Of the last layer one token counts, so that the prediction is exact on average.
    let layer = *golden.clip.mlp_ends(Tower::Text).last().unwrap();
    let items = texts.ids.size()[0] as usize;
    let sum = |halves: &[bool]| {
        let mut sum = MomentSum::new(vec![layer], Draws::seeded(Digest::of(b"moments")), MicroBatch::WHOLE);
        for _ in 0..20 {
            sum.add(&golden.clip, &weights, Input::Texts(&texts), halves).unwrap();
        }
        assert_eq!(sum.items(), 20 * items as u64);
        let (_, [first, second]) = sum.sums(&weights).unwrap().pop().unwrap();
        ((first.inputs / 20.0, first.outputs / 20.0), (second.inputs / 20.0, second.outputs / 20.0))
    };
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    let ((moment, outputs), nothing) = sum(&vec![false; items]);
    assert_eq!((largest(&nothing.0), largest(&nothing.1)), (0.0, 0.0));
    let (first, second) = sum(&(0..items).map(|item| item % 2 == 1).collect::<Vec<_>>());
    close("halves", &(first.0 + second.0), &moment, 1e-3 * largest(&moment));
    close("halves of outputs", &(first.1 + second.1), &outputs, 1e-3 * largest(&outputs));

    let _guard = tch::no_grad_guard();
    tch::manual_seed(3);
    let original = golden.clip.embed(&weights, Input::Texts(&texts)).unwrap();
    let (mut predicted, mut happened) = (0.0, 0.0);
    let shape = weights.get(layer).size();
    let moved = |change: &Tensor| {
        let edited = golden.clip.embed(&weights.with(layer, weights.get(layer) + change), Input::Texts(&texts)).unwrap();
        (edited - &original).square().sum(Kind::Double).double_value(&[]) / original.size()[1] as f64
    };
    for _ in 0..200 {
        let change = Tensor::randn_like(weights.get(layer)) * 1e-3;
        happened += moved(&change);
        predicted += (change.matmul(&moment) * &change).sum(Kind::Double).double_value(&[]) / shape[0] as f64;
    }
    let ratio = happened / predicted;
    assert!((0.8..1.25).contains(&ratio), "{ratio}");

    // The outputs' factor tells which outputs matter: a change of the one that matters most moves as much as it says (as if inputs
    // and gradients had nothing to do with each other), a change of the one that matters least next to nothing.
    let (values, vectors) = (&outputs / outputs.trace()).linalg_eigh("L");
    let along = |output: i64| {
        let (mut predicted, mut happened) = (0.0, 0.0);
        for _ in 0..50 {
            let inputs = Tensor::randn([1, shape[1]], (Kind::Float, Device::Cpu)) * 1e-3;
            let energy = (inputs.matmul(&moment) * &inputs).sum(Kind::Double).double_value(&[]);
            predicted += values.double_value(&[output]) * energy;
            happened += moved(&vectors.narrow(1, output, 1).matmul(&inputs));
        }
        (predicted, happened)
    };
    let ((predicted, most), (_, least)) = (along(shape[0] - 1), along(0));
    assert!((0.5..2.0).contains(&(most / predicted)), "{most} instead of {predicted}");
    assert!(least < 0.01 * most, "{least} against {most}");
}

macro_rules! for_each_model {
    ($($test:ident),*) => {
        mod quick_gelu { $(#[test] fn $test() { super::$test("clip-quickgelu"); })* }
        mod gelu_and_largest_id { $(#[test] fn $test() { super::$test("clip-gelu-legacy-eos"); })* }
        mod open_clip { $(#[test] fn $test() { super::$test("openclip"); })* }
    };
}

for_each_model!(
    embeddings_and_losses,
    gradients_and_ranking,
    images_embedded_before,
    micro_batches,
    edits,
    prefixes,
    trees,
    taps,
    witnesses,
    choice,
    trials_together,
    rounded_products,
    moments
);

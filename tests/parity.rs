//! Agreement with reference values computed by PyTorch autograd, `transformers` and open_clip
//! (`golden/README.md`).
//!
//! Tolerances as specified there: embeddings and losses 1e-5, gradients 1e-4 relative, identical
//! Pareto sets.

#[path = "parity/golden.rs"]
mod golden;
#[path = "parity/moments.rs"]
mod moments;
#[path = "parity/search.rs"]
mod search;

use std::collections::BTreeMap;

use golden::{Golden, close, near, relatively_close};
use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::task::Tokens;
use lethe_shared::vocabulary::{Precision, Tower};
use lethe_worker::corpus::{ActivationBudget, Corpus};
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::model::{
    Batch, BlockStates, Input, ParameterId, Part, Stage, TokenBatch, Weights,
};
use lethe_worker::slug::gradient::{GradientSum, Images, Loss};
use lethe_worker::slug::loss;
use lethe_worker::slug::moments::MomentSum;
use lethe_worker::slug::ranking::{Scores, pareto_front};
use lethe_worker::slug::trial::edited_layer;
use moments::{margin_gradients, moments_of_tokens_together, moments_predict_changes};
use search::{choice, screen, trials_together};
use tch::{Device, Kind, Tensor};

fn embeddings_and_losses(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let _guard = tch::no_grad_guard();
    for set in ["forget", "retain"] {
        for number in 0..golden.batches(set) {
            let (pixels, texts) = golden.batch(set, number);
            let images = golden.clip.embed(&weights, Input::Images(&pixels)).unwrap();
            let texts = golden.clip.embed(&weights, Input::Texts(&texts)).unwrap();
            close(
                &format!("{set} {number} images"),
                &images,
                &golden.expected(&format!("{set}.{number}.image_embeds")),
                1e-5,
            );
            close(
                &format!("{set} {number} texts"),
                &texts,
                &golden.expected(&format!("{set}.{number}.text_embeds")),
                1e-5,
            );
            let scale = golden.clip.scale(&weights).unwrap();
            let value = match (set, golden.clip.logit_bias(&weights)) {
                ("forget", _) => loss::forget(&images, &texts).unwrap(),
                (_, None) => loss::retain(&images, &texts, &scale).unwrap(),
                (_, Some(bias)) => loss::retain_sigmoid(&images, &texts, &scale, bias).unwrap(),
            };
            let expected = golden.numbers["loss"][set][number].as_f64().unwrap();
            near(&format!("{set} {number} loss"), value.double_value(&[]), expected, 1e-5);
        }
    }
}

impl Golden {
    /// Compares gradients with the reference's.
    fn check_gradients(&self, set: &str, gradients: &BTreeMap<String, Tensor>) {
        for (layer, gradient) in gradients {
            // A key bias shifts all scores of a query equally: its true gradient is zero, and the
            // reference contains rounding noise.
            let expected = self.expected(&format!("grad.{set}.{layer}"));
            if expected.norm().double_value(&[]) < 1e-6 {
                assert!(gradient.norm().double_value(&[]) < 1e-6, "{set} {layer}");
                continue;
            }
            relatively_close(
                &format!("gradient {set} {layer}"),
                gradient,
                &expected.view(gradient.size().as_slice()),
                1e-4,
            );
        }
    }
}

/// Computes text layers alone, with precomputed image embeddings: the same gradient without a pass
/// through the vision tower.
fn images_embedded_before(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let architecture = golden.clip.architecture();
    let layers: Vec<ParameterId> =
        architecture.ids().filter(|&id| architecture.spec(id).tower == Some(Tower::Text)).collect();
    for (kind, set) in [(Loss::Forget, "forget"), (Loss::Retain, "retain")] {
        let (whole, _) = golden.gradient(kind, set, MicroBatch::UNLIMITED);
        for micro_batch in [MicroBatch::UNLIMITED, MicroBatch::limited_to(2).failing_above(2)] {
            let mut sum = GradientSum::new(layers.clone(), micro_batch);
            for number in 0..golden.batches(set) {
                let (pixels, texts) = golden.batch(set, number);
                let embedded = golden.clip.embed(&weights, Input::Images(&pixels)).unwrap();
                sum.add(kind, &golden.clip, &weights, Images::Embedded(&embedded), &texts).unwrap();
            }
            let mean = sum.mean(&weights).unwrap();
            golden.check_gradients(
                set,
                &mean.into_iter().map(|(id, t)| (architecture.spec(id).name.clone(), t)).collect(),
            );
            near(&format!("{set} loss"), sum.loss(), whole.loss(), 1e-6);
        }
    }
}

/// Computes in smaller batches, as on a device with less memory: the loss is still over the whole
/// batch.
fn micro_batches(name: &str) {
    let golden = Golden::open(name);
    for (kind, set) in [(Loss::Forget, "forget"), (Loss::Retain, "retain")] {
        let (whole, _) = golden.gradient(kind, set, MicroBatch::UNLIMITED);
        for most in [1, 3] {
            // No larger batch is ever tried.
            let (sum, gradients) =
                golden.gradient(kind, set, MicroBatch::limited_to(most).failing_above(most));
            golden.check_gradients(set, &gradients);
            assert_eq!(sum.weight(), whole.weight());
            near(&format!("{set} loss"), sum.loss(), whole.loss(), 1e-6);
        }
    }
    let (pixels, texts) = golden.batch("retain", 0);
    let weights = golden.parameters.weights();
    for input in [Input::Images(&pixels), Input::Texts(&texts)] {
        let moments = |tokens: Tokens, micro_batch: MicroBatch| {
            let mut sum = MomentSum::new(
                &weights,
                golden.clip.fc2_layers(input.tower()),
                tokens,
                true,
                Draws::seeded(Digest::of(b"pieces")),
                micro_batch,
            )
            .unwrap();
            let halves: Vec<bool> = (0..input.items()).map(|item| item % 3 == 0).collect();
            sum.add(&golden.clip, &weights, input, &halves).unwrap();
            assert_eq!(sum.items(), halves.len() as u64);
            sum.into_layers()
        };
        for tokens in [Tokens::Apart, Tokens::Together] {
            let whole = moments(tokens, MicroBatch::UNLIMITED);
            for most in [1, 3] {
                let pieces = moments(tokens, MicroBatch::limited_to(most).failing_above(most));
                for (ours, expected) in pieces.iter().zip(&whole) {
                    let name = &golden.clip.architecture().spec(ours.layer).name;
                    for (ours, expected) in ours.parts.iter().zip(&expected.parts) {
                        for [ours, expected] in
                            [[&ours.inputs, &expected.inputs], [&ours.outputs, &expected.outputs]]
                        {
                            let [ours, expected] = [ours, expected].map(moments::matrix);
                            relatively_close(name, &ours, &expected, 1e-5);
                        }
                    }
                }
            }
        }
    }
}

fn gradients_and_ranking(name: &str) {
    let golden = Golden::open(name);
    let architecture = golden.clip.architecture();
    let (_, forget) = golden.gradient(Loss::Forget, "forget", MicroBatch::UNLIMITED);
    let (_, retain) = golden.gradient(Loss::Retain, "retain", MicroBatch::UNLIMITED);
    golden.check_gradients("forget", &forget);
    golden.check_gradients("retain", &retain);

    let mut fronts: BTreeMap<&str, Vec<(String, Scores)>> = BTreeMap::new();
    for id in architecture.ids() {
        let spec = architecture.spec(id);
        let Some(tower) = spec.tower else { continue };
        let scores = Scores::new(
            &spec.name,
            &golden.parameters.get(id),
            &forget[&spec.name],
            &retain[&spec.name],
        )
        .unwrap();
        if golden.is_candidate(id) {
            for (what, value) in [
                ("importance", scores.importance),
                ("alignment", scores.alignment()),
                ("cosine", scores.cosine),
            ] {
                near(
                    &format!("{what} of {}", spec.name),
                    value,
                    golden.number(&["layers", &spec.name, what]),
                    1e-4,
                );
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

        let scores: Vec<(f64, f64)> =
            layers.iter().map(|(_, s)| (s.importance, s.alignment())).collect();
        let mut front = Vec::new();
        for ((layer, scores), on_front) in layers.iter().zip(pareto_front(&scores)) {
            if on_front {
                front.push(layer.clone());
                let first = scores.unit_step().unwrap() / 10.0;
                let expected = golden.number(&["initial_step", layer]);
                assert!(
                    (first - expected).abs() <= 1e-4 * expected,
                    "first step of {layer}: {first}, expected {expected}"
                );
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
        assert_eq!(
            architecture.spec(id).tower,
            Some(if tower == "vision" { Tower::Vision } else { Tower::Text })
        );
        let gradient = golden.expected(&format!("grad.forget.{layer}"));
        let edited =
            edited_layer(&golden.parameters, id, &gradient, edit["step"].as_f64().unwrap())
                .unwrap();
        let (before, after) = (embed(&original), embed(&original.with(id, edited)));
        close(
            &format!("{tower} edit, images"),
            &after.0,
            &golden.expected(&format!("edit.{tower}.image_embeds")),
            1e-5,
        );
        close(
            &format!("{tower} edit, texts"),
            &after.1,
            &golden.expected(&format!("edit.{tower}.text_embeds")),
            1e-5,
        );
        for (what, (images, texts)) in
            [("forget_loss_before", before), ("forget_loss_after", after)]
        {
            near(
                what,
                loss::forget(&images, &texts).unwrap().double_value(&[]),
                edit[what].as_f64().unwrap(),
                1e-5,
            );
        }
    }
}

/// A pass that stops before any stage and resumes gives the same bits, because trials start from
/// stored activations.
fn prefixes(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let (pixels, texts) = golden.batch("retain", 0);
    let together = golden.clip.text_batch(&rows_of(&texts), Device::Cpu).unwrap();
    let _guard = tch::no_grad_guard();
    for input in [Input::Images(&pixels), Input::Texts(&texts), together.input()] {
        let whole = golden.clip.embed(&weights, input).unwrap();
        let blocks = golden.clip.block_count(input.tower());
        let stages = (0..blocks).flat_map(|block| Part::ALL.map(|part| Stage::Block(block, part)));
        for stage in stages.chain([Stage::Project]) {
            let start = golden.clip.start(&weights, input).unwrap();
            let state = golden.clip.advance(&weights, input.tower(), &start, stage).unwrap();
            assert_eq!(state.stage(), stage);
            let resumed = golden.clip.finish(&weights, input.tower(), state).unwrap();
            assert_eq!(
                (&whole - resumed).abs().max().double_value(&[]),
                0.0,
                "{:?} from {stage:?}",
                input.tower()
            );
        }
    }

    // For any part of the activations that is stored.
    let one = golden.clip.start(&weights, Input::Images(&pixels)).unwrap().bytes();
    for room in [0, one, 3 * one, 64 << 20] {
        let images = Corpus::images(
            &golden.clip,
            &pixels,
            Device::Cpu,
            &ActivationBudget::new(room),
            MicroBatch::UNLIMITED,
        )
        .unwrap();
        for id in golden.clip.architecture().candidates(true) {
            if golden.clip.architecture().spec(id).tower == Some(Tower::Vision) {
                let edited = weights.with(id, golden.parameters.get(id) * 1.25);
                let expected = golden.clip.embed(&edited, Input::Images(&pixels)).unwrap();
                for _ in 0..2 {
                    let ours = images.embed(&golden.clip, &weights, &edited, Some(id)).unwrap();
                    assert_eq!(
                        (ours - &expected).abs().max().double_value(&[]),
                        0.0,
                        "{room} bytes, {id:?}"
                    );
                }
            }
        }
    }
}

/// Returns texts one by one, up to their end-of-text token.
fn rows_of(texts: &TokenBatch) -> Vec<Vec<u32>> {
    let row =
        |ids: Tensor| Vec::<i64>::try_from(ids).unwrap().into_iter().map(|id| id as u32).collect();
    (0..texts.ids.size()[0]).map(|number| row(texts.ids.get(number))).collect()
}

/// Texts of one batch, which share prefixes in a tree where attention is causal, get the same
/// embeddings as one by one.
fn trees(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let _guard = tch::no_grad_guard();
    let mut texts = Vec::new();
    for number in 0..golden.batches("retain") {
        texts.extend(rows_of(&golden.batch("retain", number).1));
    }
    // The same texts without words in the middle; the end stays the same.
    let is_causal = golden.clip.config().text.is_causal;
    let shorter: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| {
            let mut short = [&text[..2], &text[text.len() / 2..]].concat();
            if !is_causal {
                short.resize(text.len(), text[text.len() - 1]);
            }
            short
        })
        .collect();
    texts.extend(shorter);
    let batch = golden.clip.text_batch(&texts, Device::Cpu).unwrap();
    assert_eq!(matches!(batch, Batch::PrefixTree(_)), is_causal);
    assert_eq!(golden.clip.prefix_tree(&texts, Device::Cpu).is_ok(), is_causal);
    let together = golden.clip.embed(&weights, batch.input()).unwrap();
    for (number, text) in texts.iter().enumerate() {
        let alone = golden.clip.token_batch(std::slice::from_ref(text), Device::Cpu).unwrap();
        let off = golden.clip.embed(&weights, Input::Texts(&alone)).unwrap().get(0)
            - together.get(number as i64);
        assert!(off.abs().max().double_value(&[]) < 1e-6, "text {number}");
    }
    let some = batch.input().narrow(1, 2).unwrap();
    let off = golden.clip.embed(&weights, some.input()).unwrap() - together.narrow(0, 1, 2);
    assert!(off.abs().max().double_value(&[]) < 1e-6);
}

/// The tapped inputs and output gradients of a layer give its weight's gradient: Σ δ_t x_tᵀ over
/// items and tokens.
fn taps(name: &str) {
    let golden = Golden::open(name);
    let (pixels, texts) = golden.batch("retain", 0);
    for input in [Input::Images(&pixels), Input::Texts(&texts)] {
        let layers = golden.clip.fc2_layers(input.tower());
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
            assert!(
                off.double_value(&[]) < 1e-4,
                "{:?}",
                golden.clip.architecture().spec(tap.layer).name
            );
        }
    }
}

/// At the tokens that the embedding depends on, the inputs of a layer are those of the usual pass,
/// whatever follows the end of a text.
fn states(name: &str) {
    let golden = Golden::open(name);
    let layers = golden.clip.fc2_layers(Tower::Text);
    let (_, texts) = golden.batch("retain", 0);
    let rows: Vec<Vec<u32>> = rows_of(&texts);
    let whole = golden.clip.whole_batch(&rows, None, Device::Cpu).unwrap();
    assert_eq!(whole.ids.size()[1], golden.clip.config().context_length);
    let graph = golden.parameters.weights().with_taps(&layers).unwrap();
    let _ = golden.clip.embed(&graph, Input::Texts(&texts)).unwrap();
    let _guard = tch::no_grad_guard();
    let weights = golden.parameters.weights();
    let pooled = Vec::<i64>::try_from(&texts.pooled).unwrap();
    let mut blocks = Vec::new();
    let keep = |_, block: BlockStates| {
        blocks.push(block);
        Ok(())
    };
    golden.clip.each_block(&weights, Input::Texts(&whole), &layers, keep).unwrap();
    for tap in graph.tapped() {
        let states = &blocks[layers.iter().position(|&layer| layer == tap.layer).unwrap()];
        for (text, &end) in (0i64..).zip(&pooled) {
            let ours = states.inputs.get(text);
            // The last block of the usual pass has the pooled token alone.
            let (ours, theirs) = match tap.input.dim() {
                2 => (ours.get(end), tap.input.get(text)),
                _ => (ours.narrow(0, 0, end + 1), tap.input.get(text).narrow(0, 0, end + 1)),
            };
            close("inputs", &ours, &theirs, 1e-5);
            let padding = whole.ids.get(text).narrow(0, end, whole.ids.size()[1] - end);
            let ends = padding.eq_tensor(&padding.get(0)).all();
            assert_eq!(ends.int64_value(&[]), 1, "padded with its own end");
        }
    }
    let vision = golden.clip.fc2_layers(Tower::Vision)[0];
    let one = |layers: &[_]| {
        golden.clip.each_block(&weights, Input::Texts(&whole), layers, |_, _| Ok(()))
    };
    assert!(one(&[vision]).is_err());
    assert!(one(&[layers[1], layers[0]]).is_err(), "layers must be front to back");
}

/// Towers that multiply in bfloat16 give nearly the same embeddings and gradients as in float32.
fn rounded_products(name: &str) {
    let golden = Golden::open(name);
    let layers = golden.clip.architecture().candidates(false);
    let looked = |weights: &Weights| {
        let (pixels, texts) = golden.batch("forget", 0);
        let embedded = {
            let _guard = tch::no_grad_guard();
            [Input::Images(&pixels), Input::Texts(&texts)]
                .map(|input| golden.clip.embed(weights, input).unwrap())
        };
        let mut sum = GradientSum::new(layers.clone(), MicroBatch::UNLIMITED);
        sum.add(Loss::Forget, &golden.clip, weights, Images::Pixels(&pixels), &texts).unwrap();
        (embedded, sum.mean(weights).unwrap())
    };
    let (expected, gradients) = looked(&golden.parameters.weights());
    let (embedded, rounded) =
        looked(&Golden::open(name).parameters.in_precision(Precision::Bfloat16).unwrap().weights());
    for (ours, theirs) in embedded.iter().zip(&expected) {
        assert_eq!(ours.kind(), Kind::Float);
        let off =
            (ours - theirs).norm_scalaropt_dim(2, [-1].as_slice(), false).max().double_value(&[]);
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

macro_rules! for_each_model {
    ($($test:ident),*) => {
        mod quick_gelu { $(#[test] fn $test() { super::$test("clip-quickgelu"); })* }
        mod gelu_and_largest_id { $(#[test] fn $test() { super::$test("clip-gelu-legacy-eos"); })* }
        mod open_clip { $(#[test] fn $test() { super::$test("openclip"); })* }
        mod open_clip_custom_text { $(#[test] fn $test() { super::$test("openclip-custom-text"); })* }
        mod open_clip_siglip { $(#[test] fn $test() { super::$test("openclip-siglip"); })* }
        mod siglip { $(#[test] fn $test() { super::$test("siglip"); })* }
        mod siglip_2 { $(#[test] fn $test() { super::$test("siglip2"); })* }
    };
}

for_each_model!(
    embeddings_and_losses,
    gradients_and_ranking,
    images_embedded_before,
    micro_batches,
    margin_gradients,
    moments_of_tokens_together,
    edits,
    prefixes,
    trees,
    taps,
    states,
    screen,
    choice,
    trials_together,
    rounded_products,
    moments_predict_changes
);

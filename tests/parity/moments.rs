//! Second moments, and the gradients of margins.

use lethe_shared::digest::Digest;
use lethe_shared::draws::Draws;
use lethe_shared::task::Tokens;
use lethe_shared::vocabulary::Tower;
use lethe_worker::micro_batch::MicroBatch;
use lethe_worker::model::Input;
use lethe_worker::slug::margin;
use lethe_worker::slug::moments::{self, LayerSums, MomentSum};
use lethe_worker::slug::symmetric::{SymmetricSum, UpperTriangle};
use tch::{Device, Kind, Tensor};

use crate::golden::{Golden, close, relatively_close};

/// Returns a sum as the matrix that artifacts hold.
pub(crate) fn matrix(sum: &SymmetricSum) -> Tensor {
    let packed = sum.packed().unwrap();
    let triangle = UpperTriangle::from_packed(&packed).unwrap().expect("the triangle of a matrix");
    triangle.whole().unwrap().to_kind(Kind::Float)
}

/// The gradients of single images' margins add up to the reference's forget gradient: with the
/// caption's counterpart in place of a class, L_i = −⟨z_i, w_i⟩ is L_f of one pair but for a
/// constant.
pub(crate) fn margin_gradients(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let architecture = golden.clip.architecture();
    for tower in [Tower::Text, Tower::Vision] {
        let layers = golden.clip.fc2_layers(tower);
        for micro_batch in [MicroBatch::UNLIMITED, MicroBatch::limited_to(2).failing_above(2)] {
            let mut sums: Vec<Option<Tensor>> = layers.iter().map(|_| None).collect();
            let mut pairs = 0;
            for number in 0..golden.batches("forget") {
                let (pixels, texts) = golden.batch("forget", number);
                let embed = |input: Input<'_>| {
                    let _guard = tch::no_grad_guard();
                    golden.clip.embed(&weights, input).unwrap()
                };
                let (input, toward) = match tower {
                    Tower::Text => (Input::Texts(&texts), embed(Input::Images(&pixels))),
                    Tower::Vision => (Input::Images(&pixels), embed(Input::Texts(&texts))),
                };
                let found =
                    margin::gradients(&golden.clip, &weights, &layers, input, &toward, micro_batch)
                        .unwrap();
                pairs += input.items();
                for (sum, images) in sums.iter_mut().zip(&found) {
                    assert_eq!(images.len() as i64, input.items());
                    for rows in images {
                        let gradient = rows.up.transpose(0, 1).matmul(&rows.down);
                        *sum = Some(match sum.take() {
                            None => gradient,
                            Some(sum) => sum + gradient,
                        });
                    }
                }
            }
            for (&layer, sum) in layers.iter().zip(sums) {
                let layer = &architecture.spec(layer).name;
                relatively_close(
                    &format!("margins at {layer}"),
                    &(sum.unwrap() / pairs as f64).to_kind(Kind::Float),
                    &golden.expected(&format!("grad.forget.{layer}")),
                    1e-4,
                );
            }
        }
    }
}

/// With tokens together, the moments are GᵀG and G Gᵀ of the items' gradients, here formed one by
/// one.
pub(crate) fn moments_of_tokens_together(name: &str) {
    let golden = Golden::open(name);
    let weights = golden.parameters.weights();
    let (pixels, texts) = golden.batch("retain", 0);
    let draws = || Draws::seeded(Digest::of(b"together"));
    for input in [Input::Images(&pixels), Input::Texts(&texts)] {
        let layers = golden.clip.fc2_layers(input.tower());
        let mut sum = MomentSum::new(
            &weights,
            layers.clone(),
            Tokens::Together,
            false,
            draws(),
            MicroBatch::UNLIMITED,
        )
        .unwrap();
        sum.add(&golden.clip, &weights, input, &vec![false; input.items() as usize]).unwrap();
        let mut probes = draws();
        let mut expected: Vec<Option<(Tensor, Tensor)>> = layers.iter().map(|_| None).collect();
        for _ in 0..moments::PROBES {
            let width = golden.clip.config().embedding;
            let probe = moments::directions(&mut probes, input.items(), width).unwrap();
            let found = margin::gradients(
                &golden.clip,
                &weights,
                &layers,
                input,
                &probe,
                MicroBatch::UNLIMITED,
            )
            .unwrap();
            for (sums, items) in expected.iter_mut().zip(&found) {
                for rows in items {
                    let gradient = rows.up.transpose(0, 1).matmul(&rows.down);
                    let turned = gradient.transpose(0, 1);
                    let (inputs, outputs) = (turned.matmul(&gradient), gradient.matmul(&turned));
                    *sums = Some(match sums.take() {
                        None => (inputs, outputs),
                        Some((a, b)) => (a + inputs, b + outputs),
                    });
                }
            }
        }
        for (LayerSums { layer, parts }, sums) in sum.into_layers().into_iter().zip(expected) {
            let ([ours], (inputs, outputs)) = (&parts[..], sums.unwrap()) else {
                panic!("{} parts instead of one", parts.len());
            };
            let name = &golden.clip.architecture().spec(layer).name;
            let probes = moments::PROBES as f64;
            let mean = |sum: Tensor| (sum / probes).to_kind(Kind::Float);
            relatively_close(name, &matrix(&ours.inputs), &mean(inputs), 1e-4);
            relatively_close(name, &matrix(&ours.outputs), &mean(outputs), 1e-4);
        }
    }
}

/// Second moments predict the change of the embeddings under a small random change of a layer.
pub(crate) fn moments_predict_changes(name: &str) {
    let golden = Golden::open(name);
    let (_, texts) = golden.batch("retain", 0);
    let weights = golden.parameters.weights();
    // In the last layer only one token matters, so the prediction is exact on average.
    let layer = *golden.clip.fc2_layers(Tower::Text).last().unwrap();
    let items = texts.ids.size()[0] as usize;
    let sum = |halves: &[bool]| {
        let mut sum = MomentSum::new(
            &weights,
            vec![layer],
            Tokens::Apart,
            true,
            Draws::seeded(Digest::of(b"moments")),
            MicroBatch::UNLIMITED,
        )
        .unwrap();
        for _ in 0..20 {
            sum.add(&golden.clip, &weights, Input::Texts(&texts), halves).unwrap();
        }
        assert_eq!(sum.items(), 20 * items as u64);
        let parts = sum.into_layers().pop().unwrap().parts;
        let mean =
            |part: usize| (matrix(&parts[part].inputs) / 20.0, matrix(&parts[part].outputs) / 20.0);
        (mean(0), mean(1))
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
        let edited = golden
            .clip
            .embed(&weights.with(layer, weights.get(layer) + change), Input::Texts(&texts))
            .unwrap();
        (edited - &original).square().sum(Kind::Double).double_value(&[])
            / original.size()[1] as f64
    };
    for _ in 0..200 {
        let change = Tensor::randn_like(weights.get(layer)) * 1e-3;
        happened += moved(&change);
        predicted += (change.matmul(&moment) * &change).sum(Kind::Double).double_value(&[])
            / shape[0] as f64;
    }
    let ratio = happened / predicted;
    assert!((0.8..1.25).contains(&ratio), "{ratio}");

    // The factor of the outputs shows which outputs matter: a change of the most important one
    // moves the embeddings as predicted (as if inputs and gradients were independent), a change of
    // the least important one hardly at all.
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

//! Tries the committed inputs, and a few generated ones, with every harness.

use std::time::Duration;

use lethe_fuzz::engine::{self, Limits};
use lethe_fuzz::{all, corpus};

/// Most bytes of all committed inputs.
const LARGEST_CORPUS: usize = 300 << 10;

/// Inputs that failed once do not fail again.
#[test]
fn every_committed_input_holds() {
    let mut bytes = 0;
    for harness in all() {
        let inputs = corpus::inputs(&corpus::folder(), &harness).unwrap();
        assert!(!inputs.is_empty(), "{} has no committed input", harness.name);
        // What is initialised once does not count as memory of an input.
        let _ = engine::examine(&harness, &inputs[0].1);
        for (path, input) in inputs {
            bytes += input.len();
            if let Err(problem) = engine::examine(&harness, &input) {
                panic!("{}: {problem}", path.display());
            }
        }
    }
    assert!(bytes <= LARGEST_CORPUS, "the corpus has {bytes} bytes");
}

#[test]
fn the_corpus_has_no_folder_without_a_harness() {
    let harnesses = all();
    for entry in std::fs::read_dir(corpus::folder()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(harnesses.iter().any(|harness| *harness.name == *name), "{}", name.display());
    }
}

/// Of an input that is almost valid, a reader sees more than its first bytes: some are accepted and
/// some refused.
#[test]
fn generated_inputs_are_almost_valid() {
    let limits = Limits { inputs: 400, time: Duration::from_secs(120), seed: 1 };
    for harness in all() {
        let (tally, failure) = engine::run(&harness, &[], &limits, &mut |_| {});
        if let Some(failure) = failure {
            panic!("{}: {}\n{:?}", harness.name, failure.problem, failure.input);
        }
        let share = tally.accepted as f64 / tally.inputs as f64;
        assert!((0.02..0.98).contains(&share), "{} accepts {share}", harness.name);
    }
}

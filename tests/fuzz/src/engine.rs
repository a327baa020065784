//! Runs a harness on generated inputs. proptest draws, catches panics, and reduces what fails.

use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use proptest::strategy::{NewTree, Strategy};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::bytes::{self, Reducing};
use crate::draw::Draw;
use crate::harness::{Harness, Outcome};
use crate::memory::Measurement;

/// Longest time for one input. Readers take microseconds; a busy machine must not fail a run.
const LONGEST: Duration = Duration::from_secs(10);

/// When a run ends, and where its random numbers start.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of inputs.
    pub inputs: u64,
    /// Time.
    pub time: Duration,
    /// Start of the random numbers: the same seed gives the same inputs.
    pub seed: u64,
}

/// What a run has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Inputs tried.
    pub inputs: u64,
    /// Inputs accepted.
    pub accepted: u64,
    /// Duration.
    pub time: Duration,
    /// Most live memory that one input took, bytes.
    pub memory: usize,
}

/// An input that fails.
#[derive(Debug)]
pub struct Failure {
    /// The input, reduced.
    pub input: Vec<u8>,
    /// The property that does not hold, or the panic.
    pub problem: String,
}

/// The inputs of a harness: generated ones, mutated ones of the corpus, and some random bytes.
#[derive(Debug)]
struct Inputs<'a> {
    harness: &'a Harness,
    corpus: &'a [Vec<u8>],
}

impl Strategy for Inputs<'_> {
    type Tree = Reducing;
    type Value = Vec<u8>;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let mut draw = Draw::new(runner.rng());
        let input = match draw.below(16) {
            0 => {
                let length = draw.size();
                draw.bytes(length)
            }
            1 | 2 if !self.corpus.is_empty() => {
                let mut input = draw.pick(self.corpus).clone();
                bytes::mutate(&mut input, &mut draw);
                input
            }
            3 => {
                let mut input = (self.harness.generate)(&mut draw);
                bytes::mutate(&mut input, &mut draw);
                input
            }
            _ => (self.harness.generate)(&mut draw),
        };
        Ok(Reducing::new(input))
    }
}

/// Runs a harness until a limit is reached or an input fails. `before` is called with each input
/// before it is tried.
pub fn run(
    harness: &Harness,
    corpus: &[Vec<u8>],
    limits: &Limits,
    before: &mut dyn FnMut(&[u8]),
) -> (Tally, Option<Failure>) {
    // What is initialised once must not count as memory of an input.
    for input in corpus.iter().chain(&(harness.seeds)()) {
        let _ = examine(harness, input);
    }
    let config =
        Config { failure_persistence: None, max_shrink_iters: 1 << 20, ..Config::default() };
    let seed = [limits.seed.to_le_bytes(), (!limits.seed).to_le_bytes()].concat();
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let inputs = Inputs { harness, corpus };
    let (tally, before) = (Cell::new(Tally::default()), RefCell::new(before));
    let started = Instant::now();
    let finished = |failure| (Tally { time: started.elapsed(), ..tally.get() }, failure);
    while tally.get().inputs < limits.inputs && started.elapsed() < limits.time {
        let case = inputs.new_tree(&mut runner).expect("inputs are never rejected");
        let tried = runner.run_one(case, |input| {
            before.borrow_mut()(&input);
            let (outcome, memory) = examine(harness, &input).map_err(TestCaseError::fail)?;
            let mut sum = tally.get();
            sum.inputs += 1;
            sum.accepted += u64::from(outcome == Outcome::Accepted);
            sum.memory = sum.memory.max(memory);
            tally.set(sum);
            Ok(())
        });
        if let Err(TestError::Fail(reason, input)) = tried {
            return finished(Some(Failure { input, problem: reason.message().to_owned() }));
        }
    }
    finished(None)
}

/// Tries one input: the outcome, and the most live memory it took in bytes.
///
/// # Errors
/// The property that does not hold, or the panic.
pub fn examine(harness: &Harness, input: &[u8]) -> Result<(Outcome, usize), String> {
    static HOOK: Once = Once::new();
    // The memory of a process is measured for one input at a time.
    static ONE: Mutex<()> = Mutex::new(());
    HOOK.call_once(remember_panics);
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (measurement, started) = (Measurement::start(), Instant::now());
    EXAMINES.set(true);
    let checked = std::panic::catch_unwind(|| (harness.check)(input));
    EXAMINES.set(false);
    let (memory, time) = (measurement.peak(), started.elapsed());
    let outcome = match checked {
        Ok(outcome) => outcome?,
        Err(_) => return Err(LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()),
    };
    let most = (harness.memory)(input);
    if memory > most {
        return Err(format!("took {memory} bytes of memory, at most {most} are allowed"));
    }
    if time > LONGEST {
        return Err(format!("took {} s", time.as_secs()));
    }
    Ok((outcome, memory))
}

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// Whether this thread examines an input.
    static EXAMINES: Cell<bool> = const { Cell::new(false) };
}

/// Has panics of an examination remembered instead of printed: reducing an input repeats its panic
/// many times.
fn remember_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let mut last = LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone_from(&panic.to_string());
        drop(last);
        if !EXAMINES.get() {
            print(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harness(check: fn(&[u8]) -> Result<Outcome, String>) -> Harness {
        Harness {
            name: "test",
            memory: |_| 1 << 20,
            seeds: Vec::new,
            generate: |draw| {
                let length = draw.below(40);
                draw.bytes(length)
            },
            check,
        }
    }

    fn run_test(check: fn(&[u8]) -> Result<Outcome, String>) -> (Tally, Option<Failure>) {
        let limits = Limits { inputs: 20_000, time: Duration::from_secs(60), seed: 7 };
        run(&harness(check), &[b"seed".to_vec()], &limits, &mut |_| {})
    }

    #[test]
    fn inputs_are_counted_and_repeat_with_their_seed() {
        let check = |input: &[u8]| match input.first() {
            Some(0..128) => Ok(Outcome::Accepted),
            _ => Ok(Outcome::Refused),
        };
        let (first, failure) = run_test(check);
        assert!(failure.is_none());
        assert_eq!(first.inputs, 20_000);
        assert!((5000..15_000).contains(&first.accepted), "{first:?}");
        assert_eq!(run_test(check).0.accepted, first.accepted);
    }

    #[test]
    fn a_panic_is_found_and_its_input_reduced() {
        let (_, failure) = run_test(|input| {
            assert!(!input.contains(&b'!'), "an exclamation mark");
            Ok(Outcome::Accepted)
        });
        let failure = failure.unwrap();
        assert_eq!(failure.input, b"!");
        assert!(failure.problem.contains("an exclamation mark"), "{}", failure.problem);
    }

    #[test]
    fn a_property_that_does_not_hold_is_found() {
        let (_, failure) = run_test(|input| match input {
            [_, _, ..] => Err("two bytes".to_owned()),
            _ => Ok(Outcome::Accepted),
        });
        let failure = failure.unwrap();
        assert_eq!((failure.input.len(), failure.problem.as_str()), (2, "two bytes"));
    }

    #[test]
    fn too_much_memory_is_found_when_it_is_free_again() {
        let (_, failure) = run_test(|input| {
            let size = if input.len() > 9 { 2 << 20 } else { 1 << 10 };
            drop(std::hint::black_box(vec![1u8; size]));
            Ok(Outcome::Accepted)
        });
        let failure = failure.unwrap();
        assert_eq!(failure.input.len(), 10);
        assert!(
            failure.problem.contains("bytes of memory, at most 1048576"),
            "{}",
            failure.problem
        );
    }

    #[test]
    fn the_process_that_supervises_knows_each_input_before_it_is_tried() {
        let mut seen = Vec::new();
        let limits = Limits { inputs: 50, time: Duration::from_secs(60), seed: 1 };
        let check = |_: &[u8]| Ok(Outcome::Refused);
        let (tally, _) = run(&harness(check), &[], &limits, &mut |input| seen.push(input.to_vec()));
        assert_eq!(seen.len() as u64, tally.inputs);
    }
}

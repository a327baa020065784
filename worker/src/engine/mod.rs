//! Executes jobs: everything between a job's addresses and its outcome.
//!
//! An [`Engine`] is shared by the threads of a process: they share one copy of the model, of the retain gradient, and of
//! what every concept's search looks at. Each job runs on one thread from start to end, with one libtorch thread, so
//! that a result does not depend on how many there are.
//!
//! Where a device's memory does not hold a pass, the job is done again in passes half as large, and so is every later one.
//!
//! | file | what |
//! |---|---|
//! | `model.rs` | a model with its tokeniser and preprocessing, checked against the job's digests |
//! | `data.rs` | shards as tensors |
//! | `retain.rs` | the retain gradient: shard sums, and their mean |
//! | `images.rs` | images as the unedited model embeds them, once per process |
//! | `ground.rs` | what a concept's trials look at |
//! | `concept.rs` | one concept: gradient, ranking, search, choice |
//! | `moments.rs` | second moments of layer inputs over what must stay |
//! | `protect.rs` | what texts that must not change put into layers |
//! | `direction.rs` | one concept on corrected directions: scores of its layers, then direction and step |
//! | `interference.rs` | what each edit does to each concept |
//! | `thumbnails.rs` | a concept's first images, small, for the report |
//! | `evaluate.rs` | zero-shot hits of the model, changed or not |

mod concept;
mod data;
mod direction;
mod evaluate;
mod ground;
mod images;
mod interference;
mod model;
mod moments;
mod protect;
mod retain;
mod thumbnails;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use lethe_shared::address::Address;
use lethe_shared::digest::Digest;
use lethe_shared::job::{ALGORITHM_VERSION, ArtifactRef, Job, ModelRef, Task};
use lethe_shared::manifest::Precision;
use lethe_shared::outcome::{Execution, Outcome, TaskResult};
use lethe_shared::store::{self, Store};
use tch::{Device, Tensor};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::corpus::{Budget, Corpus};
use crate::micro_batch::{MicroBatch, is_out_of_memory};
use crate::multiplying::multiplying;
use crate::{input, memory};

/// Why a job has no outcome.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The job's input is bad; doing it again gives the same.
    #[error("{0}")]
    Input(String),
    /// Something around the job failed; doing it again may help.
    #[error("{0}")]
    Transient(String),
    /// The job was planned by a program whose results are others; a worker of that release must do it.
    #[error("{0}")]
    Foreign(String),
    /// Something that an earlier job made is damaged or gone; the coordinator has it made again.
    #[error("{0}")]
    Damaged(String),
    /// The device's memory does not hold a pass over this many items. [`Engine::execute`] does the job again in smaller ones.
    #[error("{problem}")]
    Memory {
        /// Items of the pass.
        items: i64,
        /// libtorch's words.
        problem: String,
    },
    /// The process is stopping.
    #[error("cancelled")]
    Cancelled,
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Input(error.to_string()) }
    }
}

impl From<input::Error> for Error {
    fn from(error: input::Error) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<crate::model::Error> for Error {
    fn from(error: crate::model::Error) -> Self {
        match error {
            crate::model::Error::Torch(error) => error.into(),
            crate::model::Error::Memory { items, .. } => Self::Memory { items, problem: error.to_string() },
            other => Self::Input(other.to_string()),
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        // Memory is this machine's affair, another may have more of it; anything else comes of the job.
        if is_out_of_memory(&error) { Self::Transient(format!("libtorch: {error}")) } else { Self::Input(format!("libtorch: {error}")) }
    }
}

/// Memory for activations that trials start from unless something else is asked for, bytes.
const ACTIVATION_MEMORY: usize = 2 << 30;

/// What one pass takes at most on a CPU, bytes by estimate. The same on every machine: how batches are cut shows in the last bits of
/// sums. A pass of this size is long enough to lose nothing by being one of several.
const PASS_MEMORY: u64 = 4 << 30;

/// How an engine runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who signs outcomes.
    pub worker: String,
    /// Where tensors live.
    pub device: Device,
    /// Folder for remote files; they are kept under their digests.
    pub cache: PathBuf,
    /// Memory for activations that trials start from, bytes.
    pub activation_memory: usize,
    /// How batches are cut from the start; less when memory turns out short.
    pub micro_batch: MicroBatch,
    /// Tokens that a pass takes as quickly as a few, so that steps of a search are looked at beforehand; 0 where each token costs the same.
    pub spare_tokens: i64,
}

/// What a GPU's pass takes as quickly as a few tokens: launching costs more than computing.
const SPARE_TOKENS: i64 = 4096;

impl Options {
    /// What fits most machines: 2 GiB of activations; batches whole on a GPU, which says when that is too much, and in passes of 4 GiB
    /// at most on a CPU, which does not.
    pub fn new(worker: String, device: Device, cache: PathBuf) -> Self {
        let micro_batch = if device == Device::Cpu { MicroBatch::WHOLE.within(PASS_MEMORY) } else { MicroBatch::WHOLE };
        let spare_tokens = if device.is_cuda() { SPARE_TOKENS } else { 0 };
        Self { worker, device, cache, activation_memory: ACTIVATION_MEMORY, micro_batch, spare_tokens }
    }
}

/// Digests of a model's weights and settings, and how it computes.
type ModelKey = (Digest, Digest, Precision);

fn key(model: &ModelRef) -> ModelKey {
    (model.weights, model.settings, model.precision)
}

/// Executes jobs; share it between threads.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    store: Store,
    runtime: Handle,
    budget: Budget,
    /// The most items of a pass, as learnt so far.
    most: AtomicI64,
    models: Cache<ModelKey, model::Model>,
    classes: Cache<(ModelKey, Digest, MicroBatch), evaluate::Classes>,
    /// By model, shards, class list, whether pixels are at hand, size of passes.
    validation: Cache<(ModelKey, Vec<Digest>, Digest, bool, MicroBatch), ground::Validation>,
    retain_gradients: Cache<ArtifactRef, retain::RetainGradient>,
    matrices: Cache<Vec<ArtifactRef>, moments::Matrices>,
    composed: Cache<(ModelKey, Digest, Digest), evaluate::Composed>,
    images: images::EmbeddedImages,
}

impl Engine {
    /// An engine that reads and writes artifacts in `store`, whose IO runs on `runtime`.
    pub fn new(options: Options, store: Store, runtime: Handle) -> Self {
        let budget = Budget::new(options.activation_memory);
        Self {
            options,
            store,
            runtime,
            budget,
            most: AtomicI64::new(i64::MAX),
            models: Cache::default(),
            classes: Cache::default(),
            validation: Cache::default(),
            retain_gradients: Cache::default(),
            matrices: Cache::default(),
            composed: Cache::default(),
            images: images::EmbeddedImages::default(),
        }
    }

    /// Does a job on the calling thread, which must not be one of the runtime's. Its outcome is not yet stored.
    ///
    /// # Errors
    /// [`Error::Input`] when doing it again would fail again, [`Error::Foreign`], [`Error::Damaged`] and [`Error::Cancelled`] as
    /// they say, [`Error::Transient`] otherwise.
    pub fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Error> {
        let began = Instant::now();
        // Begun anew, so that a result depends on one size of passes and not on when memory ran out.
        loop {
            let micro_batch = self.options.micro_batch.and_at_most(self.most.load(Ordering::Relaxed));
            match self.attempt(job, Scope { engine: self, cancel, micro_batch }, began) {
                Err(Error::Memory { items, problem }) if items > 1 => {
                    let most = items / 2;
                    self.most.fetch_min(most, Ordering::Relaxed);
                    self.give_up_memory();
                    warn!(job = %job.label(), items, most, error = %problem, "the device's memory is short: smaller passes from here on");
                }
                Err(Error::Memory { problem, .. }) => {
                    return Err(Error::Transient(format!(
                        "the device's memory does not hold a single item's pass through this model; free some of it, or use a larger device: {problem}"
                    )));
                }
                done => return done,
            }
        }
    }

    /// Lets go of everything that holds activations.
    fn give_up_memory(&self) {
        self.classes.clear();
        self.validation.clear();
    }

    fn attempt(&self, job: &Job, scope: Scope<'_>, began: Instant) -> Result<Outcome, Error> {
        if job.algorithm != ALGORITHM_VERSION {
            return Err(Error::Foreign(format!(
                "the job was planned for algorithm version {}, this worker computes version {ALGORITHM_VERSION}; run the same release of lethe and lethe-worker",
                job.algorithm
            )));
        }
        let _multiplying = multiplying(job.model.precision, self.options.device);
        let mut stages = Stages::default();
        let result = match &job.task {
            Task::RetainGradient { shard, batch_size, towers } => {
                TaskResult::RetainGradient(retain::sum(scope, &job.model, shard, *batch_size, *towers, &mut stages)?)
            }
            Task::RetainReduce { parts } => TaskResult::RetainReduce(retain::reduce(scope, parts)?),
            Task::Concept(task) => TaskResult::Concept(Box::new(concept::find_edit(scope, &job.model, task, &mut stages)?)),
            Task::Evaluate { change, items, classes } => {
                TaskResult::Evaluate(evaluate::evaluate(scope, &job.model, change.as_ref(), items, classes, &mut stages)?)
            }
            Task::Moments(source) => TaskResult::Moments(moments::sum(scope, &job.model, source, &mut stages)?),
            Task::MomentsReduce(task) => TaskResult::MomentsReduce(moments::reduce(scope, task, &mut stages)?),
            Task::Protect(task) => TaskResult::Protect(protect::protect(scope, &job.model, task, &mut stages)?),
            Task::Survey(task) => TaskResult::Survey(direction::survey(scope, &job.model, task, &mut stages)?),
            Task::Direction(task) => TaskResult::Direction(Box::new(direction::find(scope, &job.model, task, &mut stages)?)),
            Task::Interference { concepts } => TaskResult::Interference(interference::effects(scope, concepts, &mut stages)?),
        };
        let execution = Execution {
            worker: self.options.worker.clone(),
            seconds: began.elapsed().as_secs_f64(),
            stages: stages.seconds,
            peak_memory_bytes: memory::peak_bytes(),
            device: format!("{:?}", self.options.device).to_lowercase(),
        };
        Ok(Outcome { job: job.id(), result, execution })
    }
}

/// What a job's parts need from their surroundings.
#[derive(Debug, Clone, Copy)]
struct Scope<'a> {
    engine: &'a Engine,
    cancel: &'a CancellationToken,
    micro_batch: MicroBatch,
}

impl Scope<'_> {
    fn device(&self) -> Device {
        self.engine.options.device
    }

    /// Images to embed again and again.
    fn images(&self, model: &model::Model, pixels: &Tensor) -> Result<Corpus, Error> {
        Ok(Corpus::images(&model.clip, pixels, self.device(), &self.engine.budget, self.micro_batch)?)
    }

    /// Texts to embed again and again.
    fn texts(&self, model: &model::Model, texts: &[String]) -> Result<Corpus, Error> {
        Ok(Corpus::texts(&model.clip, &model.encode(texts)?, self.device(), &self.engine.budget, self.micro_batch)?)
    }

    /// Ends the job here when the process is stopping.
    fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn get(&self, artifact: &ArtifactRef) -> Result<Bytes, Error> {
        self.engine.runtime.block_on(self.engine.store.get_artifact(artifact)).map_err(|error| match error {
            store::Error::Corrupt { .. } | store::Error::NotFound { .. } => Error::Damaged(error.to_string()),
            other => other.into(),
        })
    }

    fn put(&self, bytes: Vec<u8>) -> Result<ArtifactRef, Error> {
        Ok(self.engine.runtime.block_on(self.engine.store.put_artifact(Bytes::from(bytes)))?)
    }

    /// A file on this machine with the bytes at `address`.
    fn fetch(&self, address: &Address, digest: Digest, bytes: u64) -> Result<PathBuf, Error> {
        let expected = Some((digest, bytes));
        Ok(self.engine.runtime.block_on(store::fetch_file(address, &self.engine.options.cache, expected))?)
    }
}

/// Wall-clock seconds by stage.
#[derive(Debug, Default)]
struct Stages {
    seconds: BTreeMap<String, f64>,
}

impl Stages {
    fn time<T>(&mut self, stage: &str, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let began = Instant::now();
        let result = act();
        *self.seconds.entry(stage.to_owned()).or_default() += began.elapsed().as_secs_f64();
        result
    }
}

/// Values that jobs share, the most recent few; made by the first that asks while the others wait.
#[derive(Debug)]
struct Cache<K, V> {
    slots: Mutex<Vec<(K, Arc<Slot<V>>)>>,
}

/// A value that is there, or that someone is making under the lock.
type Slot<V> = Mutex<Option<Arc<V>>>;

/// A process works on one run at a time, rarely on two.
const KEPT: usize = 2;

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self { slots: Mutex::new(Vec::new()) }
    }
}

impl<K: PartialEq, V> Cache<K, V> {
    /// Forgets everything; who has a value keeps it.
    fn clear(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn get(&self, key: K, make: impl FnOnce() -> Result<V, Error>) -> Result<Arc<V>, Error> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            match slots.iter().position(|(known, _)| *known == key) {
                Some(position) => {
                    let entry = slots.remove(position);
                    let slot = Arc::clone(&entry.1);
                    slots.push(entry);
                    slot
                }
                None => {
                    if slots.len() == KEPT {
                        slots.remove(0);
                    }
                    let slot = Arc::new(Mutex::new(None));
                    slots.push((key, Arc::clone(&slot)));
                    slot
                }
            }
        };
        // The value is only ever set whole.
        let mut value = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        let made = Arc::new(make()?);
        *value = Some(Arc::clone(&made));
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use lethe_shared::job::ShardRef;
    use lethe_shared::manifest::Towers;

    use super::*;

    #[test]
    fn a_cache_makes_once_and_forgets_the_oldest() {
        let cache: Cache<u32, u32> = Cache::default();
        let made = std::cell::Cell::new(0);
        let get = |key: u32| {
            *cache
                .get(key, || {
                    made.set(made.get() + 1);
                    Ok(10 * key)
                })
                .unwrap()
        };
        assert_eq!((get(1), get(1), get(2), made.get()), (10, 10, 20, 2));
        get(1);
        get(3);
        assert_eq!((get(1), made.get()), (10, 3));
        assert_eq!((get(2), made.get()), (20, 4));
    }

    /// An engine on the demo's model whose passes fail above so many items, and a job for it: the retain gradient over a
    /// shard of six pairs, which are one batch.
    struct Scarce {
        engine: Engine,
        job: Job,
        runtime: tokio::runtime::Runtime,
        _cache: tempfile::TempDir,
    }

    impl Scarce {
        fn new(fits: i64) -> Self {
            let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs/emoji");
            let address = |name: &str| Address::resolve(name, Some(&demo)).unwrap();
            let bytes = std::fs::read(demo.join("forget/rocket.tar")).unwrap();
            let shard = ShardRef { digest: Digest::of(&bytes), bytes: bytes.len() as u64, pairs: 0, address: address("forget/rocket.tar") };
            let checkpoint = lethe_shared::checkpoint::Checkpoint::open(&demo.join("model")).unwrap();
            let model = ModelRef {
                weights: checkpoint.digest().unwrap(),
                settings: checkpoint.settings_digest().unwrap(),
                precision: Precision::Float32,
                address: address("model"),
            };
            let task = Task::RetainGradient { shard, batch_size: 6, towers: Towers::Both };
            let job = Job { run: "r".into(), algorithm: ALGORITHM_VERSION, model, task };
            let (runtime, cache) = (tokio::runtime::Runtime::new().unwrap(), tempfile::tempdir().unwrap());
            let mut options = Options::new("test".into(), Device::Cpu, cache.path().to_owned());
            options.micro_batch = MicroBatch::WHOLE.failing_above(fits);
            let engine = Engine::new(options, Store::in_memory(), runtime.handle().clone());
            Self { engine, job, runtime, _cache: cache }
        }

        /// Sum of the losses, and every value of the summed gradient.
        fn gradient(&self) -> (f64, Vec<f32>) {
            let outcome = self.engine.execute(&self.job, &CancellationToken::new()).unwrap();
            let TaskResult::RetainGradient(result) = outcome.result else { panic!("another kind of result") };
            let bytes = self.runtime.block_on(self.engine.store.get_artifact(&result.sum)).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let by_name: BTreeMap<_, _> = file.tensors().into_iter().collect();
            let values: Vec<u8> = by_name.values().flat_map(|view| view.data().to_vec()).collect();
            (result.loss_sum, values.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect())
        }
    }

    #[test]
    fn an_engine_without_memory_halves_its_passes_and_remembers() {
        let (loss, whole) = Scarce::new(i64::MAX).gradient();
        let scarce = Scarce::new(2);
        let (again, ours) = scarce.gradient();
        // Six, three, one.
        assert_eq!(scarce.engine.most.load(Ordering::Relaxed), 1);
        assert!((again - loss).abs() < 1e-5 * loss, "{again}, expected {loss}");
        let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let off = length(&mut ours.iter().zip(&whole).map(|(a, b)| a - b)) / length(&mut whole.iter().copied());
        assert!(whole.len() == ours.len() && off < 1e-5, "{off:e}");
        // The same size of passes gives the same bits, whether memory ran out on the way or it was known before.
        assert_eq!(scarce.gradient().1, ours);
        assert_eq!(scarce.engine.most.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_single_item_that_does_not_fit_is_another_machines_to_do() {
        let scarce = Scarce::new(0);
        let error = scarce.engine.execute(&scarce.job, &CancellationToken::new()).unwrap_err();
        assert!(matches!(&error, Error::Transient(text) if text.contains("a single item's pass")), "{error}");
    }

    #[test]
    fn a_failure_is_not_kept() {
        let cache: Cache<u32, u32> = Cache::default();
        assert!(cache.get(1, || Err(Error::Cancelled)).is_err());
        assert_eq!(*cache.get(1, || Ok(5)).unwrap(), 5);
    }
}

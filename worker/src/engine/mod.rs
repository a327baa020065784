//! Executes jobs: everything between a job's addresses and its outcome.
//!
//! The threads of a process share one [`Engine`]: one copy of the model, of the retain gradient,
//! and of the evaluation data of all concepts. Each job runs on one thread from start to end, with
//! one libtorch thread, so results do not depend on the number of threads.
//!
//! When a pass does not fit the device's memory, the engine repeats the job with passes half as
//! large, and keeps that limit for all later jobs.
//!
//! | file | contents |
//! |---|---|
//! | `error.rs` | errors of jobs, and the faults that they become |
//! | `options.rs` | options of an engine |
//! | `shared_values.rs` | values that jobs share, created by the first job that needs them |
//! | `job_context.rs` | a job with the resources that it needs; how a task is performed |
//! | `loaded_model.rs` | a model with its tokenizer and preprocessing, checked against the job's digests |
//! | `data.rs` | shards as tensors |
//! | `forget_set.rs` | the forget set of a concept, and what the unedited model makes of it |
//! | `image_embeddings.rs` | embeddings of images by the unedited model, computed once per process |
//! | `retain.rs` | the retain gradient: sums by shard, and their mean |
//! | `class_list.rs` | the class texts and their embeddings |
//! | `evaluation_data.rs` | the data on which the trials of a concept are evaluated |
//! | `ranking.rs` | the forget gradient of a concept, and the scores of every candidate layer |
//! | `thumbnails.rs` | small images of a concept for the report |
//! | `search.rs` | one concept by SLUG's full procedure: gradient, ranking, search, choice |
//! | `moments.rs` | second moments of layer inputs and output gradients over retained data |
//! | `protect.rs` | the layer inputs of protected texts |
//! | `direction.rs` | one concept with preconditioned directions: scores of its layers, then direction and step |
//! | `effects.rs` | the effect of each edit on each concept |
//! | `evaluate.rs` | zero-shot hits of the model, original or changed |
//! | `features.rs` | what a change does to embeddings |
//! | `relearn.rs` | fine-tuning of an edited model, and what it recognises afterwards |
//! | `soft_prompt.rs` | prompts of learned tokens, and what a model recognises by them |
//! | `adam.rs` | the optimizer of both |
//! | `margins/` | composition by margins: a constraint per forget image |
//! | `least_squares/` | composition by least squares: states of removed texts mapped to those of a mean text |

mod adam;
mod class_list;
mod data;
mod direction;
mod effects;
mod error;
mod evaluate;
mod evaluation_data;
mod features;
mod forget_set;
mod image_embeddings;
mod job_context;
mod least_squares;
mod loaded_model;
mod margins;
mod moments;
mod options;
mod protect;
mod ranking;
mod relearn;
mod retain;
mod search;
mod shared_values;
mod soft_prompt;
mod thumbnails;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use lethe_shared::fault::{Class, Fault, Origin};
use lethe_shared::job::Job;
use lethe_shared::match_task;
use lethe_shared::outcome::{Execution, Outcome};
use lethe_store::Store;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::error::Error;
use self::job_context::{JobContext, Resources, StageTimes, perform};
use self::shared_values::SharedValues;
use crate::corpus::ActivationBudget;
use crate::{doctor, matmul_precision, memory};

pub use self::error::Stopped;
pub use self::options::Options;

/// Executes jobs. Threads share one engine.
#[derive(Debug)]
pub struct Engine {
    resources: Resources,
    /// The most items of a pass, as learned so far.
    max_items: AtomicI64,
}

impl Engine {
    /// Creates an engine that reads and writes artifacts in `store`, and whose IO runs on
    /// `runtime`.
    pub fn new(options: Options, store: Store, runtime: Handle) -> Self {
        let budget = ActivationBudget::new(options.activation_memory);
        let resources =
            Resources { options, store, runtime, budget, shared_values: SharedValues::default() };
        Self { resources, max_items: AtomicI64::new(i64::MAX) }
    }

    /// Executes a job on the calling thread, which must not belong to the runtime. Does not store
    /// the outcome.
    ///
    /// # Errors
    /// [`Stopped::Fault`] with a classified fault, or [`Stopped::Cancelled`].
    pub fn execute(&self, job: &Job, cancel: &CancellationToken) -> Result<Outcome, Stopped> {
        let options = &self.resources.options;
        if let Some(required) =
            job.arithmetic.as_ref().filter(|required| **required != options.arithmetic)
        {
            let own = &options.arithmetic;
            return Err(Stopped::Fault(Fault::foreign(format!(
                "the run requires arithmetic `{required}`, but this worker has `{own}`"
            ))));
        }
        let began = Instant::now();
        // The whole job is repeated, so that a result depends on a single pass size and not on the
        // moment when memory ran out.
        loop {
            let micro_batch =
                options.micro_batch.and_limited_to(self.max_items.load(Ordering::Relaxed));
            let fault = match self
                .attempt(JobContext { resources: &self.resources, job, cancel, micro_batch }, began)
            {
                Ok(outcome) => return Ok(outcome),
                Err(Error::Memory { items, problem }) if items > 1 => {
                    let max_items = items / 2;
                    self.max_items.fetch_min(max_items, Ordering::Relaxed);
                    self.resources.shared_values.drop_activations();
                    warn!(job = %job.label(), items, max_items, error = %problem, "the device is out of memory; continuing with smaller passes");
                    continue;
                }
                Err(Error::Memory { problem, .. }) => Fault::environment(format!(
                    "the device's memory is too small for a single item's pass through this model; free memory or use a larger device: {problem}"
                )),
                Err(Error::Cancelled) => return Err(Stopped::Cancelled),
                Err(Error::Input(problem)) => Fault::input(problem),
                Err(Error::Fault(fault)) => fault,
            };
            return Err(Stopped::Fault(fault));
        }
    }

    /// Checks whether this worker could execute a job: the device computes, store and cache are
    /// writable, and the job's model and files are readable and have the planned digests.
    ///
    /// # Errors
    /// The first problem found. Its origin is [`Origin::Device`] when a GPU no longer responds,
    /// which only a new process can repair.
    pub fn check(&self, job: &Job) -> Result<(), Fault> {
        let Resources { options, store, runtime, .. } = &self.resources;
        if let Err(problem) = doctor::compute(options.device) {
            let origin =
                if options.device.is_cuda() { Origin::Device } else { Origin::Computation };
            return Err(Fault::new(
                Class::Environment(origin),
                format!("{:?}: {problem}", options.device),
            ));
        }
        runtime.block_on(store.probe()).map_err(|error| error.fault())?;
        self.check_cache()?;
        let cancel = CancellationToken::new();
        let context = JobContext {
            resources: &self.resources,
            job,
            cancel: &cancel,
            micro_batch: options.micro_batch,
        };
        let fault = |error: Error| match error {
            Error::Fault(fault) => fault,
            other => Fault::environment(other),
        };
        for file in job.task.files() {
            context.fetch(&file).map_err(fault)?;
        }
        loaded_model::LoadedModel::of(context).map(drop).map_err(fault)
    }

    /// Writes and deletes a file in the cache folder.
    fn check_cache(&self) -> Result<(), Fault> {
        let folder = &self.resources.options.cache;
        let failed = |error: std::io::Error| {
            let place = folder.display();
            match error.kind() {
                std::io::ErrorKind::StorageFull => Fault::environment(format!(
                    "the cache {place}: no space left on the device; free some"
                )),
                _ => Fault::environment(format!("cannot write to the cache {place}: {error}")),
            }
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join(format!("self-check-{}", std::process::id()));
        let written = std::fs::write(&path, vec![0u8; SELF_CHECK_BYTES]);
        let removed = std::fs::remove_file(&path);
        written.and(removed).map_err(failed)
    }

    fn attempt(&self, context: JobContext<'_>, began: Instant) -> Result<Outcome, Error> {
        let (job, options) = (context.job, &self.resources.options);
        let _precision = matmul_precision::acquire(job.model.precision, options.device);
        let mut stages = StageTimes::default();
        let output = match_task!(&job.task, task => perform(&**task, context, &mut stages))?;
        let execution = Execution {
            worker: options.worker.clone(),
            seconds: began.elapsed().as_secs_f64(),
            stages: stages.seconds,
            peak_memory_bytes: memory::peak_bytes(),
            device: format!("{:?}", options.device).to_lowercase(),
            arithmetic: options.arithmetic.clone(),
        };
        Ok(Outcome { job: job.id(), kind: job.kind().to_owned(), output, execution })
    }
}

/// Bytes that a self-check writes to the cache: more than is left on a disk that counts as full.
const SELF_CHECK_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lethe_shared::address::Address;
    use lethe_shared::digest::Digest;
    use lethe_shared::job::TypedJob;
    use lethe_shared::reference::{FileSpec, Locations, ModelSpec};
    use lethe_shared::task::RetainGradient;
    use lethe_shared::vocabulary::{Precision, Towers};
    use tch::Device;

    use super::*;
    use crate::micro_batch::MicroBatch;

    /// An engine on the demo's model whose passes fail above a number of items, and a job for it:
    /// the retain gradient over a shard of six pairs, which form one batch.
    struct LimitedEngine {
        engine: Engine,
        job: Job,
        runtime: tokio::runtime::Runtime,
        _cache: tempfile::TempDir,
    }

    impl LimitedEngine {
        fn new(fits: i64) -> Self {
            let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs/emoji");
            let address = |name: &str| Address::resolve(name, Some(&demo)).unwrap();
            let bytes = std::fs::read(demo.join("forget/rocket.tar")).unwrap();
            let shard = FileSpec { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
            let checkpoint =
                lethe_shared::checkpoint::Checkpoint::open(&demo.join("model")).unwrap();
            let model = ModelSpec {
                weights: checkpoint.digest().unwrap(),
                settings: checkpoint.settings_digest().unwrap(),
                precision: Precision::Float32,
            };
            let locations = Locations {
                model: address("model"),
                files: [(shard.digest, address("forget/rocket.tar"))].into(),
            };
            let task = RetainGradient { shard, batch_size: 6, towers: Towers::Both };
            let job = TypedJob::new("r", None, model, task, locations).job().clone();
            let (runtime, cache) =
                (tokio::runtime::Runtime::new().unwrap(), tempfile::tempdir().unwrap());
            let mut options = Options::new("test".into(), Device::Cpu, cache.path().to_owned());
            options.micro_batch = MicroBatch::UNLIMITED.failing_above(fits);
            let engine = Engine::new(options, Store::in_memory(), runtime.handle().clone());
            Self { engine, job, runtime, _cache: cache }
        }

        /// Sum of the losses, and every value of the summed gradient.
        fn gradient(&self) -> (f64, Vec<f32>) {
            let outcome = self.engine.execute(&self.job, &CancellationToken::new()).unwrap();
            let result = outcome.output::<RetainGradient>().unwrap();
            let bytes = self
                .runtime
                .block_on(self.engine.resources.store.get_artifact(&result.sum))
                .unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let by_name: BTreeMap<_, _> = file.tensors().into_iter().collect();
            let values: Vec<u8> = by_name.values().flat_map(|view| view.data().to_vec()).collect();
            (
                result.loss_sum,
                values.chunks_exact(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect(),
            )
        }
    }

    #[test]
    fn out_of_memory_halves_passes_for_good() {
        let (loss, whole) = LimitedEngine::new(i64::MAX).gradient();
        let limited = LimitedEngine::new(2);
        let (again, ours) = limited.gradient();
        // Six, three, one.
        assert_eq!(limited.engine.max_items.load(Ordering::Relaxed), 1);
        assert!((again - loss).abs() < 1e-5 * loss, "{again}, expected {loss}");
        let length = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
        };
        let off = length(&mut ours.iter().zip(&whole).map(|(a, b)| a - b))
            / length(&mut whole.iter().copied());
        assert!(whole.len() == ours.len() && off < 1e-5, "{off:e}");
        // Results depend on the pass size only, not on whether memory ran out during the job.
        assert_eq!(limited.gradient().1, ours);
        assert_eq!(limited.engine.max_items.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_single_item_that_does_not_fit_is_an_environment_fault() {
        let limited = LimitedEngine::new(0);
        let error = limited.engine.execute(&limited.job, &CancellationToken::new()).unwrap_err();
        let Stopped::Fault(fault) = error else { panic!("a fault") };
        assert!(
            fault.is_environment() && fault.message.contains("a single item's pass"),
            "{fault}"
        );
    }

    /// The fault class of a job that must fail.
    fn class(limited: &LimitedEngine) -> Class {
        match limited.engine.execute(&limited.job, &CancellationToken::new()) {
            Err(Stopped::Fault(fault)) => fault.class,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_unusable_bytes_with_the_planned_digest_are_an_input_fault() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.tar");
        let mut limited = LimitedEngine::new(i64::MAX);
        let place = |limited: &mut LimitedEngine, planned: &[u8]| {
            let shard = FileSpec { digest: Digest::of(planned), bytes: planned.len() as u64 };
            limited.job.locations.files = [(shard.digest, Address::Local(path.clone()))].into();
            limited.job.task = RetainGradient { shard, batch_size: 6, towers: Towers::Text }.into();
        };
        // A missing file: another machine may have it.
        place(&mut limited, b"the planned bytes, which are not an archive");
        assert_eq!(class(&limited), Class::Environment(Origin::Surroundings));
        assert!(limited.engine.check(&limited.job).unwrap_err().message.contains("shard.tar"));
        // Not the planned bytes: a wrong copy.
        std::fs::write(&path, b"something else").unwrap();
        assert_eq!(class(&limited), Class::Environment(Origin::Surroundings));
        assert!(limited.engine.check(&limited.job).is_err());
        // The planned bytes are not a shard: no other machine can do better, and this one is
        // healthy.
        std::fs::write(&path, b"the planned bytes, which are not an archive").unwrap();
        assert_eq!(class(&limited), Class::Input);
        assert_eq!(limited.engine.check(&limited.job), Ok(()));
        // A model other than the planned one is a fault of this machine.
        limited.job.model.weights = Digest::of(b"another model");
        assert_eq!(class(&limited), Class::Environment(Origin::Surroundings));
    }

    #[test]
    fn jobs_for_another_class_of_arithmetic_are_foreign() {
        let mut limited = LimitedEngine::new(i64::MAX);
        limited.job.arithmetic = Some("another".into());
        assert_eq!(class(&limited), Class::Foreign);
        limited.job.arithmetic = Some(limited.engine.resources.options.arithmetic.clone());
        assert!(limited.engine.execute(&limited.job, &CancellationToken::new()).is_ok());
    }
}

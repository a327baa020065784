//! The worker of Lethe: everything that touches tensors on a device.
//!
//! Lethe removes concepts from CLIP and SigLIP models. A coordinator splits a run into jobs and publishes them
//! on a queue. A worker pulls a job, computes it with libtorch, and writes its outcome to a store
//! that all workers and the coordinator share. A worker knows one job at a time and nothing of the
//! run to which the job belongs.
//!
//! # A job's way through this crate
//!
//! 1. [`service`] pulls the job from the queue, extends its ack wait by heartbeats while it runs, and acknowledges
//!    it once the outcome is stored.
//! 2. [`engine`] executes it: it fetches the model and the shards that the job names, checks their
//!    digests, and performs the task.
//! 3. [`input`] decodes shards, images and texts exactly as the model's own Python libraries do.
//! 4. [`model`] runs CLIP's two towers, whole or from any stage on.
//! 5. [`slug`] is the method: gradients, the ranking of layers, the search for a step, and the
//!    choice of an edit.
//! 6. [`corpus`] embeds the same items under many trial edits, and [`zero_shot`] classifies them.
//!
//! # Reproducibility
//!
//! The same job gives the same bits on all machines of one class of [`arithmetic`], regardless of
//! the number of workers and threads. Every job runs on one thread with one libtorch thread, sums
//! run in a fixed order, and the sizes of passes are part of the configuration ([`micro_batch`]).
//! Values that are not finite are errors ([`model::NotFinite`]) and never count as forgetting.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`command`] | the command line of `lethe-worker` |
//! | [`service`] | the loop that takes jobs from a queue |
//! | [`engine`] | the execution of a job |
//! | [`slug`] | the method, SLUG, and this project's extensions of it |
//! | [`corpus`] | items that are embedded repeatedly, with cached activations |
//! | [`zero_shot`] | zero-shot classification: ranks, accuracies, top predictions |
//! | [`model`] | CLIP on libtorch |
//! | [`model_folder`] | a model's folder, checked as a whole |
//! | [`input`] | shards, images, texts |
//! | [`micro_batch`] | the number of items that pass through a tower at a time |
//! | [`device`] | the device to compute on |
//! | [`matmul_precision`] | the precision in which a GPU multiplies matrices |
//! | [`arithmetic`] | the class of machines that compute the same bits |
//! | [`shared_tensor`] | tensors that several threads read |
//! | [`memory`] | settings of the C allocator, peak memory |
//! | [`doctor`] | self-checks of libtorch and of the device |
//!
//! # Example
//!
//! The ranks of two images among three classes, from unit embeddings:
//!
//! ```no_run,standalone_crate
//! use lethe_worker::zero_shot;
//! use tch::Tensor;
//!
//! let classes = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 0.6, 0.8]).view([3, 2]);
//! let images = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0]).view([2, 2]);
//! let own_classes = Tensor::from_slice(&[0i64, 0]);
//! let ranks = zero_shot::ranks(&images, &classes, &own_classes)?;
//! assert_eq!(ranks, [0, 2]);
//! assert_eq!(zero_shot::accuracy(&ranks).fa1, 0.5);
//! # Ok::<(), lethe_worker::model::Error>(())
//! ```

pub mod arithmetic;
pub mod command;
pub mod corpus;
pub mod device;
pub mod doctor;
pub mod engine;
pub mod input;
pub mod matmul_precision;
pub mod memory;
pub mod micro_batch;
pub mod model;
pub mod model_folder;
pub mod service;
pub mod shared_tensor;
pub mod slug;
pub mod zero_shot;

//! Embeddings of images by the unedited model, computed once per process and shared by all jobs.
//!
//! An edit of the text tower leaves the embeddings of images unchanged. When all edits are of that
//! kind, every image is decoded and passes through the vision tower only once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lethe_shared::digest::Digest;
use lethe_shared::reference::{FileSpec, ModelSpec};
use tch::{Kind, Tensor};

use super::data;
use super::error::Error;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use super::shared_values::{SharedValue, Slot};
use crate::micro_batch::MicroBatch;
use crate::shared_tensor::SharedTensor;

/// Embeddings and captions of some images.
#[derive(Debug)]
pub(super) struct EmbeddedImages {
    /// Unit embeddings `[n, d]`.
    pub(super) embeddings: Tensor,
    pub(super) captions: Vec<String>,
}

/// Embeddings and captions by shard. The first job that needs a shard computes them while others
/// wait.
#[derive(Debug, Default)]
struct ShardEmbeddings {
    kept: Mutex<Kept>,
}

impl SharedValue for ShardEmbeddings {
    type Key = ();
}

#[derive(Debug, Default)]
struct Kept {
    shards: HashMap<Key, Arc<Slot<Embedded>>>,
    images: usize,
}

/// Model, shard, limits of passes.
type Key = (ModelSpec, Digest, MicroBatch);
/// Embeddings `[n, d]` of a shard's images, and their captions.
type Embedded = (SharedTensor, Vec<String>);

/// The number of images above which the kept embeddings are dropped.
const MAX_KEPT_IMAGES: usize = 500_000;

/// Returns the embeddings of the images of some shards, in order.
pub(super) fn of(
    context: JobContext<'_>,
    model: &LoadedModel,
    shards: &[FileSpec],
) -> Result<EmbeddedImages, Error> {
    let kept = context.shared((), || Ok(ShardEmbeddings::default()))?;
    let (mut embeddings, mut captions) = (Vec::with_capacity(shards.len()), Vec::new());
    for shard in shards {
        let embedded = kept.shard(context, model, shard)?;
        embeddings.push(embedded.0.get());
        captions.extend_from_slice(&embedded.1);
    }
    let embeddings = match embeddings.len() {
        0 => Tensor::f_zeros([0, model.clip.config().embedding], (Kind::Float, context.device()))?,
        1 => embeddings.remove(0),
        _ => Tensor::f_cat(&embeddings, 0)?,
    };
    Ok(EmbeddedImages { embeddings, captions })
}

impl ShardEmbeddings {
    fn shard(
        &self,
        context: JobContext<'_>,
        model: &LoadedModel,
        shard: &FileSpec,
    ) -> Result<Arc<Embedded>, Error> {
        let key = (context.job.model, shard.digest, context.micro_batch);
        let locked = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::clone(locked().shards.entry(key).or_default());
        // The value is only ever set as a whole.
        let mut value = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*value {
            return Ok(Arc::clone(known));
        }
        let pairs = data::load(context, model, shard)?;
        let _guard = tch::no_grad_guard();
        let embeddings = model
            .image_corpus(context, &pairs.pixels)?
            .embed_uncached(&model.clip, &model.parameters.weights())?;
        let created = Arc::new((SharedTensor::new(embeddings), pairs.captions));
        *value = Some(Arc::clone(&created));
        let mut kept = locked();
        kept.images += created.1.len();
        if kept.images > MAX_KEPT_IMAGES {
            *kept = Kept::default();
        }
        Ok(created)
    }
}

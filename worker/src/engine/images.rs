//! Images as the unedited model embeds them: once per process, whichever jobs look at them.
//!
//! An edit of the text tower leaves every image's embedding as it was, so that with such edits alone no image goes
//! through the vision tower twice, and no pixel is decoded again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use lethe_shared::digest::Digest;
use lethe_shared::job::{ModelRef, ShardRef};
use tch::Tensor;

use super::model::Model;
use super::{Error, ModelKey, Scope, Slot, data, key};
use crate::handle::SharedTensor;
use crate::micro_batch::MicroBatch;

/// Some images.
#[derive(Debug)]
pub(super) struct Images {
    /// Unit embeddings `[n, d]`.
    pub(super) embedded: Tensor,
    /// Their captions.
    pub(super) captions: Vec<String>,
}

/// Embeddings and captions by shard, made by the first job that asks while the others wait.
#[derive(Debug, Default)]
pub(super) struct EmbeddedImages {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    shards: HashMap<Key, Arc<Slot<Embedded>>>,
    images: usize,
}

/// Model, shard, size of passes.
type Key = (ModelKey, Digest, MicroBatch);
/// Embeddings `[n, d]` of a shard's images, and their captions.
type Embedded = (SharedTensor, Vec<String>);

/// Images whose embeddings a process keeps at most.
const KEPT_IMAGES: usize = 500_000;

impl EmbeddedImages {
    /// The images of these shards, one after another.
    pub(super) fn of(&self, scope: Scope<'_>, model: &Model, reference: &ModelRef, shards: &[ShardRef]) -> Result<Images, Error> {
        let (mut embedded, mut captions) = (Vec::with_capacity(shards.len()), Vec::new());
        for shard in shards {
            let here = self.shard(scope, model, reference, shard)?;
            embedded.push(here.0.get());
            captions.extend_from_slice(&here.1);
        }
        let embedded = match embedded.len() {
            0 => Tensor::f_zeros([0, model.clip.config().embedding], (tch::Kind::Float, scope.device()))?,
            1 => embedded.remove(0),
            _ => Tensor::f_cat(&embedded, 0)?,
        };
        Ok(Images { embedded, captions })
    }

    fn shard(&self, scope: Scope<'_>, model: &Model, reference: &ModelRef, shard: &ShardRef) -> Result<Arc<Embedded>, Error> {
        let key = (key(reference), shard.digest, scope.micro_batch);
        let locked = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::clone(locked().shards.entry(key).or_default());
        // The value is only ever set whole.
        let mut value = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = &*value {
            return Ok(Arc::clone(there));
        }
        let pairs = data::load(scope, model, shard)?;
        let _guard = tch::no_grad_guard();
        let embedded = scope.images(model, &pairs.pixels)?.embed_changed(&model.clip, &model.parameters.weights())?;
        let made = Arc::new((SharedTensor::new(embedded), pairs.captions));
        *value = Some(Arc::clone(&made));
        let mut kept = locked();
        kept.images += made.1.len();
        if kept.images > KEPT_IMAGES {
            *kept = Kept::default();
        }
        Ok(made)
    }
}

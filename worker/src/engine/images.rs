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
use super::{Error, Scope, data};
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

/// Embeddings and captions by model, preprocessing, shard and size of passes, while memory lasts.
#[derive(Debug, Default)]
pub(super) struct EmbeddedImages {
    kept: Mutex<HashMap<Key, Arc<Kept>>>,
}

type Key = (Digest, Digest, Digest, MicroBatch);
type Kept = (SharedTensor, Vec<String>);

/// Images whose embeddings a process keeps at most.
const KEPT_IMAGES: usize = 500_000;

impl EmbeddedImages {
    /// The images of these shards, one after another.
    pub(super) fn of(&self, scope: Scope<'_>, model: &Model, reference: &ModelRef, shards: &[ShardRef]) -> Result<Images, Error> {
        let (mut embedded, mut captions) = (Vec::with_capacity(shards.len()), Vec::new());
        for shard in shards {
            let kept = self.shard(scope, model, reference, shard)?;
            embedded.push(kept.0.get());
            captions.extend_from_slice(&kept.1);
        }
        let embedded = match embedded.len() {
            0 => Tensor::f_zeros([0, model.clip.config().embedding], (tch::Kind::Float, scope.device()))?,
            1 => embedded.remove(0),
            _ => Tensor::f_cat(&embedded, 0)?,
        };
        Ok(Images { embedded, captions })
    }

    fn shard(&self, scope: Scope<'_>, model: &Model, reference: &ModelRef, shard: &ShardRef) -> Result<Arc<Kept>, Error> {
        let key = (reference.weights, reference.settings, shard.digest, scope.micro_batch);
        let locked = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = locked().get(&key) {
            return Ok(Arc::clone(there));
        }
        let pairs = data::load(scope, model, shard)?;
        let _guard = tch::no_grad_guard();
        let embedded = scope.images(model, &pairs.pixels)?.embed_changed(&model.clip, &model.parameters.weights())?;
        let made = Arc::new((SharedTensor::new(embedded), pairs.captions));
        let mut kept = locked();
        if kept.values().map(|there| there.1.len()).sum::<usize>() + made.1.len() > KEPT_IMAGES {
            kept.clear();
        }
        kept.insert(key, Arc::clone(&made));
        Ok(made)
    }
}

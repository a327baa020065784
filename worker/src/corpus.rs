//! Items that are embedded again and again (class texts, validation images, a forget set), cut into batches, with the
//! unedited model's activations kept at block boundaries.
//!
//! An edit in block k leaves everything before block k as it was, so that a trial needs the blocks from k on only.
//! The kept activations are exactly what the unedited forward pass computes: results are the same, bit for bit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lethe_shared::outcome::Tower;
use tch::{Kind, Tensor};

use crate::handle::SharedTensor;
use crate::model::clip::Input;
use crate::model::{Clip, Error, ParameterId, TokenBatch, TowerState, Weights};

/// Items per batch.
const BATCH: i64 = 256;

/// Memory that kept activations may take, shared by every corpus of a process.
#[derive(Debug, Clone)]
pub struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    /// This many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(bytes)) }
    }

    fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Batch {
    Images(Tensor),
    Texts(TokenBatch),
}

impl Batch {
    fn input(&self) -> Input<'_> {
        match self {
            Self::Images(pixels) => Input::Images(pixels),
            Self::Texts(texts) => Input::Texts(texts),
        }
    }
}

/// Handles on libtorch tensors may move between threads but not be shared; the lock hands out one clone at a time.
#[derive(Debug)]
struct Kept {
    batches: Vec<Batch>,
    /// Per batch, by block: the input of that block in the unedited model.
    states: Vec<BTreeMap<usize, TowerState>>,
    bytes: usize,
}

/// Images or texts to embed under one edit after another.
#[derive(Debug)]
pub struct Corpus {
    tower: Tower,
    kept: Mutex<Kept>,
    /// Row of the embedded batches, in order, for each item; `None` where items were not reordered.
    rows: Option<SharedTensor>,
    items: usize,
    budget: Budget,
}

impl Corpus {
    /// Images `[n, 3, s, s]`, preprocessed.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn images(pixels: &Tensor, budget: &Budget) -> Result<Self, Error> {
        let n = pixels.size()[0];
        let batches =
            cut(n).map(|(start, count)| Ok(Batch::Images(pixels.f_narrow(0, start, count)?))).collect::<Result<Vec<_>, Error>>()?;
        Ok(Self::new(Tower::Vision, batches, None, n as usize, budget))
    }

    /// Texts as token ids; batched by length, so that short ones do not pay for long ones.
    ///
    /// # Errors
    /// When a text does not fit the model.
    pub fn texts(clip: &Clip, texts: &[Vec<u32>], device: tch::Device, budget: &Budget) -> Result<Self, Error> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| (texts[i].len(), i));
        let mut rows = vec![0i64; texts.len()];
        for (row, &item) in order.iter().enumerate() {
            rows[item] = row as i64;
        }
        let sorted: Vec<Vec<u32>> = order.iter().map(|&i| texts[i].clone()).collect();
        let batches = sorted
            .chunks(BATCH as usize)
            .map(|chunk| Ok(Batch::Texts(clip.token_batch(chunk, device)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let rows = Tensor::f_from_slice(&rows)?.f_to(device)?;
        Ok(Self::new(Tower::Text, batches, Some(SharedTensor::new(rows)), texts.len(), budget))
    }

    fn new(tower: Tower, batches: Vec<Batch>, rows: Option<SharedTensor>, items: usize, budget: &Budget) -> Self {
        let states = batches.iter().map(|_| BTreeMap::new()).collect();
        Self { tower, kept: Mutex::new(Kept { batches, states, bytes: 0 }), rows, items, budget: budget.clone() }
    }

    /// The tower that embeds these items.
    pub fn tower(&self) -> Tower {
        self.tower
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Unit embeddings `[items, embedding]` under `edited`, which differs from `original` in `layer` alone
    /// (`None`: in nothing).
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn embed(&self, clip: &Clip, original: &Weights, edited: &Weights, layer: Option<ParameterId>) -> Result<Tensor, Error> {
        let block = match layer {
            None => Some(clip.block_count(self.tower)),
            Some(layer) => clip.first_block(layer),
        };
        let count = self.locked(|kept| kept.batches.len());
        let mut embedded = Vec::with_capacity(count);
        for batch in 0..count {
            let state = match block {
                Some(block) => self.state(clip, original, batch, block)?,
                None => clip.start(edited, self.batch(batch).input())?,
            };
            embedded.push(clip.finish(edited, self.tower, state)?);
        }
        self.in_order(clip, &embedded)
    }

    /// Unit embeddings `[items, embedding]` under weights that may differ anywhere; keeps nothing.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn embed_changed(&self, clip: &Clip, weights: &Weights) -> Result<Tensor, Error> {
        let count = self.locked(|kept| kept.batches.len());
        let mut embedded = Vec::with_capacity(count);
        for batch in 0..count {
            embedded.push(clip.embed(weights, self.batch(batch).input())?);
        }
        self.in_order(clip, &embedded)
    }

    /// Another handle on one batch.
    fn batch(&self, number: usize) -> Batch {
        self.locked(|kept| match &kept.batches[number] {
            Batch::Images(pixels) => Batch::Images(pixels.shallow_clone()),
            Batch::Texts(texts) => Batch::Texts(TokenBatch { ids: texts.ids.shallow_clone(), pooled: texts.pooled.shallow_clone() }),
        })
    }

    /// Embedded batches as one tensor in the items' order.
    fn in_order(&self, clip: &Clip, embedded: &[Tensor]) -> Result<Tensor, Error> {
        if embedded.is_empty() {
            return Ok(Tensor::f_zeros([0, clip.config().embedding], (Kind::Float, tch::Device::Cpu))?);
        }
        let embedded = Tensor::f_cat(embedded, 0)?;
        Ok(match &self.rows {
            None => embedded,
            Some(rows) => embedded.f_index_select(0, &rows.get())?,
        })
    }

    /// The unedited input of `block`, from the nearest boundary that is kept; kept itself while memory lasts.
    fn state(&self, clip: &Clip, original: &Weights, batch: usize, block: usize) -> Result<TowerState, Error> {
        let nearest = self.locked(|kept| kept.states[batch].range(..=block).next_back().map(|(_, state)| state.shallow_clone()));
        let from = match nearest {
            Some(state) if state.block() == block => return Ok(state),
            Some(state) => state,
            None => {
                // Computed outside the lock: another worker thread may need another batch meanwhile.
                let input = self.batch(batch);
                clip.start(original, input.input())?
            }
        };
        let state = clip.advance(original, self.tower, &from, block)?;
        let bytes = state.bytes();
        if self.budget.take(bytes) {
            self.locked(|kept| {
                if kept.states[batch].insert(block, state.shallow_clone()).is_some() {
                    self.budget.give_back(bytes);
                } else {
                    kept.bytes += bytes;
                }
            });
        }
        Ok(state)
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        // A panic elsewhere leaves the lists whole: entries are only ever added.
        act(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Corpus {
    fn drop(&mut self) {
        self.budget.give_back(self.locked(|kept| kept.bytes));
    }
}

fn cut(n: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..n).step_by(BATCH as usize).map(move |start| (start, BATCH.min(n - start)))
}

/// Embeddings of labels as a tensor of class indices.
///
/// # Errors
/// When libtorch refuses.
pub fn labels(labels: &[u32], device: tch::Device) -> Result<Tensor, Error> {
    let wide: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    Ok(Tensor::f_from_slice(&wide)?.f_to(device)?.f_to_kind(Kind::Int64)?)
}

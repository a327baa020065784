//! Items that are embedded repeatedly under different edits: class texts, validation images, forget
//! images.
//!
//! An edit of a layer leaves everything before that layer unchanged. A [`Corpus`] therefore caches
//! the unedited model's activations before the edited layers, and a trial computes only the rest of
//! the tower. The cached activations are those of the unedited forward pass, so results are
//! bit-identical to embedding from the start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lethe_shared::vocabulary::Tower;
use tch::{Kind, Tensor};

use crate::micro_batch::MicroBatch;
use crate::model::{Batch, Clip, Error, ParameterId, Stage, TowerState, Weights};
use crate::shared_tensor::SharedTensor;

/// The most items per batch.
const MAX_BATCH: i64 = 256;

/// The most images per batch on a CPU. Larger batches are not faster, and smaller ones let an
/// evaluation stop earlier.
const MAX_CPU_IMAGES: i64 = 64;

/// The most texts per batch on a GPU, which takes as long for a few texts as for many.
const MAX_GPU_TEXTS: i64 = 4096;

/// The memory that cached activations may take, shared by all corpora of a process.
#[derive(Debug, Clone)]
pub struct ActivationBudget {
    remaining: Arc<AtomicUsize>,
}

impl ActivationBudget {
    /// Creates a budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { remaining: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// Reserves memory; `false` when too little remains.
    fn reserve(&self, bytes: usize) -> bool {
        self.remaining
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |remaining| {
                remaining.checked_sub(bytes)
            })
            .is_ok()
    }

    fn release(&self, bytes: usize) {
        self.remaining.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The tensors of a corpus. Handles to tensors may move between threads but must not be shared, so
/// threads clone them under a lock.
#[derive(Debug)]
struct Cached {
    batches: Vec<Batch>,
    /// For each batch, the unedited model's activations by the stage that they precede.
    states: Vec<BTreeMap<Stage, TowerState>>,
    bytes: usize,
}

/// Images or texts to embed under one edit after another.
#[derive(Debug)]
pub struct Corpus {
    tower: Tower,
    cached: Mutex<Cached>,
    /// Row of each item in the concatenated batches; `None` when items are in their original order.
    rows: Option<SharedTensor>,
    items: usize,
    budget: ActivationBudget,
    micro_batch: MicroBatch,
}

impl Corpus {
    /// Creates a corpus of preprocessed images `[n, 3, s, s]`, on `device` or on the host.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn images(
        clip: &Clip,
        pixels: &Tensor,
        device: tch::Device,
        budget: &ActivationBudget,
        micro_batch: MicroBatch,
    ) -> Result<Self, Error> {
        let n = pixels.size()[0];
        let micro_batch = micro_batch.for_item_bytes(clip.pass_bytes(
            Tower::Vision,
            clip.config().image_tokens(),
            false,
        ));
        let most = if device.is_cuda() { MAX_BATCH } else { MAX_CPU_IMAGES };
        let batches = MicroBatch::limited_to(micro_batch.clamp(most)).passes(n);
        let batches = batches
            .map(|(start, count)| Ok(Batch::Images(pixels.f_narrow(0, start, count)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Self::new(Tower::Vision, batches, None, n as usize, budget, micro_batch))
    }

    /// Creates a corpus of tokenized texts. Texts are batched by length, so that short texts need
    /// little padding, and each batch is a prefix tree where attention is causal.
    ///
    /// # Errors
    /// When a text is too long for the model or lacks its end-of-text token.
    pub fn texts(
        clip: &Clip,
        texts: &[Vec<u32>],
        device: tch::Device,
        budget: &ActivationBudget,
        micro_batch: MicroBatch,
    ) -> Result<Self, Error> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| (texts[i].len(), i));
        let mut rows = vec![0i64; texts.len()];
        for (row, &item) in order.iter().enumerate() {
            rows[item] = row as i64;
        }
        let sorted: Vec<Vec<u32>> = order.iter().map(|&i| texts[i].clone()).collect();
        let longest = sorted.last().map_or(0, Vec::len) as i64;
        let micro_batch = micro_batch.for_item_bytes(clip.pass_bytes(Tower::Text, longest, false));
        let batches = sorted
            .chunks(micro_batch.clamp(if device.is_cuda() { MAX_GPU_TEXTS } else { MAX_BATCH })
                as usize)
            .map(|chunk| clip.text_batch(chunk, device))
            .collect::<Result<Vec<_>, Error>>()?;
        let rows = Tensor::f_from_slice(&rows)?.f_to(device)?;
        Ok(Self::new(
            Tower::Text,
            batches,
            Some(SharedTensor::new(rows)),
            texts.len(),
            budget,
            micro_batch,
        ))
    }

    /// Creates a corpus of some items in the given order. The items stay batched by length.
    ///
    /// # Errors
    /// When an index is out of range, or libtorch returns an error.
    pub fn subset(&self, items: &[i64]) -> Result<Self, Error> {
        let rows = match &self.rows {
            None => items.to_vec(),
            Some(rows) => {
                let rows = rows.get();
                let wanted = Tensor::f_from_slice(items)?.f_to(rows.device())?;
                Vec::<i64>::try_from(
                    rows.f_index_select(0, &wanted)?.f_to_device(tch::Device::Cpu)?,
                )?
            }
        };
        let mut by_row: Vec<usize> = (0..rows.len()).collect();
        by_row.sort_by_key(|&item| rows[item]);
        let mut positions = vec![0i64; rows.len()];
        for (position, &item) in by_row.iter().enumerate() {
            positions[item] = position as i64;
        }
        let sorted: Vec<i64> = by_row.iter().map(|&item| rows[item]).collect();
        let (mut batches, mut start, mut rest) = (Vec::new(), 0, sorted.as_slice());
        let mut device = tch::Device::Cpu;
        for batch in self
            .locked(|cached| cached.batches.iter().map(Batch::shallow_clone).collect::<Vec<_>>())
        {
            let end = start + batch.input().items();
            let (in_batch, after) = rest.split_at(rest.partition_point(|&row| row < end));
            if !in_batch.is_empty() {
                let offsets: Vec<i64> = in_batch.iter().map(|row| row - start).collect();
                let (selected, on) = batch.select(&offsets)?;
                batches.push(selected);
                device = on;
            }
            (start, rest) = (end, after);
        }
        if !rest.is_empty() {
            return Err(Error::Tensor {
                tensor: "items".into(),
                problem: format!("there is no item {}", rest[0]),
            });
        }
        let positions = SharedTensor::new(Tensor::f_from_slice(&positions)?.f_to(device)?);
        Ok(Self::new(
            self.tower,
            batches,
            Some(positions),
            items.len(),
            &self.budget,
            self.micro_batch,
        ))
    }

    fn new(
        tower: Tower,
        batches: Vec<Batch>,
        rows: Option<SharedTensor>,
        items: usize,
        budget: &ActivationBudget,
        micro_batch: MicroBatch,
    ) -> Self {
        let states = batches.iter().map(|_| BTreeMap::new()).collect();
        Self {
            tower,
            cached: Mutex::new(Cached { batches, states, bytes: 0 }),
            rows,
            items,
            budget: budget.clone(),
            micro_batch,
        }
    }

    /// Returns the tower that embeds the items.
    pub fn tower(&self) -> Tower {
        self.tower
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.items
    }

    /// Returns whether the corpus is empty.
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Returns unit embeddings `[items, embedding]` under `edited`, which differs from `original`
    /// only in `layer`, or not at all when that is `None`.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn embed(
        &self,
        clip: &Clip,
        original: &Weights,
        edited: &Weights,
        layer: Option<ParameterId>,
    ) -> Result<Tensor, Error> {
        self.embed_batches(
            clip.config().embedding,
            self.embed_edited(clip, original, edited, layer),
        )
    }

    /// Returns the same embeddings batch by batch, `[items of the batch, embedding]` each. Every
    /// batch is computed when the iterator reaches it. Images are in their original order, texts in
    /// the order of batches.
    pub fn embed_lazily(
        &self,
        clip: &Clip,
        original: &Weights,
        edited: &Weights,
        layer: Option<ParameterId>,
    ) -> impl Iterator<Item = Result<Tensor, Error>> {
        self.passes(self.embed_edited(clip, original, edited, layer))
    }

    /// Returns a function that embeds a batch under an edit of a layer.
    fn embed_edited(
        &self,
        clip: &Clip,
        original: &Weights,
        edited: &Weights,
        layer: Option<ParameterId>,
    ) -> impl Fn(usize, &Batch) -> Result<Tensor, Error> {
        let stage = match layer {
            None => Some(Stage::Project),
            Some(layer) => clip.first_stage(layer),
        };
        move |number, batch| {
            let state = match stage {
                Some(stage) => self.state(clip, original, number, batch, stage)?,
                None => clip.start(edited, batch.input())?,
            };
            clip.finish(edited, self.tower, state)
        }
    }

    /// Returns unit embeddings `[trials, items, embedding]` for several replacements of one layer
    /// (`trials` `[trials, …]`). A single pass computes all of them when the layer is a matrix in
    /// or after the blocks.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn embed_trials(
        &self,
        clip: &Clip,
        original: &Weights,
        layer: ParameterId,
        trials: &Tensor,
    ) -> Result<Tensor, Error> {
        let (times, embedding) = (trials.size()[0], clip.config().embedding);
        let Some(stage) = clip.first_stage(layer).filter(|_| times > 1 && trials.dim() == 3) else {
            let one = |trial| {
                self.embed(clip, original, &original.with(layer, trials.f_get(trial)?), Some(layer))
            };
            return Ok(Tensor::f_stack(&(0..times).map(one).collect::<Result<Vec<_>, _>>()?, 0)?);
        };
        let stacked = original.with(layer, trials.shallow_clone());
        let batches: Vec<Batch> =
            self.locked(|cached| cached.batches.iter().map(Batch::shallow_clone).collect());
        let mut embedded = Vec::with_capacity(batches.len());
        for (number, batch) in batches.iter().enumerate() {
            let items = batch.input().items();
            embedded.push(self.micro_batch.run(items, || {
                let state = self.state(clip, original, number, batch, stage)?;
                let embedded =
                    clip.finish(&stacked, self.tower, clip.repeat(self.tower, &state, times)?)?;
                Ok(embedded.f_view([times, items, embedding])?)
            })?);
        }
        let embedded = Tensor::f_cat(&embedded, 1)?;
        Ok(match &self.rows {
            None => embedded,
            Some(rows) => embedded.f_index_select(1, &rows.get())?,
        })
    }

    /// Returns the number of tokens of all items.
    pub fn tokens(&self, clip: &Clip) -> i64 {
        self.locked(|cached| {
            cached
                .batches
                .iter()
                .map(|batch| batch.input().items() * batch.input().tokens(clip.config()))
                .sum()
        })
    }

    /// Returns unit embeddings `[items, embedding]` under weights that may differ from the original
    /// ones anywhere. Neither uses nor fills the cache.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn embed_uncached(&self, clip: &Clip, weights: &Weights) -> Result<Tensor, Error> {
        self.embed_batches(clip.config().embedding, |_, batch| clip.embed(weights, batch.input()))
    }

    /// Embeds every batch and concatenates the results in the order of the items.
    fn embed_batches(
        &self,
        embedding: i64,
        embed: impl Fn(usize, &Batch) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let embedded = self.passes(embed).collect::<Result<Vec<_>, _>>()?;
        if embedded.is_empty() {
            return Ok(Tensor::f_zeros([0, embedding], (Kind::Float, tch::Device::Cpu))?);
        }
        let embedded = Tensor::f_cat(&embedded, 0)?;
        Ok(match &self.rows {
            None => embedded,
            Some(rows) => embedded.f_index_select(0, &rows.get())?,
        })
    }

    /// Returns an iterator that embeds one batch after another.
    fn passes(
        &self,
        embed: impl Fn(usize, &Batch) -> Result<Tensor, Error>,
    ) -> impl Iterator<Item = Result<Tensor, Error>> {
        // Clones of the handles, because other threads may use the same batches at the same time.
        let batches: Vec<Batch> =
            self.locked(|cached| cached.batches.iter().map(Batch::shallow_clone).collect());
        let pass = move |(number, batch): (usize, Batch)| {
            self.micro_batch.run(batch.input().items(), || embed(number, &batch))
        };
        batches.into_iter().enumerate().map(pass)
    }

    /// Returns the unedited activations before `stage`, computed from the nearest cached ones, and
    /// caches them within the budget.
    fn state(
        &self,
        clip: &Clip,
        original: &Weights,
        number: usize,
        batch: &Batch,
        stage: Stage,
    ) -> Result<TowerState, Error> {
        let nearest = self.locked(|cached| {
            cached.states[number]
                .range(..=stage)
                .next_back()
                .map(|(_, state)| state.shallow_clone())
        });
        let from = match nearest {
            Some(state) if state.stage() == stage => return Ok(state),
            Some(state) => state,
            None => clip.start(original, batch.input())?,
        };
        let before = match stage.block_start() {
            Some(start) if from.stage() < start => {
                clip.advance(original, self.tower, &from, start)?
            }
            _ => from,
        };
        let state = clip.advance(original, self.tower, &before, stage)?;
        // Hidden units take several times the memory of a block's input, which is cached instead
        // when they exceed the budget.
        if !self.cache(number, &state) {
            self.cache(number, &before);
        }
        Ok(state)
    }

    /// Caches activations; `false` when they exceed the budget.
    fn cache(&self, number: usize, state: &TowerState) -> bool {
        let bytes = state.bytes();
        let reserved = self.budget.reserve(bytes);
        if reserved {
            self.locked(|cached| {
                if cached.states[number].insert(state.stage(), state.shallow_clone()).is_some() {
                    self.budget.release(bytes);
                } else {
                    cached.bytes += bytes;
                }
            });
        }
        reserved
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Cached) -> T) -> T {
        // A poisoned lock is harmless: entries are only ever added, each as a whole.
        act(&mut self.cached.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Corpus {
    fn drop(&mut self) {
        self.budget.release(self.locked(|cached| cached.bytes));
    }
}

/// Returns labels as a tensor of class indices, int64.
///
/// # Errors
/// When libtorch returns an error.
pub fn labels(labels: &[u32], device: tch::Device) -> Result<Tensor, Error> {
    let wide: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    Ok(Tensor::f_from_slice(&wide)?.f_to(device)?.f_to_kind(Kind::Int64)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClipConfig;

    #[test]
    fn a_subset_contains_the_requested_items() {
        let budget = ActivationBudget::new(1 << 20);
        let pixels =
            Tensor::f_arange(600, (Kind::Float, tch::Device::Cpu)).unwrap().view([600, 1, 1, 1]);
        let config =
            ClipConfig::from_json("config.json", &serde_json::json!({ "model_type": "clip" }))
                .unwrap();
        let corpus = Corpus::images(
            &Clip::new(config),
            &pixels,
            tch::Device::Cpu,
            &budget,
            MicroBatch::UNLIMITED,
        )
        .unwrap();
        let wanted = [599, 3, 256, 255, 0, 4];
        let subset = corpus.subset(&wanted).unwrap();
        // Embeds each item as its only value.
        let values = |corpus: &Corpus| {
            let value = |_: usize, batch: &Batch| match batch {
                Batch::Images(pixels) => Ok(pixels.f_flatten(1, -1)?),
                Batch::Texts(_) | Batch::PrefixTree(_) => Err(Error::Tensor {
                    tensor: "pixels".into(),
                    problem: "expected images".into(),
                }),
            };
            let values = corpus.embed_batches(1, value).unwrap();
            Vec::<f64>::try_from(values.view([-1]).to_kind(Kind::Double)).unwrap()
        };
        assert_eq!(values(&subset), wanted.map(|item| item as f64));
        assert_eq!(values(&subset.subset(&[5, 0]).unwrap()), [4.0, 599.0]);
        assert_eq!(subset.len(), 6);
        assert!(corpus.subset(&[600]).is_err());
    }
}

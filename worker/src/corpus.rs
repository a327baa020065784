//! Items that are embedded again and again (class texts, validation images, a forget set), cut into batches, with the
//! unedited model's activations kept before the layers that are edited.
//!
//! An edit of a layer leaves everything before that layer as it was, so that a trial needs the tower from there on only: of an edit of a
//! block's last map not even that block's attention and hidden units.
//! The kept activations are exactly what the unedited forward pass computes: results are the same, bit for bit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lethe_shared::outcome::Tower;
use tch::{Kind, Tensor};

use crate::handle::SharedTensor;
use crate::micro_batch::MicroBatch;
use crate::model::{Batch, Clip, Error, ParameterId, Stage, TowerState, Weights};

/// Items per batch, where memory holds them.
const BATCH: i64 = 256;

/// Images per batch on a CPU: more at a time are no quicker, and who looks at them in turn can stop sooner.
const IMAGES_ON_CPU: i64 = 64;

/// Texts per batch on a GPU, which takes as long for a few.
const BATCH_ON_GPU: i64 = 4096;

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

/// Handles on libtorch tensors may move between threads but not be shared; the lock hands out one clone at a time.
#[derive(Debug)]
struct Kept {
    batches: Vec<Batch>,
    /// Per batch, by stage: what comes before it in the unedited model.
    states: Vec<BTreeMap<Stage, TowerState>>,
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
    micro_batch: MicroBatch,
}

impl Corpus {
    /// Images `[n, 3, s, s]`, preprocessed, on this device or on the host.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn images(clip: &Clip, pixels: &Tensor, device: tch::Device, budget: &Budget, micro_batch: MicroBatch) -> Result<Self, Error> {
        let n = pixels.size()[0];
        let micro_batch = micro_batch.for_items_of(clip.pass_bytes(Tower::Vision, clip.config().image_tokens(), false));
        let most = if device.is_cuda() { BATCH } else { IMAGES_ON_CPU };
        let batches = MicroBatch::of(micro_batch.at_most(most)).cut(n);
        let batches =
            batches.map(|(start, count)| Ok(Batch::Images(pixels.f_narrow(0, start, count)?))).collect::<Result<Vec<_>, Error>>()?;
        Ok(Self::new(Tower::Vision, batches, None, n as usize, budget, micro_batch))
    }

    /// Texts as token ids; batched by length, so that short ones do not pay for long ones, and with every common beginning once.
    ///
    /// # Errors
    /// When a text does not fit the model.
    pub fn texts(clip: &Clip, texts: &[Vec<u32>], device: tch::Device, budget: &Budget, micro_batch: MicroBatch) -> Result<Self, Error> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| (texts[i].len(), i));
        let mut rows = vec![0i64; texts.len()];
        for (row, &item) in order.iter().enumerate() {
            rows[item] = row as i64;
        }
        let sorted: Vec<Vec<u32>> = order.iter().map(|&i| texts[i].clone()).collect();
        let longest = sorted.last().map_or(0, Vec::len) as i64;
        let micro_batch = micro_batch.for_items_of(clip.pass_bytes(Tower::Text, longest, false));
        let batches = sorted
            .chunks(micro_batch.at_most(if device.is_cuda() { BATCH_ON_GPU } else { BATCH }) as usize)
            .map(|chunk| Ok(Batch::Tree(clip.token_tree(chunk, device)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let rows = Tensor::f_from_slice(&rows)?.f_to(device)?;
        Ok(Self::new(Tower::Text, batches, Some(SharedTensor::new(rows)), texts.len(), budget, micro_batch))
    }

    /// Some of these items, in this order, as a corpus of their own. Each stays in company of its own length.
    ///
    /// # Errors
    /// When there is no such item, or libtorch refuses.
    pub fn subset(&self, items: &[i64]) -> Result<Self, Error> {
        let rows = match &self.rows {
            None => items.to_vec(),
            Some(rows) => {
                let rows = rows.get();
                let wanted = Tensor::f_from_slice(items)?.f_to(rows.device())?;
                Vec::<i64>::try_from(rows.f_index_select(0, &wanted)?.f_to_device(tch::Device::Cpu)?)?
            }
        };
        let mut by_row: Vec<usize> = (0..rows.len()).collect();
        by_row.sort_by_key(|&item| rows[item]);
        let mut places = vec![0i64; rows.len()];
        for (place, &item) in by_row.iter().enumerate() {
            places[item] = place as i64;
        }
        let sorted: Vec<i64> = by_row.iter().map(|&item| rows[item]).collect();
        let (mut batches, mut start, mut rest) = (Vec::new(), 0, sorted.as_slice());
        let mut device = tch::Device::Cpu;
        for batch in self.locked(|kept| kept.batches.iter().map(Batch::shallow_clone).collect::<Vec<_>>()) {
            let end = start + batch.input().items();
            let (here, after) = rest.split_at(rest.partition_point(|&row| row < end));
            if !here.is_empty() {
                let offsets: Vec<i64> = here.iter().map(|row| row - start).collect();
                let (selected, on) = batch.select(&offsets)?;
                batches.push(selected);
                device = on;
            }
            (start, rest) = (end, after);
        }
        if !rest.is_empty() {
            return Err(Error::Tensor { tensor: "items".into(), problem: format!("has no item {}", rest[0]) });
        }
        let places = SharedTensor::new(Tensor::f_from_slice(&places)?.f_to(device)?);
        Ok(Self::new(self.tower, batches, Some(places), items.len(), &self.budget, self.micro_batch))
    }

    fn new(tower: Tower, batches: Vec<Batch>, rows: Option<SharedTensor>, items: usize, budget: &Budget, micro_batch: MicroBatch) -> Self {
        let states = batches.iter().map(|_| BTreeMap::new()).collect();
        Self { tower, kept: Mutex::new(Kept { batches, states, bytes: 0 }), rows, items, budget: budget.clone(), micro_batch }
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
        self.embed_batches(clip.config().embedding, self.edited(clip, original, edited, layer))
    }

    /// The same batch by batch, as far as they are asked for: `[items of the batch, embedding]` each, images in their order.
    pub fn embed_in_turn(
        &self,
        clip: &Clip,
        original: &Weights,
        edited: &Weights,
        layer: Option<ParameterId>,
    ) -> impl Iterator<Item = Result<Tensor, Error>> {
        self.passes(self.edited(clip, original, edited, layer))
    }

    /// What embeds a batch under an edit of a layer.
    fn edited(
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

    /// Unit embeddings `[trials, items, embedding]`, each trial with another tensor in place of one layer (`trials` `[trials, …]`): in one
    /// pass for all of them where the layer is a matrix in or behind a block.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn embed_trials(&self, clip: &Clip, original: &Weights, layer: ParameterId, trials: &Tensor) -> Result<Tensor, Error> {
        let (times, embedding) = (trials.size()[0], clip.config().embedding);
        let Some(stage) = clip.first_stage(layer).filter(|_| times > 1 && trials.dim() == 3) else {
            let one = |trial| self.embed(clip, original, &original.with(layer, trials.f_get(trial)?), Some(layer));
            return Ok(Tensor::f_stack(&(0..times).map(one).collect::<Result<Vec<_>, _>>()?, 0)?);
        };
        let stacked = original.with(layer, trials.shallow_clone());
        let batches: Vec<Batch> = self.locked(|kept| kept.batches.iter().map(Batch::shallow_clone).collect());
        let mut embedded = Vec::with_capacity(batches.len());
        for (number, batch) in batches.iter().enumerate() {
            let items = batch.input().items();
            embedded.push(self.micro_batch.pass(items, || {
                let state = self.state(clip, original, number, batch, stage)?;
                let embedded = clip.finish(&stacked, self.tower, clip.repeat(self.tower, &state, times)?)?;
                Ok(embedded.f_view([times, items, embedding])?)
            })?);
        }
        let embedded = Tensor::f_cat(&embedded, 1)?;
        Ok(match &self.rows {
            None => embedded,
            Some(rows) => embedded.f_index_select(1, &rows.get())?,
        })
    }

    /// Tokens of all items.
    pub fn tokens(&self, clip: &Clip) -> i64 {
        self.locked(|kept| kept.batches.iter().map(|batch| batch.input().items() * batch.input().tokens(clip.config())).sum())
    }

    /// Unit embeddings `[items, embedding]` under weights that may differ anywhere; keeps nothing.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn embed_changed(&self, clip: &Clip, weights: &Weights) -> Result<Tensor, Error> {
        self.embed_batches(clip.config().embedding, |_, batch| clip.embed(weights, batch.input()))
    }

    /// One pass per batch; what they embed as one tensor in the items' order.
    fn embed_batches(&self, embedding: i64, embed: impl Fn(usize, &Batch) -> Result<Tensor, Error>) -> Result<Tensor, Error> {
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

    /// One pass per batch, each when it is asked for.
    fn passes(&self, embed: impl Fn(usize, &Batch) -> Result<Tensor, Error>) -> impl Iterator<Item = Result<Tensor, Error>> {
        // Handles of this call's own: other threads may need the same batches meanwhile.
        let batches: Vec<Batch> = self.locked(|kept| kept.batches.iter().map(Batch::shallow_clone).collect());
        let pass = move |(number, batch): (usize, Batch)| self.micro_batch.pass(batch.input().items(), || embed(number, &batch));
        batches.into_iter().enumerate().map(pass)
    }

    /// The unedited activations before `stage`, from the nearest that are kept; kept themselves while memory lasts.
    fn state(&self, clip: &Clip, original: &Weights, number: usize, batch: &Batch, stage: Stage) -> Result<TowerState, Error> {
        let nearest = self.locked(|kept| kept.states[number].range(..=stage).next_back().map(|(_, state)| state.shallow_clone()));
        let from = match nearest {
            Some(state) if state.stage() == stage => return Ok(state),
            Some(state) => state,
            None => clip.start(original, batch.input())?,
        };
        let before = match stage.block_start() {
            Some(start) if from.stage() < start => clip.advance(original, self.tower, &from, start)?,
            _ => from,
        };
        let state = clip.advance(original, self.tower, &before, stage)?;
        // Hidden units are several times a block's input: where they are too many, that is kept.
        if !self.keep(number, &state) {
            self.keep(number, &before);
        }
        Ok(state)
    }

    /// Keeps activations; `false` where memory does not last.
    fn keep(&self, number: usize, state: &TowerState) -> bool {
        let bytes = state.bytes();
        let taken = self.budget.take(bytes);
        if taken {
            self.locked(|kept| {
                if kept.states[number].insert(state.stage(), state.shallow_clone()).is_some() {
                    self.budget.give_back(bytes);
                } else {
                    kept.bytes += bytes;
                }
            });
        }
        taken
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

/// Embeddings of labels as a tensor of class indices.
///
/// # Errors
/// When libtorch refuses.
pub fn labels(labels: &[u32], device: tch::Device) -> Result<Tensor, Error> {
    let wide: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
    Ok(Tensor::f_from_slice(&wide)?.f_to(device)?.f_to_kind(Kind::Int64)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ClipConfig;

    #[test]
    fn a_subset_holds_the_items_asked_for() {
        let budget = Budget::new(1 << 20);
        let pixels = Tensor::f_arange(600, (Kind::Float, tch::Device::Cpu)).unwrap().view([600, 1, 1, 1]);
        let config = ClipConfig::from_json("config.json", &serde_json::json!({ "model_type": "clip" })).unwrap();
        let corpus = Corpus::images(&Clip::new(config), &pixels, tch::Device::Cpu, &budget, MicroBatch::WHOLE).unwrap();
        let wanted = [599, 3, 256, 255, 0, 4];
        let subset = corpus.subset(&wanted).unwrap();
        // What "embedding" an item by its only value gives.
        let values = |corpus: &Corpus| {
            let value = |_: usize, batch: &Batch| match batch {
                Batch::Images(pixels) => Ok(pixels.f_flatten(1, -1)?),
                Batch::Texts(_) | Batch::Tree(_) => Err(Error::Tensor { tensor: "pixels".into(), problem: "are texts".into() }),
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

//! Fine-tuning of an edited model, and what it recognises afterwards.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;
use lethe_shared::task::{Relearn, RelearnOutput, RelearnSource};
use tch::Tensor;

use super::adam::Adam;
use super::class_list::ClassList;
use super::data;
use super::error::Error;
use super::evaluate;
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use crate::model::{self, ParameterId, Weights};
use crate::slug::gradient::{GradientSum, Images, Loss};
use crate::{corpus, zero_shot};

/// Fine-tunes all parameters and evaluates the result after some numbers of steps. The pairs and
/// their order are fixed, so that a repetition gives the same bits.
impl Perform for Relearn {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<RelearnOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let pairs = stages.time("data", || Pairs::of(context, &model, &self.sources))?;
        let mut weights = model.parameters.weights();
        if let Some(change) = &self.change {
            for (id, tensor) in evaluate::changed_tensors(context, &model, change)? {
                weights = weights.with(id, tensor.get());
            }
        }
        let layers: Vec<ParameterId> = model.clip.architecture().ids().collect();
        let mut adam = Adam::new(self.rate);
        let mut output = RelearnOutput::default();
        for step in 1..=self.steps.last().copied().unwrap_or_default() {
            context.check_cancelled()?;
            stages.time("training", || {
                let (pixels, captions) = pairs.batch(step, self.batch_size)?;
                let texts = model.batch(&captions)?;
                let mut sum = GradientSum::new(layers.clone(), context.micro_batch);
                let images = Images::Pixels(&pixels);
                sum.add(Loss::Retain, &model.clip, &weights, images, &texts)?;
                let gradients = sum.mean(&weights)?;
                let changes = adam.step(gradients.iter().map(|(_, gradient)| gradient))?;
                for ((id, _), change) in gradients.iter().zip(&changes) {
                    weights = weights.with(*id, weights.get(*id).f_sub(change)?);
                }
                Ok(())
            })?;
            if self.steps.contains(&step) {
                let hits = stages
                    .time("evaluation", || hits(context, self, &model, &classes, &weights))?;
                output.hits.push(hits);
            }
        }
        Ok(output)
    }
}

/// Returns the hits on every item of a task under some weights.
fn hits(
    context: JobContext<'_>,
    task: &Relearn,
    model: &LoadedModel,
    classes: &ClassList,
    weights: &Weights,
) -> Result<BTreeMap<String, Hits>, Error> {
    let _guard = tch::no_grad_guard();
    let texts = classes.corpus.embed_uncached(&model.clip, weights)?;
    let mut hits = BTreeMap::new();
    for item in &task.items {
        let shown = data::load_all(context, model, &item.shards)?;
        let labels = evaluate::labels(item, &shown.captions, &classes.texts)?;
        let images =
            model.image_corpus(context, &shown.pixels)?.embed_uncached(&model.clip, weights)?;
        let rows = corpus::labels(&labels, context.device())?;
        let ranks = zero_shot::ranks(&images, &texts, &rows).map_err(|error| match error {
            model::Error::NotFinite(problem) => Error::Input(format!(
                "fine-tuning at a learning rate of {} diverges: {problem}",
                task.rate
            )),
            other => other.into(),
        })?;
        hits.insert(item.name.clone(), zero_shot::hits(&ranks, &labels));
    }
    Ok(hits)
}

/// The pairs to fine-tune on, in the order in which batches take them.
struct Pairs {
    /// Preprocessed images `[n, 3, s, s]`, on the host.
    pixels: Tensor,
    captions: Vec<String>,
}

impl Pairs {
    /// Loads the pairs: the first one of every source, then the next of each.
    fn of(
        context: JobContext<'_>,
        model: &LoadedModel,
        sources: &[RelearnSource],
    ) -> Result<Self, Error> {
        let (mut pixels, mut captions, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for source in sources {
            let all = data::load_all(context, model, &source.shards)?;
            let used = all.captions.len().min(source.most as usize);
            let first = order.len();
            order.extend((0..used).map(|turn| (turn, first + turn)));
            pixels.push(all.pixels.f_narrow(0, 0, used as i64)?);
            captions.extend(all.captions.into_iter().take(used));
        }
        if captions.is_empty() {
            return Err(Error::Input("there are no pairs to learn from".to_owned()));
        }
        order.sort_unstable();
        let rows: Vec<i64> = order.iter().map(|&(_, row)| row as i64).collect();
        let pixels = Tensor::f_cat(&pixels, 0)?.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
        let captions = order.iter().map(|&(_, row)| captions[row].clone()).collect();
        Ok(Self { pixels, captions })
    }

    /// Returns the batch of a step, counted from 1.
    fn batch(&self, step: u32, size: u32) -> Result<(Tensor, Vec<&str>), Error> {
        let rows = rows(self.captions.len(), step, size);
        let places: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let pixels = self.pixels.f_index_select(0, &Tensor::f_from_slice(&places)?)?;
        Ok((pixels, rows.iter().map(|&row| self.captions[row].as_str()).collect()))
    }
}

/// Returns the places of a step's pairs among `count`: those after the last step's, and the first
/// ones again after the last.
fn rows(count: usize, step: u32, size: u32) -> Vec<usize> {
    let size = count.min(size as usize);
    let start = (step as usize - 1) * size;
    (start..start + size).map(|place| place % count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_go_round() {
        assert_eq!(rows(5, 1, 3), [0, 1, 2]);
        assert_eq!(rows(5, 2, 3), [3, 4, 0]);
        assert_eq!(rows(5, 3, 3), [1, 2, 3]);
        assert_eq!(rows(2, 7, 64), [0, 1]);
    }
}

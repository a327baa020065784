//! Prompts of learned tokens, and what a model recognises by them.

use std::collections::BTreeMap;

use lethe_shared::measurement::Hits;
use lethe_shared::task::{EvaluateItem, Label, SoftPrompt, SoftPromptOutput};
use lethe_shared::vocabulary::Tower;
use tch::{Kind, Tensor};

use super::adam::Adam;
use super::class_list::ClassList;
use super::error::Error;
use super::evaluate::{self, ComposedModel};
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use crate::model::{Clip, TokenBatch, Weights};
use crate::zero_shot;

/// Fits a prompt to the forget images of each concept. All prompts of a job pass through the tower
/// together, and none depends on another.
impl Perform for SoftPrompt {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<SoftPromptOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let composed = stages.time("change", || {
            let of = |change| ComposedModel::of(context, &model, &classes, change);
            self.change.as_ref().map(of).transpose()
        })?;
        let texts =
            composed.as_ref().map_or(&classes.embeddings, |model| &model.class_embeddings).get();
        let weights = match &composed {
            Some(composed) => composed.weights(&model),
            None => model.parameters.weights(),
        };
        let mut shown = |item: &EvaluateItem| -> Result<Shown, Error> {
            let _guard = tch::no_grad_guard();
            let (images, captions) = evaluate::embedded_images(
                context,
                &model,
                composed.as_deref(),
                &item.shards,
                stages,
            )?;
            let labels = evaluate::labels(item, &captions, &classes.texts)?;
            let scores = zero_shot::scores(&images, &texts)?;
            Ok(Shown { images, scores, labels })
        };
        let unseen = self.unseen.as_ref().map(&mut shown).transpose()?;
        let mut concepts = Vec::with_capacity(self.concepts.len());
        for item in &self.concepts {
            let Label::Class(class) = item.label else {
                let problem = format!("the images of `{}` are not of one class", item.name);
                return Err(Error::Input(problem));
            };
            let unseen = unseen.as_ref().map(|unseen| unseen.of_class(class)).transpose()?;
            concepts.push(Concept { item, class, forget: shown(item)?, unseen: unseen.flatten() });
        }
        let names: Vec<&str> = concepts
            .iter()
            .filter_map(|concept| classes.texts.names.get(concept.class as usize))
            .map(String::as_str)
            .collect();
        let mut prompts = Prompts::of(&model, &weights, &names, self.tokens as usize)?;
        let scale = model.clip.scale(&weights)?;
        let others = concepts
            .iter()
            .map(|concept| concept.others(&scale))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut adam = Adam::new(self.rate);
        let mut output = SoftPromptOutput::default();
        for step in 1..=self.steps.last().copied().unwrap_or_default() {
            context.check_cancelled()?;
            stages.time("training", || {
                let soft = prompts.soft.f_detach()?.f_set_requires_grad(true)?;
                let embeddings = prompts.embed(&model.clip, &weights, &soft)?;
                let mut loss = Tensor::f_zeros([], (Kind::Float, context.device()))?;
                for ((place, concept), others) in (0..).zip(&concepts).zip(&others) {
                    let own = concept.forget.images.f_mv(&embeddings.f_get(place)?)?;
                    // The cross-entropy of one logit among others.
                    let each = others.f_sub(&own.f_mul(&scale)?)?.f_softplus()?;
                    // A mean over the images of a concept, so that concepts do not depend on each other.
                    loss = loss.f_add(&each.f_mean(Kind::Float)?)?;
                }
                let gradients = Tensor::f_run_backward(&[&loss], &[&soft], false, false)?;
                let changes = adam.step(gradients.iter())?;
                for change in &changes {
                    prompts.soft = prompts.soft.f_sub(change)?;
                }
                Ok(())
            })?;
            if self.steps.contains(&step) {
                let _guard = tch::no_grad_guard();
                let embeddings = prompts.embed(&model.clip, &weights, &prompts.soft)?;
                output.hits.push(hits(self, &concepts, &embeddings)?);
            }
        }
        Ok(output)
    }
}

/// Returns the hits of a task with these prompts, one a concept, by item name.
fn hits(
    task: &SoftPrompt,
    concepts: &[Concept<'_>],
    prompts: &Tensor,
) -> Result<BTreeMap<String, Hits>, Error> {
    let mut hits: BTreeMap<String, Hits> = BTreeMap::new();
    for (place, concept) in (0..).zip(concepts) {
        let unseen = task.unseen.as_ref().zip(concept.unseen.as_ref());
        for (item, shown) in [(concept.item, &concept.forget)].into_iter().chain(unseen) {
            let own = prompts.f_narrow(0, place, 1)?;
            let ranks = zero_shot::ranks_with_class_variants(
                &shown.images,
                &shown.scores,
                &own,
                concept.class,
            )?;
            for ranks in ranks {
                let ranks = ranks.map_err(|problem| {
                    Error::Input(format!(
                        "a prompt that is learned at a rate of {} diverges: {problem}",
                        task.rate
                    ))
                })?;
                let hits = hits.entry(item.name.clone()).or_default();
                ranks.into_iter().for_each(|rank| hits.count(rank, concept.class));
            }
        }
    }
    Ok(hits)
}

/// Embedded images with their classes.
struct Shown {
    /// Unit embeddings `[n, d]`.
    images: Tensor,
    /// Cosines with all class texts `[n, c]`.
    scores: Tensor,
    labels: Vec<u32>,
}

impl Shown {
    /// Returns the images of one class, if there are some.
    fn of_class(&self, class: u32) -> Result<Option<Self>, Error> {
        let places = (0i64..).zip(&self.labels).filter(|(_, label)| **label == class);
        let places: Vec<i64> = places.map(|(place, _)| place).collect();
        if places.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::f_from_slice(&places)?.f_to(self.images.device())?;
        Ok(Some(Self {
            images: self.images.f_index_select(0, &rows)?,
            scores: self.scores.f_index_select(0, &rows)?,
            labels: vec![class; places.len()],
        }))
    }
}

/// A concept to fit a prompt for.
struct Concept<'a> {
    item: &'a EvaluateItem,
    class: u32,
    forget: Shown,
    /// Images of its class that its prompt is not fitted to.
    unseen: Option<Shown>,
}

impl Concept<'_> {
    /// Returns log Σ exp(logit) over all other classes, for each forget image `[n]`.
    fn others(&self, scale: &Tensor) -> Result<Tensor, Error> {
        let logits = self.forget.scores.f_mul(scale)?;
        let own = Tensor::f_from_slice(&[i64::from(self.class)])?.f_to(logits.device())?;
        let others = logits.f_index_fill(1, &own, f64::NEG_INFINITY)?;
        Ok(others.f_logsumexp([1].as_slice(), false)?)
    }
}

/// Texts of which some tokens are learned.
struct Prompts {
    batch: TokenBatch,
    /// Embeddings of all tokens before learning `[texts, tokens, width]`.
    fixed: Tensor,
    /// The place of each learned value among those of its text `[texts, learned tokens, width]`, int64.
    places: Tensor,
    /// Embeddings of the learned tokens `[texts, learned tokens, width]`.
    soft: Tensor,
}

impl Prompts {
    /// Creates prompts of `count` learned tokens, which begin as those of the names.
    fn of(
        model: &LoadedModel,
        weights: &Weights,
        names: &[&str],
        count: usize,
    ) -> Result<Self, Error> {
        let (mut texts, mut places) = (Vec::new(), Vec::new());
        for name in names {
            let (ids, start) = model
                .tokenizer
                .encode_with_length(name, count)
                .map_err(|error| Error::Input(error.to_string()))?;
            texts.push(ids);
            places.extend((start..start + count).map(|place| place as i64));
        }
        let device = model.parameters.device();
        let batch = model.clip.token_batch(&texts, device)?;
        let _guard = tch::no_grad_guard();
        let fixed = model.clip.token_embeddings(weights, &batch.ids)?;
        let (width, learned) = (fixed.size()[2], count as i64);
        let places = Tensor::f_from_slice(&places)?
            .f_view([-1, learned, 1])?
            .f_to(device)?
            .f_expand([-1, learned, width], false)?;
        let soft = fixed.f_gather(1, &places, false)?;
        Ok(Self { batch, fixed, places, soft })
    }

    /// Returns unit embeddings `[texts, embedding]` of the prompts with these embeddings of the learned
    /// tokens.
    fn embed(&self, clip: &Clip, weights: &Weights, soft: &Tensor) -> Result<Tensor, Error> {
        let tokens = self.fixed.f_scatter(1, &self.places, soft)?;
        let state = clip.start_text(weights, &self.batch, &tokens)?;
        Ok(clip.finish(weights, Tower::Text, state)?)
    }
}

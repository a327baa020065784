//! One concept by SLUG's full procedure: its gradient, the ranking of every candidate layer, the
//! search on each front layer, the choice.

use std::collections::HashMap;

use lethe_shared::edit;
use lethe_shared::measurement::{Chosen, Trial};
use lethe_shared::task::{Search, SearchOutput};
use lethe_shared::vocabulary::Towers;
use tch::Tensor;

use super::error::Error;
use super::evaluation_data::{EvaluationData, ForgetImages};
use super::job_context::{JobContext, Perform, StageTimes};
use super::loaded_model::LoadedModel;
use super::ranking::{RankedCandidate, forget_gradient, rank};
use super::retain::RetainGradient;
use super::thumbnails;
use crate::model::ParameterId;
use crate::model::weights::tensor_to_bytes;
use crate::slug::choice::choose;
use crate::slug::screen::NearestClassScreen;
use crate::slug::search::search_layer;
use crate::slug::trial::{CandidateEdit, EvaluationContext, ForgetSet, FrontLayer, SelectedEdit};

/// Finds the edit of one concept.
impl Perform for Search {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<SearchOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let data = EvaluationData::of(
            context,
            &model,
            &self.classes,
            &self.validation,
            Towers::Both,
            stages,
        )?;
        let retain = stages
            .time("retain gradient", || RetainGradient::of(context, &self.retain_gradient))?;

        let layers = model.candidates(Towers::Both, self.method.normalisation_gains);
        let (forget, pairs) = stages.time("gradient", || {
            forget_gradient(context, &model, layers, &self.forget, self.method.batch_size)
        })?;
        let gradients: HashMap<ParameterId, Tensor> =
            forget.mean(&model.parameters.weights())?.into_iter().collect();
        let _guard = tch::no_grad_guard();
        let candidates = stages
            .time("ranking", || rank(&model, &gradients, &retain, None, self.layers.as_deref()))?;

        let forget_images =
            ForgetImages::of(context, &model, &data, self.class, &self.forget, Towers::Both)?;
        let (evaluation, forget_set) =
            (data.evaluation_context(context, &model), forget_images.forget_set());
        let (mut trials, found) =
            search_front(context, evaluation, &forget_set, &candidates, self, stages)?;
        let selected = stages.time("choice", || {
            choose(evaluation, &forget_set, found, self.method.stop, &mut trials, || {
                context.check_cancelled()
            })
        })?;
        let chosen = match selected {
            Some(edit) => {
                Some(stages.time("store", || store_edit(context, &model, edit, &gradients))?)
            }
            None => None,
        };
        Ok(SearchOutput {
            pairs,
            forget_loss: forget.loss(),
            before: forget_images.before,
            ranking: candidates.into_iter().map(RankedCandidate::record).collect(),
            search: trials,
            chosen,
            said: forget_images.top_predictions,
            thumbnails: stages.time("thumbnails", || thumbnails::of(context, &self.forget))?,
        })
    }
}

/// Searches every layer on a Pareto front. Returns all trials, and the edits of the layers on which
/// a step forgot.
fn search_front<'a>(
    context: JobContext<'_>,
    evaluation: EvaluationContext<'a>,
    forget_set: &ForgetSet<'_>,
    candidates: &'a [RankedCandidate],
    task: &Search,
    stages: &mut StageTimes,
) -> Result<(Vec<Trial>, Vec<CandidateEdit<'a>>), Error> {
    let screen = NearestClassScreen::new(evaluation, forget_set, task.method.stop)?;
    let (mut trials, mut found) = (Vec::new(), Vec::new());
    for candidate in candidates.iter().filter(|candidate| candidate.pareto) {
        context.check_cancelled()?;
        let layer = FrontLayer {
            id: candidate.id,
            scores: candidate.scores,
            gradient: &candidate.gradient,
        };
        let stage = format!("search {}", candidate.tower.name());
        let (layer_trials, edit) = stages.time(&stage, || {
            Ok(search_layer(evaluation, forget_set, &layer, &task.method, screen.as_ref())?)
        })?;
        trials.extend(layer_trials);
        found.extend(edit);
    }
    Ok((trials, found))
}

/// Writes the direction of the selected edit to the store.
fn store_edit(
    context: JobContext<'_>,
    model: &LoadedModel,
    edit: SelectedEdit,
    gradients: &HashMap<ParameterId, Tensor>,
) -> Result<Chosen, Error> {
    let spec = model.clip.architecture().spec(edit.id);
    let shape: Vec<usize> = spec.shape.iter().map(|&n| n as usize).collect();
    let file = edit::encode_direction(&spec.name, &shape, &tensor_to_bytes(&gradients[&edit.id])?)
        .map_err(|error| Error::Input(error.to_string()))?;
    Ok(Chosen { answer: edit.summary, direction: context.put(file)?, validation: edit.validation })
}

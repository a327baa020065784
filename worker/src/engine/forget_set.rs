//! The forget set of a concept, and what the unedited model makes of it.

use lethe_shared::measurement::{Accuracy, Answers};
use lethe_shared::reference::FileSpec;
use tch::Tensor;

use super::class_list::ClassList;
use super::data;
use super::error::Error;
use super::image_embeddings;
use super::job_context::JobContext;
use super::loaded_model::LoadedModel;
use crate::corpus;
use crate::zero_shot;

/// A forget set.
#[derive(Debug)]
pub(super) struct ForgetSet {
    /// Unit embeddings of its images `[n, d]`.
    pub(super) embeddings: Tensor,
    pub(super) captions: Vec<String>,
    /// FA@1 and FA@5.
    pub(super) before: Accuracy,
    /// Top predictions.
    pub(super) said: Answers,
}

/// Reads the captions of a forget set.
pub(super) fn captions(context: JobContext<'_>, shards: &[FileSpec]) -> Result<Vec<String>, Error> {
    let mut captions = Vec::new();
    for shard in shards {
        captions.extend(data::captions(context, shard)?);
    }
    Ok(captions)
}

/// Reads the forget set of the concept with this class, and evaluates the unedited model on it.
pub(super) fn of(
    context: JobContext<'_>,
    model: &LoadedModel,
    classes: &ClassList,
    class: u32,
    shards: &[FileSpec],
) -> Result<ForgetSet, Error> {
    if class as usize >= classes.texts.names.len() {
        return Err(Error::Input(format!("class {class} is not in the class list")));
    }
    let embedded = image_embeddings::of(context, model, shards)?;
    if embedded.captions.is_empty() {
        return Err(Error::Input("the concept has no forget pairs".into()));
    }
    let texts = classes.embeddings.get();
    let labels = corpus::labels(&vec![class; embedded.captions.len()], context.device())?;
    let ranks = zero_shot::ranks(&embedded.embeddings, &texts, &labels)?;
    Ok(ForgetSet {
        before: zero_shot::accuracy(&ranks),
        said: zero_shot::top_predictions(&embedded.embeddings, &texts, class)?,
        embeddings: embedded.embeddings,
        captions: embedded.captions,
    })
}

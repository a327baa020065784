//! The nearest-class screen: proves most steps that forget without embedding the whole class list.
//!
//! By FA@5, a concept is forgotten when at least five classes rank above its own on every forget
//! image. Five classes of a subset are also five of all classes, so the texts of a few near classes
//! suffice as a proof. Only steps that they do not prove need the whole list, and cost the pass
//! over the subset in addition. The screen only ever proves that a step forgets, and only by a
//! margin far above rounding errors, so a search finds the same with and without it.

use lethe_shared::measurement::Accuracy;
use lethe_shared::vocabulary::Stop;
use tch::{Device, Kind, Tensor};

use super::trial::{EvaluationContext, ForgetSet};
use crate::corpus::{self, Corpus};
use crate::model::{Error, ParameterId, Weights};
use crate::zero_shot;

/// Number of nearest classes taken for each forget image. More than five because an edit moves all
/// of them.
const NEAREST_CLASSES: i64 = 12;
/// The screen is used only if it holds at most one in this many classes.
const MIN_REDUCTION: i64 = 3;
/// The least difference of cosines that counts as a difference here.
const MARGIN: f64 = 1e-4;

/// The texts of a concept's own class and of the classes nearest to its forget images.
#[derive(Debug)]
pub struct NearestClassScreen {
    texts: Corpus,
    /// Index of the own class among `texts`.
    own_index: Tensor,
}

impl NearestClassScreen {
    /// Selects the classes for a concept. Returns `None` when a screen cannot prove anything, or
    /// would save little.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn new(
        context: EvaluationContext<'_>,
        forget_set: &ForgetSet<'_>,
        stop: Stop,
    ) -> Result<Option<Self>, Error> {
        let classes = context.class_embeddings.size()[0];
        // FA@1 = 0 says nothing about FA@5, which a trial reports too.
        if stop != Stop::Fa5 || forget_set.is_empty() || classes <= NEAREST_CLASSES {
            return Ok(None);
        }
        let scores = zero_shot::scores(forget_set.embeddings, context.class_embeddings)?;
        let (_, nearest) = scores.f_topk(NEAREST_CLASSES, 1, true, false)?;
        let mut selected =
            Vec::<i64>::try_from(nearest.f_reshape([-1])?.f_to_device(Device::Cpu)?)?;
        selected.push(i64::from(forget_set.class));
        selected.sort_unstable();
        selected.dedup();
        let Some(own) = selected.iter().position(|&class| class == i64::from(forget_set.class))
        else {
            return Ok(None);
        };
        if selected.len() as i64 > classes / MIN_REDUCTION {
            return Ok(None);
        }
        let own_index = corpus::labels(&[own as u32], context.parameters.device())?;
        Ok(Some(Self { texts: context.class_texts.subset(&selected)?, own_index }))
    }

    /// Measures forget accuracies among the selected classes only, for each of the tensors `edited`
    /// `[trials, …]` in place of a text layer. They are never lower than among all classes, so FA@5
    /// = 0 proves that an edit forgets. Scores that are not finite prove nothing: the evaluation
    /// among all classes refuses the step.
    ///
    /// # Errors
    /// When libtorch returns an error.
    pub fn accuracies(
        &self,
        context: EvaluationContext<'_>,
        forget_set: &ForgetSet<'_>,
        original: &Weights,
        layer: ParameterId,
        edited: &Tensor,
    ) -> Result<Vec<Accuracy>, Error> {
        let texts = self.texts.embed_trials(context.clip, original, layer, edited)?;
        let (trials, classes, embedding) = texts.size3()?;
        let scores = zero_shot::scores(forget_set.embeddings, &texts.f_reshape([-1, embedding])?)?
            .f_view([-1, trials, classes])?;
        let own = scores.f_index_select(2, &self.own_index)?;
        // Comparisons with NaN are false, so a NaN never ranks above the own class.
        let above = scores.f_gt_tensor(&own.f_add_scalar(MARGIN)?)?.f_sum_dim_intlist(
            [2].as_slice(),
            false,
            Kind::Int64,
        )?;
        let above = above.f_transpose(0, 1)?.f_reshape([-1])?.f_to_device(Device::Cpu)?;
        let above = Vec::<i64>::try_from(above)?;
        Ok(above.chunks(forget_set.len().max(1)).map(zero_shot::accuracy).collect())
    }

    /// Returns the number of selected classes, including the concept's own.
    pub fn class_count(&self) -> i64 {
        self.texts.len() as i64
    }

    /// Returns the number of tokens of the selected texts.
    pub fn tokens(&self, context: EvaluationContext<'_>) -> i64 {
        self.texts.tokens(context.clip)
    }
}

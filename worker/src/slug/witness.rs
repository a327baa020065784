//! A cheap look before the whole class list is embedded: the classes that come close to the forget images.
//!
//! A concept is forgotten by FA@5 when on every forget image five classes stand above its own. Five of *some* classes are five of
//! all of them, so that a few texts prove it; only what they do not prove needs the others. A step that is not proven costs the
//! witnesses' pass on top. Witnesses only ever say "forgotten", and only with a margin that no order of sums comes near: what a search
//! finds is what it finds without them.

use lethe_shared::manifest::Stop;
use lethe_shared::outcome::Accuracy;
use tch::{Kind, Tensor};

use super::search::{Ground, Subject};
use crate::corpus::{self, Corpus};
use crate::model::{Error, ParameterId, Weights};
use crate::zero_shot;

/// Classes looked at per image: the nearest. More than five, as an edit moves all of them.
const NEAREST: i64 = 12;
/// Witnesses are of use while they are fewer than this share of the classes.
const FEW: i64 = 3;
/// Cosines closer than this are not told apart here.
const MARGIN: f64 = 1e-4;

/// The own class and those around it, as texts to embed again and again.
#[derive(Debug)]
pub struct Witnesses {
    texts: Corpus,
    /// Where the own class is among them.
    own: Tensor,
}

impl Witnesses {
    /// Those of a concept; `None` where they would save nothing.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn of(ground: Ground<'_>, subject: &Subject<'_>, stop: Stop) -> Result<Option<Self>, Error> {
        let classes = ground.classes.size()[0];
        // FA@1 can be 0 while FA@5, which a trial reports too, is anything.
        if stop != Stop::Fa5 || subject.is_empty() || classes <= NEAREST {
            return Ok(None);
        }
        let scores = zero_shot::scores(subject.embedded, ground.classes)?;
        let (_, nearest) = scores.f_topk(NEAREST, 1, true, false)?;
        let mut items = Vec::<i64>::try_from(nearest.f_reshape([-1])?.f_to_device(tch::Device::Cpu)?)?;
        items.push(i64::from(subject.class));
        items.sort_unstable();
        items.dedup();
        let Some(own) = items.iter().position(|&item| item == i64::from(subject.class)) else { return Ok(None) };
        if items.len() as i64 > classes / FEW {
            return Ok(None);
        }
        let own = corpus::labels(&[own as u32], ground.parameters.device())?;
        Ok(Some(Self { texts: ground.class_texts.subset(&items)?, own }))
    }

    /// Forget accuracies among them alone, each under another tensor in place of a text layer (`edited` `[trials, …]`): no lower than among
    /// all classes, so that FA@5 = 0 proves that an edit forgets.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn accuracies(
        &self,
        ground: Ground<'_>,
        subject: &Subject<'_>,
        original: &Weights,
        layer: ParameterId,
        edited: &Tensor,
    ) -> Result<Vec<Accuracy>, Error> {
        let texts = self.texts.embed_trials(ground.clip, original, layer, edited)?;
        let (trials, items, embedding) = texts.size3()?;
        let scores = zero_shot::scores(subject.embedded, &texts.f_reshape([-1, embedding])?)?.f_view([-1, trials, items])?;
        let own = scores.f_index_select(2, &self.own)?;
        // What is not a number is above nothing.
        let above = scores.f_gt_tensor(&own.f_add_scalar(MARGIN)?)?.f_sum_dim_intlist([2].as_slice(), false, Kind::Int64)?;
        let above = above.f_transpose(0, 1)?.f_reshape([-1])?.f_to_device(tch::Device::Cpu)?;
        let above = Vec::<i64>::try_from(above)?;
        Ok(above.chunks(subject.len().max(1)).map(zero_shot::accuracy).collect())
    }

    /// How many there are, the own class among them.
    pub fn count(&self) -> i64 {
        self.texts.len() as i64
    }

    /// Tokens of their texts.
    pub fn tokens(&self, ground: Ground<'_>) -> i64 {
        self.texts.tokens(ground.clip)
    }
}

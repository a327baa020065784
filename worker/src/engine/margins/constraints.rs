//! The gradients of one concept's margins, as factors.

use lethe_shared::task::{Constraints, ConstraintsOutput};
use lethe_shared::vocabulary::Tower;
use tch::{Kind, Tensor};

use super::{encode, metric, thinned};
use crate::engine::class_list::ClassList;
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments::Matrices;
use crate::engine::{data, forget_set, thumbnails};
use crate::model::{Input, ParameterId};
use crate::slug::margin::{self, Reduced, Rows};
use crate::zero_shot;

/// Number of competitors whose mean text an image of the vision tower is moved towards. A mean over
/// many is steadier than the fifth best alone, which changes as soon as it is passed.
const COMPETITORS: i64 = 50;
/// Largest relative error of the factors of an image's gradient.
const TOLERANCE: f64 = 0.02;
/// Most rows of an image's gradient.
const MAX_ROWS: i64 = 32;

impl Perform for Constraints {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<ConstraintsOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let layers = self
            .layers
            .iter()
            .map(|name| model.layer(name))
            .collect::<Result<Vec<ParameterId>, _>>()?;
        let forget = stages.time("images", || {
            forget_set::of(context, &model, &classes, self.class, &self.forget)
        })?;
        let class_texts = classes.embeddings.get();
        let chosen = thinned(forget.captions.len(), self.images);
        let rows = Tensor::f_from_slice(&chosen)?;
        let images = forget.embeddings.f_index_select(0, &rows.f_to(context.device())?)?;
        let weights = model.parameters.weights();
        let of_tower = |tower: Tower| -> Vec<usize> {
            let own =
                |&place: &usize| model.clip.architecture().spec(layers[place]).tower == Some(tower);
            (0..layers.len()).filter(own).collect()
        };
        let mut gradients: Vec<Vec<Rows>> = layers.iter().map(|_| Vec::new()).collect();
        for tower in [Tower::Text, Tower::Vision] {
            let places = of_tower(tower);
            if places.is_empty() {
                continue;
            }
            let own: Vec<ParameterId> = places.iter().map(|&place| layers[place]).collect();
            let at = |input: Input<'_>, toward: &Tensor| {
                margin::gradients(&model.clip, &weights, &own, input, toward, context.micro_batch)
            };
            let found = match tower {
                Tower::Text => {
                    let prompt =
                        classes.texts.prompts().nth(self.class as usize).unwrap_or_default();
                    let texts = model.batch(&vec![prompt; chosen.len()])?;
                    stages.time("gradient", || Ok(at(Input::Texts(&texts), &images)?))?
                }
                Tower::Vision => {
                    let pixels = stages
                        .time("data", || data::load_all(context, &model, &self.forget))?
                        .pixels
                        .f_index_select(0, &rows)?;
                    let toward = away_from_competitors(&images, &class_texts, self.class)?;
                    stages.time("gradient", || Ok(at(Input::Images(&pixels), &toward)?))?
                }
            };
            for (place, of_layer) in places.into_iter().zip(found) {
                gradients[place] = of_layer;
            }
        }
        let _guard = tch::no_grad_guard();
        let (mut factors, mut rank, mut residual) = (Vec::new(), 0, 0.0f64);
        stages.time("factors", || {
            for (name, images) in self.layers.iter().zip(&gradients) {
                context.check_cancelled()?;
                let metric = metric(&inverses, name)?;
                let mut reduced: Vec<Rows> = Vec::with_capacity(images.len());
                for Reduced { rows, total, lost } in
                    metric.reduce_all(images, TOLERANCE, MAX_ROWS)?
                {
                    rank = rank.max(rows.count() as u32);
                    residual = residual.max((lost / total.max(f64::MIN_POSITIVE)).sqrt());
                    reduced.push(rows);
                }
                factors.push(reduced);
            }
            Ok(())
        })?;
        let stored = stages.time("store", || context.put(encode(&self.layers, &factors)?))?;
        let thumbnails = stages.time("thumbnails", || thumbnails::of(context, &self.forget))?;
        Ok(ConstraintsOutput {
            before: forget.before,
            images: chosen.len() as u32,
            factors: stored,
            rank,
            residual,
            said: forget.said,
            thumbnails,
        })
    }
}

/// Returns, for each image, the text of its own class minus the mean text of its competitors: the
/// other classes that score highest on it. `[images, d]`.
fn away_from_competitors(images: &Tensor, classes: &Tensor, class: u32) -> Result<Tensor, Error> {
    let class = i64::from(class);
    let others = classes.size()[0] - 1;
    if others == 0 {
        return Err(Error::Input("the class list has no other class".into()));
    }
    let scores = zero_shot::scores(images, classes)?;
    let _ = scores.f_select(1, class)?.f_fill_(f64::NEG_INFINITY)?;
    let (_, nearest) = scores.f_topk(COMPETITORS.min(others), 1, true, true)?;
    let competitors = classes
        .f_index_select(0, &nearest.f_reshape([-1])?)?
        .f_view([images.size()[0], nearest.size()[1], classes.size()[1]])?
        .f_mean_dim([1].as_slice(), false, Kind::Float)?;
    Ok(classes.f_select(0, class)?.f_sub(&competitors)?)
}

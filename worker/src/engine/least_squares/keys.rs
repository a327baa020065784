//! The keys and residuals of one concept.

use lethe_shared::task::{ForgetImages, Keys, KeysOutput};
use tch::{Kind, Tensor};

use super::{KEYS, MeanStates, Pass, RESIDUALS, for_each_pass, preconditioner, put};
use crate::engine::class_list::ClassList;
use crate::engine::error::Error;
use crate::engine::evaluate;
use crate::engine::forget_set;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments::Matrices;
use crate::engine::thumbnails;
use crate::slug::margin::wide_product;

/// Rows whose share of the keys' energy is below this are left out.
const LEAST_ENERGY: f64 = 1e-6;

impl Perform for Keys {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<KeysOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let classes = stages.time("classes", || ClassList::of(context, &model, &self.classes))?;
        let inverses = stages.time("moments", || Matrices::of(context, &self.inverses))?;
        let (captions, images) = stages.time("images", || {
            if !self.images {
                return Ok((forget_set::captions(context, &self.forget)?, None));
            }
            let forget = forget_set::of(context, &model, &classes, self.class, &self.forget)?;
            Ok((forget.captions, Some((forget.before, forget.said))))
        })?;
        let _guard = tch::no_grad_guard();
        let mean = stages.time("classes", || {
            MeanStates::of(context, &model, &classes, &self.read, self.padding, self.tokens)
        })?;
        let texts = texts(
            classes.texts.prompts().nth(self.class as usize).unwrap_or_default(),
            &captions,
            self.texts as usize,
        );
        let mean = mean.0.get();
        let mut weights = model.parameters.weights();
        if let Some(change) = &self.change {
            for (id, tensor) in evaluate::changed_tensors(context, &model, change)? {
                weights = weights.with(id, tensor.get());
            }
        }
        let (layer, read) = (model.layer(&self.layer)?, model.layer(&self.read)?);
        let pass =
            Pass { model: &model, weights: &weights, padding: self.padding, tokens: self.tokens };
        let is_causal = model.clip.config().text.is_causal;
        let layers: &[_] = if layer == read { &[layer] } else { &[layer, read] };
        let (mut keys, mut residuals) = (Vec::new(), Vec::new());
        stages.time("keys", || {
            for_each_pass(context, &pass, &texts, |texts| {
                pass.each_block(texts, layers, |place, states| {
                    if place == 0 {
                        let inputs = states.inputs.f_to_kind(Kind::Double)?;
                        keys.push(rows(&pass.mapped(texts, &inputs)?, is_causal)?);
                    }
                    if place + 1 == layers.len() {
                        let outputs = states.outputs.f_to_kind(Kind::Double)?;
                        let off = mean.f_sub(&pass.mapped(texts, &outputs)?)?;
                        residuals.push(rows(&off, is_causal)?.f_mul_scalar(self.share)?);
                    }
                    Ok(())
                })
            })
        })?;
        let (keys, residuals) = (Tensor::f_cat(&keys, 0)?, Tensor::f_cat(&residuals, 0)?);
        let (preconditioner, _) = preconditioner(&inverses, &self.layer)?;
        let (keys, residuals) = stages.time("factors", || {
            reduced(&keys, &residuals, &preconditioner, i64::from(self.rows))
        })?;
        let parts = [(KEYS, &keys), (RESIDUALS, &residuals)];
        let factors = stages.time("store", || put(context, &parts))?;
        let images = match images {
            None => None,
            Some((before, said)) => {
                let thumbnails =
                    stages.time("thumbnails", || thumbnails::of(context, &self.forget))?;
                Some(ForgetImages { before, said, thumbnails })
            }
        };
        Ok(KeysOutput { factors, images })
    }
}

/// Returns the mapped states as rows. Of all tokens `[texts, tokens, width]`, the first is left out
/// where attention is causal: it is the same in all texts, and has no residual.
fn rows(states: &Tensor, is_causal: bool) -> Result<Tensor, crate::model::Error> {
    Ok(match states.size()[..] {
        [_, tokens, _] if is_causal => states.f_narrow(1, 1, tokens - 1)?.f_flatten(0, 1)?,
        [_, _, _] => states.f_flatten(0, 1)?,
        _ => states.shallow_clone(),
    })
}

/// Returns the texts of a concept: its class text, then different captions, evenly spaced where
/// there are more than `most`.
fn texts(class: String, captions: &[String], most: usize) -> Vec<String> {
    let mut others: Vec<&String> = Vec::new();
    for caption in captions {
        if *caption != class && !others.contains(&caption) {
            others.push(caption);
        }
    }
    let taken = most.saturating_sub(1).min(others.len());
    let chosen = (0..taken).map(|place| others[place * others.len() / taken].clone());
    [class].into_iter().chain(chosen).collect()
}

/// Returns at most `most` rows with nearly the same KᵀK and KᵀR, over the number of rows: the
/// principal components of the keys, where the preconditioner measures them.
fn reduced(
    keys: &Tensor,
    residuals: &Tensor,
    preconditioner: &Tensor,
    most: i64,
) -> Result<(Tensor, Tensor), Error> {
    let scale = 1.0 / (keys.size()[0].max(1) as f64).sqrt();
    let gram = wide_product(keys, preconditioner)?.f_matmul(&keys.f_transpose(0, 1)?)?;
    // Symmetric but for rounding errors; eigenvalues are in ascending order.
    let gram = gram.f_add(&gram.f_transpose(0, 1)?)?;
    let (values, vectors) = gram.f_linalg_eigh("L")?;
    let values = Vec::<f64>::try_from(values.f_to_device(tch::Device::Cpu)?)?;
    let least = LEAST_ENERGY * values.last().copied().unwrap_or(0.0).max(f64::MIN_POSITIVE);
    let count = values.iter().rev().take_while(|&&value| value > least).count() as i64;
    let count = count.clamp(1, most);
    let to = vectors.f_narrow(1, values.len() as i64 - count, count)?.f_mul_scalar(scale)?;
    let to = to.f_transpose(0, 1)?;
    Ok((to.f_matmul(keys)?, to.f_matmul(residuals)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_class_text_comes_first_and_captions_once() {
        let captions = ["a cat", "cat", "a cat", "cats", "one cat"].map(str::to_owned);
        assert_eq!(texts("cat".into(), &captions, 16), ["cat", "a cat", "cats", "one cat"]);
        assert_eq!(texts("cat".into(), &captions, 3), ["cat", "a cat", "cats"]);
        assert_eq!(texts("cat".into(), &captions, 1), ["cat"]);
        assert_eq!(texts("cat".into(), &[], 4), ["cat"]);
    }

    #[test]
    fn reduced_rows_have_the_same_products() {
        tch::manual_seed(1);
        let random = |rows, columns| Tensor::randn([rows, columns], (Kind::Double, Device::Cpu));
        // Keys of 40 tokens that span three dimensions.
        let keys = random(40, 3).matmul(&random(3, 12));
        let residuals = random(40, 5);
        let half = random(12, 30);
        let (few_keys, few_residuals) =
            reduced(&keys, &residuals, &half.matmul(&half.transpose(0, 1)), 16).unwrap();
        assert_eq!(few_keys.size(), [3, 12]);
        let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-9;
        let turned = keys.transpose(0, 1);
        let few_turned = few_keys.transpose(0, 1);
        assert!(near(&(turned.matmul(&keys) / 40.0), &few_turned.matmul(&few_keys)));
        assert!(near(&(turned.matmul(&residuals) / 40.0), &few_turned.matmul(&few_residuals)));
    }
}

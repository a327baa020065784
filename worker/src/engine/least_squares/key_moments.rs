//! Second moments of the inputs of some layers at the tokens of retained texts.

use std::collections::BTreeMap;

use lethe_shared::task::{KeyMoments, MomentsOutput};
use lethe_shared::vocabulary::TextTokens;
use tch::{Kind, Tensor};

use super::{Pass, for_each_pass};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments;
use crate::model::Input;
use crate::slug::symmetric::SymmetricSum;

impl Perform for KeyMoments {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MomentsOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let layers =
            self.layers.iter().map(|layer| model.layer(layer)).collect::<Result<Vec<_>, _>>()?;
        let mut texts = stages.time("data", || moments::texts(context, &self.source))?;
        if self.tokens == TextTokens::Read {
            // Common beginnings are computed once.
            texts.sort_unstable();
        }
        let device = context.device();
        let sizes = layers
            .iter()
            .map(|&layer| Ok(model.parameters.get(layer).size2()?))
            .collect::<Result<Vec<_>, Error>>()?;
        let zeros = |&(_, inputs): &(i64, i64)| SymmetricSum::zeros(inputs, device);
        let mut sums = sizes.iter().map(zeros).collect::<Result<Vec<_>, _>>()?;
        let mut items = 0;
        stages.time("moments", || {
            let weights = model.parameters.weights();
            let (padding, tokens) = (self.padding, self.tokens);
            let pass = Pass { model: &model, weights: &weights, padding, tokens };
            for_each_pass(context, &pass, &texts, |texts| {
                pass.each_block(texts, &layers, |place, states| {
                    let inputs = states.inputs.f_to_kind(Kind::Float)?;
                    let (inputs, counted, tokens) = match texts {
                        Input::PrefixTree(tree) => {
                            let counts = tree.counts();
                            let tokens = counts.f_sum(Kind::Double)?.f_double_value(&[])?;
                            let counted = inputs.f_mul(&counts.f_unsqueeze(1)?)?;
                            (inputs, counted, tokens as u64)
                        }
                        _ => {
                            let inputs = inputs.f_flatten(0, 1)?;
                            let tokens = inputs.size()[0].unsigned_abs();
                            (inputs.shallow_clone(), inputs, tokens)
                        }
                    };
                    // Every layer sees the same tokens.
                    if place == 0 {
                        items += tokens;
                    }
                    sums[place].add_product(&counted, &inputs)
                })
            })
        })?;
        let mut stored = BTreeMap::new();
        for ((layer, sum), (outputs, _)) in self.layers.iter().zip(sums).zip(sizes) {
            let mut identity = SymmetricSum::zeros(outputs, device)?;
            let eye = Tensor::f_eye(outputs, (Kind::Float, device))?;
            identity.add_product(&eye, &eye)?;
            let file = [
                (moments::tensor_name(layer, moments::Side::Inputs, 0), sum.packed()?),
                (moments::tensor_name(layer, moments::Side::Outputs, 0), identity.packed()?),
            ];
            stored.insert(layer.clone(), stages.time("store", || moments::put(context, &file))?);
        }
        Ok(MomentsOutput { layers: stored, items })
    }
}

//! Second moments of a layer's inputs at the tokens of retained texts.

use std::collections::BTreeMap;

use lethe_shared::task::{KeyMoments, MomentsOutput};
use lethe_shared::vocabulary::TextTokens;
use tch::{Kind, Tensor};

use super::{Pass, for_each_pass, up_to_ends};
use crate::engine::error::Error;
use crate::engine::job_context::{JobContext, Perform, StageTimes};
use crate::engine::loaded_model::LoadedModel;
use crate::engine::moments;
use crate::slug::symmetric::SymmetricSum;

impl Perform for KeyMoments {
    fn perform(
        &self,
        context: JobContext<'_>,
        stages: &mut StageTimes,
    ) -> Result<MomentsOutput, Error> {
        let model = stages.time("model", || LoadedModel::of(context))?;
        let layer = model.layer(&self.layer)?;
        let texts = stages.time("data", || moments::texts(context, &self.source))?;
        let device = context.device();
        let (outputs, inputs) = model.parameters.get(layer).size2()?;
        let mut sum = SymmetricSum::zeros(inputs, device)?;
        let mut items = 0;
        stages.time("moments", || {
            let weights = model.parameters.weights();
            let pass = Pass { model: &model, weights: &weights, padding: self.padding };
            for_each_pass(context, &pass, &texts, |batch| {
                let inputs = pass.block(batch, layer)?.inputs;
                let inputs = match self.tokens {
                    TextTokens::All => inputs.f_flatten(0, 1)?,
                    TextTokens::Read => up_to_ends(batch, &inputs)?,
                };
                let inputs = inputs.f_to_kind(Kind::Float)?;
                items += inputs.size()[0].unsigned_abs();
                sum.add_product(&inputs, &inputs)
            })
        })?;
        let mut identity = SymmetricSum::zeros(outputs, device)?;
        let eye = Tensor::f_eye(outputs, (Kind::Float, device))?;
        identity.add_product(&eye, &eye)?;
        let file = [
            (moments::tensor_name(&self.layer, moments::Side::Inputs, 0), sum.packed()?),
            (moments::tensor_name(&self.layer, moments::Side::Outputs, 0), identity.packed()?),
        ];
        let stored = stages.time("store", || moments::put(context, &file))?;
        Ok(MomentsOutput { layers: BTreeMap::from([(self.layer.clone(), stored)]), items })
    }
}

//! The two losses of which SLUG takes gradients.

use tch::{Kind, Tensor};

use crate::model::Error;

/// Computes the forget loss L_f: the mean over pairs of `1 − cos(v_i, t_i)`, from unit embeddings
/// `[n, d]`. Returns a scalar tensor.
///
/// # Errors
/// When shapes do not match.
pub fn forget(images: &Tensor, texts: &Tensor) -> Result<Tensor, Error> {
    let cosine = images.f_mul(texts)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?;
    Ok(cosine.f_neg()?.f_add_scalar(1.0)?.f_mean(Kind::Float)?)
}

/// Computes the retain loss L_r: the symmetric contrastive loss that CLIP was trained with, with
/// in-batch negatives, from unit embeddings `[n, d]` and the factor on cosines `exp(logit_scale)`.
/// Returns a scalar tensor.
///
/// # Errors
/// When shapes do not match.
pub fn retain(images: &Tensor, texts: &Tensor, scale: &Tensor) -> Result<Tensor, Error> {
    let logits = images.f_matmul(&texts.f_transpose(0, 1)?)?.f_mul(scale)?;
    let own = Tensor::f_arange(images.size()[0], (Kind::Int64, images.device()))?;
    let by_image =
        logits.f_cross_entropy_loss(&own, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)?;
    let by_text = logits.f_transpose(0, 1)?.f_cross_entropy_loss(
        &own,
        None::<&Tensor>,
        tch::Reduction::Mean,
        -100,
        0.0,
    )?;
    Ok(by_image.f_add(&by_text)?.f_mul_scalar(0.5)?)
}

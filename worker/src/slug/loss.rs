//! The losses of which SLUG takes gradients.

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

/// Computes the retain loss L_r of a CLIP: the symmetric contrastive loss that it was trained with,
/// with in-batch negatives, from unit embeddings `[n, d]` and the factor on cosines
/// `exp(logit_scale)`. Returns a scalar tensor.
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

/// Computes the retain loss L_r of a SigLIP, the sigmoid loss that it was trained with (arXiv
/// 2303.15343, equation 1): −Σ_j log σ(z_ij (t cos(v_i, t_j) + b)), the mean over i, where z is 1 for
/// the pairs and −1 for all other combinations of an image and a text of the batch. Takes unit
/// embeddings `[n, d]`, t = `exp(logit_scale)` and b = `logit_bias`; returns a scalar tensor.
///
/// # Errors
/// When shapes do not match.
pub fn retain_sigmoid(
    images: &Tensor,
    texts: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
) -> Result<Tensor, Error> {
    let pairs = images.size()[0];
    let logits = images.f_matmul(&texts.f_transpose(0, 1)?)?.f_mul(scale)?.f_add(bias)?;
    let signs = Tensor::f_eye(pairs, (Kind::Float, images.device()))?
        .f_mul_scalar(2.0)?
        .f_sub_scalar(1.0)?;
    let likelihood = logits.f_mul(&signs)?.f_log_sigmoid()?;
    Ok(likelihood.f_sum(Kind::Float)?.f_neg()?.f_div_scalar(pairs as f64)?)
}

//! One transformer block: attention, then the MLP.

use tch::{Kind, Tensor};

use super::architecture::{Block, Linear, Norm, QueryKeyValue};
use super::batch::at_positions;
use super::config::{Activation, TowerConfig};
use super::error::Error;
use super::prefix_tree::PrefixTree;
use super::state::Tokens;
use super::weights::Weights;

/// Applies a layer norm over the last dimension.
pub(super) fn norm(
    weights: &Weights,
    norm: &Norm,
    x: &Tensor,
    config: &TowerConfig,
) -> Result<Tensor, Error> {
    Ok(x.f_layer_norm(
        [config.width],
        Some(weights.get(norm.gain)),
        Some(weights.get(norm.bias)),
        config.norm_epsilon,
        false,
    )?)
}

fn linear(weights: &Weights, linear: &Linear, x: &Tensor) -> Result<Tensor, Error> {
    let y = weights.linear(
        x,
        &weights.operand(linear.weight)?,
        Some(&weights.operand(linear.bias)?),
    )?;
    weights.record(linear.weight, x, &y)?;
    Ok(y)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, Error> {
    Ok(match activation {
        Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
    })
}

/// Splits `[n, tokens, width]` into heads: `[n, heads, tokens, width / heads]`.
fn heads(x: &Tensor, config: &TowerConfig) -> Result<Tensor, Error> {
    let (n, tokens) = (x.size()[0], x.size()[1]);
    Ok(x.f_view([n, tokens, config.heads, config.width / config.heads])?.f_transpose(1, 2)?)
}

/// The most tokens for which the backward pass of a GPU's fused attention uses a single block and
/// is therefore deterministic.
const ONE_BLOCK: i64 = 64;

/// Computes attention over `[n, heads, tokens, width / heads]`.
fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor, Error> {
    // With several blocks of tokens, the fused backward kernels add partial sums in a varying
    // order, so results differ between calls.
    if query.requires_grad() && query.device().is_cuda() && key.size()[2] > ONE_BLOCK {
        let (attended, _) = Tensor::f_internal_scaled_dot_product_attention_math(
            query,
            key,
            value,
            mask,
            0.0,
            causal,
            None::<&Tensor>,
            None,
            false,
        )?;
        return Ok(attended);
    }
    Ok(Tensor::f_scaled_dot_product_attention(query, key, value, mask, 0.0, causal, None, false)?)
}

/// Applies `count` parts of a fused projection, starting at queries (0), keys (1) or values (2).
fn fused_part(
    weights: &Weights,
    fused: &Linear,
    config: &TowerConfig,
    part: i64,
    count: i64,
    x: &Tensor,
) -> Result<Tensor, Error> {
    let weight =
        weights.operand(fused.weight)?.f_narrow(-2, part * config.width, count * config.width)?;
    let bias =
        weights.operand(fused.bias)?.f_narrow(0, part * config.width, count * config.width)?;
    weights.linear(x, &weight, Some(&bias))
}

/// Returns queries, keys and values of `normed` `[…, tokens, width]`; queries of `queried` instead, if
/// that is given.
fn project(
    weights: &Weights,
    attention: &QueryKeyValue,
    config: &TowerConfig,
    queried: Option<&Tensor>,
    normed: &Tensor,
) -> Result<(Tensor, Tensor, Tensor), Error> {
    let part = |of: &Tensor, number: i64| of.f_narrow(-1, number * config.width, config.width);
    Ok(match (attention, queried) {
        (QueryKeyValue::Split { query, key, value }, _) => (
            linear(weights, query, queried.unwrap_or(normed))?,
            linear(weights, key, normed)?,
            linear(weights, value, normed)?,
        ),
        (QueryKeyValue::Fused(fused), None) => {
            let all = fused_part(weights, fused, config, 0, 3, normed)?;
            (part(&all, 0)?, part(&all, 1)?, part(&all, 2)?)
        }
        (QueryKeyValue::Fused(fused), Some(queried)) => {
            let query = fused_part(weights, fused, config, 0, 1, queried)?;
            let both = fused_part(weights, fused, config, 1, 2, normed)?;
            (query, part(&both, 0)?, part(&both, 1)?)
        }
        (QueryKeyValue::QueryAndFused { query, key_value }, _) => {
            let query = linear(weights, query, queried.unwrap_or(normed))?;
            let both = linear(weights, key_value, normed)?;
            (query, part(&both, 0)?, part(&both, 1)?)
        }
    })
}

/// Brings activations into the shape `[items, tokens, width]`.
fn per_token(tokens: &Tokens, x: &Tensor) -> Result<Tensor, Error> {
    match tokens {
        Tokens::Images | Tokens::Texts(_) => Ok(x.shallow_clone()),
        Tokens::PrefixTree(tree) => tree.to_tokens(x),
    }
}

/// Which tokens of a block to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All tokens.
    All,
    /// The pooled token of each item: after the last block nothing reads the others.
    Pooled,
}

/// Returns the rows of `x` that the rest of the block needs, and the output of the attention heads;
/// both `[…, width]`.
pub(super) fn attention(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
    tokens: &Tokens,
    reach: Reach,
) -> Result<(Tensor, Tensor), Error> {
    match reach {
        Reach::All => Ok((x.shallow_clone(), attention_of_all(weights, block, config, x, tokens)?)),
        Reach::Pooled => attention_of_pooled(weights, block, config, x, tokens),
    }
}

/// Returns the residual stream after attention.
pub(super) fn out_proj(
    weights: &Weights,
    block: &Block,
    x: &Tensor,
    attended: &Tensor,
) -> Result<Tensor, Error> {
    Ok(x.f_add(&linear(weights, &block.out_proj, attended)?)?)
}

/// Returns the activated hidden units of the MLP: `[…, mlp_width]`.
pub(super) fn fc1(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
) -> Result<Tensor, Error> {
    let inner = linear(weights, &block.fc1, &norm(weights, &block.norm2, x, config)?)?;
    activate(config.activation, &inner)
}

/// Returns the residual stream after the MLP.
pub(super) fn fc2(
    weights: &Weights,
    block: &Block,
    x: &Tensor,
    inner: &Tensor,
) -> Result<Tensor, Error> {
    Ok(x.f_add(&linear(weights, &block.fc2, inner)?)?)
}

fn attention_of_all(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
    tokens: &Tokens,
) -> Result<Tensor, Error> {
    let normed = norm(weights, &block.norm1, x, config)?;
    let (query, key, value) = project(weights, &block.attention, config, None, &normed)?;
    let attended = attend(
        &heads(&per_token(tokens, &query)?, config)?,
        &heads(&per_token(tokens, &key)?, config)?,
        &heads(&per_token(tokens, &value)?, config)?,
        None,
        config.is_causal,
    )?;
    let attended = attended.f_transpose(1, 2)?;
    match tokens {
        Tokens::Images | Tokens::Texts(_) => Ok(attended.f_reshape(x.size())?),
        Tokens::PrefixTree(tree) => tree.to_nodes(&attended.f_flatten(2, 3)?),
    }
}

/// Computes attention for the pooled tokens only, or for the query of an attention-pooling head, over
/// the keys and values of all tokens. Returns their input (zero for such a head) and attention
/// output, both `[n, width]`.
fn attention_of_pooled(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
    tokens: &Tokens,
) -> Result<(Tensor, Tensor), Error> {
    let normed = norm(weights, &block.norm1, x, config)?;
    // Row `pooled[i]` of item i; the pooled token of an image is its first.
    let pick = |t: &Tensor| -> Result<Tensor, Error> {
        Ok(match tokens {
            Tokens::Images => t.f_narrow(1, 0, 1)?,
            Tokens::Texts(at) => at_positions(t, at)?,
            Tokens::PrefixTree(tree) => tree.at_pooled(t)?.f_unsqueeze(1)?,
        })
    };
    let one = match block.probe {
        None => pick(&normed)?,
        Some(probe) => weights.get(probe).f_expand([x.size()[0], 1, config.width], false)?,
    };
    let (query, key, value) = project(weights, &block.attention, config, Some(&one), &normed)?;
    let (key, value) = (per_token(tokens, &key)?, per_token(tokens, &value)?);
    // Causal attention: the pooled token attends to itself and to earlier tokens.
    let mask = match tokens {
        _ if !config.is_causal => None,
        Tokens::Images => None,
        Tokens::Texts(at) | Tokens::PrefixTree(PrefixTree { pooled: at, .. }) => {
            let positions = Tensor::f_arange(key.size()[1], (Kind::Int64, x.device()))?;
            Some(positions.f_le_tensor(&at.f_unsqueeze(1)?)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
        }
    };
    let attended = attend(
        &heads(&query, config)?,
        &heads(&key, config)?,
        &heads(&value, config)?,
        mask.as_ref(),
        false,
    )?;
    let attended = attended.f_transpose(1, 2)?.f_reshape([-1, config.width])?;
    let before = match block.probe {
        None => pick(x)?.f_squeeze_dim(1)?,
        Some(_) => Tensor::f_zeros(attended.size(), (Kind::Float, attended.device()))?,
    };
    Ok((before, attended))
}

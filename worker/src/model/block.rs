//! One block of a tower: attention, then the MLP.

use tch::{Kind, Tensor};

use super::architecture::{Block, Linear, Norm, QueryKeyValue};
use super::clip::Tokens;
use super::config::{Activation, TowerConfig};
use super::tree::TokenTree;
use super::{Error, Weights};

/// A layer norm over the last dimension.
pub(super) fn norm(weights: &Weights, norm: &Norm, x: &Tensor, config: &TowerConfig) -> Result<Tensor, Error> {
    Ok(x.f_layer_norm([config.width], Some(weights.get(norm.gain)), Some(weights.get(norm.bias)), config.norm_epsilon, false)?)
}

fn linear(weights: &Weights, linear: &Linear, x: &Tensor) -> Result<Tensor, Error> {
    let y = weights.product(x, &weights.factor(linear.weight)?, Some(&weights.factor(linear.bias)?))?;
    weights.pass(linear.weight, x, &y)?;
    Ok(y)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, Error> {
    Ok(match activation {
        Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?)?,
        Activation::Gelu => x.f_gelu("none")?,
        Activation::GeluTanh => x.f_gelu("tanh")?,
    })
}

/// `[n, tokens, width]` to `[n, heads, tokens, width / heads]`.
fn heads(x: &Tensor, config: &TowerConfig) -> Result<Tensor, Error> {
    let (n, tokens) = (x.size()[0], x.size()[1]);
    Ok(x.f_view([n, tokens, config.heads, config.width / config.heads])?.f_transpose(1, 2)?)
}

/// Tokens whose attention a GPU's fused kernels carry back in one block, and so in one order.
const ONE_BLOCK: i64 = 64;

/// Attention of `[n, heads, tokens, width / heads]`.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, causal: bool) -> Result<Tensor, Error> {
    // Over several blocks of tokens the fused backward passes add up in whatever order they end: other bits every time.
    if query.requires_grad() && query.device().is_cuda() && key.size()[2] > ONE_BLOCK {
        let (attended, _) =
            Tensor::f_internal_scaled_dot_product_attention_math(query, key, value, mask, 0.0, causal, None::<&Tensor>, None, false)?;
        return Ok(attended);
    }
    Ok(Tensor::f_scaled_dot_product_attention(query, key, value, mask, 0.0, causal, None, false)?)
}

/// The part of a fused projection that makes queries (0), keys (1) or values (2); `count` parts from there on.
fn fused_part(weights: &Weights, fused: &Linear, config: &TowerConfig, part: i64, count: i64, x: &Tensor) -> Result<Tensor, Error> {
    let weight = weights.factor(fused.weight)?.f_narrow(-2, part * config.width, count * config.width)?;
    let bias = weights.factor(fused.bias)?.f_narrow(0, part * config.width, count * config.width)?;
    weights.product(x, &weight, Some(&bias))
}

/// What belongs to tokens, as `[items, tokens, width]`.
fn spread(tokens: &Tokens, x: &Tensor) -> Result<Tensor, Error> {
    match tokens {
        Tokens::Images | Tokens::Texts(_) => Ok(x.shallow_clone()),
        Tokens::Tree(tree) => tree.spread(x),
    }
}

/// Which tokens of a block are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All.
    Every,
    /// Those that stand for their items, as nothing reads the others after the last block.
    Pooled,
}

/// The input `x` of a block as far as the block goes on with it, and what its heads give: `[…, width]` both.
pub(super) fn attention(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
    tokens: &Tokens,
    reach: Reach,
) -> Result<(Tensor, Tensor), Error> {
    match reach {
        Reach::Every => Ok((x.shallow_clone(), attention_of_every(weights, block, config, x, tokens)?)),
        Reach::Pooled => attention_of_pooled(weights, block, config, x, tokens),
    }
}

/// The residual stream after attention.
pub(super) fn output(weights: &Weights, block: &Block, x: &Tensor, attended: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_add(&linear(weights, &block.out, attended)?)?)
}

/// Hidden units of the MLP, activated: `[…, mlp_width]`.
pub(super) fn expand(weights: &Weights, block: &Block, config: &TowerConfig, x: &Tensor) -> Result<Tensor, Error> {
    let inner = linear(weights, &block.expand, &norm(weights, &block.norm2, x, config)?)?;
    activate(config.activation, &inner)
}

/// The residual stream after the MLP.
pub(super) fn contract(weights: &Weights, block: &Block, x: &Tensor, inner: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_add(&linear(weights, &block.contract, inner)?)?)
}

fn attention_of_every(weights: &Weights, block: &Block, config: &TowerConfig, x: &Tensor, tokens: &Tokens) -> Result<Tensor, Error> {
    let normed = norm(weights, &block.norm1, x, config)?;
    let (query, key, value) = match &block.attention {
        QueryKeyValue::Split { query, key, value } => {
            (linear(weights, query, &normed)?, linear(weights, key, &normed)?, linear(weights, value, &normed)?)
        }
        QueryKeyValue::Fused(fused) => {
            let mut parts = fused_part(weights, fused, config, 0, 3, &normed)?.f_chunk(3, -1)?.into_iter();
            match (parts.next(), parts.next(), parts.next()) {
                (Some(q), Some(k), Some(v)) => (q, k, v),
                _ => return Err(Error::Tensor { tensor: "in_proj_weight".into(), problem: "does not split into three".into() }),
            }
        }
    };
    let attended = attend(
        &heads(&spread(tokens, &query)?, config)?,
        &heads(&spread(tokens, &key)?, config)?,
        &heads(&spread(tokens, &value)?, config)?,
        None,
        !matches!(tokens, Tokens::Images),
    )?;
    let attended = attended.f_transpose(1, 2)?;
    match tokens {
        Tokens::Images | Tokens::Texts(_) => Ok(attended.f_reshape(x.size())?),
        Tokens::Tree(tree) => tree.gather(&attended.f_flatten(2, 3)?),
    }
}

/// Keys and values of every token, one query: input and heads of the pooled tokens `[n, width]`.
fn attention_of_pooled(
    weights: &Weights,
    block: &Block,
    config: &TowerConfig,
    x: &Tensor,
    tokens: &Tokens,
) -> Result<(Tensor, Tensor), Error> {
    let normed = norm(weights, &block.norm1, x, config)?;
    // Row `pooled[i]` of item i; images pool their first token.
    let pick = |t: &Tensor| -> Result<Tensor, Error> {
        Ok(match tokens {
            Tokens::Images => t.f_narrow(1, 0, 1)?,
            Tokens::Texts(at) => {
                let n = at.size()[0];
                t.f_gather(1, &at.f_view([n, 1, 1])?.f_expand([n, 1, config.width], false)?, false)?
            }
            Tokens::Tree(tree) => tree.at_ends(t)?.f_unsqueeze(1)?,
        })
    };
    let one = pick(&normed)?;
    let (query, key, value) = match &block.attention {
        QueryKeyValue::Split { query, key, value } => {
            (linear(weights, query, &one)?, linear(weights, key, &normed)?, linear(weights, value, &normed)?)
        }
        QueryKeyValue::Fused(fused) => {
            let query = fused_part(weights, fused, config, 0, 1, &one)?;
            let both = fused_part(weights, fused, config, 1, 2, &normed)?;
            (query, both.f_narrow(-1, 0, config.width)?, both.f_narrow(-1, config.width, config.width)?)
        }
    };
    let (key, value) = (spread(tokens, &key)?, spread(tokens, &value)?);
    // The pooled token sees itself and what comes before.
    let mask = match tokens {
        Tokens::Images => None,
        Tokens::Texts(at) | Tokens::Tree(TokenTree { pooled: at, .. }) => {
            let positions = Tensor::f_arange(key.size()[1], (Kind::Int64, x.device()))?;
            Some(positions.f_le_tensor(&at.f_unsqueeze(1)?)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
        }
    };
    let attended = attend(&heads(&query, config)?, &heads(&key, config)?, &heads(&value, config)?, mask.as_ref(), false)?;
    Ok((pick(x)?.f_squeeze_dim(1)?, attended.f_transpose(1, 2)?.f_reshape([-1, config.width])?))
}

//! The names of a CLIP's parameters in every layout: the only list of them.

use crate::vocabulary::Tower;

/// A map in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// The norm before attention.
    Norm1,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Attention's output.
    OutProj,
    /// The norm before the MLP.
    Norm2,
    /// The MLP's first map.
    Fc1,
    /// The MLP's second map.
    Fc2,
}

/// How a tower's parameters are named. Names of tensors are below the tower's prefix; names of maps
/// and norms lack `.weight` and `.bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The prefix in a checkpoint that holds a whole CLIP, with its dot.
    pub prefix: &'static str,
    /// Token embedding or patch embedding.
    pub input: &'static str,
    /// Bias of the patch embedding.
    pub input_bias: Option<&'static str>,
    /// Class embedding, of a vision tower.
    pub class: Option<&'static str>,
    /// Position embedding.
    pub position: &'static str,
    /// Whether it is stored `[1, tokens, width]`.
    pub is_position_batched: bool,
    /// The norm before the first block, of a vision tower.
    pub first_norm: Option<&'static str>,
    /// The norm after the last block.
    pub last_norm: &'static str,
    /// The list of blocks.
    pub block: &'static str,
    /// The maps in a block that have tensors of their own.
    pub maps: &'static [(Map, &'static str)],
    /// What comes before `weight` and `bias` of the tensors that hold queries, keys and values
    /// together, in this order.
    pub fused: Option<&'static str>,
    /// The attention-pooling head, of a SigLIP vision tower.
    pub pool: Option<&'static PoolNames>,
    projection: Option<ProjectionNames>,
}

/// How an attention-pooling head is named, below the tower's prefix. Its first norm is the one after
/// the last block.
#[derive(Debug, PartialEq, Eq)]
pub struct PoolNames {
    /// The learned query.
    pub probe: &'static str,
    /// Queries, where they have tensors of their own.
    pub query: Option<&'static str>,
    /// What comes before `weight` and `bias` of the tensors that hold the others together: keys and
    /// values, after queries that have no tensors of their own.
    pub fused: &'static str,
    /// Attention's output.
    pub out_proj: &'static str,
    /// The norm before the MLP.
    pub norm: &'static str,
    /// The MLP's first map.
    pub fc1: &'static str,
    /// The MLP's second map.
    pub fc2: &'static str,
}

/// The projection into the shared space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProjectionNames {
    /// The end of the prefix that the names lack.
    end: &'static str,
    weight: &'static str,
    bias: Option<&'static str>,
    /// Whether the weight is stored `[in, out]`.
    is_transposed: bool,
}

/// Where the projection into the shared space is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The weight.
    pub weight: String,
    /// The bias, if there is one.
    pub bias: Option<String>,
    /// Whether the weight is stored `[in, out]`.
    pub is_transposed: bool,
}

const SPLIT: &[(Map, &str)] = &[
    (Map::Norm1, "layer_norm1"),
    (Map::Query, "self_attn.q_proj"),
    (Map::Key, "self_attn.k_proj"),
    (Map::Value, "self_attn.v_proj"),
    (Map::OutProj, "self_attn.out_proj"),
    (Map::Norm2, "layer_norm2"),
    (Map::Fc1, "mlp.fc1"),
    (Map::Fc2, "mlp.fc2"),
];
const FUSED: &[(Map, &str)] = &[
    (Map::Norm1, "ln_1"),
    (Map::OutProj, "attn.out_proj"),
    (Map::Norm2, "ln_2"),
    (Map::Fc1, "mlp.c_fc"),
    (Map::Fc2, "mlp.c_proj"),
];
const TIMM: &[(Map, &str)] = &[
    (Map::Norm1, "norm1"),
    (Map::OutProj, "attn.proj"),
    (Map::Norm2, "norm2"),
    (Map::Fc1, "mlp.fc1"),
    (Map::Fc2, "mlp.fc2"),
];

const TRANSFORMERS_TEXT: Names = Names {
    prefix: "text_model.",
    input: "embeddings.token_embedding.weight",
    input_bias: None,
    class: None,
    position: "embeddings.position_embedding.weight",
    is_position_batched: false,
    first_norm: None,
    last_norm: "final_layer_norm",
    block: "encoder.layers",
    maps: SPLIT,
    fused: None,
    pool: None,
    projection: Some(ProjectionNames {
        end: "text_model.",
        weight: "text_projection.weight",
        bias: None,
        is_transposed: false,
    }),
};
const TRANSFORMERS_VISION: Names = Names {
    prefix: "vision_model.",
    input: "embeddings.patch_embedding.weight",
    class: Some("embeddings.class_embedding"),
    // The misspelling is the checkpoint's.
    first_norm: Some("pre_layrnorm"),
    last_norm: "post_layernorm",
    projection: Some(ProjectionNames {
        end: "vision_model.",
        weight: "visual_projection.weight",
        bias: None,
        is_transposed: false,
    }),
    ..TRANSFORMERS_TEXT
};
const SIGLIP_TEXT: Names = Names {
    projection: Some(ProjectionNames {
        end: "",
        weight: "head.weight",
        bias: Some("head.bias"),
        is_transposed: false,
    }),
    ..TRANSFORMERS_TEXT
};
const SIGLIP_VISION: Names = Names {
    input_bias: Some("embeddings.patch_embedding.bias"),
    class: None,
    first_norm: None,
    pool: Some(&PoolNames {
        probe: "head.probe",
        query: None,
        fused: "head.attention.in_proj_",
        out_proj: "head.attention.out_proj",
        norm: "head.layernorm",
        fc1: "head.mlp.fc1",
        fc2: "head.mlp.fc2",
    }),
    projection: None,
    ..TRANSFORMERS_VISION
};
const OPEN_CLIP_TEXT: Names = Names {
    prefix: "",
    input: "token_embedding.weight",
    input_bias: None,
    class: None,
    position: "positional_embedding",
    is_position_batched: false,
    first_norm: None,
    last_norm: "ln_final",
    block: "transformer.resblocks",
    maps: FUSED,
    fused: Some("attn.in_proj_"),
    pool: None,
    projection: Some(ProjectionNames {
        end: "",
        weight: "text_projection",
        bias: None,
        is_transposed: true,
    }),
};
const OPEN_CLIP_VISION: Names = Names {
    prefix: "visual.",
    input: "conv1.weight",
    class: Some("class_embedding"),
    first_norm: Some("ln_pre"),
    last_norm: "ln_post",
    projection: Some(ProjectionNames { end: "", weight: "proj", bias: None, is_transposed: true }),
    ..OPEN_CLIP_TEXT
};
const CUSTOM_TEXT: Names = Names { prefix: "text.", ..OPEN_CLIP_TEXT };
const CUSTOM_TEXT_WITH_BIAS: Names = Names {
    projection: Some(ProjectionNames {
        end: "",
        weight: "text_projection.weight",
        bias: Some("text_projection.bias"),
        is_transposed: false,
    }),
    ..CUSTOM_TEXT
};
const CUSTOM_TEXT_ALONE: Names = Names { projection: None, ..CUSTOM_TEXT };
const TIMM_VISION: Names = Names {
    prefix: "visual.trunk.",
    input: "patch_embed.proj.weight",
    input_bias: Some("patch_embed.proj.bias"),
    class: None,
    position: "pos_embed",
    is_position_batched: true,
    first_norm: None,
    last_norm: "norm",
    block: "blocks",
    maps: TIMM,
    fused: Some("attn.qkv."),
    pool: Some(&PoolNames {
        probe: "attn_pool.latent",
        query: Some("attn_pool.q"),
        fused: "attn_pool.kv.",
        out_proj: "attn_pool.proj",
        norm: "attn_pool.norm",
        fc1: "attn_pool.mlp.fc1",
        fc2: "attn_pool.mlp.fc2",
    }),
    projection: None,
};

/// How a model's tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// As transformers names those of `CLIPModel`.
    Transformers,
    /// As transformers names those of `SiglipModel`.
    Siglip,
    /// As open_clip names those of `CLIP`.
    OpenClip,
    /// As open_clip names those of `CustomTextCLIP`, whose vision tower is its own.
    CustomText,
    /// As open_clip names those of `CustomTextCLIP`, whose vision tower is a SigLIP's of timm.
    CustomTextTimm,
    /// The same, whose text tower has no projection.
    CustomTextAlone,
}

impl Names {
    /// Returns the names of a tower.
    pub fn of(naming: Naming, tower: Tower) -> &'static Self {
        match (naming, tower) {
            (Naming::Transformers, Tower::Text) => &TRANSFORMERS_TEXT,
            (Naming::Transformers, Tower::Vision) => &TRANSFORMERS_VISION,
            (Naming::Siglip, Tower::Text) => &SIGLIP_TEXT,
            (Naming::Siglip, Tower::Vision) => &SIGLIP_VISION,
            (Naming::OpenClip, Tower::Text) => &OPEN_CLIP_TEXT,
            (Naming::OpenClip | Naming::CustomText, Tower::Vision) => &OPEN_CLIP_VISION,
            (Naming::CustomText, Tower::Text) => &CUSTOM_TEXT,
            (Naming::CustomTextTimm, Tower::Text) => &CUSTOM_TEXT_WITH_BIAS,
            (Naming::CustomTextAlone, Tower::Text) => &CUSTOM_TEXT_ALONE,
            (Naming::CustomTextTimm | Naming::CustomTextAlone, Tower::Vision) => &TIMM_VISION,
        }
    }

    /// Returns where the projection of a tower under this prefix is; `None` where a tower has none.
    pub fn projection(&self, prefix: &str) -> Option<Projection> {
        let names = self.projection?;
        let named =
            |name: &str| format!("{}{name}", prefix.strip_suffix(names.end).unwrap_or(prefix));
        Some(Projection {
            weight: named(names.weight),
            bias: names.bias.map(named),
            is_transposed: names.is_transposed,
        })
    }

    /// Returns the name of a map in a block under the tower's own prefix, without `.weight` and
    /// `.bias`; `None` when it has no tensor of its own.
    pub fn map(&self, block: usize, map: Map) -> Option<String> {
        let (_, name) = self.maps.iter().find(|(named, _)| *named == map)?;
        Some(format!("{}{}.{block}.{name}", self.prefix, self.block))
    }
}

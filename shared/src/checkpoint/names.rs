//! The names of CLIP's parameters in both layouts: the only list of them.

use super::choice::Layout;
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

/// How a layout names the parameters of a tower. Names of tensors are below the tower's prefix;
/// names of maps and norms lack `.weight` and `.bias`.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The prefix in a checkpoint that holds a whole CLIP, with its dot.
    pub prefix: &'static str,
    /// Token embedding or patch embedding.
    pub input: &'static str,
    /// Class embedding, of a vision tower.
    pub class: Option<&'static str>,
    /// Position embedding.
    pub position: &'static str,
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
    /// The end of the prefix that the projection's name lacks, and what it has instead.
    projection: (&'static str, &'static str),
    /// Whether the projection is stored `[in, out]`.
    pub is_projection_transposed: bool,
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

const TRANSFORMERS_TEXT: Names = Names {
    prefix: "text_model.",
    input: "embeddings.token_embedding.weight",
    class: None,
    position: "embeddings.position_embedding.weight",
    first_norm: None,
    last_norm: "final_layer_norm",
    block: "encoder.layers",
    maps: SPLIT,
    fused: None,
    projection: ("text_model.", "text_projection.weight"),
    is_projection_transposed: false,
};
const TRANSFORMERS_VISION: Names = Names {
    prefix: "vision_model.",
    input: "embeddings.patch_embedding.weight",
    class: Some("embeddings.class_embedding"),
    position: "embeddings.position_embedding.weight",
    // The misspelling is the checkpoint's.
    first_norm: Some("pre_layrnorm"),
    last_norm: "post_layernorm",
    block: "encoder.layers",
    maps: SPLIT,
    fused: None,
    projection: ("vision_model.", "visual_projection.weight"),
    is_projection_transposed: false,
};
const OPEN_CLIP_TEXT: Names = Names {
    prefix: "",
    input: "token_embedding.weight",
    class: None,
    position: "positional_embedding",
    first_norm: None,
    last_norm: "ln_final",
    block: "transformer.resblocks",
    maps: FUSED,
    fused: Some("attn.in_proj_"),
    projection: ("", "text_projection"),
    is_projection_transposed: true,
};
const OPEN_CLIP_VISION: Names = Names {
    prefix: "visual.",
    input: "conv1.weight",
    class: Some("class_embedding"),
    position: "positional_embedding",
    first_norm: Some("ln_pre"),
    last_norm: "ln_post",
    block: "transformer.resblocks",
    maps: FUSED,
    fused: Some("attn.in_proj_"),
    projection: ("", "proj"),
    is_projection_transposed: true,
};

impl Names {
    /// Returns the names of a tower in a layout.
    pub fn of(layout: Layout, tower: Tower) -> &'static Self {
        match (layout, tower) {
            (Layout::Transformers, Tower::Text) => &TRANSFORMERS_TEXT,
            (Layout::Transformers, Tower::Vision) => &TRANSFORMERS_VISION,
            (Layout::OpenClip, Tower::Text) => &OPEN_CLIP_TEXT,
            (Layout::OpenClip, Tower::Vision) => &OPEN_CLIP_VISION,
        }
    }

    /// Returns the name of the projection of a tower under this prefix.
    pub fn projection(&self, prefix: &str) -> String {
        let (end, name) = self.projection;
        format!("{}{name}", prefix.strip_suffix(end).unwrap_or(prefix))
    }

    /// Returns the name of a map in a block under the tower's own prefix, without `.weight` and
    /// `.bias`; `None` when it has no tensor of its own.
    pub fn map(&self, block: usize, map: Map) -> Option<String> {
        let (_, name) = self.maps.iter().find(|(named, _)| *named == map)?;
        Some(format!("{}{}.{block}.{name}", self.prefix, self.block))
    }
}

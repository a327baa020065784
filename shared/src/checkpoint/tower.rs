//! The weights of a tower by their role, independent of how a layout names and stores them. So an
//! edit of one checkpoint can be applied to another one.
//!
//! Towers are found by structure, under any prefix: each has exactly one embedding. The layouts are
//! `transformers`' (split attention projections), open_clip's (fused ones, projections stored `[in,
//! out]`) and timm's, each with the names that SigLIPs have there.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::Error;
use super::file::TensorInfo;
pub use super::names::Map;
use super::names::{Names, Naming};
use crate::vocabulary::Tower;

/// Most blocks of a tower.
const MAX_BLOCKS: usize = 1024;

/// Weight or bias of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The weight, of a norm its gain.
    Weight,
    /// The bias.
    Bias,
}

/// What a tensor, or a part of one, does in its tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// Token embedding, patch embedding.
    Input,
    /// Class embedding.
    Class,
    /// Position embedding.
    Position,
    /// The norm before the first block.
    FirstNorm(Part),
    /// In this block; an attention-pooling head counts as the block after the last, whose first norm
    /// is [`LastNorm`](Self::LastNorm).
    Block(usize, Map, Part),
    /// The norm after the last block.
    LastNorm(Part),
    /// The projection into the shared space.
    Projection,
}

impl Weight {
    /// Whether it may be edited (`docs/method.md`); gains of norms where `gains` says so.
    pub fn is_candidate(self, gains: bool) -> bool {
        match self {
            Self::Block(_, Map::Norm1 | Map::Norm2, Part::Weight)
            | Self::FirstNorm(Part::Weight)
            | Self::LastNorm(Part::Weight) => gains,
            Self::Block(_, _, Part::Weight) | Self::Projection => true,
            _ => false,
        }
    }
}

/// Where a checkpoint has a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The tensor.
    pub tensor: String,
    /// Which of how many equal parts of its rows, where several weights are stored in one tensor.
    part: Option<(usize, usize)>,
    /// Whether it is stored `[in, out]`.
    transposed: bool,
}

impl Place {
    /// The weight's shape, `[out, in]` for a linear map, in a tensor of this shape.
    pub fn shape(&self, tensor: &[usize]) -> Vec<usize> {
        match (tensor, self.part, self.transposed) {
            ([rows, rest @ ..], Some((_, parts)), _) => [&[rows / parts], rest].concat(),
            ([inputs, outputs], None, true) => vec![*outputs, *inputs],
            (shape, ..) => shape.to_vec(),
        }
    }

    /// The weight's values as they lie in a tensor of this shape, when they lie together in the
    /// weight's own order.
    pub fn range(&self, tensor: &[usize]) -> Option<Range<usize>> {
        let size: usize = tensor.iter().product();
        match self.part {
            _ if self.transposed => None,
            Some((part, parts)) => Some(size / parts * part..size / parts * (part + 1)),
            None => Some(0..size),
        }
    }

    /// The weight's values in its own order, out of those of a tensor of this shape.
    pub fn take(&self, tensor: &[usize], values: &[f64]) -> Vec<f64> {
        match self.range(tensor) {
            Some(range) => values[range].to_vec(),
            None => transpose(values, tensor[0], tensor[1]),
        }
    }

    /// Adds to the weight's values in those of a tensor of this shape.
    pub fn add(&self, tensor: &[usize], values: &mut [f64], change: &[f64]) {
        let mut add = |range: Range<usize>, change: &[f64]| {
            values[range].iter_mut().zip(change).for_each(|(value, change)| *value += change)
        };
        match self.range(tensor) {
            Some(range) => add(range, change),
            None => add(0..change.len(), &transpose(change, tensor[1], tensor[0])),
        }
    }
}

/// The values of a matrix of `rows` and `columns` with both exchanged.
fn transpose(values: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns)
        .flat_map(|column| (0..rows).map(move |row| values[row * columns + column]))
        .collect()
}

/// The prefixes under which these tensors hold a tower.
pub fn prefixes<'a>(tensors: impl Iterator<Item = &'a str>, tower: Tower) -> Vec<String> {
    let anchors: &[&str] = match tower {
        Tower::Text => &["token_embedding.weight"],
        Tower::Vision => {
            &["class_embedding", "embeddings.patch_embedding.weight", "patch_embed.proj.weight"]
        }
    };
    let prefix = |name: &'a str| {
        let before = anchors.iter().find_map(|anchor| name.strip_suffix(anchor))?;
        Some(before.strip_suffix("embeddings.").unwrap_or(before))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
    };
    let mut found: Vec<String> = tensors.filter_map(prefix).map(str::to_owned).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns whether some of these tensors belong to a tower: its embedding, or linear weights of its
/// blocks, also where a quantised or parametrised weight is stored in several tensors. Small
/// adapters of these weights (LoRA) do not count.
///
/// transformers 5 leaves `text_model.` and `vision_model.` out of names, so blocks of an encoder
/// belong to either tower unless a name says which.
pub fn has_part<'a>(tensors: impl Iterator<Item = &'a str>, tower: Tower) -> bool {
    let in_block = |name: &str| {
        let other = match tower {
            Tower::Text => "vision",
            Tower::Vision => "text",
        };
        let is_weight = |(_, map): &(Map, &str)| {
            // What follows may be `weight`, `base_layer.weight` (an adapter's original),
            // `weight._data`, `parametrizations.weight.original1` …
            name.match_indices(map).any(|(at, _)| {
                let end = name[at + map.len()..].strip_prefix('.');
                let starts = at == 0 || name[..at].ends_with('.');
                starts && end.is_some_and(|end| !end.ends_with("bias") && !end.contains("lora_"))
            })
        };
        let of_encoder = name.split_once("encoder.layers.").is_some_and(|(before, _)| {
            (before.is_empty() || before.ends_with('.')) && !before.contains(other)
        });
        (of_encoder && Names::of(Naming::Transformers, tower).maps.iter().any(is_weight))
            || name.split_once("transformer.resblocks.").is_some_and(|(before, _)| {
                let of_vision = before.ends_with("visual.");
                of_vision == (tower == Tower::Vision)
                    && (Names::of(Naming::OpenClip, tower).maps.iter().any(is_weight)
                        || name.ends_with("attn.in_proj_weight"))
            })
    };
    let mut tensors = tensors;
    tensors.any(|name| in_block(name) || !prefixes(std::iter::once(name), tower).is_empty())
}

/// Where a checkpoint has the weights of one of its towers.
#[derive(Debug, Clone)]
pub struct TowerMap {
    tower: Tower,
    prefix: String,
    blocks: usize,
    places: BTreeMap<Weight, Place>,
}

impl TowerMap {
    /// Finds a tower; there must be one.
    ///
    /// # Errors
    /// [`Error::Tower`] when there is none, are several, or lacks a weight.
    pub fn of(tensors: &BTreeMap<String, TensorInfo>, tower: Tower) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Tower { tower: tower.name(), problem };
        let prefixes = prefixes(tensors.keys().map(String::as_str), tower);
        let [prefix] = prefixes.as_slice() else {
            return Err(wrong(match prefixes.as_slice() {
                [] => "is not there".to_owned(),
                several => format!("is there more than once: under `{}`", several.join("`, `")),
            }));
        };
        let named = |name: &str| tensors.contains_key(&format!("{prefix}{name}"));
        let names = names(prefix, tower, tensors);
        let mut found = Finder { tensors, prefix, places: BTreeMap::new(), missing: None };
        found.must(Weight::Input, names.input.to_owned());
        found.must(Weight::Position, names.position.to_owned());
        if let Some(class) = names.class {
            found.must(Weight::Class, class.to_owned());
        }
        if let Some(first_norm) = names.first_norm {
            found.pair(Weight::FirstNorm, first_norm);
        }
        let first = names.maps[0].1;
        let blocks = (0..MAX_BLOCKS)
            .take_while(|i| named(&format!("{}.{i}.{first}.weight", names.block)))
            .count();
        if blocks == 0 {
            return Err(wrong(format!("has no block `{prefix}{}.0`", names.block)));
        }
        for i in 0..blocks {
            let at = format!("{}.{i}", names.block);
            for (map, name) in names.maps {
                found.pair(|part| Weight::Block(i, *map, part), &format!("{at}.{name}"));
            }
            if let Some(fused) = names.fused {
                found.fused(i, &[Map::Query, Map::Key, Map::Value], &format!("{at}.{fused}"));
            }
        }
        // A target that reads the states before its head may lack it.
        if let Some(pool) = names.pool.filter(|pool| named(pool.probe)) {
            for (map, name) in [
                (Map::OutProj, pool.out_proj),
                (Map::Norm2, pool.norm),
                (Map::Fc1, pool.fc1),
                (Map::Fc2, pool.fc2),
            ] {
                found.pair(|part| Weight::Block(blocks, map, part), name);
            }
            match pool.query {
                Some(query) => {
                    found.pair(|part| Weight::Block(blocks, Map::Query, part), query);
                    found.fused(blocks, &[Map::Key, Map::Value], pool.fused);
                }
                None => found.fused(blocks, &[Map::Query, Map::Key, Map::Value], pool.fused),
            }
        }
        found.pair(Weight::LastNorm, names.last_norm);
        if let Some(projection) =
            names.projection(prefix).filter(|projection| tensors.contains_key(&projection.weight))
        {
            found.place(
                Weight::Projection,
                Place {
                    tensor: projection.weight,
                    part: None,
                    transposed: projection.is_transposed,
                },
            );
        }
        match found.missing {
            Some(missing) => Err(wrong(format!("lacks `{missing}`"))),
            None => Ok(Self { tower, prefix: prefix.clone(), blocks, places: found.places }),
        }
    }

    /// Which tower it is.
    pub fn tower(&self) -> Tower {
        self.tower
    }

    /// What the names of its tensors begin with, but for the projection's.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its blocks, without an attention-pooling head.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Where everything is.
    pub fn places(&self) -> &BTreeMap<Weight, Place> {
        &self.places
    }

    /// The weights that a tensor holds; none when it is not of this tower.
    pub fn weights_in<'a>(&'a self, tensor: &'a str) -> impl Iterator<Item = (Weight, &'a Place)> {
        self.places
            .iter()
            .filter(move |(_, place)| place.tensor == tensor)
            .map(|(weight, place)| (*weight, place))
    }
}

/// Returns the names of the tower under this prefix.
fn names(prefix: &str, tower: Tower, tensors: &BTreeMap<String, TensorInfo>) -> &'static Names {
    let has = |name: &str| tensors.contains_key(&format!("{prefix}{name}"));
    let of = |naming| Names::of(naming, tower);
    let is_siglip = match tower {
        Tower::Text => has("head.weight"),
        Tower::Vision => of(Naming::Transformers).class.is_some_and(|class| !has(class)),
    };
    // What tells timm's vision tower from open_clip's, and its text tower from that beside it.
    let timm = match tower {
        Tower::Text => "text_projection.weight",
        Tower::Vision => of(Naming::CustomTextTimm).input,
    };
    of(match has(of(Naming::Transformers).input) {
        true if is_siglip => Naming::Siglip,
        true => Naming::Transformers,
        false if has(timm) => Naming::CustomTextTimm,
        false => Naming::OpenClip,
    })
}

/// Collects places while a layout is gone through.
struct Finder<'a> {
    tensors: &'a BTreeMap<String, TensorInfo>,
    prefix: &'a str,
    places: BTreeMap<Weight, Place>,
    missing: Option<String>,
}

impl Finder<'_> {
    fn must(&mut self, weight: Weight, name: String) {
        self.place(
            weight,
            Place { tensor: format!("{}{name}", self.prefix), part: None, transposed: false },
        );
    }

    /// Adds the maps of a block that one weight and one bias hold together, in this order.
    fn fused(&mut self, block: usize, maps: &[Map], name: &str) {
        for (number, &map) in maps.iter().enumerate() {
            for (part, end) in [(Part::Weight, "weight"), (Part::Bias, "bias")] {
                let tensor = format!("{}{name}{end}", self.prefix);
                let place = Place { tensor, part: Some((number, maps.len())), transposed: false };
                self.place(Weight::Block(block, map, part), place);
            }
        }
    }

    fn pair(&mut self, weight: impl Fn(Part) -> Weight, name: &str) {
        self.must(weight(Part::Weight), format!("{name}.weight"));
        self.must(weight(Part::Bias), format!("{name}.bias"));
    }

    fn place(&mut self, weight: Weight, place: Place) {
        let fits = |info: &TensorInfo| match info.shape.as_slice() {
            [rows, ..] if place.part.is_some_and(|(_, parts)| rows % parts != 0) => false,
            [_, ..] if place.part.is_some() => true,
            [_, _] => true,
            _ => !place.transposed,
        };
        match self.tensors.get(&place.tensor) {
            Some(info) if fits(info) => {
                self.places.insert(weight, place);
            }
            _ => self.missing = self.missing.take().or(Some(place.tensor)),
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn tensors(names: &[String]) -> BTreeMap<String, TensorInfo> {
        let info = || TensorInfo { dtype: Dtype::F32, shape: vec![3, 2], file: 0, range: 0..24 };
        names.iter().map(|name| (name.clone(), info())).collect()
    }

    /// A vision tower of two blocks as transformers names it.
    fn vision(prefix: &str) -> Vec<String> {
        let pairs = |name: &str| [format!("{prefix}{name}.weight"), format!("{prefix}{name}.bias")];
        let mut names: Vec<String> =
            ["class_embedding", "patch_embedding.weight", "position_embedding.weight"]
                .map(|name| format!("{prefix}embeddings.{name}"))
                .into();
        names.extend(["pre_layrnorm", "post_layernorm"].into_iter().flat_map(pairs));
        for i in 0..2 {
            names.extend(
                Names::of(Naming::Transformers, Tower::Vision)
                    .maps
                    .iter()
                    .flat_map(|(_, name)| pairs(&format!("encoder.layers.{i}.{name}"))),
            );
        }
        names
    }

    #[test]
    fn a_tower_is_found_under_any_prefix() {
        for prefix in [
            "vision_model.",
            "vision_tower.vision_model.",
            "model.vision_tower.vision_tower.vision_model.",
            "",
        ] {
            let mut names = vision(prefix);
            names.push("model.layers.0.mlp.fc2.weight".into());
            let map = TowerMap::of(&tensors(&names), Tower::Vision).unwrap();
            assert_eq!((map.blocks(), map.prefix()), (2, prefix));
            let place = &map.places()[&Weight::Block(1, Map::Fc2, Part::Weight)];
            assert_eq!(place.tensor, format!("{prefix}encoder.layers.1.mlp.fc2.weight"));
            assert!(!map.places().contains_key(&Weight::Projection));
            let of: Vec<Weight> = map.weights_in(&place.tensor).map(|(weight, _)| weight).collect();
            assert_eq!(of, [Weight::Block(1, Map::Fc2, Part::Weight)]);
        }
    }

    #[test]
    fn the_head_of_a_siglip_is_the_block_after_the_last() {
        let split = [
            "layer_norm1",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "layer_norm2",
            "mlp.fc1",
            "mlp.fc2",
        ];
        let transformers: Vec<String> = [
            "embeddings.patch_embedding",
            "post_layernorm",
            "head.attention.out_proj",
            "head.layernorm",
            "head.mlp.fc1",
            "head.mlp.fc2",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(split.map(|name| format!("encoder.layers.0.{name}")))
        .flat_map(|name| [format!("v.{name}.weight"), format!("v.{name}.bias")])
        .chain(
            [
                "embeddings.position_embedding.weight",
                "head.probe",
                "head.attention.in_proj_weight",
                "head.attention.in_proj_bias",
            ]
            .map(|name| format!("v.{name}")),
        )
        .collect();
        let timm: Vec<String> = [
            "patch_embed.proj",
            "norm",
            "attn_pool.q",
            "attn_pool.kv",
            "attn_pool.proj",
            "attn_pool.norm",
            "attn_pool.mlp.fc1",
            "attn_pool.mlp.fc2",
            "blocks.0.norm1",
            "blocks.0.attn.qkv",
            "blocks.0.attn.proj",
            "blocks.0.norm2",
            "blocks.0.mlp.fc1",
            "blocks.0.mlp.fc2",
        ]
        .into_iter()
        .flat_map(|name| [format!("v.{name}.weight"), format!("v.{name}.bias")])
        .chain(["v.pos_embed".to_owned(), "v.attn_pool.latent".to_owned()])
        .collect();
        for (names, fc2, value) in [
            (transformers, "v.head.mlp.fc2.weight", ("v.head.attention.in_proj_weight", (2, 3))),
            (timm, "v.attn_pool.mlp.fc2.weight", ("v.attn_pool.kv.weight", (1, 2))),
        ] {
            let mut tensors = tensors(&names);
            tensors.values_mut().for_each(|info| info.shape = vec![6, 2]);
            let map = TowerMap::of(&tensors, Tower::Vision).unwrap();
            assert_eq!((map.blocks(), map.prefix()), (1, "v."));
            let last = Weight::Block(1, Map::Fc2, Part::Weight);
            assert_eq!(map.places()[&last].tensor, fc2);
            let place = &map.places()[&Weight::Block(1, Map::Value, Part::Weight)];
            assert_eq!((place.tensor.as_str(), place.part), (value.0, Some(value.1)));
            tensors.retain(|name, _| !name.contains("head.") && !name.contains("attn_pool."));
            let without = TowerMap::of(&tensors, Tower::Vision).unwrap();
            assert!(without.blocks() == 1 && !without.places().contains_key(&last));
        }
    }

    #[test]
    fn parts_of_a_tower_are_recognised() {
        for (name, text, vision) in [
            ("a.text_model.embeddings.token_embedding.weight", true, false),
            ("text_model.encoder.layers.11.mlp.fc1.weight", true, false),
            ("cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight", true, false),
            ("vision_model.encoder.layers.0.self_attn.q_proj.weight", false, true),
            ("visual.transformer.resblocks.3.mlp.c_fc.weight", false, true),
            (
                "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
                false,
                true,
            ),
            ("text_model.encoder.layers.0.mlp.fc1.lora_A.weight", false, false),
            ("text_model.encoder.layers.0.mlp.fc1.bias", false, false),
            ("text_model.encoder.layers.0.mlp.fc1.weight._data", true, false),
            ("text_model.encoder.layers.0.mlp.fc1.parametrizations.weight.original1", true, false),
            ("encoder.layers.3.mlp.fc1.weight", true, true),
            ("model.vision_tower.encoder.layers.3.self_attn.q_proj.weight", false, true),
            ("text_encoder.encoder.layers.3.self_attn.q_proj.weight", true, false),
            ("model.layers.0.mlp.up_proj.weight", false, false),
            ("down_blocks.0.attentions.0.proj_in.weight", false, false),
            ("encoder.block.0.layer.0.SelfAttention.q.weight", false, false),
            ("class_embedding.linear_1.weight", false, false),
        ] {
            let found =
                [Tower::Text, Tower::Vision].map(|tower| has_part([name].into_iter(), tower));
            assert_eq!(found, [text, vision], "{name}");
        }
    }

    #[test]
    fn none_several_and_broken_towers_are_said() {
        let problem = |names: &[String]| {
            TowerMap::of(&tensors(names), Tower::Vision).unwrap_err().to_string()
        };
        assert!(problem(&[]).contains("is not there"));
        assert!(
            problem(&[vision("a."), vision("b.")].concat())
                .contains("more than once: under `a.`, `b.`")
        );
        let mut names = vision("a.");
        names.retain(|name| name != "a.encoder.layers.1.self_attn.v_proj.bias");
        assert!(problem(&names).contains("lacks `a.encoder.layers.1.self_attn.v_proj.bias`"));
    }

    #[test]
    fn parts_and_transposed_weights_go_there_and_back() {
        let values: Vec<f64> = (0..6).map(f64::from).collect();
        let place = |part, transposed| Place { tensor: String::new(), part, transposed };
        let value = place(Some((2, 3)), false);
        assert_eq!(
            (value.shape(&[3, 2]), value.take(&[3, 2], &values)),
            (vec![1, 2], vec![4.0, 5.0])
        );
        let turned = place(None, true);
        assert_eq!(
            (turned.shape(&[3, 2]), turned.take(&[3, 2], &values)),
            (vec![2, 3], vec![0.0, 2.0, 4.0, 1.0, 3.0, 5.0])
        );
        for place in [value, turned, place(None, false)] {
            let mut sum = vec![0.0; 6];
            place.add(&[3, 2], &mut sum, &place.take(&[3, 2], &values));
            let own = place.take(&[3, 2], &values);
            assert_eq!(place.take(&[3, 2], &sum), own);
            assert_eq!(
                sum.iter().filter(|value| **value != 0.0).count(),
                own.iter().filter(|value| **value != 0.0).count()
            );
        }
    }
}

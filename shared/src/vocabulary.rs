//! Types that manifests, jobs, outcomes and records share.
//!
//! This file imports no other file of the crate, so that each of them can use it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One of CLIP's two towers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tower {
    /// Images.
    Vision,
    /// Texts.
    Text,
}

impl Tower {
    /// Its name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Text => "text",
        }
    }
}

/// Which towers edits may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Towers {
    /// The text tower only: image embeddings do not change.
    #[default]
    Text,
    /// The vision tower only: text embeddings do not change.
    Vision,
    /// Both: each removal is shared between them, or goes to either, as the method has it.
    Both,
}

impl Towers {
    /// Whether this tower is one of them.
    pub fn include(self, tower: Tower) -> bool {
        match self {
            Self::Text => tower == Tower::Text,
            Self::Vision => tower == Tower::Vision,
            Self::Both => true,
        }
    }
}

/// Which tokens of a text an edit acts on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TextTokens {
    /// All tokens of the context, padding included: what a diffusion pipeline reads.
    #[default]
    All,
    /// The token that CLIP reads: the end of the text.
    Read,
}

/// Precision of matrix multiplications in a model's towers. Weights, activations between blocks,
/// sums, directions and edits always have float32 or better.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Float32.
    #[default]
    Float32,
    /// Factors are rounded to TF32 (10 bits of mantissa) on GPUs that support it; a CPU multiplies
    /// in float32.
    Tf32,
    /// Factors and products are rounded to bfloat16 (7 bits of mantissa).
    Bfloat16,
}

impl Precision {
    /// Returns whether all multiplications are in float32.
    pub fn is_float32(&self) -> bool {
        *self == Self::Float32
    }

    /// Its name in manifests and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Tf32 => "tf32",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// When a forget image counts as recognised: by the number of other classes that rank above its
/// own. In manifests and records it is a string: `fa1`, `fa5`, `rank 0.5`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Stop {
    /// Its class ranks first: top-1 forget accuracy.
    Fa1,
    /// Its class is among the first five: top-5 forget accuracy, as used by the authors of SLUG.
    #[default]
    Fa5,
    /// Fewer than this share of the other classes rank above its own.
    Rank(RankShare),
}

/// A share of the other classes, above 0 and below 1, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankShare(u16);

impl RankShare {
    /// Creates a share; `None` unless it is above 0, below 1, and has at most three decimal places.
    pub fn new(share: f64) -> Option<Self> {
        let thousandths = share * 1000.0;
        let whole = thousandths.round();
        ((1.0..1000.0).contains(&whole) && (thousandths - whole).abs() < 1e-6)
            .then_some(Self(whole as u16))
    }

    /// Returns the share.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl Stop {
    /// What a manifest may say.
    pub const EXPECTED: &str = "fa1, fa5, or rank S with 0 < S < 1, for example rank 0.5";

    /// Reads a name; `None` when there is no such measure.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "fa1" => Some(Self::Fa1),
            "fa5" => Some(Self::Fa5),
            other => {
                let share = other.strip_prefix("rank ")?;
                let plain = !share.is_empty()
                    && share.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
                RankShare::new(share.parse().ok().filter(|_| plain)?).map(Self::Rank)
            }
        }
    }

    /// Returns the number k of other classes that must rank above the class of a forget image, of
    /// `others` in all.
    pub fn rank(self, others: u32) -> u32 {
        match self {
            Self::Fa1 => 1,
            Self::Fa5 => 5,
            Self::Rank(share) => {
                ((u64::from(share.0) * u64::from(others)).div_ceil(1000) as u32).max(1)
            }
        }
    }

    /// Its name in manifests.
    pub fn name(self) -> String {
        match self {
            Self::Fa1 => "fa1".to_owned(),
            Self::Fa5 => "fa5".to_owned(),
            Self::Rank(share) => format!("rank {}", share.share()),
        }
    }

    /// The name of the measure in tables: the share of forget images that count as recognised.
    pub fn measure(self) -> String {
        match self {
            Self::Fa1 => "FA@1".to_owned(),
            Self::Fa5 => "FA@5".to_owned(),
            Self::Rank(share) => format!("FA@rank {}", share.share()),
        }
    }
}

impl From<Stop> for String {
    fn from(stop: Stop) -> Self {
        stop.name()
    }
}

impl TryFrom<String> for Stop {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name).ok_or_else(|| {
            let start: String = name.chars().take(40).collect();
            format!("`{}`, expected {}", start.escape_debug(), Self::EXPECTED)
        })
    }
}

impl JsonSchema for Stop {
    fn schema_name() -> Cow<'static, str> {
        "Stop".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "When a forget image counts as recognised: its class ranks first (`fa1`), is among the first five (`fa5`), \
                            or fewer than the share S of the other classes rank above it (`rank S`, 0 < S < 1).",
            "type": "string",
            "pattern": r"^(fa1|fa5|rank 0?\.[0-9]{1,3})$",
        })
    }
}

/// The settings of `[method]` that the jobs of a concept need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodSettings {
    /// Pairs per gradient batch.
    pub batch_size: u32,
    /// Step-size evaluations per front layer.
    pub search_evaluations: u32,
    /// The search ends when the relative width of the bracket is below this.
    pub search_tolerance: f64,
    /// Which forget accuracy has to reach 0.
    pub stop: Stop,
    /// Whether the gains of layer norms are candidates as well.
    pub normalisation_gains: bool,
}

impl MethodSettings {
    /// Checks that every number is in range.
    ///
    /// # Errors
    /// The problem, with the field.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (field, value) in
            [("batch_size", self.batch_size), ("search_evaluations", self.search_evaluations)]
        {
            if value == 0 {
                return Err(format!("{field} is 0"));
            }
        }
        if matches!(self.stop, Stop::Rank(_)) {
            return Err(format!(
                "stop is `{}`, and a step search needs fa1 or fa5",
                self.stop.name()
            ));
        }
        if (0.0..1.0).contains(&self.search_tolerance) {
            Ok(())
        } else {
            Err(format!("search_tolerance is {}", self.search_tolerance))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criteria_have_one_name_each() {
        for name in ["fa1", "fa5", "rank 0.5", "rank 0.001", "rank 0.999"] {
            let stop = Stop::parse(name).unwrap();
            assert_eq!(stop.name(), name);
            assert_eq!(serde_json::from_value::<Stop>(serde_json::json!(name)).unwrap(), stop);
            assert_eq!(serde_json::to_value(stop).unwrap(), name);
        }
        for name in [
            "",
            "FA5",
            "rank",
            "rank ",
            "rank 0",
            "rank 1",
            "rank 1e-1",
            "rank 0.0005",
            "rank NaN",
            "rank -0.5",
            "rank +0.5",
        ] {
            assert_eq!(Stop::parse(name), None, "{name}");
        }
        let error = serde_json::from_value::<Stop>(serde_json::json!("rank 2\u{1b}")).unwrap_err();
        assert!(
            error.to_string().contains(r"`rank 2\u{1b}`, expected fa1, fa5, or rank S"),
            "{error}"
        );
    }

    #[test]
    fn a_share_of_ranks_counts_other_classes() {
        let rank = |name: &str, others: u32| Stop::parse(name).unwrap().rank(others);
        assert_eq!((rank("fa1", 9), rank("fa5", 9)), (1, 5));
        assert_eq!((rank("rank 0.5", 9), rank("rank 0.5", 10), rank("rank 0.001", 10)), (5, 5, 1));
        assert_eq!(rank("rank 0.999", u32::MAX), 4_290_672_328);
    }
}
